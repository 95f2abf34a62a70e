"""Folders of shards, and raw sources made of arrays at hand, for the tests of shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import conf
from data import durable
from data.sources import Description, RawSource, open_source

DIGITS = conf.DigitsSource(kind="digits")


def digits() -> RawSource:
    return open_source(DIGITS)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which names a process."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


class Given(RawSource):
    """A source made of arrays at hand; two sets, keys of its own, labels that can be changed."""

    def __init__(self, sets: dict[str, np.ndarray], labels: dict[str, list[int]], keys: str = "row {}.é\n") -> None:
        self.tables, self.given, self.pattern = sets, labels, keys
        self.mark = "1"

    def fingerprint(self) -> str:
        return self.mark

    def keys(self, set_name: str) -> Iterator[str]:
        return (self.pattern.format(row) for row in range(len(self.tables[set_name])))

    def labels(self, set_name: str) -> np.ndarray:
        return np.array(self.given[set_name], np.int64)

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        for row in rows:
            yield self.pattern.format(row), self.tables[set_name][row]

    def _describe(self) -> Description:
        first = next(iter(self.tables.values()))[0]
        sizes = {name: len(table) for name, table in self.tables.items()}
        content = durable.digest_value([[name, repr(table)] for name, table in self.tables.items()] + [self.given])
        return Description("given", sizes, sizes, first.shape, first.dtype.name, 2.0, 0.0, 1.0, ("a", "b"), content)


def given(labels: list[int] | None = None, keys: str = "row {}.é\n") -> Given:
    values = np.random.default_rng(1).normal(size=(11, 3, 2)).astype(np.float32)
    return Given(
        {"train": values[:7], "test": values[7:]}, {"train": labels or [0, 1, -1, 0, 1, 0, 1], "test": [1] * 4}, keys
    )
