"""Raw inputs at fsspec addresses: what may be named, what it is now, and a local copy of a single file.

An address is `scheme://…` with a scheme of SCHEMES; credentials and endpoints come from where fsspec's backends look
for them (the environment, ~/.aws …), never from a recipe. A file is identified by its size and by what the service says
of its content (ETag, generation, or date). fsspec is imported only for such addresses. What is NOT here: folders of
files and archives (data/files.py); the cache of remote shards.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from conf.errors import InputError, OutputError, show
from data import durable
from data.sources import fingerprint_files

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "az", "http", "https", "memory")
CACHE = "STRATA_CACHE"  # the environment variable that names the folder of local copies
READ_BYTES = 4 << 20

_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://")
_COMMAND = re.compile(r"[\s{\[('\"]*pipe:", re.IGNORECASE)  # webdataset runs what follows in a shell
_SECRET = re.compile(r"^(\s*[A-Za-z0-9+.-]*://)[^/]*@")
_STAMPS = (  # in lower case, the most telling first
    *("etag", "generation", "content-md5", "md5hash"),
    *("last-modified", "lastmodified", "last_modified", "updated", "mtime", "modified", "created"),
)
_GONE = (404, 410)  # http
_FAILURES = (  # of the backends, where they are no OSError; a backend that is not loaded cannot raise
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)


def is_remote(path: str) -> bool:
    """Whether a recipe's path is an fsspec address. Errors: InputError for commands and schemes not allowed."""
    if _COMMAND.match(path):
        raise InputError(f"{show(path)}: strata runs no commands; expected a path or one of {_allowed()}")
    match = _ADDRESS.match(path)
    if match is None:
        return False
    if match[1] not in SCHEMES or match.start(1) > 0:
        raise InputError(f"{show(path)}: an address of the scheme {show(match[1])}; expected one of {_allowed()}")
    if "::" in path:
        raise InputError(f"{shown(path)}: a chain of addresses (::); expected a single one")
    return match[1] != "file"


def local_path(path: str) -> Path:
    """The path of anything that is not remote: `file:///a/b` is /a/b."""
    return Path(path.removeprefix("file://"))


def shown(path: str, limit: int = 120) -> str:
    """A path or address as messages may show it: no passwords, no signed queries, and its end where it is too long."""
    if _ADDRESS.match(path):
        path = _SECRET.sub(r"\1", path)
        path = f"{path.partition('?')[0]}?…" if "?" in path else path
    text = path if path.isprintable() else show(path, 10 * len(path) + 10)
    return text if len(text) <= limit else f"…{text[1 - limit :]}"


def local_file(path: str) -> Path:
    """A file here with the content of `path`: itself, or the copy of a remote one, fetched once, whole or not at all.

    Copies lie in the folder that STRATA_CACHE names (else in one that ends with this process) under a name made of
    address, size and stamp, so a file that changed is fetched anew. Errors: InputError; OutputError for the cache.
    """
    if not is_remote(path):
        return local_path(path)
    remote = Remote(path)
    status = remote.status()
    if status.folder:
        raise InputError(f"{shown(path)}: a folder; expected a file")
    if not status.stamp:
        raise InputError(f"{shown(path)}: its server tells neither ETag nor date; fetch it yourself and name the copy")
    name = (
        re.sub(r"[^A-Za-z0-9._-]", "_", unquote(path.partition("?")[0].rpartition("/")[2]))[-80:].lstrip(".-") or "file"
    )
    target = _cache() / durable.digest_value([path, status.size, status.stamp])[:32] / name
    try:
        with durable.lock(target.with_name(".lock"), wait=lambda holder: None):
            if not target.exists():
                with durable.writing(target) as file:
                    remote.fetch(file, status)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"{show(target.parent.parent)}: {reason}; expected room for {shown(path)}") from None
    return target


def fingerprint(path: str, settings: Any = None) -> str:
    """Changes when the file at a path or address does, or the settings; cheap, fetches nothing."""
    if not is_remote(path):
        file = local_path(path)
        return fingerprint_files(file.parent, [file], settings)
    status = Remote(path).status()
    return durable.digest_value([path, status.size, status.stamp, settings])


@dataclass(frozen=True)
class Status:
    """folder: it is none of a file; stamp: says whether the content is still the same; empty where nobody knows."""

    folder: bool
    size: int
    stamp: str


@dataclass(frozen=True)
class RemoteFile:
    """path: relative to the address listed; name: as the backend calls it."""

    path: str
    name: str
    size: int
    stamp: str


class Remote:
    """One address and its backend."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.scheme = address.partition("://")[0]

    def status(self, name: str | None = None) -> Status:
        """Of the address, or of a file found by `files`. Errors: InputError if it is not there or not answered for."""
        with self._asking():
            filesystem, root = self._open()
            info = filesystem.info(root if name is None else name)
            return Status(info.get("type") == "directory", int(info.get("size") or 0), _stamp(info))

    def files(self) -> list[RemoteFile]:
        """Every file below the address, in no order."""
        with self._asking():
            filesystem, root = self._open()
            prefix = root.rstrip("/") + "/"
            found = []
            for name, info in filesystem.find(prefix, withdirs=False, detail=True).items():
                inside = name.removeprefix(prefix)
                if info.get("type") != "file" or not inside or inside.endswith("/"):
                    continue  # a folder's marker
                if self.scheme.startswith("http"):
                    if "?" in inside or "#" in inside or not name.startswith(prefix):
                        continue  # links of a page that sort it or lead elsewhere
                    inside, info = unquote(inside), filesystem.info(name)  # the page itself tells no sizes
                found.append(RemoteFile(inside, name, int(info.get("size") or 0), _stamp(info)))
            return found

    def read(self, name: str, size: int) -> bytes:
        """A file's first `size` bytes, or all; for files that are not empty, of which S3 gives no range."""
        with self._asking():
            filesystem, _ = self._open()
            if self.scheme.startswith("http"):  # not every server knows ranges
                with filesystem.open(name, "rb", block_size=0) as file:
                    return b"".join(_parts(file, size))
            return bytes(filesystem.cat_file(name, start=0, end=size))

    def fetch(self, file: BinaryIO, status: Status) -> None:
        """Writes the content to `file`. Errors: InputError if it is not what `status` says; OSError of `file`."""
        with self._asking():
            filesystem, root = self._open()
            streamed = {"block_size": 0} if self.scheme.startswith("http") else {}
            source = filesystem.open(root, "rb", **streamed)
        with source:
            parts, count = _parts(source, status.size + 1), 0
            while True:
                with self._asking():
                    part = next(parts, b"")
                if not part:
                    break
                count += len(part)
                file.write(part)
        if count != status.size or self.status() != status:
            raise InputError(f"{shown(self.address)}: changed while it was fetched; run again once nobody writes it")

    def _open(self) -> tuple[Any, str]:
        """The backend, asked for anew each time since none survives a fork (fsspec keeps it), and the path inside."""
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False}
        if self.scheme.startswith("http"):
            options["headers"] = {"Accept-Encoding": "identity"}  # the bytes as they lie there
        filesystem, root = fsspec.core.url_to_fs(self.address, **options)
        return filesystem, str(root)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        where = shown(self.address)
        try:
            yield
        except ImportError as error:
            raise InputError(f"{where}: needs a package that is not installed ({show(error)})") from None
        except FileNotFoundError as error:
            why = error.__cause__ if self.scheme.startswith("http") else None  # of all that can go wrong there, fsspec
            found = "no such file or folder"  # says it is no file; the cause says what
            if why is not None and not isinstance(why, FileNotFoundError) and getattr(why, "status", 0) not in _GONE:
                found = f"cannot be read ({show(why) or type(why).__name__})"
            raise InputError(f"{where}: {found}; expected a readable file or folder") from None
        except _failures() as error:
            reason = show(error) or type(error).__name__
            raise InputError(f"{where}: cannot be read ({reason}); expected a readable file or folder") from None


def _failures() -> tuple[type[Exception], ...]:
    foreign = [getattr(sys.modules[module], name) for module, name in _FAILURES if module in sys.modules]
    return (OSError, ValueError, TimeoutError, *foreign)


def _stamp(info: dict[str, Any]) -> str:
    lower = {key.lower(): value for key, value in info.items()}
    value = next((lower[key] for key in _STAMPS if lower.get(key) is not None), "")
    seconds = value.timestamp() if hasattr(value, "timestamp") else value  # as backends list them, one way or the other
    return str(seconds).strip('"')


def _parts(file: Any, limit: int) -> Iterator[bytes]:
    """Up to `limit` bytes of a file, piece by piece."""
    left = limit
    while left and (part := file.read(min(READ_BYTES, left))):
        left -= len(part)
        yield part


def _allowed() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)


def cache_folder() -> Path:
    """Where none is named, one is: processes that this one starts then share its copies, and leave none behind."""
    if CACHE not in os.environ:
        os.environ[CACHE] = str(_private(os.getpid()))
    return Path(os.environ[CACHE])


def _cache() -> Path:
    return cache_folder() / "raw"


@cache
def _private(process: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="strata-"))

    def remove() -> None:
        if os.getpid() == process:  # and not a fork of it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
