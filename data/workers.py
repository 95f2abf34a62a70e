"""Shards made side by side: processes of our own that are told shard numbers and answer in lines of JSON.

`python -m data.workers` reads a request (ShardWriter.from_request) and then shard numbers, a line each, from stdin. On
stdout it says `{"done": n}`, `{"answer": …}`, `{"error": {status, message}}`, `{"unseen": message}` or `{"errno": …}`.
No pickles, no forks of a process that holds locks and threads, and no worker outlives the process that started it
(conf/lifeline.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from conf import lifeline
from conf.errors import ERRORS, InputError, StrataError, show

MOST_PER_CORE = 8  # what waits for a network gains by several, more only fill memory
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Unseen(InputError):
    """The source is not what was described: its files have changed, or are not the same on this machine."""


def num_workers(asked: int | None) -> int:
    """How many processes work side by side: as many as are asked for, at most 8 a core; None: one a core."""
    cores = os.cpu_count() or 1
    return min(asked or cores, MOST_PER_CORE * cores)


def made_by_processes(
    request: dict[str, Any],
    shards: Sequence[int],
    workers: int,
    count: Callable[[int], None],
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    folder: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The answers of ShardWriter.make for all shards, in the order they are finished.

    `environment` adds to theirs, `folder` is where they work.

    Errors: what a worker reported, as the class of its status; Unseen; OSError; StrataError if one died. Finished
    shards stay.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for shard in shards:
        waiting.put(shard)
    said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    processes = [_start(environment, folder) for _ in range(min(workers, len(shards)))]
    try:
        for process in processes:
            threading.Thread(target=_serve, args=(process, request, waiting, said), daemon=True).start()
        left = len(shards)
        while left:
            line = said.get()
            if "errno" in line:
                raise OSError(*line["errno"])
            if "unseen" in line:
                raise Unseen(line["unseen"])
            if "error" in line:
                raise ERRORS.get(line["error"]["status"], StrataError)(line["error"]["message"])
            if "done" in line:
                count(line["done"])
            else:
                left -= 1
                yield line["answer"]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _start(environment: Mapping[str, str], folder: str | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        lifeline.command([sys.executable, "-m", "data.workers"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT | dict(environment),
        cwd=folder,
        start_new_session=True,
    )


def _serve(
    process: subprocess.Popen[str],
    request: dict[str, Any],
    waiting: queue.SimpleQueue[int],
    said: queue.SimpleQueue[dict[str, Any]],
) -> None:
    """Hands one process a shard at a time and passes on what it says; one thread a process."""
    assert process.stdin and process.stdout and process.stderr
    stderr: list[str] = []
    threading.Thread(target=lambda: stderr.extend(process.stderr or ()), daemon=True).start()
    with contextlib.suppress(OSError, ValueError):  # the pipe of a process that died: said below
        process.stdin.write(json.dumps(request) + "\n")
        while True:
            try:
                shard = waiting.get_nowait()
            except queue.Empty:
                return
            process.stdin.write(f"{shard}\n")
            process.stdin.flush()
            for text in process.stdout:
                line = json.loads(text)
                said.put(line)
                if {"error", "unseen", "errno"} & line.keys():
                    return
                if "answer" in line:
                    break
            else:
                break
    status = process.wait()
    last = show("".join(stderr).strip()[-300:], 300)
    why = f"was ended by signal {-status} (out of memory?)" if status < 0 else f"died with status {status}: {last}"
    said.put({"error": {"status": 1, "message": f"a process that ingests {why}; run again to go on"}})


def main() -> int:
    """A worker. Its own mistakes go to stderr as tracebacks; what is wrong with the data, to stdout."""
    from data.shard_writer import ShardWriter

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    try:
        try:
            writer = ShardWriter.from_request(json.loads(sys.stdin.readline()))
        except InputError as error:
            say({"unseen": str(error)})
            return 0
        for line in sys.stdin:
            say({"answer": writer.make(int(line), lambda done: say({"done": done}))})
    except StrataError as error:
        say({"error": {"status": error.status, "message": str(error)}})
    except OSError as error:
        say({"errno": [error.errno, error.strerror or str(error)]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
