"""Archives as trees: .zip, and .tar gzipped or not. Members are read in place; nothing is extracted.

A gzipped tar is unpacked once into an unlinked temporary file, so that its members can be read in any order; each
process does so for itself. A zip's CRCs are checked by zipfile, a gzip's by gzip; a plain tar has none. A tar must end
as tars do, with zeros: Python's tarfile takes a damaged header for the end.
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

from conf.errors import InputError, OutputError, show
from data import remote
from data.files import Entry, Tree, hidden, stamp
from data.sources import unreadable
from data.sources.rawfile import RawFile, gunzipping

MAX_RATIO = 200  # unpacked / packed bytes, from FREE_BYTES on; data sets have 1 to 20, deflated zeros 1,032
FREE_BYTES = 16 << 20
MAX_HEADER = 1 << 20  # bytes of one of a tar's own headers, which tarfile reads at once
READ_BYTES = 1 << 20
BLOCK = tarfile.BLOCKSIZE
BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError),
    *(ValueError, struct.error, OverflowError, RecursionError),
)
TAR_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
TAR_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class Archive(Tree):
    """One file that holds the members; it must stay as it was when they were listed."""

    def fingerprint(self, keep: Callable[[Entry], bool] = lambda entry: True) -> str:
        return remote.fingerprint(self.address)

    @abstractmethod
    def _members(self) -> Iterator[Entry]: ...

    @cached_property
    def _file(self) -> BinaryIO:
        return RawFile(self.address).open()

    @cached_property
    def _path(self) -> Path:
        return remote.local_file(self.address)

    @cached_property
    def _identity(self) -> tuple[int, str]:
        return self._status()

    def _status(self) -> tuple[int, str]:
        status = os.fstat(self._file.fileno())
        return status.st_size, stamp(status)

    def _list(self) -> list[Entry]:
        found: dict[str, Entry] = {}
        with self._reading(self.name):
            for entry in self._members():
                if entry.path in found:
                    raise InputError(f"{self.where(entry)}: in the archive twice; expected one member of a name")
                found[entry.path] = entry
        return list(found.values())

    @contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        """The archive is read here: what breaks is its own fault, unless it changed."""
        before = self._identity
        try:
            yield
        except BROKEN as error:
            if self._status() != before:
                raise self._was_changed() from None
            raise InputError(f"{where}: damaged archive ({show(error)}); fetch or pack it again") from None
        except OSError as error:
            raise unreadable(self._path, error) from None
        if self._status() != before:
            raise self._was_changed()

    def _was_changed(self) -> InputError:
        return InputError(f"{self.name}: changed while it was read; run again once nobody writes it")


class Zip(Archive):
    """Stored and deflated members. Names without the UTF-8 flag are taken as UTF-8 too, since macOS sets none."""

    _opened: tuple[int, zipfile.ZipFile] | None = None

    @property
    def _zip(self) -> zipfile.ZipFile:
        """Opened again after a fork, where both processes would move one position."""
        if self._opened is None or self._opened[0] != os.getpid():
            for name in ("_file", "_zip_members"):
                self.__dict__.pop(name, None)
            before = self.__dict__.get("_identity")
            if before is not None and self._status() != before:
                raise self._was_changed()
            self._opened = os.getpid(), zipfile.ZipFile(self._file)
        return self._opened[1]

    def _members(self) -> Iterator[Entry]:
        for path, info in self._named():
            if info.is_dir() or hidden(path):
                continue
            mode = info.external_attr >> 16
            if info.create_system == 3 and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise InputError(f"{self.where(path)}: {kind}; expected files and folders alone")
            if info.flag_bits & 1:
                raise InputError(f"{self.where(path)}: encrypted; pack it without a password")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"{self.where(path)}: packed by method {info.compress_type}; expected stored or deflated"
                )
            if info.file_size > max(FREE_BYTES, MAX_RATIO * info.compress_size):
                raise InputError(
                    f"{self.where(path)}: unpacks to more than {MAX_RATIO} times its size; no data but a bomb"
                )
            yield Entry(path, info.file_size, f"{info.header_offset}:{info.CRC:08x}")

    def _named(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        for info in self._zip.infolist():
            name = info.orig_filename  # .filename ends at a NUL
            if not info.flag_bits & 0x800:
                try:
                    name = name.encode("cp437").decode()
                except UnicodeError:
                    raise InputError(
                        f"{self.where(name)}: its name is not UTF-8; pack it again with UTF-8 names"
                    ) from None
            yield self.checked(name), info

    @cached_property
    def _zip_members(self) -> dict[str, zipfile.ZipInfo]:
        return {path: info for path, info in self._named() if not info.is_dir()}

    def _read(self, entry: Entry, size: int) -> bytes:
        with self._reading(self.where(entry)):
            archive = self._zip
            with archive.open(self._zip_members[entry.path]) as file:
                return file.read(size)


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in TAR_HEADERS and header.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class Tar(Archive):
    """Members of a tar are slices of one file, read by position; so forks may share it. A stamp is that position."""

    def passes_over(self, path: str) -> bool:
        """Whether a member of this name is no entry."""
        return hidden(path)

    @cached_property
    def _plain(self) -> BinaryIO:
        """The tar without its gzip, if it has one."""
        packed = os.pread(self._file.fileno(), 2, 0) == b"\x1f\x8b"
        return unpack(self._path, self.name) if packed else self._file

    def _members(self) -> Iterator[Entry]:
        file = self._plain
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        last = -1
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # which tarfile would keep for us
                if member.offset <= last or member.size < 0 or member.offset_data < 0:
                    raise tarfile.ReadError("a member before the one it follows")
                last = member.offset
                path = self.checked(member.name)
                if member.isdir() or self.passes_over(path):
                    continue
                if member.issparse():
                    raise InputError(f"{self.where(path)}: a sparse member; pack the archive without --sparse")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    kind = TAR_KINDS.get(member.type, "of an unknown type")
                    raise InputError(f"{self.where(path)}: {kind}; expected files and folders alone")
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("cut short")
                yield Entry(path, member.size, f"{member.offset_data}")
            self._require_end(tar.offset if last >= 0 else 0, end)  # type: ignore[attr-defined]

    def _require_end(self, place: int, end: int) -> None:
        """Nothing but zeros, and a block of them at least. Errors: tarfile.ReadError."""
        if place + BLOCK > end:
            raise tarfile.ReadError("cut short")
        while place < end:
            part = os.pread(self._plain.fileno(), READ_BYTES, place)
            if not part or part.count(0) != len(part):
                raise tarfile.ReadError("no zeros at its end, so it is cut short, or has a damaged header")
            place += len(part)

    def _read(self, entry: Entry, size: int) -> bytes:
        with self._reading(self.where(entry)):
            return os.pread(self._plain.fileno(), min(size, entry.size), int(entry.stamp))


def unpack(path: Path, where: str) -> BinaryIO:
    """The content of a gzip file in a temporary one that has no name and ends with the process.

    Errors: InputError for a damaged file and a bomb; OutputError where the temporary folder has no room.
    """
    folder = os.environ.get(remote.CACHE)
    try:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        target = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    except OSError as error:
        raise _no_room(where, error) from None
    try:
        with gunzipping(where), gzip.open(path) as file:
            for part in _limited(file, max(FREE_BYTES, MAX_RATIO * path.stat().st_size), where):
                try:
                    target.write(part)
                except OSError as error:
                    raise _no_room(where, error) from None
        target.flush()
        return target
    except OSError as error:
        raise unreadable(path, error) from None


def _limited(file: gzip.GzipFile, limit: int, where: str) -> Iterator[bytes]:
    count = 0
    while part := file.read(READ_BYTES):
        count += len(part)
        if count > limit:
            raise InputError(f"{where}: unpacks to more than {MAX_RATIO} times its size; no data but a bomb")
        yield part


def _no_room(where: str, error: OSError) -> OutputError:
    folder = os.environ.get(remote.CACHE) or tempfile.gettempdir()
    return OutputError(f"{show(folder)}: {(error.strerror or str(error)).lower()}; expected room to unpack {where}")
