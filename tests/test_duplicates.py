"""Copies among samples: every one is found, wherever it lies, and told with the first of its kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import duplicates
from data.shards import Manifest, Reader, ingest
from tests.shard_folders import Given, contents


def planted(folder: Path, shard_size: int) -> tuple[Manifest, np.ndarray]:
    """2,000 and 500 random samples with copies within a shard, across shards and across sets; the pairs by hand."""
    random = np.random.default_rng(5)
    values = random.integers(0, 256, (2500, 6)).astype(np.uint8)
    values[:, 0] = np.arange(2500) % 251  # with the next: no two alike by chance
    values[:, 1] = np.arange(2500) // 251
    copies = {1: 0, 2: 0, 1999: 0, 777: 776, 1500: 3, 2000: 1234, 2499: 2000, 2400: 0}
    for later, earlier in copies.items():
        values[later] = values[earlier]
    first = copies | {2499: 1234}
    sets = {"train": values[:2000], "test": values[2000:]}
    source = Given(sets, {"train": [0] * 2000, "test": [1] * 500})
    pairs = np.array(sorted(first.items()))
    return ingest(source, folder, shard_size=shard_size), pairs


@pytest.mark.parametrize("bucket", [1 << 16, 300, 7])
@pytest.mark.parametrize("shard_size", [100, 3000])
def test_every_copy_is_found_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: int, shard_size: int
) -> None:
    monkeypatch.setattr(duplicates, "BUCKET", bucket)
    monkeypatch.setattr(duplicates, "MAX_BUCKETS", 50)
    manifest, pairs = planted(tmp_path, shard_size)
    assert np.array_equal(manifest.duplicates(), pairs) and manifest.num_duplicates == len(pairs)
    reader = Reader(tmp_path)
    assert np.array_equal(reader.read(pairs[:, 0]), reader.read(pairs[:, 1]))
    assert not (tmp_path / ".duplicates").exists()


def test_the_size_of_a_bucket_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(tmp_path / "one", 100)
    monkeypatch.setattr(duplicates, "BUCKET", 11)
    planted(tmp_path / "many", 100)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_what_a_kill_left_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".duplicates").mkdir()
    (tmp_path / ".duplicates" / "0").write_bytes(np.zeros(9, duplicates.ROW).tobytes())
    manifest, pairs = planted(tmp_path, 100)
    assert np.array_equal(manifest.duplicates(), pairs)


def test_no_copies_no_file(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    manifest = ingest(Given({"train": values}, {"train": [0] * 20}), tmp_path, shard_size=7)
    assert manifest.num_duplicates == 0 and manifest.duplicates().shape == (0, 2)
    assert not (tmp_path / "duplicates.npy").exists()
