"""Real units with Gaussian noise, of a fixed or a learned variance (Hinton & Salakhutdinov 2006, Science 313;
Krizhevsky 2009, "Learning multiple layers of features from tiny images"; Cho, Ilin & Raiko 2011, ICANN).

Symbols: μ and s, location and scale of each unit; u = (x − μ) / s.

    x | η ~ N(μ + s η, s²),     T(x) = u,     A(η) = η² / 2,     log_base(x) = −u² / 2 − log s − ½ log 2π

Fields are thus measured in standard deviations, whatever the scale of the data: a machine that takes μ and s from the
data works on data of mean 0 and variance 1, and its density is still that of the raw ones.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_modules.units import Units


class Gaussian(Units):
    """Units whose μ and s are 0 and 1 until they are given those of the data.

    num_units: at least 1. learned: whether s is a parameter, learned from there as log s; else it stays.

    s stays above a hundredth of the data's largest: a pixel that is always black would else have an infinite density,
    and its first exception an infinite energy. It stays below that of the data, since values vary no more given the
    hidden units than without them; one outlier, a hundred s away, would else throw it far off.
    """

    smallest_share: ClassVar[float] = 0.01  # of the largest standard deviation: a gray level of 256, for MNIST

    def __init__(self, num_units: int, *, learned: bool = False) -> None:
        super().__init__()
        self.location: Tensor
        self.log_std: Tensor
        self.least_log_std: Tensor
        self.register_buffer("location", torch.zeros(num_units))
        self.register_buffer("least_log_std", torch.tensor(math.log(self.smallest_share)))
        self.most_log_std: Tensor
        self.register_buffer("most_log_std", torch.full((num_units,), math.inf))
        if learned:
            self.log_std = nn.Parameter(torch.zeros(num_units))
        else:
            self.register_buffer("log_std", torch.zeros(num_units))

    def log_base(self, x: Tensor) -> Tensor:
        constant = self.log_std.sum() + x.shape[-1] * math.log(2 * math.pi) / 2
        return -self.statistic(x).square().sum(-1) / 2 - constant

    def statistic(self, x: Tensor) -> Tensor:
        return (x - self.location) * torch.exp(-self.log_std)

    def log_partition(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return field.square().sum(-1) / 2

    def mean(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return torch.addcmul(self.location, torch.exp(self.log_std), field)

    def sample(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self.mean(field + torch.randn_like(field))

    def draw(self, mean: Tensor) -> Tensor:
        return torch.addcmul(mean, torch.exp(self.log_std), torch.randn_like(mean))

    def field_of_mean(self, mean: Tensor) -> Tensor:
        return self.statistic(mean).clone()

    @torch.no_grad()
    def rescale(self, std: Tensor) -> None:
        """s becomes these standard deviations, (num_units,), those below the floor raised to it."""
        if (largest := std.max()) > 0:
            self.least_log_std.copy_((self.smallest_share * largest).log())
            self.log_std.copy_(std.clamp(min=self.smallest_share * largest).log())
            self.most_log_std.copy_(self.log_std)

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """After a step: a learned s stays in its range."""
        if isinstance(self.log_std, nn.Parameter):
            self.log_std.clamp_(self.least_log_std, self.most_log_std)
