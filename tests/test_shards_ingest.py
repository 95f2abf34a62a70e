"""Ingest continued, in the way of others and of a full disk; kills: tests/test_ingest_kills.py."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from conf.errors import Busy, InputError, OutputError
from data import tar
from data.shards import ingest, verify
from tests.shard_folders import contents, digits, flip, given


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in five shards; never changed by a test."""
    return ingest(digits(), tmp_path_factory.mktemp("whole") / "shards", shard_size=400).folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_finished_shards_are_kept_and_damaged_ones_written_anew(copy: Path, whole: Path) -> None:
    (copy / "manifest.json").unlink()
    flip(copy / "train-00001.tar", tar.BLOCK + 128 + 10, 3)  # a value: only the index knows
    flip(copy / "train-00003.tar", 20, 3)  # a member's name
    for path in copy.iterdir():
        os.utime(path, ns=(1, 1))
    ingest(digits(), copy, shard_size=400)
    rewritten = {path.name for path in copy.glob("train-0*") if path.stat().st_mtime_ns != 1}
    assert rewritten == {f"train-0000{number}.{kind}" for number in (1, 3) for kind in ("tar", "index.npy")}
    assert contents(copy) == contents(whole)


def test_ingesting_again_repairs_every_file(copy: Path, whole: Path) -> None:
    random = np.random.default_rng(3)
    for name in sorted(contents(copy)):
        flip(copy / name, int(random.integers((copy / name).stat().st_size)), int(random.integers(8)))
        ingest(digits(), copy, shard_size=400)
        assert contents(copy) == contents(whole), name


def test_keys_are_repaired_from_the_source_too(tmp_path: Path) -> None:
    folder = ingest(given(), tmp_path / "a", shard_size=3).folder
    before = contents(folder)
    keys = folder / "train-00001.keys.jsonl"
    keys.write_bytes(keys.read_bytes().replace(b"row 4", b"row 5"))
    assert [finding.file for finding in verify(folder)] == [keys.name]
    ingest(given(), folder, shard_size=3)
    assert contents(folder) == before


def test_other_data_in_the_folder(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="finished shards of other data or of another shard size"):
        ingest(digits(), copy, shard_size=500)
    assert verify(copy) == []
    (copy / "manifest.json").unlink()  # an unfinished try with another shard size: started anew
    ingest(digits(), copy, shard_size=1000)
    assert contents(copy) == contents(ingest(digits(), tmp_path / "fresh", shard_size=1000).folder)


def test_files_that_are_not_ours_are_never_removed(tmp_path: Path) -> None:
    raw = tmp_path / "train-labels.npy"
    raw.write_bytes(b"precious")
    with pytest.raises(InputError, match="train-labels.npy"):
        ingest(digits(), tmp_path, shard_size=400)
    assert raw.read_bytes() == b"precious" and not (tmp_path / "ingest.json").exists()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    code = """
        import sys, time, conf
        from pathlib import Path
        from data.ingest import ingest
        from data.sources import open_source
        def stop(done, total):
            print("ready", flush=True)
            time.sleep(60)
        ingest(open_source(conf.DigitsSource(kind="digits")), Path(sys.argv[1]), shard_size=400, progress=stop)
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        with pytest.raises(Busy, match=f"process {writer.pid} ") as caught:
            ingest(digits(), tmp_path, shard_size=400)
        assert caught.value.status == 3
    finally:
        writer.kill()
        writer.wait()
    assert ingest(digits(), tmp_path, shard_size=400).num_samples == 1797


def test_a_full_disk_is_one_line_and_the_next_try_goes_on(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, limits = digits(), resource.getrlimit(resource.RLIMIT_FSIZE)
    source.describe()
    real, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 13:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="no space left on device; 2 of 5 shards are committed, run again"):
            ingest(source, tmp_path / "a", shard_size=400)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="file too large; 2 of 5 shards are committed"):
            ingest(source, tmp_path / "a", shard_size=400)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("a/.*.tmp"))
    ingest(source, tmp_path / "a", shard_size=400)
    assert contents(tmp_path / "a") == contents(whole)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/strata")):
        with pytest.raises(OutputError, match="0 of 5 shards") as caught:
            ingest(digits(), folder, shard_size=400)
        assert caught.value.status == 6 and "\n" not in str(caught.value)


def test_progress_counts_samples(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    ingest(digits(), tmp_path, shard_size=400, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (400, 1797) and seen[-1] == (1797, 1797)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
