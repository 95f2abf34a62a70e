"""Units of several states, of which exactly one is on: alone, or as the words of a document (Salakhutdinov, Mnih &
Hinton 2007, ICML; Salakhutdinov & Hinton 2009, NIPS 22, "Replicated softmax").

A group of K values with the fields η has the probabilities softmax(η) and A(η) = log Σ_k exp η_k.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.units import Units


class Softmax(Units):
    """Groups of K values side by side, of each of which exactly one is 1 and the others are 0; T(x) = x.

    num_units: all values together, a multiple of `num_states`. num_states: K, at least 2.
    """

    value_range = (0.0, 1.0)
    smallest_mean: ClassVar[float] = 0.001

    def __init__(self, num_units: int, num_states: int) -> None:
        super().__init__()
        if num_states < 2:
            raise ValueError(f"num_states must be at least 2, not {num_states}")
        if num_units % num_states:
            raise ValueError(f"softmax units come in groups of num_states: {num_units} is no multiple of {num_states}")
        self.num_states = num_states

    def require(self, x: Tensor) -> None:
        """ValueError where x, (batch, num_units), are no states."""
        if not ((x == 0) | (x == 1)).all() or not (self._groups(x).sum(-1) == 1).all():
            raise ValueError(f"softmax units are states: of every {self.num_states} values one is 1, all others are 0")

    def _groups(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.num_states))  # (batch, groups, num_states)

    def log_base(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    def statistic(self, x: Tensor) -> Tensor:
        return x

    def log_partition(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self._groups(field).logsumexp(-1).sum(-1)

    def mean(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self._groups(field).softmax(-1).flatten(-2)

    def sample(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self.draw(self.mean(field))

    def draw(self, mean: Tensor) -> Tensor:
        shares = self._groups(mean)
        state = torch.multinomial(shares.reshape(-1, self.num_states), 1).view(shares.shape[:-1])
        return functional.one_hot(state, self.num_states).to(mean.dtype).flatten(-2)

    def field_of_mean(self, mean: Tensor) -> Tensor:
        """log of the shares, those below 0.001 raised to that; fields of a group are equal up to a constant."""
        return mean.clamp(min=self.smallest_mean).log()


class ReplicatedSoftmax(Units):
    """A document: D words, each one softmax unit over the K words of the vocabulary, all with the same field.

    x: (batch, K), how often each word occurs; D = Σ_k x_k is `replicas`; T(x) = x, A(η, D) = D log Σ_k exp η_k.
    Densities are those of the D words in their order, as the paper has them; counts alone would add log D!/Π_k x_k!.
    Where D is not given, it is 1: a mean is then the distribution of a word.
    """

    value_range = (0.0, math.inf)
    smallest_mean: ClassVar[float] = 1e-6  # words a document

    def require(self, x: Tensor) -> None:
        """ValueError where x, (batch, num_words), are no counts."""
        if not (x == x.round()).all():
            raise ValueError("replicated_softmax units are counts of words, but there are values between whole numbers")

    def log_base(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    def statistic(self, x: Tensor) -> Tensor:
        return x

    def replicas(self, x: Tensor) -> Tensor:
        """D, (batch, K) → (batch, 1)."""
        return x.sum(-1, keepdim=True)

    def log_partition(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        each = field.logsumexp(-1)
        return each if replicas is None else replicas[..., 0] * each

    def mean(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        shares = field.softmax(-1)
        return shares if replicas is None else shares.mul_(replicas)

    def sample(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self._words(field.softmax(-1), field.new_ones(len(field), 1) if replicas is None else replicas)

    def draw(self, mean: Tensor) -> Tensor:
        number = mean.sum(-1, keepdim=True)
        return self._words(mean / number, number)

    def field_of_mean(self, mean: Tensor) -> Tensor:
        """log of the mean counts: exp of it adds up to the mean number of words."""
        return mean.clamp(min=self.smallest_mean).log()

    def _words(self, shares: Tensor, number: Tensor) -> Tensor:
        """Counts of `number` words drawn from `shares`: (batch, K) and (batch, 1) → (batch, K).

        All words of a batch are looked up at once, in the rows' distribution functions put end to end.
        """
        batch, num_words = shares.shape
        reached = shares.double().cumsum(-1)
        row = torch.arange(batch, device=shares.device)
        reached = reached / reached[:, -1:] + row[:, None]  # row n ends at n + 1 exactly
        document = row.repeat_interleave(number[:, 0].round().long())
        chance = torch.rand(len(document), dtype=torch.float64, device=shares.device)
        wanted = document + chance.clamp_(max=1 - 1e-9)  # else rounding could lead into the next row
        word = torch.searchsorted(reached.flatten(), wanted, right=True)
        return torch.bincount(word, minlength=batch * num_words).view(batch, num_words).to(shares.dtype)
