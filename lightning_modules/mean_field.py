"""Mean-field inference as a search for a fixed point, sample by sample.

What is NOT here: the sweeps, which are a machine's own (`deep_boltzmann`, `boltzmann_machine`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def settled(
    means: Sequence[Tensor], sweep: Callable[[list[Tensor]], list[Tensor]], *, steps: int, tolerance: float
) -> list[Tensor]:
    """The means after at most `steps` sweeps; a sample is done when a sweep moved none of its means by more than
    `tolerance`, and no sample depends on the others in its batch. Differentiable, sweep by sweep.

    means: where to start, (batch, num_units) each, any number of groups. sweep: the means → better ones.
    """
    means = list(means)
    moving = torch.ones(len(means[0]), 1, dtype=torch.bool, device=means[0].device)
    for _ in range(steps):
        better = [torch.where(moving, new, old) for new, old in zip(sweep(means), means, strict=True)]
        with torch.no_grad():
            moves = [(new - old).abs().amax(1, keepdim=True) for new, old in zip(better, means, strict=True)]
            moving = torch.cat(moves, dim=1).amax(1, keepdim=True) > tolerance
        means = better
        if not moving.any():
            break
    return means
