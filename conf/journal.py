"""The metrics journal: one line a row, each with its own checksum, so that a torn end is seen and cut off.

A row is `CRC-32 {"step": …, "time": …, "metrics": {name: value}}`; `time` is milliseconds since 1970 and never falls.
Training appends and, at a checkpoint, syncs and remembers the length; a resume cuts back to that length. Tracking
reads up to it, so that no step is ever sent twice. Standard library only.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from typing import Any


class Journal:
    """Append-only; `length` is where the next row goes."""

    def __init__(self, path: Path, length: int = 0) -> None:
        kept, _ = read(path, 0, length)
        self._time = kept[-1]["time"] if kept else 0  # a clock that was set back must not make time fall
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(length)
        self._file.seek(length)
        self.length = length

    def append(self, step: int, metrics: dict[str, float]) -> None:
        self._time = max(self._time + 1, time.time_ns() // 1_000_000)
        row = json.dumps({"step": step, "time": self._time, "metrics": metrics}, sort_keys=True).encode()
        line = b"%08x %s\n" % (zlib.crc32(row), row)
        self._file.write(line)
        self.length += len(line)

    def sync(self) -> int:
        """Puts every row on disk; the length from which a resume may go on."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.length

    def close(self) -> None:
        self.sync()
        self._file.close()


def read(path: Path, start: int = 0, end: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """The whole rows between two lengths, and the length behind the last of them."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        content = file.read() if end is None else file.read(max(0, end - start))
    rows = []
    for line in content.splitlines(keepends=True):
        check, _, row = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or b"%08x" % zlib.crc32(row) != check:
            break
        rows.append(json.loads(row))
        start += len(line)
    return rows, start
