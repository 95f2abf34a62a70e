"""Which samples are meant: ascending global numbers, kept as bits, so that a million of them cost 125 kB.

What is NOT here: choosing them (data/splits.py) and their order (data/order.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

TAKEN_AT_A_TIME = 1 << 17
CHUNK = 4096  # numbers between two entries of the table that finds a place among the bits


class Selection:
    """An ascending set of sample numbers. Sliced like an array, it gives one.

    Kept as a bit for every number of a range, plus 8 bytes per 4,096 of them; few numbers of a long range as they are.
    """

    def __init__(self, first: int, chosen: np.ndarray) -> None:
        """Number `first` + i is selected where chosen (n,) bool holds at i."""
        self._length = int(np.count_nonzero(chosen))
        self._first = first
        self._numbers: np.ndarray | None = None
        if self._length * 64 <= len(chosen):  # 8 bytes each is less than a bit for all
            self._numbers = np.flatnonzero(chosen) + first
            return
        self._bits = np.packbits(chosen)
        starts = np.arange(0, len(chosen), CHUNK)
        self._before = np.concatenate([[0], np.cumsum(np.add.reduceat(chosen, starts, dtype=np.int64))])

    @classmethod
    def of(cls, numbers: np.ndarray | Selection) -> Selection:
        """The selection of these numbers, in any order; each counts once."""
        if isinstance(numbers, Selection):
            return numbers
        numbers = np.asarray(numbers, np.int64)
        if not len(numbers):
            return cls(0, np.zeros(0, bool))
        first = int(numbers.min())
        chosen = np.zeros(int(numbers.max()) - first + 1, bool)
        chosen[numbers - first] = True
        return cls(first, chosen)

    @classmethod
    def all(cls, numbers: range) -> Selection:
        return cls(numbers.start, np.ones(len(numbers), bool))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> np.ndarray:
        """(m,) int64: the numbers at places start … stop − 1, by reading only the bits between them."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError("a selection is sliced in steps of 1")
        if self._numbers is not None:
            return self._numbers[start:stop]
        if stop <= start:
            return np.zeros(0, np.int64)
        low = int(np.searchsorted(self._before, start, side="right")) - 1
        high = int(np.searchsorted(self._before, stop - 1, side="right"))
        bits = np.unpackbits(self._bits[low * CHUNK // 8 : high * CHUNK // 8])
        found = np.flatnonzero(bits)[start - self._before[low] : stop - self._before[low]]
        return found + (self._first + low * CHUNK)

    def take(self, places: np.ndarray) -> np.ndarray:
        """(m,) int64: the numbers at these places, which ascend."""
        cuts = np.searchsorted(places, np.arange(0, len(self) + TAKEN_AT_A_TIME, TAKEN_AT_A_TIME))
        found = [np.zeros(0, np.int64)]
        for number, (start, stop) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
            if start < stop:
                first = number * TAKEN_AT_A_TIME
                found.append(self[first : first + TAKEN_AT_A_TIME][places[start:stop] - first])
        return np.concatenate(found)

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK].tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int64)
