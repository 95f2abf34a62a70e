"""Families of units, one a class, that a layer can be made of (Welling, Rosen-Zvi & Hinton 2005, NIPS 17).

A layer of independent units that receive the field η (what is added up before the nonlinearity) has the density

    p(x | η) = exp(log_base(x) + η·T(x) − A(η)),     A(η) = log ∫ exp(log_base(x) + η·T(x)) dx

with the statistic T, linear in x up to a constant, and the log-partition A, whose derivative is T(E[x | η]). A
Boltzmann machine's energy is linear in the statistics, so that these functions are all it needs to know of its units.

Some units stand for a number D of like ones that get the same field, as the words of a document do: `replicas`. Then
A(η, D) = D A(η), and D copies of a unit weigh D times as much in the biases of the units they are connected to.

Weights are not here; real units are in `gaussian`, units of several states in `categorical`, rectified ones in
`rectified`, their names in recipes in `families`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_modules.draws import bernoulli


class Units(nn.Module, ABC):
    """A layer's worth of independent units of one family; the last dimension of every tensor is the unit.

    replicas, where a method takes them: (batch, 1), None for one each.
    """

    value_range: ClassVar[tuple[float, float] | None] = None  # the interval values must lie in
    has_density: ClassVar[bool] = True  # False: draws alone are defined, `log_base` and `log_partition` are not

    @abstractmethod
    def log_base(self, x: Tensor) -> Tensor:
        """The part of log p that no field changes, summed over units: (batch, num_units) → (batch,), nats."""

    @abstractmethod
    def statistic(self, x: Tensor) -> Tensor:
        """T(x), what the weights see: (batch, num_units) → (batch, num_units)."""

    def replicas(self, x: Tensor) -> Tensor | None:
        """How many like units x stands for, (batch, num_units) → (batch, 1); None: one each."""
        return None

    @abstractmethod
    def log_partition(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        """A(η) summed over units: (batch, num_units) → (batch,), nats. ValueError where there is no density."""

    @abstractmethod
    def mean(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        """E[x | η], (batch, num_units) → (batch, num_units)."""

    @abstractmethod
    def sample(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        """One draw given the field, (batch, num_units) → (batch, num_units)."""

    @abstractmethod
    def draw(self, mean: Tensor) -> Tensor:
        """One draw of units that have this mean, (batch, num_units) → (batch, num_units)."""

    @abstractmethod
    def field_of_mean(self, mean: Tensor) -> Tensor:
        """The field under which units have this mean, the inverse of `mean`, kept finite at the ends of the range."""

    def log_prob(self, x: Tensor, field: Tensor) -> Tensor:
        """log p(x | η) summed over units: (batch, num_units) twice → (batch,), nats."""
        return self.log_base(x) + (field * self.statistic(x)).sum(-1) - self.log_partition(field, self.replicas(x))


class Bernoulli(Units):
    """Binary units, p(x = 1 | η) = σ(η), on the counting measure of {0, 1}; T(x) = x, A(η) = softplus(η).

    Intensities in [0, 1] are accepted as the expectations of binary data; their density is that of no distribution.
    """

    value_range = (0.0, 1.0)
    smallest_mean: ClassVar[float] = 0.001  # pixels that are never on in the data start at a field of −6.9, not −∞

    def log_base(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    def statistic(self, x: Tensor) -> Tensor:
        return x

    def log_partition(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return functional.softplus(field).sum(-1)

    def mean(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return torch.sigmoid(field)

    def sample(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self.draw(torch.sigmoid(field))

    def draw(self, mean: Tensor) -> Tensor:
        return bernoulli(mean)

    def field_of_mean(self, mean: Tensor) -> Tensor:
        """log p / (1 − p) (Hinton 2010, "A practical guide to training RBMs", §8) for p within [0.001, 0.999]."""
        return torch.logit(mean, eps=self.smallest_mean)
