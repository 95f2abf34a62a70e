"""Ingests to be killed: a process that forks them, counts their file-system calls and kills them at chosen ones.

    python -m tests.ingest_kills WHOLE FOLDER SHARD_SIZE calls STRIDE     before every STRIDE-th call
    python -m tests.ingest_kills WHOLE FOLDER SHARD_SIZE moments COUNT    at COUNT random moments

Each in a folder of its own; WHOLE holds the digits in shards of that size. After every kill the next try must find
nothing wrong and end with the bytes of WHOLE; a file that was there under its final name is the final one. Says how
many folders survived. Calls: opening a file for writing, writing, flushing what is buffered, fsync, rename, removal.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data.ingest import ingest
from data.manifest import Manifest
from data.verification import verify
from tests.shard_folders import contents, digits

Call = Callable[[], None]
SOURCE = digits()


def main() -> None:
    whole, folder, shard_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    SOURCE.describe()
    expected = contents(whole)
    kill = {"calls": before_calls, "moments": at_moments}[sys.argv[4]]
    print(sum(survived(place, expected, shard_size) for place in kill(folder, shard_size, int(sys.argv[5]))))


def before_calls(folder: Path, shard_size: int, stride: int) -> Iterator[Path]:
    for number in itertools.count(1, stride):
        place = folder / f"call {number}"
        place.mkdir(parents=True)
        count = itertools.count(1)

        def before(count: Iterator[int] = count, number: int = number) -> None:
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        if not killed(start(place, shard_size, before)):
            return
        yield place


def at_moments(folder: Path, shard_size: int, number: int) -> Iterator[Path]:
    """Some of them one after another in one folder, as somebody with a bad day sees it."""
    began = time.monotonic()
    killed(start(folder / "timed", shard_size))
    seconds = time.monotonic() - began
    chance = random.Random(0)
    done = 0
    while done < number:
        place = folder / f"moment {done}"
        place.mkdir(parents=True)
        for _ in range(chance.choice((1, 1, 1, 4))):
            child = start(place, shard_size)
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            done += killed(child)
        yield place


def start(folder: Path, shard_size: int, before: Call = lambda: None) -> int:
    """A child that ingests, calling before() ahead of each call."""
    child = os.fork()
    if child == 0:
        with watched(before):
            ingest(SOURCE, folder, shard_size=shard_size)
        os._exit(0)
    return child


def killed(child: int) -> bool:
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    return status != 0


def survived(folder: Path, expected: dict[str, bytes], shard_size: int) -> bool:
    found = {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
    for name, content in found.items():
        assert content == expected[name], f"{folder}: {name} is under its final name and not final"
    try:
        Manifest.load(folder)
        assert verify(folder) == [] and found == expected, f"{folder}: a manifest before its files"
    except InputError:
        pass
    ingest(SOURCE, folder, shard_size=shard_size)
    assert contents(folder) == expected, folder
    shutil.rmtree(folder)
    return True


class Watched:
    """A file open for writing."""

    def __init__(self, file: Any, before: Call) -> None:
        self.file, self.before = file, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        self.before()
        return int(self.file.write(content))

    def flush(self) -> None:
        self.before()
        self.file.flush()


@contextmanager
def watched(before: Call) -> Iterator[None]:
    def ahead(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            before()
            return call(*arguments, **options)

        return wrapped

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode.startswith("r"):
            return real_open(path, mode, *arguments, **options)
        before()
        return Watched(real_open(path, mode, *arguments, **options), before)

    real_open, real_fdopen = Path.open, os.fdopen
    Path.open = opened  # type: ignore[method-assign, assignment]
    os.fdopen = lambda *arguments, **options: Watched(real_fdopen(*arguments, **options), before)  # type: ignore
    for name in ("open", "fsync", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, ahead(getattr(os, name)))
    yield


if __name__ == "__main__":
    main()
