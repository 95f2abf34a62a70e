"""log p(v) of a restricted Boltzmann machine: −F(v) − log Z, by enumeration or by annealing from both sides.

A document of D words (`visible: replicated_softmax`) has a Z of its own for each D.
Not here: annealing's arithmetic (`likelihood`) and chains (`annealing`), sums over states (`enumeration`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.annealing import RBMAnnealing
from lightning_modules.bipartite import Bipartite
from lightning_modules.categorical import ReplicatedSoftmax
from lightning_modules.doubled import DoubledBernoulli
from lightning_modules.enumeration import enumerable_units, exact_log_partition
from lightning_modules.interfaces import Effort, LogLikelihood
from lightning_modules.likelihood import (
    MAX_ENUMERATED_UNITS,
    PILOT_CHAINS,
    Annealing,
    LogPartition,
    annealed_importance_sampling,
    joined,
    normalized,
    reverse_starts,
)


def has_density(machine: Bipartite) -> bool:
    """False with noisy rectified units on either side."""
    return machine.visible_units.has_density and machine.hidden_units.has_density


def reads_counts(machine: Bipartite) -> bool:
    """Whether its visible units are the words of documents."""
    return isinstance(machine.visible_units, ReplicatedSoftmax)


def start_field(machine: Bipartite) -> Tensor:
    """Of the independent visible units where chains start: base rates, or the visible bias where none were told."""
    return machine.base_field if machine.base_field.any() else machine.visible_bias


def annealing(
    machine: Bipartite,
    num_chains: int,
    base_field: Tensor | None = None,
    *,
    start: Tensor | None = None,
    replicas: int | None = None,
) -> Annealing:
    """Chains drawn at β = 0, or standing at `start`; arguments as `RBM.annealing`."""
    base_field = start_field(machine) if base_field is None else base_field
    return RBMAnnealing(machine, num_chains, base_field, start, replicas)


def log_partition(
    machine: Bipartite,
    effort: Effort,
    base_field: Tensor | None = None,
    examples: Tensor | None = None,
    replicas: int | None = None,
) -> LogPartition:
    """log Z; arguments and errors as `RBM.log_partition`."""
    _require_density(machine)
    if reads_counts(machine) != (replicas is not None):
        raise ValueError("log Z of documents, and of them alone, is one for a number of words: replicas")
    if enumerable_units(machine) <= MAX_ENUMERATED_UNITS:
        return exact_log_partition(machine, replicas)
    back = None if examples is None else _annealing_back(machine, examples, effort, base_field)
    numbers = (effort.num_chains, PILOT_CHAINS)
    chains, pilot = (annealing(machine, number, base_field, replicas=replicas) for number in numbers)
    return annealed_importance_sampling(chains, effort, pilot=pilot, back=back)


def log_prob(machine: Bipartite, x: Tensor, effort: Effort) -> LogLikelihood:
    """log p(x) with what it promises; as `RBM.log_prob`."""
    _require_density(machine)
    if reads_counts(machine):
        return _log_prob_by_length(machine, x, effort)
    found = normalized(_log_weight(machine, x), log_partition(machine, effort, examples=x), effort)
    if not isinstance(machine.visible_units, DoubledBernoulli):
        return found
    kind: Literal["lower_bound", "estimate"] = "lower_bound" if found.kind == "exact" else "estimate"
    return replace(found, kind=kind, estimator=f"both copies of the visible units, {found.estimator}")


def _log_weight(machine: Bipartite, x: Tensor) -> Tensor:
    return -machine.free_energy(x, machine.hidden_field(x))


def _require_density(machine: Bipartite) -> None:
    if not has_density(machine):
        raise ValueError("an rbm with relu units claims no log_prob: noisy rectified units have no density")


def _annealing_back(machine: Bipartite, examples: Tensor, effort: Effort, base_field: Tensor | None) -> Annealing:
    num_starts, chains_per_start = reverse_starts(effort)
    v = examples[torch.randint(len(examples), (num_starts,), device=examples.device)]
    replicas = machine.visible_units.replicas(v)
    for _ in range(effort.num_temperatures):
        h = machine.hidden_units.sample(machine.hidden_field(v))
        v = machine.visible_units.sample(machine.visible_field(h), replicas)
    start = v.repeat_interleave(chains_per_start, dim=0)
    number = None if replicas is None else int(replicas[0])
    return annealing(machine, len(start), base_field, start=start, replicas=number)


def _log_prob_by_length(machine: Bipartite, x: Tensor, effort: Effort) -> LogLikelihood:
    lengths = x.sum(1).round().long()
    groups = []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        partition = log_partition(machine, effort, examples=x[rows], replicas=length)
        groups.append((rows, normalized(_log_weight(machine, x[rows]), partition, effort)))
    return joined(groups, "numbers of words")
