"""What is in a folder of shards: exact where the manifest and the labels know it, else from samples drawn evenly.

Samples i · N // n, i < n, of all N are read, each checked against its CRC; n is bounded, so the work is too. Of texts
only some are read: the index of every shard knows all lengths. What is NOT here: how it is shown (flows/data_lines.py,
flows/data_page.py), and whether every byte is as it was written (`strata verify`).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.manifest import Manifest
from data.shard_cache import at_hand
from data.shards import Reader

MAX_SAMPLES = 10_000  # read for histograms
MAX_BYTES = 64 << 20  # of them; fewer samples are read where one is large
MAX_TEXTS = 20  # read
NUM_BINS = 20  # of a histogram of values, where stored numbers are not few
MAX_FEATURES = 24  # of vectors, described one by one
CHUNK = 1 << 21  # values converted at a time


@dataclass(frozen=True)
class Histogram:
    """counts[i] values lie in [edges[i], edges[i + 1]), in the last bin up to its end; at: each bin's only value."""

    counts: np.ndarray
    edges: np.ndarray
    at: np.ndarray | None = None

    @property
    def shares(self) -> np.ndarray:
        return self.counts / max(1, self.counts.sum())

    def to_json(self) -> dict[str, Any]:
        where = {"edges": self.edges.tolist()} if self.at is None else {"values": self.at.tolist()}
        return where | {"counts": self.counts.tolist()}


@dataclass(frozen=True)
class Feature:
    """One value of a vector, in the samples drawn; its mean is that of all samples."""

    name: str
    mean: float
    std: float
    low: float
    high: float
    histogram: Histogram


class Contents:
    """What `strata data` says. Errors: InputError (no finished shards), Damaged (naming the file)."""

    def __init__(self, folder: Path) -> None:
        self.reader = Reader(folder)
        self.manifest: Manifest = self.reader.manifest

    # --- exact ---

    @property
    def num_bytes(self) -> int:
        """Of all files the manifest lists."""
        return sum(size for size, _ in self.manifest.files.values())

    def shards_of(self, set_name: str) -> tuple[int, int]:
        """Number and bytes of a set's tars."""
        names = [shard.name for shard in self.manifest.shards if shard.set_name == set_name]
        return len(names), sum(self.manifest.files[name][0] for name in names)

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Per set the samples of every class; (num_classes,) int64."""
        found = {name: self.manifest.labels(name) for name in self.manifest.sets}
        classes = len(self.manifest.classes)
        return {name: np.bincount(labels[labels >= 0], minlength=classes) for name, labels in found.items()}

    @cached_property
    def class_sizes(self) -> np.ndarray:
        """(num_classes,) samples of every class over all sets."""
        return np.sum(list(self.labels.values()), axis=0)

    @cached_property
    def copies(self) -> dict[tuple[str, str], int]:
        """(set of a copy, set of the first sample of the same content) → how many such copies."""
        pairs = self.manifest.duplicates()
        sets = list(self.manifest.sets)
        ends = np.cumsum([self.manifest.sets[name].samples for name in sets])
        owners = np.searchsorted(ends, pairs, side="right")
        found, counts = np.unique(owners, axis=0, return_counts=True)
        return {(sets[copy], sets[first]): int(n) for (copy, first), n in zip(found, counts, strict=True)}

    @property
    def num_crossing(self) -> int:
        """Copies whose first sample lies in another set."""
        return sum(number for (copy, first), number in self.copies.items() if copy != first)

    @cached_property
    def num_relabeled(self) -> int:
        """Copies that bear another label than the first sample of the same content."""
        pairs = self.manifest.duplicates()
        labels = self.reader.labels()[pairs] if len(pairs) else np.zeros((0, 2))
        return int(((labels[:, 0] != labels[:, 1]) & (labels >= 0).all(axis=1)).sum())

    @cached_property
    def feature_mean(self) -> np.ndarray:
        """Mean of every value over all sets, in a sample's shape."""
        sets = self.manifest.sets
        sums = [self.manifest.feature_mean(name) * found.samples for name, found in sets.items()]
        mean: np.ndarray = np.sum(sums, axis=0) / self.manifest.num_samples
        return mean

    # --- from samples ---

    @cached_property
    def drawn(self) -> np.ndarray:
        """Global numbers of the samples that are read, evenly spread over all."""
        if self.manifest.holds_texts:
            return self._evenly(MAX_TEXTS)
        size = self.manifest.num_values * np.dtype(self.manifest.dtype).itemsize
        return self._evenly(max(1, min(MAX_SAMPLES, MAX_BYTES // max(1, size))))

    def _evenly(self, number: int) -> np.ndarray:
        total = self.manifest.num_samples
        number = min(number, total)
        return np.arange(number, dtype=np.int64) * total // max(1, number)

    @cached_property
    def stored(self) -> np.ndarray:
        """(n, *shape) the drawn samples as stored."""
        return self.reader.read(self.drawn)

    def values(self, rows: np.ndarray) -> np.ndarray:
        """(n, *shape) float32 of some of the drawn samples."""
        return (self.stored[rows] / np.float32(self.manifest.scale)).astype(np.float32)

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """(n, h, w) or (n, h, w, 3) of some of the drawn samples, from 0 (black) to 1; of other channels the first."""
        values = self.values(rows)
        return self.as_pictures(values)

    def as_pictures(self, values: np.ndarray) -> np.ndarray:
        """(n, *shape) values → pictures as above; a range other than [0, 1] is stretched to it."""
        low, high = min(0.0, self.manifest.low), max(1.0, self.manifest.high)
        if (low, high) != (0.0, 1.0):
            low, high = self.manifest.low, self.manifest.high
        values = (values - low) / ((high - low) or 1.0)
        if values.ndim == 3:
            return values
        return np.moveaxis(values, 1, -1) if values.shape[1] == 3 else values[:, 0]

    def _chunks(self) -> Iterator[np.ndarray]:
        """All stored numbers of the drawn samples, some at a time."""
        flat = self.stored.reshape(-1)
        return (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))

    @cached_property
    def histogram(self) -> Histogram:
        """Of all values of the drawn samples; of texts, the lengths in bytes of all of them."""
        manifest = self.manifest
        if manifest.holds_texts:
            return self._lengths()
        scale = manifest.scale
        low, high = round(manifest.low * scale), round(manifest.high * scale)
        if np.dtype(manifest.dtype).kind in "biu" and high - low <= 2 * NUM_BINS:
            steps = np.arange(low, high + 1)
            edges = np.append(steps, high + 1) - 0.5
            counts = sum(np.histogram(chunk.astype(np.int64), edges)[0] for chunk in self._chunks())
            return Histogram(np.asarray(counts), edges / scale, steps / scale)
        edges = _edges(manifest.low, manifest.high)
        counts = sum(np.histogram(chunk.astype(np.float64) / scale, edges)[0] for chunk in self._chunks())
        return Histogram(np.asarray(counts), edges)

    def _lengths(self) -> Histogram:
        """Bins widen, 1, 2, 5, 10, 20, 50, …: lengths of texts differ by powers of ten."""
        manifest = self.manifest
        steps = [0, *itertools.takewhile(lambda edge: edge <= manifest.high, _rounded()), math.ceil(manifest.high) + 1]
        start = max(0, bisect.bisect_right(steps[:-1], manifest.low) - 1)
        edges = np.array(steps[start:])
        counts = np.zeros(len(edges) - 1, np.int64)
        for shard in manifest.shards:
            with at_hand(manifest, shard):
                lengths = manifest.index(shard)["length"].astype(np.int64)
            counts += np.histogram(lengths, edges)[0]
        return Histogram(counts, edges)

    @cached_property
    def share_of_zeros(self) -> float:
        """Of all values of the drawn samples."""
        return 1 - int(np.count_nonzero(self.stored)) / max(1, self.stored.size)

    @cached_property
    def shown_histogram(self) -> Histogram:
        """The histogram without the zeros where these are most of many different values and would hide the others."""
        whole = self.histogram
        if self.zeros_apart:
            counts = whole.counts.copy()
            here = min(max(0, int(np.searchsorted(whole.edges, 0.0, side="right")) - 1), len(counts) - 1)
            counts[here] -= round(self.share_of_zeros * self.stored.size)
            return Histogram(counts, whole.edges)
        return whole

    @property
    def zeros_apart(self) -> bool:
        return not self.manifest.holds_texts and self.histogram.at is None and 0.5 < self.share_of_zeros < 1

    @cached_property
    def num_constant(self) -> int:
        """Values of a sample (pixels, columns) that are the same in all drawn samples; 0 for a single one."""
        if self.manifest.holds_texts or len(self.drawn) == 1:
            return 0
        return int((self.stored == self.stored[:1]).all(axis=0).sum())

    @cached_property
    def features(self) -> list[Feature]:
        """Of vectors: every value described, or those that vary most in the drawn samples."""
        values = self.stored.astype(np.float64) / self.manifest.scale
        names = self.manifest.features() or tuple(f"value {number}" for number in range(values.shape[1]))
        spread = values.std(axis=0)
        chosen = np.sort(np.argsort(-spread, kind="stable")[:MAX_FEATURES])
        found = []
        for column in chosen.tolist():
            own = values[:, column]
            low, high = float(own.min()), float(own.max())
            edges = _edges(low, high)
            shape = Histogram(np.histogram(own, edges)[0], edges)
            mean = float(self.feature_mean[column])
            found.append(Feature(names[column], mean, float(spread[column]), low, high, shape))
        return found

    def rows_of(self, set_name: str, number: int, class_number: int | None = None) -> np.ndarray:
        """Up to so many of the drawn samples, evenly, of a set or of a class of it; as rows of `drawn`."""
        numbers = self.manifest.numbers(set_name)
        inside = (self.drawn >= numbers.start) & (self.drawn < numbers.stop)
        if class_number is not None:
            inside &= self.reader.labels()[self.drawn] == class_number
        rows = np.flatnonzero(inside)
        number = min(number, len(rows))
        return rows[np.arange(number) * len(rows) // max(1, number)]

    @cached_property
    def texts(self) -> list[str]:
        return self.reader.texts(self.drawn)

    def of(self, number: int) -> tuple[str, str, str]:
        """Set, class ('' without one) and source key of a sample."""
        manifest = self.manifest
        shard = manifest.shards[bisect.bisect_right(manifest.shards, number, key=lambda shard: shard.first) - 1]
        label = int(self.reader.labels()[number])
        key = manifest.keys_of(shard)[number - shard.first]
        return shard.set_name, self.class_name(label) if label >= 0 else "", key

    def class_name(self, number: int) -> str:
        classes = self.manifest.classes
        return classes[number] if number < len(classes) else str(number)

    # --- all of it ---

    def to_json(self) -> dict[str, Any]:
        manifest = self.manifest
        sets = {}
        for name, found in manifest.sets.items():
            number, size = self.shards_of(name)
            sets[name] = vars(found) | {"shards": number, "bytes": size, "classes": self.labels[name].tolist()}
        answer: dict[str, Any] = {
            "folder": str(manifest.folder), "source": manifest.source, "samples": manifest.num_samples,
            "shape": list(manifest.shape), "dtype": manifest.dtype, "scale": manifest.scale, "sets": sets,
            "classes": list(manifest.classes), "features": list(manifest.features()), "bytes": self.num_bytes,
            "duplicates": {"copies": manifest.num_duplicates, "across_sets": self.num_crossing,
                           "other_label": self.num_relabeled},
            "samples_digest": manifest.samples_digest, "labels_digest": manifest.labels_digest,
            "content": manifest.content, "digest": manifest.digest, "samples_read": len(self.drawn),
            "lengths" if manifest.holds_texts else "values": self.histogram.to_json(),
        }  # fmt: skip
        return answer


def _edges(low: float, high: float) -> np.ndarray:
    """Of NUM_BINS bins of equal width; one value alone has a bin around it."""
    return np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)


def _rounded() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, …"""
    return (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
