"""How good a ranking of a database is, exactly where items tie: expectations over all orders of those that do.

A ranking is a row of groups of items at equal distance, nearest first; within one every order is equally likely
(McSherry & Najork 2008, ECIR: retrieval measures in the presence of tied scores). Symbols, of each query and group:
n items in it and k relevant ones, N and K those in the groups before it, T the relevant ones in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """Groups of each query, nearest first, all (queries, groups) float64; groups may be empty."""

    items: Tensor  # n
    relevant: Tensor  # k

    def __post_init__(self) -> None:
        assert (self.relevant.sum(1) > 0).all()  # a query without any relevant item has neither precision nor recall

    @classmethod
    def by_bits(cls, distances: Tensor, relevant: Tensor, num_bits: int) -> Ranking:
        """distances: (queries, database) integers in 0 … num_bits; relevant: (queries, database) bool."""
        empty = torch.zeros(len(distances), num_bits + 1, dtype=torch.float64, device=distances.device)
        items = empty.scatter_add(1, distances, torch.ones_like(distances, dtype=torch.float64))
        return cls(items, empty.scatter_add(1, distances, relevant.double()))

    @classmethod
    def by_distance(cls, distances: Tensor, relevant: Tensor) -> Ranking:
        """distances: (queries, database) real numbers; equal ones tie."""
        ordered, order = distances.sort(dim=1)
        new = torch.zeros_like(order)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        return cls.by_bits(new.cumsum(1), relevant.gather(1, order), distances.shape[1] - 1)

    def precision_at(self, rank: int) -> Tensor:
        """Expected share of relevant items among the first `rank`, (queries,)."""
        return self._hits(torch.full_like(self.items[:, :1], rank))[:, 0] / rank

    def precision_at_recall(self, recalls: Tensor) -> Tensor:
        """Precision where the recall reaches each of these levels in (0, 1], (queries, levels).

        That takes ⌈recall · T⌉ hits. K + k (m − N) / n are expected of the first m items; m is solved for them.
        """
        hits = (recalls.to(self.items) * self.relevant.sum(1, keepdim=True) - 1e-9).ceil().clamp(min=1)
        found = self.relevant.cumsum(1)
        group = torch.searchsorted(found, hits).clamp(max=found.shape[1] - 1)  # the first with enough
        n, k = self.items.gather(1, group), self.relevant.gather(1, group)
        before = self.items.cumsum(1).gather(1, group) - n
        m = before + n * (hits - (found.gather(1, group) - k)) / k
        return hits / m

    def average_precision(self) -> Tensor:
        """Expected mean of the precision at each relevant item, (queries,).

        Given that the i-th of a group is relevant, K + 1 + (i − 1) c hits are expected up to it, c = (k − 1) / (n − 1):

            1/T Σ_groups k/n Σ_i (K + 1 + (i − 1) c) / (N + i) = 1/T Σ k/n (n c + (K + 1 − c (N + 1)) (H_{N+n} − H_N)),

        where H_m is the m-th harmonic number.
        """
        n, k = self.items, self.relevant
        before, found = n.cumsum(1) - n, k.cumsum(1) - k
        slope = (k - 1) / (n - 1).clamp(min=1)
        total = int(n.sum(1).max())
        harmonic = torch.cat([n.new_zeros(1), (1 / torch.arange(1, total + 1).to(n)).cumsum(0)])
        between = harmonic[(before + n).long()] - harmonic[before.long()]
        terms = k / n.clamp(min=1) * (n * slope + (found + 1 - slope * (before + 1)) * between)
        return terms.sum(1) / k.sum(1)

    def _hits(self, ranks: Tensor) -> Tensor:
        """Expected relevant items among the first of each query's ranks, (queries, ranks); no more than there are."""
        seen = self.items.cumsum(1)
        group = torch.searchsorted(seen, ranks.clamp(max=seen[:, -1:])).clamp(max=seen.shape[1] - 1)
        n, k = self.items.gather(1, group), self.relevant.gather(1, group)
        before = seen.gather(1, group) - n
        return self.relevant.cumsum(1).gather(1, group) - k + k * (ranks.clamp(max=seen[:, -1:]) - before) / n
