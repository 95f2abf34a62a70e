"""Samples of equal content, found by a sort of their digests on disk: memory stays flat however many there are.

Digests are dealt into bucket files by their first bits, so that equal ones meet; each bucket is then sorted in memory.
What is NOT here: what becomes of duplicates (data/splits.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.manifest import Shard

BUCKET = 1 << 16  # samples in a bucket, about, as long as MAX_BUCKETS are enough: 6 MiB while it is sorted
MAX_BUCKETS = 1024
ROW = np.dtype([("high", ">u8"), ("low", ">u8"), ("number", "<i8")])


def find_duplicates(folder: Path, shards: Sequence[Shard], index: Callable[[Shard], np.ndarray]) -> np.ndarray:
    """(k, 2) int64, sorted: the number of every sample whose content an earlier one has, and the first such number.

    Two contents count as equal when the first 128 bits of their SHA-256 are. Temporary files lie in `folder`.
    """
    total = sum(shard.count for shard in shards)
    num_buckets = min(-(-total // BUCKET), MAX_BUCKETS)
    with _empty(folder / ".duplicates") as place:
        files = [place / str(number) for number in range(num_buckets)]
        waiting, size = [], 0
        for shard in shards:
            waiting.append(_rows(shard, index(shard)))
            size += shard.count
            if size >= BUCKET or shard is shards[-1]:  # many at once: a file is opened for each bucket
                _deal(np.concatenate(waiting), files)
                waiting, size = [], 0
        found = [_in_bucket(np.fromfile(file, ROW)) for file in files if file.exists()]
    pairs = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    return pairs[np.argsort(pairs[:, 0])]


def _rows(shard: Shard, index: np.ndarray) -> np.ndarray:
    rows = np.zeros(shard.count, ROW)
    digests = np.ascontiguousarray(index["digest"]).view(">u8")
    rows["high"], rows["low"] = digests[:, 0], digests[:, 1]
    rows["number"] = np.arange(shard.first, shard.first + shard.count)
    return rows


def _deal(rows: np.ndarray, files: list[Path]) -> None:
    """Appends each row to the file of its bucket, which the first 24 bits of its digest name."""
    owners = (rows["high"] >> np.uint64(40)).astype(np.int64) * len(files) >> 24
    order = np.argsort(owners, kind="stable")
    cuts = np.searchsorted(owners[order], np.arange(len(files) + 1))
    for number, (start, stop) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
        if start < stop:
            with files[number].open("ab") as file:
                file.write(rows[order[start:stop]].tobytes())


@contextmanager
def _empty(place: Path) -> Iterator[Path]:
    """A folder for the time of the block; a kill leaves it to the next try."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    yield place
    shutil.rmtree(place)


def _in_bucket(rows: np.ndarray) -> np.ndarray:
    rows = rows[np.lexsort((rows["number"], rows["low"], rows["high"]))]
    same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    group = np.cumsum(np.concatenate([[True], ~same])) - 1
    later = np.flatnonzero(same) + 1
    numbers = rows["number"]
    return np.stack([numbers[later], numbers[starts[group[later]]]], axis=1).astype(np.int64)
