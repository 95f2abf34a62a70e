"""Count, mean, spread and range of values in one pass, merged exactly over chunks and shards.

Chan, Golub & LeVeque 1983, The American Statistician 37: for two parts with means m₁, m₂ and summed squared deviations
S₁, S₂,  S = S₁ + S₂ + (m₂ − m₁)² n₁n₂ / n,  m = m₁ + (m₂ − m₁) n₂ / n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    def of(cls, values: np.ndarray) -> Moments:
        """values: (n, num_values) float64, n ≥ 1."""
        mean = values.mean(axis=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(axis=0), float(values.min()), float(values.max()))

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
