"""Noisy rectified linear units (Nair & Hinton 2010, ICML, §2).

One stands for infinitely many binary units with the same weights and biases that step down by 1, from −½ on. Their sum
is close to a rectified draw of a normal variable with the field as its mean:

    x = max(0, y),   y | η ~ N(η, σ(η)),     E[x | η] = η Φ(η/s) + s φ(η/s),     s² = σ(η), the logistic function

Draws and means are all there is: rounding by a normal variable leaves no closed free energy and no density.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from lightning_modules.units import Units


class NoisyRectified(Units):
    """Units of values ≥ 0, T(x) = x. They are trained by differences of energies, and claim no log_prob."""

    value_range = (0.0, math.inf)
    has_density = False
    smallest_mean: ClassVar[float] = 0.001
    _bisections: ClassVar[int] = 50

    def log_base(self, x: Tensor) -> Tensor:
        """Zero: a constant of the energies' differences."""
        return x.new_zeros(x.shape[:-1])

    def statistic(self, x: Tensor) -> Tensor:
        return x

    def log_partition(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        raise ValueError("noisy rectified units have no closed free energy; ask for an energy, a mean or a draw")

    def mean(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        std = torch.sigmoid(field).sqrt()
        scaled = field / std.clamp(min=torch.finfo(field.dtype).tiny)
        density = torch.exp(-scaled.square() / 2) / math.sqrt(2 * math.pi)
        return field * torch.special.ndtr(scaled) + std * density

    def sample(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return torch.addcmul(field, torch.sigmoid(field).sqrt_(), torch.randn_like(field)).clamp_(min=0)

    def draw(self, mean: Tensor) -> Tensor:
        return self.sample(self.field_of_mean(mean))

    def field_of_mean(self, mean: Tensor) -> Tensor:
        """By bisection, as the mean rises with the field; means below 0.001 count as that."""
        wanted = mean.clamp(min=self.smallest_mean)
        low, high = torch.full_like(wanted, -20.0), wanted + 1.0
        for _ in range(self._bisections):
            middle = (low + high) / 2
            above = self.mean(middle) > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2
