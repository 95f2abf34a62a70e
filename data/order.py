"""The order of an epoch: a block shuffle, a pure function of (samples, seed, epoch), in memory that does not grow.

    samples   cut into blocks of 8,192 consecutive ones (the last may be shorter)
    blocks    permuted as wholes; 16 of them in their new order make a window
    window    its samples permuted as one

Up to one window (131,072 samples) it is the full permutation. Beyond that a sample may come anywhere in the epoch, but
shares its window with its block: sources sorted by class are mixed over 16 random blocks, not over everything. The
permutations come from data.splits.draw_order, which no version of numpy changes. What is NOT here: batches.
"""

from __future__ import annotations

import numpy as np

from data.selection import Selection
from data.splits import draw_order

BLOCK = 8192  # samples; these two are part of what a stage's result depends on
WINDOW = 16  # blocks


class Order:
    """The samples of one epoch in their order; a slice computes the windows it lies in, and the last one is kept.

    samples: what is put in order, (n,) ascending numbers.
    """

    def __init__(
        self, samples: np.ndarray | Selection, seed: int, epoch: int, *, block: int = BLOCK, window: int = WINDOW
    ) -> None:
        self.samples, self.seed, self.epoch = samples, seed, epoch
        self._block, self._window = block, window
        count = -(-len(samples) // block)
        whole = len(samples) <= block * window
        self._blocks = np.arange(count) if whole else draw_order(count, "blocks", seed, epoch)
        sizes = np.where(self._blocks == count - 1, len(samples) - (count - 1) * block, block)
        starts = np.concatenate([[0], np.cumsum(sizes)])  # of the blocks in their new order
        self._starts = np.append(starts[:-1:window], len(samples))  # of the windows
        self._kept, self._content = -1, np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: slice) -> np.ndarray:
        """(m,) the samples at positions start … stop − 1 of the epoch."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError("an order is sliced in steps of 1")
        pieces = [np.zeros(0, np.int64)]
        while start < stop:
            window = int(np.searchsorted(self._starts, start, side="right")) - 1
            first, end = int(self._starts[window]), min(stop, int(self._starts[window + 1]))
            pieces.append(self._permuted(window)[start - first : end - first])
            start = end
        return np.concatenate(pieces)

    def _permuted(self, window: int) -> np.ndarray:
        if window != self._kept:
            if len(self) <= self._block * self._window:
                content, order = self.samples[:], draw_order(len(self), "epoch", self.seed, self.epoch)
            else:
                blocks = self._blocks[window * self._window : (window + 1) * self._window]
                content = np.concatenate(
                    [self.samples[b * self._block : (b + 1) * self._block] for b in blocks.tolist()]
                )
                order = draw_order(len(content), "window", self.seed, self.epoch, window)
            self._kept, self._content = window, content[order]
        return self._content


class Epochs:
    """The samples of each step: an epoch of N samples has ⌈N / B⌉ steps, of B samples but for the last."""

    def __init__(self, samples: np.ndarray | Selection, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.steps_per_epoch = -(-len(samples) // batch_size)
        self._order: Order | None = None

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order.epoch != epoch:
            self._order = Order(self.samples, self.seed, epoch)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


class Endless:
    """The samples of one epoch after the other, as one sequence without an end."""

    def __init__(self, samples: np.ndarray | Selection, seed: int) -> None:
        if not len(samples):
            raise ValueError("no samples, hence no sequence of them")
        self.samples, self.seed = samples, seed
        self._order = Order(samples, seed, 0)

    def __getitem__(self, part: slice) -> np.ndarray:
        """(stop − start,) the samples at these positions, 0 ≤ start ≤ stop."""
        start, stop = part.start, part.stop
        pieces = [np.zeros(0, np.int64)]
        while start < stop:
            epoch, place = divmod(start, len(self.samples))
            if self._order.epoch != epoch:
                self._order = Order(self.samples, self.seed, epoch)
            pieces.append(self._order[place : place + stop - start])
            start += len(pieces[-1])
        return np.concatenate(pieces)
