"""Parts by hash, balanced reveals: exact properties."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import conf
from conf.errors import InputError
from data.shards import Manifest, Reader, ingest
from data.sources import number_range, open_source
from data.splits import draw_order, partition, reveal
from tests.shard_folders import Given


class Names:
    """Just the keys of some sets: all that a partition depends on."""

    def __init__(self, **sets: list[str]) -> None:
        self.names = sets
        self.sets = {name: len(keys) for name, keys in sets.items()}

    def numbers(self, set_name: str) -> range:
        return number_range(self.sets, set_name)

    def keys(self, set_name: str) -> Iterator[str]:
        return iter(self.names[set_name])


ROWS = [str(row) for row in range(10_000)]


def test_shares_of_a_source_without_sets() -> None:
    parts = partition(Names(train=ROWS), conf.Split(test=0.2, validation=0.1))
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(10_000))
    assert all(np.array_equal(numbers, np.sort(numbers)) for numbers in parts.values())
    # binomial, five standard deviations: a false alarm in 1 of 1.7 million other hash functions
    assert abs(len(parts["test"]) - 2000) < 200 and abs(len(parts["validation"]) - 800) < 136


def test_the_hash_is_fixed_for_ever() -> None:
    parts = partition(Names(train=ROWS[:40]), conf.Split(test=0.2, validation=0.2))
    assert parts["test"].tolist() == [10, 12, 16, 20, 21, 24, 25, 32, 36, 38]
    assert parts["validation"].tolist() == [0, 2, 27, 30, 37]


def test_sets_of_the_source_are_taken_as_they_are() -> None:
    parts = partition(Names(train=ROWS, validation=["a"] * 7, test=["b"] * 5), conf.Split())
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [10_000, 7, 5]
    assert parts["test"].tolist() == list(range(10_007, 10_012))
    parts = partition(Names(train=ROWS, test=["b"] * 5), conf.Split(test=0.9, validation=0.0))
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [10_000, 0, 5]
    parts = partition(Names(test=["b"] * 5), conf.Split())
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [0, 0, 5]


def test_an_added_file_moves_no_other() -> None:
    keys = [f"cat/{number}.png" for number in range(500)]
    more = sorted([*keys, "cat/new.png", "ant/1.png"])

    def part_of(names: list[str]) -> dict[str, str]:
        parts = partition(Names(train=names), conf.Split())
        return {names[number]: part for part, numbers in parts.items() for number in numbers}

    before, after = part_of(sorted(keys)), part_of(more)
    assert before == {key: after[key] for key in keys} and len(after) == 502


def test_a_larger_share_contains_a_smaller_one() -> None:
    small, large = (partition(Names(train=ROWS), conf.Split(test=test, validation=0))["test"] for test in (0.1, 0.3))
    assert set(small) < set(large)


def test_source_manifest_and_reader_are_divided_alike(tmp_path: Path) -> None:
    source = open_source(conf.DigitsSource(kind="digits"))
    ingest(source, tmp_path, shard_size=1000)
    split = conf.Split()
    parts = [partition(shards, split) for shards in (source, Manifest.load(tmp_path), Reader(tmp_path))]
    for other in parts[1:]:
        assert all(np.array_equal(parts[0][name], other[name]) for name in parts[0])


def test_orders_are_permutations_and_fixed_for_ever() -> None:
    assert draw_order(8, "epoch", 0, 0).tolist() == [2, 1, 4, 6, 3, 5, 7, 0]
    seen = {tuple(draw_order(50, purpose, seed)) for purpose in ("a", "b") for seed in range(20)}
    assert len(seen) == 40 and all(sorted(order) == list(range(50)) for order in seen)
    assert draw_order(0, "epoch").tolist() == []


LABELS = np.repeat(np.arange(10), [50, 3, 50, 50, 50, 50, 50, 50, 50, 0])


def counts(numbers: np.ndarray, labels: np.ndarray = LABELS) -> list[int]:
    return np.bincount(labels[numbers], minlength=10).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_reveal_is_balanced(seed: int) -> None:
    labels = np.arange(1000) % 10
    everyone = np.arange(1000)
    assert counts(reveal(labels, everyone, 100, 10, seed), labels) == [10] * 10
    odd = counts(reveal(labels, everyone, 103, 10, seed), labels)
    assert sorted(odd) == [10] * 7 + [11] * 3
    assert counts(reveal(labels, everyone, 7, 10, seed), labels).count(1) == 7


def test_small_classes_give_all_and_others_fill_up() -> None:
    for seed in range(10):
        found = counts(reveal(LABELS, np.arange(len(LABELS)), 102, 10, seed))
        assert (found[1], found[9], sum(found)) == (3, 0, 102)
        others = found[:1] + found[2:9]
        assert max(others) - min(others) <= 1
    most = reveal(LABELS, np.arange(len(LABELS)), 403, 10, 0)
    assert np.array_equal(most, np.arange(403))


def test_reveal_draws_by_seed_and_nests() -> None:
    everyone = np.arange(len(LABELS))
    by_seed = {tuple(reveal(LABELS, everyone, 50, 10, seed)) for seed in range(10)}
    assert len(by_seed) == 10
    previous: set[int] = set()
    for number in (0, 1, 9, 10, 24, 25, 50, 200, 403):
        found = reveal(LABELS, everyone, number, 10, 5)
        assert np.array_equal(found, reveal(LABELS, everyone, number, 10, 5))
        assert len(found) == number and previous <= set(found.tolist()) and np.array_equal(found, np.unique(found))
        previous = set(found.tolist())


def test_only_labeled_candidates_are_revealed() -> None:
    labels = np.array([0, 1, -1, 0, 1, -1, 0, 1])
    candidates = np.array([1, 2, 3, 5, 6, 7])
    assert reveal(labels, candidates, "all", 2, 0).tolist() == [1, 3, 6, 7]
    assert reveal(labels, candidates, 4, 2, 0).tolist() == [1, 3, 6, 7]
    with pytest.raises(InputError, match="5 asked for, but only 4"):
        reveal(labels, candidates, 5, 2, 0)
    with pytest.raises(InputError, match="only 0"):
        reveal(np.full(8, -1), candidates, 1, 0, 0)
    assert reveal(np.full(8, -1), candidates, "all", 0, 0).tolist() == []


def test_of_equal_samples_one_stays_if_possible_in_test(tmp_path: Path) -> None:
    contents = {
        "train": [0, 1, 2, 2, 3, 4, 5, 5, 5, 6],
        "validation": [1, 7, 7, 4],
        "test": [0, 0, 4, 8],
    }
    source = Given({name: np.array(rows, np.float32)[:, None] for name, rows in contents.items()}, {}, "row {}")
    source.given = {name: [0] * len(rows) for name, rows in contents.items()}
    manifest = ingest(source, tmp_path, shard_size=2)
    kept = partition(manifest, conf.Split())
    assert [len(kept[name]) for name in ("train", "validation", "test")] == [10, 4, 4]
    dropped = partition(manifest, conf.Split(duplicates="drop"))
    assert {name: numbers.tolist() for name, numbers in dropped.items()} == {
        "train": [2, 4, 6, 9],  # of contents 2, 3, 5, 6
        "validation": [10, 11],  # 1, 7
        "test": [14, 16, 17],  # 0, 4, 8
    }
    # Without the shard of samples 14 and 15 content 0 stays in train; without that of 2 and 3, 2 is lost.
    left = partition(manifest, conf.Split(duplicates="drop"), {"test-00000.tar", "train-00001.tar"})
    assert left["train"].tolist() == [0, 4, 6, 9] and left["test"].tolist() == [16, 17]


def test_shards_left_out_are_in_no_part(tmp_path: Path) -> None:
    manifest = ingest(open_source(conf.DigitsSource(kind="digits")), tmp_path, shard_size=100)
    whole, left = (partition(manifest, conf.Split(), without) for without in ((), {"train-00003.tar"}))
    for name in whole:
        outside = (whole[name] < 300) | (whole[name] >= 400)
        assert np.array_equal(left[name], whole[name][outside]) and not outside.all()
    (tmp_path / "train-00003.keys.jsonl").unlink(missing_ok=True)
    assert np.array_equal(partition(manifest, conf.Split(), {"train-00003.tar"})["test"], left["test"])
