"""Ingests that are killed, side by side, or out of space: no sample is lost, and the bytes are the same at the end."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conf
from data.shards import ingest, verify
from data.sources import open_source
from tests.conftest import Command, until
from tests.shard_folders import contents, digits


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """16 MiB of samples, seconds of ingest."""
    path = tmp_path / "arrays.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (20_000, 784), np.uint8))
    return path


def write(arrays: Path, folder: Path, shard_size: int) -> Path:
    """The same within this process."""
    source = open_source(conf.ArraysSource(kind="arrays", path=str(arrays)))
    return ingest(source, folder, shard_size=shard_size).folder


def killed(shard_size: int, how: str, number: int) -> int:
    """Runs tests.ingest_kills; the number of folders that survived. In memory if possible: a busy disk syncs slowly."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        whole = ingest(digits(), Path(name) / "whole", shard_size=shard_size).folder
        arguments = [whole, Path(name) / "killed", shard_size, how, number]
        command = [sys.executable, "-m", "tests.ingest_kills", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_some_kills_lose_nothing() -> None:
    assert killed(2000, "calls", 8) >= 8
    assert killed(400, "moments", 6) >= 1


@pytest.mark.slow
def test_a_kill_before_every_call_of_one_shard() -> None:
    number = killed(2000, "calls", 1)
    print(f"\nkilled before each of {number} file-system calls of an ingest of one shard: 0 samples lost")
    assert number >= 60


@pytest.mark.slow
def test_200_kills_at_random_moments() -> None:
    number = killed(400, "moments", 200)
    print(f"\n200 SIGKILLs at random moments, over {number} folders: 0 samples lost, equal bytes")


# --- several processes ---------------------------------------------------------------------------------------------


def test_two_workers_killed_leave_nobody_and_lose_nothing(strata: Command, arrays: Path) -> None:
    _kill_two_workers(strata, arrays, 1)


@pytest.mark.slow
def test_two_workers_killed_ten_times(strata: Command, arrays: Path) -> None:
    _kill_two_workers(strata, arrays, 10)


def _kill_two_workers(strata: Command, arrays: Path, number: int) -> None:
    two = strata.folder / "two"
    command = ["ingest", "arrays", arrays, "--shard-size", 500]
    chance = random.Random(0)
    for _ in range(number):
        process = strata.start(*command, "--out", two, "--workers", 2)
        seen = len(list(two.glob("*.index.npy"))) if two.exists() else 0
        until(lambda seen=seen: len(list(two.glob("*.index.npy"))) > seen, 60)
        assert process.poll() is None and sum("data.workers" in line for line in strata.alive().values()) >= 2
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.communicate()
        strata.await_quiet(10)
        assert not (two / "manifest.json").exists() or verify(two) == []
        for path in list(two.glob("*.index.npy"))[2:] if number > 1 else []:
            path.unlink()  # as if these had not been reached, so that the next one has something to do
    assert strata(*command, "--out", two, "--workers", 2).status == 0
    assert contents(two) == contents(write(arrays, strata.folder / "one", 500))
    strata.await_quiet(10)


def test_a_worker_that_is_killed_ends_the_ingest(strata: Command, arrays: Path) -> None:
    out = strata.folder / "out"
    command = ["ingest", "arrays", arrays, "--shard-size", 500, "--out", out, "--workers", 2]
    process = strata.start(*command)
    until(lambda: list(out.glob("*.index.npy")), 60)
    victim = next(number for number, line in strata.alive().items() if line.endswith("-m data.workers "))
    os.kill(victim, signal.SIGKILL)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and err.count("\n") == 1 and "ended by signal 9 (out of memory?)" in err
    strata.await_quiet(10)
    assert verify(write(arrays, out, 500)) == []


def test_the_second_ingest_into_a_folder_is_busy(strata: Command, arrays: Path) -> None:
    out = strata.folder / "out"
    command = ["ingest", "arrays", arrays, "--shard-size", 500, "--out", out, "--workers", 1]
    first = strata.start(*command)
    until(lambda: list(out.glob("*.index.npy")), 60)
    first.send_signal(signal.SIGSTOP)
    try:
        second = strata(*command)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.status == 3 and second.err.startswith("error: ") and second.err.count("\n") == 1, second
    assert f"process {first.pid} " in second.err
    first.communicate(timeout=60)
    assert first.returncode == 0 and verify(out) == []


# --- no space ------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path) -> Iterator[Any]:
    """8 MiB at `place`; gives a function that makes it larger."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_disk_that_fills_up(strata: Command, arrays: Path, workers: int) -> None:
    with small_disk(strata.folder / "disk") as enlarge:
        out = strata.folder / "disk" / "out"
        command = ["ingest", "arrays", arrays, "--shard-size", 1000, "--out", out, "--workers", workers]
        full = strata(*command)
        assert full.status == 6 and full.err.startswith("error: ") and full.err.count("\n") == 1, full
        assert "no space left on device" in full.err and "of 20 shards are committed, run again" in full.err
        assert not (out / "manifest.json").exists() and list(out.glob("*.index.npy"))
        strata.await_quiet(10)
        enlarge()
        assert verify(write(arrays, out, 1000)) == []


@pytest.mark.slow
def test_a_file_that_may_not_grow(strata: Command, arrays: Path) -> None:
    """The same without being root: RLIMIT_FSIZE, as seen by the command."""
    out, limits = strata.folder / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    command = ["ingest", "arrays", arrays, "--shard-size", 1000, "--out", out, "--workers", 1]
    process = strata.start(*command)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 6 and err.count("\n") == 1 and "file too large; 0 of 20 shards" in err
    assert verify(write(arrays, out, 1000)) == []
