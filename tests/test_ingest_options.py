"""What `--workers`, `--limit` and `--dry-run` change, and what they must not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import conf
from data.shards import Reader, ingest
from data.sources import RawSource, open_source
from data.workers import num_workers
from tests.conftest import Command, tree
from tests.shard_folders import contents, digits

RANDOM = np.random.default_rng(2)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets with labels, and some copies among them."""
    path = tmp_path_factory.mktemp("raw") / "arrays.npz"
    train, test = RANDOM.normal(size=(950, 3, 2)), RANDOM.normal(size=(330, 3, 2))
    train[[5, 900]] = train[0]
    test[7] = train[0]
    np.savez(path, x_train=train, y_train=RANDOM.integers(0, 4, 950), x_test=test, y_test=RANDOM.integers(0, 4, 330))
    return path


def source(path: Path, limit: int | None = None) -> RawSource:
    return open_source(conf.ArraysSource(kind="arrays", path=str(path)), limit)


@pytest.mark.parametrize("limit", [None, 300])
def test_the_number_of_workers_leaves_no_trace(arrays: Path, tmp_path: Path, limit: int | None) -> None:
    one = contents(ingest(source(arrays, limit), tmp_path / "1", shard_size=100, workers=1).folder)
    assert "duplicates.npy" in one or limit
    for workers in (2, 3):
        seen: list[tuple[int, int]] = []
        folder = ingest(
            source(arrays, limit), tmp_path / str(workers), shard_size=100, workers=workers,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        ).folder  # fmt: skip
        assert contents(folder) == one
        total = len(Reader(folder))
        assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_no_number_of_workers_fills_the_machine() -> None:
    cores = os.cpu_count() or 1
    assert [num_workers(asked) for asked in (None, 1, 8 * cores, 10**6)] == [cores, 1, 8 * cores, 8 * cores]


def test_a_limit_takes_samples_spread_over_each_set(arrays: Path, tmp_path: Path) -> None:
    whole, few = Reader(ingest(source(arrays), tmp_path / "a", shard_size=400).folder), tmp_path / "b"
    manifest = ingest(source(arrays, 400), few, shard_size=150)
    assert {name: found.samples for name, found in manifest.sets.items()} == {"train": 400, "test": 330}
    rows = [row * 950 // 400 for row in range(400)]
    numbers = np.array([*rows, *range(950, 1280)])
    reader = Reader(few)
    assert np.array_equal(reader.read(np.arange(730)), whole.read(numbers))
    assert np.array_equal(reader.labels(), whole.labels()[numbers])
    assert reader.keys("train") == [str(row) for row in rows]
    assert manifest.content != whole.manifest.content


def test_a_limit_no_set_reaches_still_names_other_data(tmp_path: Path) -> None:
    plain = ingest(digits(), tmp_path / "a", shard_size=1000)
    limited = ingest(open_source(conf.DigitsSource(kind="digits"), 5000), tmp_path / "b", shard_size=1000)
    assert limited.samples_digest == plain.samples_digest and limited.num_samples == 1797


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(strata: Command, arrays: Path) -> None:
    before = tree(strata.folder)
    command = ["ingest", "arrays", arrays, "--out", "out", "--shard-size", 100, "--limit", 340]
    ended = strata(*command, "--dry-run", "--json")
    assert ended.status == 0 and tree(strata.folder) == before, ended
    said = ended.answer
    assert (said["sets"], said["shards"]) == ({"train": 340, "test": 330}, 8)
    assert strata(*command).status == 0
    tars = sum(size for name, size in tree(strata.folder / "out").items() if name.endswith(".tar"))
    assert said["bytes"] == tars
