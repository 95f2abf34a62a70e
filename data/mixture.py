"""Several shard sets read as one, each with its weight.

After s steps of B samples set i with weight w has given s·B·w / Σw of them, rounded by largest remainders over these
running totals, so a step's samples are a pure function of the step. Every set runs through epochs of its own, each
sample once in each; an epoch of the mixture has ⌈N / B⌉ steps, N the samples of all sets together. Sample numbers go
on from one set to the next. What is NOT here: batches (data/loading.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from data.order import Endless
from data.selection import Selection
from data.shards import Reader

APART = 1 << 31  # between the seeds of two sets: recipes' own are smaller


class Readers:
    """Random access to the samples of several folders with samples of one shape."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = list(readers)
        self.firsts = np.cumsum([0, *map(len, self.readers)])[:-1]

    def values(self, indices: np.ndarray) -> np.ndarray:
        """(n, num_values) float32, in the order of `indices` (n,), numbers that go on from folder to folder."""
        result = np.empty((len(indices), self.readers[0].manifest.num_values), np.float32)
        owners = np.searchsorted(self.firsts, indices, side="right") - 1
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            result[places] = self.readers[owner].values(indices[places] - self.firsts[owner])
        return result


class Mixture:
    """The samples of each step, drawn from several sets.

    samples: of each set, numbered in its own folder; firsts: what is added to them; weights > 0, such that each set
    gives a sample a step or more (else ValueError: rounded totals could fall).
    """

    def __init__(
        self,
        samples: Sequence[np.ndarray | Selection],
        firsts: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
    ) -> None:
        self.sets = [Endless(these, seed + number * APART) for number, these in enumerate(samples)]
        self.firsts, self.batch_size = list(firsts), batch_size
        exact = [Fraction(str(weight)) for weight in weights]
        self.shares = [weight / sum(exact) for weight in exact]
        if min(self.shares) * batch_size < 1:
            raise ValueError(f"a share of {float(min(self.shares)):g} is no whole sample in a batch of {batch_size}")
        self.steps_per_epoch = -(-sum(map(len, samples)) // batch_size)

    def drawn(self, steps: int) -> list[int]:
        """How many samples each set has given after so many steps."""
        total = steps * self.batch_size
        exact = [total * share for share in self.shares]
        counts = [int(value) for value in exact]
        by_remainder = sorted(range(len(exact)), key=lambda number: (counts[number] - exact[number], number))
        for number in by_remainder[: total - sum(counts)]:
            counts[number] += 1
        return counts

    def __getitem__(self, step: int) -> np.ndarray:
        """(B,) sample numbers; the sets alternate evenly, so that every rank's piece is a mixture too."""
        pieces, places = [], []
        bounds = zip(self.sets, self.firsts, self.drawn(step), self.drawn(step + 1), strict=True)
        for endless, first, start, stop in bounds:
            pieces.append(endless[start:stop] + first)
            places.append((np.arange(stop - start) + 0.5) / max(stop - start, 1))
        return np.concatenate(pieces)[np.argsort(np.concatenate(places), kind="stable")]
