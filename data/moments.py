"""Count, mean, spread and range of values in one pass, merged exactly over chunks and shards.

Chan, Golub & LeVeque 1983, The American Statistician 37: for two parts with means m₁, m₂ and summed squared deviations
S₁, S₂,  S = S₁ + S₂ + (m₂ − m₁)² n₁n₂ / n,  m = m₁ + (m₂ − m₁) n₂ / n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PIECE_BYTES = 1 << 20  # of float64 worked on at a time, since what fits a core's cache is twice as fast


@dataclass
class Moments:
    """count samples; mean and squares (summed squared deviations) per value, float64; low, high over all values."""

    count: int
    mean: np.ndarray
    squares: np.ndarray
    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def empty(cls, num_values: int) -> Moments:
        return cls(0, np.zeros(num_values), np.zeros(num_values))

    @classmethod
    def of(cls, stored: np.ndarray, scale: float = 1.0) -> Moments:
        """Of the values stored / scale; stored: (n, num_values) numbers, n ≥ 1."""
        mean = _sum(_pieces(stored, scale)) / len(stored)
        squares = _sum((piece - mean) ** 2 for piece in _pieces(stored, scale))
        return cls(len(stored), mean, squares, float(stored.min()) / scale, float(stored.max()) / scale)

    def merge(self, other: Moments) -> None:
        """Takes in another part. The result depends on the order of merging in its last bits only, but it does."""
        total = self.count + other.count
        if total == 0:
            return
        delta = other.mean - self.mean
        self.squares += other.squares + delta**2 * (self.count * other.count / total)
        self.mean += delta * (other.count / total)
        self.count = total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def overall(self) -> tuple[float, float]:
        """Mean and (biased) standard deviation of all values."""
        mean = float(self.mean.mean())
        variance = float(self.squares.mean()) / self.count + float(((self.mean - mean) ** 2).mean())
        return mean, math.sqrt(variance)

    def to_json(self) -> dict[str, Any]:
        """Exact: JSON's shortest decimals give the same doubles back."""
        return {
            "count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist(),
            "low": self.low, "high": self.high,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Moments:
        mean, squares = np.array(value["mean"], np.float64), np.array(value["squares"], np.float64)
        return cls(value["count"], mean, squares, value["low"], value["high"])


def _pieces(stored: np.ndarray, scale: float) -> Iterator[np.ndarray]:
    """The values, float64, some rows at a time."""
    rows = max(1, PIECE_BYTES // (8 * stored.shape[1]))
    for start in range(0, len(stored), rows):
        piece = stored[start : start + rows]
        yield piece.astype(np.float64) if scale == 1 else np.divide(piece, scale, dtype=np.float64)


def _sum(pieces: Iterator[np.ndarray]) -> np.ndarray:
    """The sum of all rows, to the last bit as if they were one array: each is added to the sum of those before it."""
    total = next(pieces).sum(axis=0)
    for piece in pieces:
        total = np.concatenate([total[None], piece]).sum(axis=0)
    return total
