"""Files that are whole or absent: write, fsync, rename, fsync the folder; locks; digests.

Standard library only; anyone may import it. A file under its final name is complete, whatever was killed when;
a folder is complete when the one file that says so, written last, is there. What is NOT here: any file format.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class Locked(Exception):
    """Another process holds the lock; the message names it."""


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` complete and on disk, or not at all.

    The temporary name lies beside the target (`.NAME.PID.tmp`), so the rename never crosses file systems.
    Errors: OSError, with the target untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals inside `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    with writing(path) as file:
        file.write(content)


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes, so digests of it are names."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def readable(value: Any) -> bytes:
    """JSON for people, sorted too: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, readable(value))


def opened(path: Path) -> BinaryIO:
    """A regular file for reading: a pipe would keep us waiting, and a device might never end. Errors: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """Errors: OSError."""
    with opened(path) as file:
        return file.read()


def parse_json(content: bytes) -> Any:
    """Errors: ValueError."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> Any:
    """Errors: OSError, ValueError."""
    return parse_json(read_bytes(path))


def digest_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_value(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return digest_bytes(canonical(value))


def digest_file(path: Path) -> str:
    with opened(path) as file:
        return digest_stream(file)


def digest_stream(file: BinaryIO) -> str:
    """SHA-256 of what is left to read of an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


@contextmanager
def lock(path: Path, *, wait: Callable[[str], None] | None = None, shared: bool = False) -> Iterator[None]:
    """Exclusive (or shared) use of what `path` stands for; the kernel frees it when the holder dies, however it dies.

    Without `wait` a held lock raises Locked at once; with it, `wait(holder)` is called once and the lock is awaited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read(200).decode("utf-8", "replace").strip() or "another process"
                if wait is None:
                    raise Locked(holder) from None
                if not told:
                    wait(holder)
                    told = True
                time.sleep(0.2)
        if not shared:
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
            file.flush()
        yield
