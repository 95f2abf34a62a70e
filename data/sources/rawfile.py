"""One raw file, here or fetched to here, that must stay the same from its listing to its last byte.

What is NOT here: trees of files (data/files.py) and fetching (data/remote.py).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from conf.errors import InputError, show
from data import remote
from data.sources import unreadable

Stamp = tuple[int, int, int]  # size, mtime_ns, inode


class RawFile:
    """A regular file. `where` names it in messages; `stamp` as the method gives it, if it was listed before."""

    def __init__(self, address: str | Path, stamp: Stamp | None = None) -> None:
        self.address, self.where = str(address), remote.shown(str(address))
        self._stamp = stamp

    @cached_property
    def path(self) -> Path:
        """Where it lies on this machine, fetched if need be. Errors: InputError."""
        return remote.local_file(self.address)

    def fingerprint(self) -> str:
        """Taken anew at every call, cheap, fetches nothing; a local file must stay as it is from here on."""
        if not remote.is_remote(self.address):
            self.stamp()
        return remote.fingerprint(self.address)

    def stamp(self) -> Stamp:
        """(size, mtime_ns, inode) now; what `open` expects from here on. Errors: InputError."""
        try:
            self._stamp = _stamp(os.stat(self.path))
        except OSError as error:
            raise self._unreadable(error) from None
        return self._stamp

    @property
    def size(self) -> int:
        return (self._stamp or self.stamp())[0]

    def open(self) -> BinaryIO:
        """The file at its start. Errors: InputError if it is none, or no longer the one that was listed."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not make us wait
        except OSError as error:
            raise self._unreadable(error) from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise InputError(f"{self.where}: not a regular file; expected the path of one")
        file = os.fdopen(descriptor, "rb")
        if self._stamp is None:
            self._stamp = _stamp(status)
        if _stamp(status) != self._stamp:
            file.close()
            raise self._changed()
        return file

    def read(self, limit: int) -> bytes:
        """The whole content. Errors: InputError, also for more than `limit` bytes."""
        with self.open() as file:
            try:
                content = file.read(limit + 1)
            except OSError as error:
                raise self._unreadable(error) from None
        if len(content) > limit:
            raise InputError(f"{self.where}: more than {limit >> 20} MiB, which no file of its kind may have here")
        if len(content) != self.size:
            raise self._changed()
        return content

    def digest(self) -> str:
        """SHA-256 of the content. Errors: InputError."""
        with self.open() as file:
            try:
                return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            except OSError as error:
                raise self._unreadable(error) from None

    def _changed(self) -> InputError:
        return InputError(f"{self.where}: changed while it was read; run again once nobody writes it")

    def _unreadable(self, error: OSError) -> InputError:
        return unreadable(Path(self.address), error)


@contextmanager
def gunzipping(where: str) -> Iterator[None]:
    """Of a gzip file that is decompressed here. Errors: InputError if it is damaged."""
    try:
        yield
    except EOFError:
        raise InputError(f"{where}: the gzip file is cut short; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{where}: damaged gzip file ({show(error)}); fetch it again") from None


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ino
