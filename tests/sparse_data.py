"""Data made of few atoms each, and a short training on them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.interfaces import Model


def planted(samples: int, num_visible: int, num_atoms: int, noise: float = 0.02) -> tuple[Tensor, Tensor]:
    """(samples, num_visible) of which each is three atoms and noise; and the atoms, (num_atoms, num_visible)."""
    generator = torch.Generator().manual_seed(num_visible)
    atoms = F.normalize(torch.randn(num_atoms, num_visible, generator=generator))
    chosen = torch.rand(samples, num_atoms, generator=generator).argsort(dim=1) < 3
    codes = chosen * torch.randn(samples, num_atoms, generator=generator)
    return codes @ atoms + noise * torch.randn(samples, num_visible, generator=generator), atoms


def descend(model: Model, x: Tensor, *, epochs: int, rate: float = 0.01, batch_size: int = 100) -> None:
    """Adam at a rate that falls to 0."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * (len(x) // batch_size)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        start = step * batch_size % (len(x) - batch_size + 1)
        model.losses(x[start : start + batch_size])["loss"].backward()
        optimizer.step()
        model.after_step()
