"""What a likelihood costs to know: exact enumeration, annealed importance sampling, importance-weighted bounds.

The only place for these; models bring the unnormalised densities. log w are log-weights, Z partition functions; nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_modules.interfaces import Effort, LogLikelihood

MAX_ENUMERATED_UNITS = 20  # 2^20 states of a 784-20 machine take 7 s on one core; every further unit doubles it
_STATES_AT_A_TIME = 4096
_SECTIONS = 25  # of the way from β = 0 to 1, in which a pilot run tells steps apart
PILOT_CHAINS = 25


@dataclass(frozen=True)
class LogPartition:
    """log Z in nats with what the number promises; `std_error` is that of log Z.

    An "estimate" by AIS is low in expectation (Jensen), so that the log-likelihoods it gives flatter the model.
    reverse: log Z by chains that went back along the same temperatures, where there were any.
    """

    nats: float
    kind: Literal["exact", "estimate", "upper_bound"]
    estimator: str
    std_error: float | None = None
    effective_sample_size: float | None = None
    reverse: LogPartition | None = None


def enumerated_log_partition(log_weight: Callable[[Tensor], Tensor], num_units: int, *, like: Tensor) -> LogPartition:
    """log Σ_s exp(log_weight(s)) over all s in {0, 1}^num_units.

    log_weight: (batch, num_units) binary states → (batch,), nats. like: the type and device of the states.
    ValueError above 2^20 states.
    """
    if num_units > MAX_ENUMERATED_UNITS:
        raise ValueError(
            f"enumerating {num_units} binary units means 2^{num_units} states; the limit is 2^{MAX_ENUMERATED_UNITS}, "
            "where it takes seconds: estimate log Z by annealed importance sampling instead"
        )
    chunks = [log_weight(states).double().logsumexp(0) for states in binary_states(num_units, like=like)]
    return LogPartition(nats=torch.stack(chunks).logsumexp(0).item(), kind="exact", estimator="enumeration")


def binary_states(num_units: int, *, like: Tensor) -> Iterator[Tensor]:
    """All of {0, 1}^num_units in chunks (≤ 4096, num_units) of the type and device of `like`."""
    bits = torch.arange(num_units, device=like.device)
    for first in range(0, 2**num_units, _STATES_AT_A_TIME):
        last = min(first + _STATES_AT_A_TIME, 2**num_units)
        numbers = torch.arange(first, last, device=like.device)
        yield ((numbers[:, None] >> bits) & 1).to(like.dtype)


class Annealing(Protocol):
    """Chains on the way from a distribution of known log Z (β = 0) to the target (β = 1), or back.

    log_partition_at_start: log Z₀ in nats, of the distribution at β = 0, whichever way the chains go.
    """

    log_partition_at_start: float

    def log_ratio(self, beta: float, next_beta: float) -> Tensor:
        """log p*_next(x) − log p*_β(x) of each chain where it stands, (num_chains,), nats; next_beta ≥ beta."""
        ...

    def step(self, beta: float) -> None:
        """Moves each chain by a transition that satisfies detailed balance with p_β.

        A Gibbs sweep over two blocks does so, seen from one of them. On the way to β = 1 alone it would be enough that
        the transition leaves p_β unchanged.
        """
        ...


def annealed_importance_sampling(
    chains: Annealing, effort: Effort, *, pilot: Annealing | None = None, back: Annealing | None = None
) -> LogPartition:
    """log Z of the target: log Z₀ + log mean_c w_c,  log w_c = Σ_k log p*_k(x_{k−1}) / p*_{k−1}(x_{k−1})
    (Neal 2001, Stat. Comput. 11; Salakhutdinov & Murray 2008, ICML).

    chains: freshly drawn at β = 0. effort: `num_temperatures` steps of β.
    pilot: others, also freshly drawn, that choose the steps (`equal_steps`); None: steps of equal length.
    back: chains for `reverse_annealed_importance_sampling` along the same temperatures, which then is `reverse` of the
        answer; as many from each start as `reverse_starts` says.

    The standard error is twice the larger of two: that of the delta method, and that of a sum of lognormal variables
    with the variance of the log-weights, s² (Fenton 1960), √log(1 + (exp(s²) − 1) / n). Chains that never met a mode
    leave no trace in the weights, and where a few chains carry the estimate the delta method does not see it.
    Measured on 784-20 machines trained on MNIST (four by PCD, one each by CD-25 and CD-1), log Z by enumeration, 40
    estimates each of 100 chains and 300 temperatures: three of these errors held 39 or 40, three of twice the delta
    method's 33 to 40, three plain ones 16 to 40, with misses of up to 10 of themselves.
    """
    betas = _temperatures(effort, pilot)
    log_weights = _log_weights(chains, betas)
    return LogPartition(
        nats=chains.log_partition_at_start + _log_mean(log_weights),
        kind="estimate",
        estimator=f"AIS ({len(log_weights)} chains, {effort.num_temperatures} temperatures)",
        std_error=_cautious_std_error(log_weights),
        effective_sample_size=_effective_sample_size(log_weights).item(),
        reverse=None if back is None else _reverse(back, betas, reverse_starts(effort)[1], exact=False),
    )


def reverse_annealed_importance_sampling(
    chains: Annealing, effort: Effort, *, chains_per_start: int, pilot: Annealing | None = None, exact: bool = False
) -> LogPartition:
    """log Z from the other side: log Z₀ − mean over states x of log mean_c 1/w_c, of chains from x at β = 1 back to 0
    (Burda, Grosse & Salakhutdinov 2015, AISTATS; Grosse, Ghahramani & Adams 2015, arXiv:1511.02543).

    chains: at states x, `chains_per_start` neighbours at the same one. effort, pilot: as for the way forth.
    exact: whether the states are independent draws from the target. Then the answer is an upper bound in expectation:
        log Z + KL(p ‖ p_ann), where p_ann is what chains on the way forth end with, and Jensen's gap on top.
    With states near such draws it is an estimate, from above as far as they are near: machines that mix slowly
    keep to where their chains began. Started at data and never moved, it makes log p(data) a lower bound of log p_ann,
    not of log p (RAISE): for a 784-20 machine trained by CD-1 on MNIST that was 5 nats above the exact log p, since
    it draws no digits; after as many sweeps as there were temperatures (1000) still 1.2, while it was 0.6 below for one
    trained by PCD.

    The standard error is that of the mean over states, the effective sample size the sum of those at each state.
    """
    return _reverse(chains, _temperatures(effort, pilot), chains_per_start, exact=exact)


def reverse_starts(effort: Effort) -> tuple[int, int]:
    """(states, chains from each) for a reverse run with at most `effort.num_chains` chains."""
    chains_per_start = min(4, effort.num_chains)
    return effort.num_chains // chains_per_start, chains_per_start


def _reverse(chains: Annealing, betas: list[float], chains_per_start: int, *, exact: bool) -> LogPartition:
    log_weights = _log_weights(chains, betas, back=True).view(-1, chains_per_start).t()  # (chains_per_start, states)
    each = math.log(chains_per_start) - (-log_weights).logsumexp(0)
    number = len(each)
    return LogPartition(
        nats=chains.log_partition_at_start + each.mean().item(),
        kind="upper_bound" if exact else "estimate",
        estimator=f"reverse AIS ({number} × {chains_per_start} chains, {len(betas) - 1} temperatures)",
        std_error=(each.var() / number).sqrt().item() if number > 1 else None,
        effective_sample_size=_effective_sample_size(-log_weights).sum().item(),
    )


def _log_weights(chains: Annealing, betas: list[float], *, back: bool = False) -> Tensor:
    """log w of each chain after the way from the first temperature to the last, or back: (num_chains,), float64."""
    total = torch.zeros((), dtype=torch.float64)
    steps = list(pairwise(betas))
    for beta, next_beta in reversed(steps) if back else steps:
        total = total + chains.log_ratio(beta, next_beta).double()
        if 0 < (reached := beta if back else next_beta) < 1:
            chains.step(reached)
    return total


def _temperatures(effort: Effort, pilot: Annealing | None) -> list[float]:
    equal = torch.linspace(0, 1, effort.num_temperatures + 1, dtype=torch.float64).tolist()
    return equal if pilot is None else equal_steps(pilot, effort.num_temperatures)


def equal_steps(pilot: Annealing, num_temperatures: int) -> list[float]:
    """num_temperatures + 1 values of β from 0 to 1, each step adding about the same to the variance of log w.

    The pilot goes a quarter of the steps, 250 at most, all of equal length Δ. In each 25th of the way the variance of
    its log w grows by ζΔ, where ζ is the variance of ∂ log p*_β/∂β times the time in which it decorrelates; a step
    density in proportion to √ζ makes the total smallest (Sivak & Crooks 2012, Phys. Rev. Lett. 108; Gelman & Meng 1998,
    Stat. Sci. 13, for instant mixing). A fifth of the steps are spread evenly all the same: a pilot is short of chains
    and of time. Fewer than 100 temperatures are all of equal length.
    """
    if num_temperatures < 4 * _SECTIONS:
        return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64).tolist()
    per_section = min(10, num_temperatures // (4 * _SECTIONS))
    betas = torch.linspace(0, 1, _SECTIONS * per_section + 1, dtype=torch.float64).tolist()
    steps = []
    for beta, next_beta in pairwise(betas):
        steps.append(pilot.log_ratio(beta, next_beta).double().cpu())
        pilot.step(next_beta)
    each = torch.stack(steps)  # (steps, chains)
    variance = torch.cat([torch.zeros(1), each.cumsum(0).var(1)])[::per_section]
    alone = each.var(1).view(_SECTIONS, per_section).sum(1)
    density = torch.maximum(variance.diff(), alone).sqrt()
    density = 0.8 * density / density.sum().clamp(min=1e-300) + 0.2 / _SECTIONS
    reached = torch.cat([torch.zeros(1), density.cumsum(0)]).numpy()
    wanted = np.linspace(0, reached[-1], num_temperatures + 1)
    found: list[float] = np.interp(wanted, reached, np.linspace(0, 1, _SECTIONS + 1)).tolist()
    return [0.0, *found[1:-1], 1.0]


def normalized(log_weight: Tensor, partition: LogPartition, effort: Effort) -> LogLikelihood:
    """log p(x) = log p*(x) − log Z with what log Z promises; log_weight: log p*(x), (batch,), nats."""
    kinds: dict[str, Literal["exact", "estimate", "lower_bound"]]
    kinds = {"exact": "exact", "estimate": "estimate", "upper_bound": "lower_bound"}
    return LogLikelihood(
        nats=log_weight - partition.nats,
        kind=kinds[partition.kind],
        estimator=partition.estimator,
        effort=effort,
        std_error=partition.std_error,
        effective_sample_size=partition.effective_sample_size,
        reverse=None if partition.reverse is None else normalized(log_weight, partition.reverse, effort),
    )


def bounded(bound: Tensor, partition: LogPartition, effort: Effort, *, name: str) -> LogLikelihood:
    """bound(x) − log Z, where bound(x) ≤ log p*(x): a lower bound of log p(x) unless log Z is an estimate.

    bound: (batch,), or draws whose mean it is, (num_draws, batch), nats; name: what it is called. The standard error
    combines that of the draws (unknown, hence None, for a single one) and that of log Z, whose the effective sample
    size is; `reverse` is the same with the reverse log Z.
    """
    std_error = partition.std_error
    if bound.ndim == 2:
        draws, batch = bound.shape
        sampling = 0.0 if draws < 2 else (bound.var(0).sum() / draws).sqrt().item() / batch
        std_error = None if draws < 2 else math.hypot(sampling, std_error or 0.0)
    return LogLikelihood(
        nats=(bound if bound.ndim == 1 else bound.mean(0)) - partition.nats,
        kind="estimate" if partition.kind == "estimate" else "lower_bound",
        estimator=f"{name}, log Z by {partition.estimator}",
        effort=effort,
        std_error=std_error,
        effective_sample_size=partition.effective_sample_size,
        reverse=None if partition.reverse is None else bounded(bound, partition.reverse, effort, name=name),
    )


def joined(groups: Sequence[tuple[Tensor, LogLikelihood]], what: str) -> LogLikelihood:
    """One answer for groups of examples whose log Z, or whose own likelihoods, were found one by one.

    groups: (which examples, (n,) integers; the answer for these), together all examples. what: names a group.
    The standard error is that of the mean over all examples, groups being independent; the effective sample size is
    the smallest.
    """
    number = sum(len(rows) for rows, _ in groups)
    first = groups[0][1]
    nats = first.nats.new_empty(number)
    for rows, found in groups:
        nats[rows] = found.nats
    errors = [(len(rows) / number, found.std_error) for rows, found in groups]
    sizes = [found.effective_sample_size for _, found in groups if found.effective_sample_size is not None]
    known = [share * error for share, error in errors if error is not None]
    back = [(rows, found.reverse) for rows, found in groups if found.reverse is not None]
    return LogLikelihood(
        nats=nats,
        kind=first.kind,
        estimator=f"{first.estimator} for each of {len(groups)} {what}",
        effort=first.effort,
        std_error=math.hypot(*known) if len(known) == len(groups) else None,
        effective_sample_size=min(sizes, default=None),
        reverse=joined(back, what) if len(back) == len(groups) else None,
    )


def importance_weighted(log_weights: Tensor, effort: Effort) -> LogLikelihood:
    """The importance-weighted bound L_k = E[log (1/k) Σ_s w_s] ≤ log p(x) (Burda, Grosse & Salakhutdinov 2016, ICLR).

    log_weights: (num_samples, batch), log p(x, z_s) − log q(z_s | x) for z_s ~ q. One sample gives the ELBO.
    The standard error, by the delta method, is that of the bound; None with one sample, which says nothing of it.
    The effective sample size is the mean over the batch, between 1 and num_samples.
    """
    num_samples, batch = log_weights.shape
    nats = log_weights.double().logsumexp(0) - math.log(num_samples)
    return LogLikelihood(
        nats=nats.to(log_weights.dtype),
        kind="lower_bound",
        estimator=f"IW-{num_samples}",
        effort=effort,
        std_error=_log_mean_variance(log_weights).sum().sqrt().item() / batch if num_samples > 1 else None,
        effective_sample_size=_effective_sample_size(log_weights).mean().item(),
    )


def _log_mean(log_weights: Tensor) -> float:
    return log_weights.logsumexp(0).item() - math.log(len(log_weights))


def _effective_sample_size(log_weights: Tensor) -> Tensor:
    """(Σ w)² / Σ w² over dimension 0 (Kong, Liu & Wong 1994), between 1 and the number of weights."""
    return log_weights.double().softmax(0).square().sum(0).reciprocal()


def _log_mean_variance(log_weights: Tensor) -> Tensor:
    """Var[log mean w] ≈ Var[w] / (n E[w]²) over dimension 0 by the delta method, for n ≥ 2 weights."""
    number = len(log_weights)
    return (number / _effective_sample_size(log_weights) - 1).clamp(min=0) / (number - 1)


def _cautious_std_error(log_weights: Tensor) -> float | None:
    """Of log mean w, as `annealed_importance_sampling` says; None for a single weight."""
    number = len(log_weights)
    if number < 2:
        return None
    if_lognormal = torch.logaddexp(log_weights.var(), log_weights.new_tensor(math.log(number - 1)))
    return 2 * torch.maximum(_log_mean_variance(log_weights), if_lognormal - math.log(number)).sqrt().item()
