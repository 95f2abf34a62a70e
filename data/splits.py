"""Which samples a recipe trains on: partitions by the hash of a sample's key, and the few labels that are revealed.

Nothing here depends on a machine, a numpy version or other samples: a file added to a source moves no other sample
to another part, and orders come from the raw output of a counter-based generator, which NumPy fixes for ever (NEP 19;
`Generator.permutation` it does not).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import numpy as np

import conf
from conf.errors import InputError
from data import durable
from data.shards import Reader
from data.sources import SETS


def draw_order(count: int, purpose: str, *numbers: int) -> np.ndarray:
    """A permutation of 0 … count − 1 that is a pure function of its arguments (Philox keyed by their SHA-256)."""
    key = int(durable.digest_value([purpose, *numbers])[:32], 16)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


class Divisible(Protocol):
    """What can be partitioned: a manifest, or a raw source that is still to be ingested."""

    @property
    def sets(self) -> Mapping[str, object]: ...

    def numbers(self, set_name: str) -> range: ...

    def keys(self, set_name: str) -> Iterator[str]: ...


def partition(shards: Divisible | Reader, split: conf.Split) -> dict[str, np.ndarray]:
    """Global sample numbers (sorted int64) of "train", "validation" and "test"; any of them may be empty.

    A set the source has is taken as it is. Otherwise a sample of the source's train set belongs to test with
    probability `split.test`, and one that does not, to validation with probability `split.validation`, by hashes of its
    key; the parts' sizes are therefore only about right.
    """
    whole = shards.manifest if isinstance(shards, Reader) else shards
    parts = {name: np.array(whole.numbers(name), np.int64) for name in SETS}
    for part, share in (("test", split.test), ("validation", split.validation)):
        if part not in whole.sets and share > 0 and len(parts["train"]):
            chosen = _below(whole, part, share)[parts["train"] - whole.numbers("train").start]
            parts[part], parts["train"] = parts["train"][chosen], parts["train"][~chosen]
    return parts


def _below(whole: Divisible, purpose: str, share: float) -> np.ndarray:
    """(n,) bool: for which samples of the train set the hash of (purpose, key), in [0, 1), is below share."""
    limit = int(share * 2**64)
    digests = (hashlib.sha256(f"{purpose}\0{key}".encode()).digest() for key in whole.keys("train"))
    return np.fromiter((int.from_bytes(digest[:8], "big") < limit for digest in digests), bool)


def some(samples: np.ndarray, number: int, purpose: str) -> np.ndarray:
    """At most `number` of the samples, drawn by `purpose` alone, sorted: a prefix of sorted data is no fair sample."""
    if len(samples) <= number:
        return samples
    return np.sort(samples[draw_order(len(samples), purpose)[:number]])


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
