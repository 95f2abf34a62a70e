"""The names that ways of estimating an RBM's gradient have in recipes, and what each needs."""

from __future__ import annotations

import torch

from lightning_modules.bipartite import Bipartite
from lightning_modules.enumeration import Enumeration, enumerable_units
from lightning_modules.likelihood import MAX_ENUMERATED_UNITS
from lightning_modules.negative_phase import (
    ContrastiveDivergence,
    FastPersistentChains,
    NegativePhase,
    PersistentChains,
)
from lightning_modules.tempering import ParallelTempering

ALGORITHMS = ("cd", "pcd", "fast_pcd", "parallel_tempering", "exact")
SERVES = {  # arguments of an `RBM` that not every algorithm uses, and those that do
    "gibbs_steps": ("cd", "pcd", "fast_pcd", "parallel_tempering"),
    "num_chains": ("pcd", "fast_pcd", "parallel_tempering"),
    "fast_learning_rate": ("fast_pcd",),
    "num_temperatures": ("parallel_tempering",),
}


def idle_arguments(algorithm: str) -> dict[str, str]:
    """Those that mean nothing to an algorithm → which one they need."""
    return {name: f"algorithm: {' or '.join(served)}" for name, served in SERVES.items() if algorithm not in served}


def negative_phase(
    algorithm: str,
    machine: Bipartite,
    gibbs_steps: int,
    num_chains: int,
    fast_learning_rate: float,
    num_temperatures: int,
) -> NegativePhase:
    """A negative phase by name, its chains where they start. Arguments: see `RBM`. ValueError."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
    if not fast_learning_rate > 0:
        raise ValueError(f"fast_learning_rate must be positive, not {fast_learning_rate}")
    if num_temperatures < 2:
        raise ValueError(f"num_temperatures must be at least 2, not {num_temperatures}")
    units = machine.visible_units, machine.hidden_units
    if algorithm in ("parallel_tempering", "exact") and not all(family.has_density for family in units):
        raise ValueError(f"algorithm: {algorithm} compares probabilities, but relu units have no density")
    num_visible, num_hidden = machine.weights.shape
    if algorithm == "exact":
        if enumerable_units(machine) > MAX_ENUMERATED_UNITS:
            raise ValueError(
                "algorithm: exact sums over all states of the smaller layer of bernoulli units, at most "
                f"2^{MAX_ENUMERATED_UNITS}; {num_visible} × {num_hidden} units are too many: choose pcd"
            )
        return Enumeration()
    if algorithm == "cd":
        return ContrastiveDivergence(gibbs_steps)
    replicas = (num_temperatures,) if algorithm == "parallel_tempering" else ()
    chains = machine.visible_units.sample(torch.zeros(num_chains, *replicas, num_visible))
    if algorithm == "parallel_tempering":
        return ParallelTempering(gibbs_steps, chains)
    if algorithm == "fast_pcd":
        return FastPersistentChains(gibbs_steps, chains, num_hidden=num_hidden, learning_rate=fast_learning_rate)
    return PersistentChains(gibbs_steps, chains)
