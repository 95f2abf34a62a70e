"""Corrupted copies of data, from which a denoising autoencoder learns to bring back the clean ones.

Vincent et al. 2008, ICML; 2010, JMLR 11, §3.3. Symbols: `v` the data, ṽ the corrupted copy.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Noise = Literal["none", "masking", "gaussian", "salt_and_pepper"]


@dataclass(frozen=True)
class Corruption:
    """ṽ ~ q(ṽ | v), each component by itself.

    level: the share of components set to 0 (masking) or, by a fair coin, to 0 or 1 (salt_and_pepper); or the standard
        deviation of what is added (gaussian), in units of the data. 0 where there is no noise, and only there.
    """

    noise: Noise
    level: float

    def __post_init__(self) -> None:
        if self.level < 0 or (self.noise != "gaussian" and self.level > 1):
            raise ValueError(f"noise_level must be 0 or more, and a share at most 1, not {self.level}")
        if (self.noise == "none") != (self.level == 0):
            raise ValueError(f"noise {self.noise!r} and noise_level {self.level} contradict each other")

    def __call__(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_visible)."""
        match self.noise:
            case "none":
                return v
            case "masking":
                return v * (torch.rand_like(v) >= self.level)
            case "gaussian":
                return v + self.level * torch.randn_like(v)
            case "salt_and_pepper":
                hit = torch.rand_like(v) < self.level
                return torch.where(hit, (torch.rand_like(v) < 0.5).to(v.dtype), v)


class Denoises(ABC):
    """Learns from corrupted copies of its data, unless their noise is "none"."""

    corruption: Corruption
