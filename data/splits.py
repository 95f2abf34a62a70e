"""Which samples a recipe trains on: partitions by the hash of a sample's key, and the few labels that are revealed.

Nothing here depends on a machine, a numpy version or other samples: a file added to a source moves no other sample
to another part, and orders come from the raw output of a counter-based generator, which NumPy fixes for ever (NEP 19;
`Generator.permutation` it does not).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Literal, Protocol

import numpy as np

import conf
from conf.errors import InputError
from data import durable
from data.selection import Selection
from data.shards import Manifest, Reader
from data.sources import SETS

KEYS_AT_A_TIME = 10_000
DRAWN_AT_A_TIME = 1 << 17
NO_PART = -1


def draw_order(count: int, purpose: str, *numbers: int) -> np.ndarray:
    """A permutation of 0 … count − 1 that is a pure function of its arguments (Philox keyed by their SHA-256)."""
    return np.argsort(_stream(purpose, *numbers).random_raw(count), kind="stable")


def _stream(purpose: str, *numbers: int) -> np.random.Philox:
    return np.random.Philox(key=int(durable.digest_value([purpose, *numbers])[:32], 16))


class Divisible(Protocol):
    """What can be partitioned: a manifest, or a raw source that is still to be ingested."""

    @property
    def sets(self) -> Mapping[str, object]: ...

    def numbers(self, set_name: str) -> range: ...

    def keys(self, set_name: str) -> Iterator[str]: ...


def divide(
    shards: Divisible | Reader, split: conf.Split, without: Collection[str] = frozenset()
) -> dict[str, Selection]:
    """The samples of "train", "validation" and "test"; any of them may be empty. `without`: names of shards left out.

    A set the source has is taken as it is. Otherwise a sample of the source's train set belongs to test with
    probability `split.test`, and one that does not, to validation with probability `split.validation`, by hashes of its
    key; the parts' sizes are therefore only about right. Samples `KEY#0`, `KEY#1` … are parts of one thing and stay
    together. Of samples with the same content, if `split.duplicates` is
    "drop", only one stays: in test, else in validation, else in train, there the first; a raw source does not know
    them yet. Errors: Damaged (a list of keys, the list of duplicates).
    """
    whole = shards.manifest if isinstance(shards, Reader) else shards
    part_of = np.concatenate([np.full(len(whole.numbers(name)), number, np.int8) for number, name in enumerate(SETS)])
    if isinstance(whole, Manifest):
        for shard in whole.shards:
            if shard.name in without:
                part_of[shard.first : shard.first + shard.count] = NO_PART
    asked = {name: getattr(split, name) for name in ("test", "validation") if name not in whole.sets}
    _draw(whole, {name: share for name, share in asked.items() if share > 0}, part_of, without)
    if split.duplicates == "drop" and isinstance(whole, Manifest):
        _drop_duplicates(whole.duplicates(), part_of)
    return {name: Selection(0, part_of == number) for number, name in enumerate(SETS)}


def partition(
    shards: Divisible | Reader, split: conf.Split, without: Collection[str] = frozenset()
) -> dict[str, np.ndarray]:
    """`divide`, as global sample numbers (sorted int64)."""
    return {name: selection[:] for name, selection in divide(shards, split, without).items()}


def _draw(whole: Divisible, shares: Mapping[str, float], part_of: np.ndarray, without: Collection[str]) -> None:
    """Each purpose in turn takes its share of the train set's samples that are left."""
    train = part_of[: len(whole.numbers("train"))]
    for first, keys in _keys(whole, without) if shares and not (train == NO_PART).all() else ():
        rows = np.flatnonzero(train[first : first + len(keys)] != NO_PART)
        for purpose, share in shares.items():
            chosen = _below([keys[row] for row in rows.tolist()], purpose, share)
            train[first + rows[chosen]] = SETS.index(purpose)
            rows = rows[~chosen]


def _drop_duplicates(pairs: np.ndarray, part_of: np.ndarray) -> None:
    """pairs: (n, 2) a sample, and the first of its content; see `divide`."""
    firsts = np.unique(pairs[:, 1])
    samples, contents = np.concatenate([firsts, pairs[:, 0]]), np.concatenate([firsts, pairs[:, 1]])
    there = part_of[samples] != NO_PART
    samples, contents = samples[there], contents[there]
    order = np.lexsort([samples, -part_of[samples], contents])  # SETS ends with test
    again = np.diff(contents[order]) == 0
    part_of[samples[order][1:][again]] = NO_PART


def _keys(whole: Divisible, without: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    """The keys of the train set, some at a time, each list with the row of its first key."""
    if isinstance(whole, Manifest):
        for shard in whole.shards:
            if shard.set_name == "train" and shard.name not in without:
                yield shard.row, whole.keys_of(shard)
        return
    first, keys = 0, whole.keys("train")
    while some_keys := list(islice(keys, KEYS_AT_A_TIME)):
        yield first, some_keys
        first += len(some_keys)


def _below(keys: list[str], purpose: str, share: float) -> np.ndarray:
    """(n,) bool: for which keys the hash of (purpose, key), in [0, 1), is below share."""
    begun, digests = hashlib.sha256(f"{purpose}\0".encode()), []
    for key in keys:  # 0.4 µs each: a copy of what is begun costs half of a new hash
        own = begun.copy()
        own.update((_whole(key) if "#" in key else key).encode())
        digests.append(own.digest())
    return np.frombuffer(b"".join(digests), ">u8")[::4] < int(share * 2**64)


def _whole(key: str) -> str:
    """The key of what a sample is a part of: `KEY` of `KEY#7`; else it would be tested on what it was trained on."""
    whole, _, part = key.rpartition("#")
    return whole if part.isdecimal() and whole else key


def draw_first(count: int, number: int, purpose: str, *numbers: int) -> np.ndarray:
    """The first `number` of `draw_order`, in memory that grows with that number only."""
    stream = _stream(purpose, *numbers)
    values, places = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for start in range(0, count, DRAWN_AT_A_TIME):
        fresh = stream.random_raw(min(DRAWN_AT_A_TIME, count - start))
        values = np.concatenate([values, fresh])
        places = np.concatenate([places, np.arange(start, start + len(fresh))])
        order = np.argsort(values, kind="stable")[:number]
        values, places = values[order], places[order]
    return places


def some(samples: np.ndarray | Selection, number: int, purpose: str) -> np.ndarray:
    """At most `number` of the samples, drawn by `purpose` alone, sorted: a prefix of sorted data is no fair sample."""
    if len(samples) <= number:
        return samples[:]
    return samples.take(np.sort(draw_first(len(samples), number, purpose)))


def reveal(
    labels: np.ndarray, candidates: np.ndarray, number: int | Literal["all"], num_classes: int, seed: int
) -> np.ndarray:
    """The samples whose labels are revealed: sorted global numbers, `number` of the labeled ones among `candidates`.

    `labels` (all samples) int64, −1 where missing. Balanced as far as the classes allow: each gives number /
    num_classes rounded down, the remainder by seed; a class that has fewer gives all and the others fill up. With one
    seed, more labels contain fewer. Errors: InputError if there are not so many labeled samples.
    """
    labeled = candidates[labels[candidates] >= 0]
    if number == "all":
        return np.sort(labeled)
    if number > len(labeled):
        raise InputError(f"finetune.labels: {number} asked for, but only {len(labeled)} training samples have a label")
    members = [labeled[labels[labeled] == label] for label in range(num_classes)]
    available = np.array([len(samples) for samples in members])
    level = bisect_right(range(number + 1), number, key=lambda each: int(np.minimum(available, each).sum())) - 1
    quota = np.minimum(available, level)
    order = draw_order(num_classes, "classes", seed)
    for label in order[available[order] > level][: number - quota.sum()]:
        quota[label] += 1
    orders = [draw_order(len(samples), "labels", seed, label) for label, samples in enumerate(members)]
    return np.sort(np.concatenate([members[label][orders[label][: quota[label]]] for label in range(num_classes)]))
