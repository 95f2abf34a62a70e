"""Many files as one range of memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from data.mapping import Mapping, WrongSize
from data.shards import Reader, ingest
from tests.shard_folders import given

SIZES = [1, mmap.PAGESIZE, mmap.PAGESIZE + 1, 3 * mmap.PAGESIZE - 7]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [tmp_path / str(number) for number in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        path.write_bytes(random.integers(1, 256, size, np.uint8).tobytes())
    return paths


def test_files_lie_side_by_side(files: list[Path]) -> None:
    mapping = Mapping(SIZES)
    assert not mapping.content.any()
    for number in (2, 0, 3, 1):
        mapping.add(number, files[number])
    for start, size, path in zip(mapping.starts, SIZES, files, strict=True):
        assert mapping.content[start : start + size].tobytes() == path.read_bytes()
    pairs = mapping.items(np.dtype("<u2"))
    place = mapping.starts[[3, 1]] + 5
    assert pairs[place].tobytes() == files[3].read_bytes()[5:7] + files[1].read_bytes()[5:7]
    mapping.drop(2)
    start = int(mapping.starts[2])
    assert not mapping.content[start : start + SIZES[2]].any()
    assert mapping.content[mapping.starts[3]] == files[3].read_bytes()[0]


def test_a_file_needs_no_descriptor_and_outlives_its_mapping_object(files: list[Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    mapping = Mapping(SIZES)
    for number, path in enumerate(files):
        mapping.add(number, path)
    view = mapping.content[int(mapping.starts[3]) :][: SIZES[3]]
    assert len(os.listdir("/proc/self/fd")) == before
    del mapping
    files[3].rename(files[3].with_name("elsewhere"))
    assert view.tobytes() == files[3].with_name("elsewhere").read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_a_file_that_is_not_as_expected(files: list[Path], tmp_path: Path) -> None:
    mapping = Mapping(SIZES)
    with pytest.raises(WrongSize) as caught:
        mapping.add(1, files[2])
    assert str(caught.value) == str(SIZES[2])
    with pytest.raises(FileNotFoundError):
        mapping.add(0, tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        mapping.add(0, tmp_path)


def test_a_range_larger_than_memory_costs_none() -> None:
    mapping = Mapping([1 << 42, 1])
    assert mapping.content[1 << 41] == 0 and len(mapping.content) == (1 << 42) + mmap.PAGESIZE


def test_a_batch_larger_than_what_is_gathered_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(ingest(given(), tmp_path, shard_size=2).folder)
    numbers = np.random.default_rng(0).integers(0, 11, 1000)
    expected = np.concatenate(list(given().tables.values()))[numbers]
    for size in (1, 500, 1 << 20):
        monkeypatch.setattr("data.shards.CHUNK_BYTES", size)
        assert np.array_equal(reader.read(numbers), expected)
