"""Units that stand twice in a machine, for the pretraining of deep Boltzmann machines (Salakhutdinov & Hinton 2009,
AISTATS, §3.1).

Within a deep machine a layer is driven from below and from above; an RBM trained alone knows one of the two sides. It
therefore gets that side twice: two copies of every unit under the same weights and the same bias, an RBM like any other

    E(v, v', h) = −b·(v + v') − c·h − (v + v')ᵀ W h         (visible units doubled; hidden ones likewise)

whose data show the same value in both copies. W is that of one copy, as the deep machine takes it: what the paper
learns as 2W in the layers between and halves in the end is W here from the start.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_modules.units import Bernoulli, Units


class DoubledBernoulli(Units):
    """Two binary units of one field, known by their mean x in {0, ½, 1}: T(x) = 2x, A(η) = 2 softplus(η).

    Their sum is binomial: log_base(x) = log (2 over 2x). `mean` is that of x, half that of T. An intensity in [0, 1] is
    accepted as the expectation of both.
    """

    value_range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self._one = Bernoulli()

    def log_base(self, x: Tensor) -> Tensor:
        return 4 * math.log(2) * (x * (1 - x)).sum(-1)  # 0, log 2, 0 at the three values

    def statistic(self, x: Tensor) -> Tensor:
        return 2 * x

    def log_partition(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return 2 * self._one.log_partition(field)

    def mean(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self._one.mean(field)

    def sample(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self.draw(self.mean(field))

    def draw(self, mean: Tensor) -> Tensor:
        return torch.lerp(self._one.draw(mean), self._one.draw(mean), 0.5)

    def field_of_mean(self, mean: Tensor) -> Tensor:
        return self._one.field_of_mean(mean)
