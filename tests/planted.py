"""Data of a planted dictionary: what sparse coding must find again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def planted(
    seed: int, *, number: int = 1500, num_visible: int = 20, num_atoms: int = 50, nonzeros: int = 3
) -> tuple[Tensor, Tensor]:
    """→ atoms (num_atoms, num_visible), signals (number, num_visible): normal weights of a few atoms each, 20 dB."""
    draws = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(num_atoms, num_visible, generator=draws), dim=1)
    chosen = torch.rand(number, num_atoms, generator=draws).topk(nonzeros).indices
    codes = torch.zeros(number, num_atoms).scatter(1, chosen, torch.randn(number, nonzeros, generator=draws))
    clean, noise = codes @ atoms, torch.randn(number, num_visible, generator=draws)
    return atoms, clean + 0.1 * clean.norm() / noise.norm() * noise


def recovered(atoms: Tensor, found: Tensor) -> float:
    """The share of atoms with |cos| > 0.99 to one that was found."""
    return float(((atoms @ F.normalize(found, dim=1).T).abs().amax(1) > 0.99).double().mean())
