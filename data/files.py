"""Trees of raw files: a folder, a .zip, a .tar (gzipped or not), here or at an fsspec address.

Only regular, visible files are entries. A name that leads out of the tree, a link out of it, a device, a sparse or
encrypted member, two members of one name: refused, in one line. Nothing is ever extracted or opened by a name that an
archive gives. What is NOT here: what the files mean (data/sources/), single remote files (data/remote.py).
"""

from __future__ import annotations

import os
import stat
import time
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from conf.errors import InputError, show
from data import durable
from data.remote import Remote, RemoteFile, is_remote, local_path, shown
from data.sources import SET_WORDS, SETS, unreadable

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_NAME = 1024  # bytes of a member's path in an archive or at an address
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reorder what a terminal shows
NOTES = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".html", ".yaml", ".yml", ".pdf", ".db", ".ini")
NOTE_NAMES = ("readme", "license", "licence", "copying")
SETTLE_NS = 20_000_000  # a file system's clock ticks every 4 to 10 ms; two writes within one tick look the same


@dataclass(frozen=True)
class Entry:
    """A file of a tree: its path relative to it, with slashes; bytes; and a stamp that changes when it is written."""

    path: str
    size: int
    stamp: str

    @property
    def is_note(self) -> bool:
        """Whether its name is that of files that describe a data set and are no part of it (readme, .csv, .json …)."""
        name = self.path.rpartition("/")[2].lower()
        return name.endswith(NOTES) or name in NOTE_NAMES


class Tree(ABC):
    """Files below one address. The listing is made once, at its first use; a worker process opens a tree of its own."""

    by_content = True  # a file is known by its bytes; at an address, where reading is dear, by the listing's stamp

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    def _list(self) -> list[Entry]:
        """Made anew, in any order. Errors: InputError."""

    @abstractmethod
    def _read(self, entry: Entry, size: int) -> bytes:
        """At most `size` bytes from the entry's start. Errors: InputError, if it is not what the listing says."""

    def entries(self) -> list[Entry]:
        """Every visible regular file, by the bytes of its path. Errors: InputError, one line."""
        return self._entries

    @cached_property
    def _entries(self) -> list[Entry]:
        return sorted(self._list(), key=lambda entry: entry.path.encode())

    def read(self, entry: Entry, limit: int) -> bytes:
        """The whole content. Errors: InputError for more than `limit` bytes, and for a file that was changed."""
        if entry.size > limit:
            raise InputError(f"{self.where(entry)}: {entry.size} bytes; expected at most {limit >> 20} MiB")
        content = self._read(entry, entry.size + 1)
        if len(content) != entry.size:
            raise self.changed(entry)
        return content

    def head(self, entry: Entry, size: int) -> bytes:
        """The first `size` bytes, or all if there are not so many. Errors: InputError."""
        return self._read(entry, min(size, entry.size))

    @abstractmethod
    def fingerprint(self, keep: Callable[[Entry], bool] = lambda entry: True) -> str:
        """Taken anew at every call: changes when a file of those kept is added, removed, renamed or written."""

    def digest(self, entry: Entry, content: bytes) -> str:
        """What stands for the content in a source's digest."""
        return durable.digest_bytes(content) if self.by_content else durable.digest_value([entry.size, entry.stamp])

    def where(self, entry: Entry | str) -> str:
        """The file in a message: printable, one line, and of long names their ends."""
        path = shown(entry.path if isinstance(entry, Entry) else entry, 80)
        return f"{shown(self.address, 119 - len(path)).rstrip('/')}/{path}"

    def changed(self, entry: Entry) -> InputError:
        return InputError(f"{self.where(entry)}: changed while it was read; run again once nobody writes it")

    @property
    def name(self) -> str:
        """The address as messages show it."""
        return shown(self.address).rstrip("/")

    def checked(self, name: str) -> str:
        """The path of a member whose name somebody else chose. Errors: InputError for one that no path should be."""
        where = self.where(name)
        path = name.removeprefix("./").removesuffix("/")
        if any("\ud800" <= letter <= "\udfff" for letter in path):
            raise InputError(f"{where}: its name is not UTF-8; pack it again with UTF-8 names")
        if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") or letter in BIDI for letter in path):
            raise InputError(f"{where}: control or reordering characters in its name; rename it")
        if path.startswith("/") or "\\" in path or len(path.encode()) > MAX_NAME:
            raise InputError(f"{where}: expected a relative path with slashes, of at most {MAX_NAME} bytes")
        if path not in ("", ".") and any(part in ("", ".", "..") for part in path.split("/")):
            raise InputError(
                f"{where}: a path with . or .. or nothing between slashes leads out of its tree; rename it"
            )
        return path


class Listed(Tree):
    """A tree that is known by its listing."""

    def fingerprint(self, keep: Callable[[Entry], bool] = lambda entry: True) -> str:
        entries = sorted(self._list(), key=lambda entry: entry.path.encode())
        if "_entries" not in self.__dict__:
            self._entries = entries
        place = self.address if is_remote(self.address) else str(local_path(self.address).absolute())
        return durable.digest_value([place, [[e.path, e.size, e.stamp] for e in entries if keep(e)]])


class Folder(Listed):
    """A local folder. Names may hold anything UTF-8; links to files inside the folder are files."""

    @cached_property
    def _root(self) -> Path:
        return local_path(self.address)

    def _list(self) -> list[Entry]:
        entries = list(self._walk(self._root, ""))
        now = time.time_ns()
        youngest = max((int(entry.stamp.partition(":")[0]) for entry in entries), default=0)
        if 0 <= now - youngest < SETTLE_NS:
            time.sleep(SETTLE_NS / 1e9)
            entries = list(self._walk(self._root, ""))
        return entries

    def _walk(self, folder: Path, below: str) -> Iterator[Entry]:
        try:
            found = list(os.scandir(folder))
        except OSError as error:
            raise unreadable(folder, error) from None
        for item in found:
            path = f"{below}{item.name}"
            if item.name.startswith("."):
                continue
            try:
                path.encode()
                status = item.stat()
            except UnicodeEncodeError:
                raise InputError(f"{self.where(path)}: its name is not UTF-8; rename it") from None
            except OSError as error:
                raise unreadable(folder / item.name, error) from None
            if item.is_symlink() and (stat.S_ISDIR(status.st_mode) or not self._inside(item)):
                raise InputError(
                    f"{self.where(path)}: a link out of the tree or to a folder; put the files themselves there"
                )
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(folder / item.name, f"{path}/")
            elif not stat.S_ISREG(status.st_mode):
                raise InputError(f"{self.where(path)}: neither a file nor a folder; remove it from the tree")
            else:
                yield Entry(path, status.st_size, stamp(status))

    def _inside(self, item: os.DirEntry[str]) -> bool:
        return Path(item.path).resolve().is_relative_to(self._root.resolve())

    def _read(self, entry: Entry, size: int) -> bytes:
        path = f"{self._root}/{entry.path}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # never waits for a pipe's writer
            try:
                before = os.fstat(descriptor)
                if not stat.S_ISREG(before.st_mode) or (before.st_size, stamp(before)) != (entry.size, entry.stamp):
                    raise self.changed(entry)
                content = os.read(descriptor, size)
                while len(content) < min(size, entry.size) and (part := os.read(descriptor, size - len(content))):
                    content += part
                if stamp(os.fstat(descriptor)) != entry.stamp:
                    raise self.changed(entry)
                return content
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unreadable(Path(path), error) from None


class RemoteFolder(Listed):
    """A folder at an fsspec address, its files read straight from there."""

    by_content = False

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._remote = Remote(address)
        self._files: dict[str, RemoteFile] = {}

    def _list(self) -> list[Entry]:
        entries, files = [], {}
        for file in self._remote.files():
            path = self.checked(file.path)
            if hidden(path):
                continue
            if not file.stamp:
                raise InputError(
                    f"{self.where(path)}: its server tells neither ETag nor date; fetch the folder yourself"
                )
            if path in files:
                raise InputError(f"{self.where(path)}: listed twice; expected one file of a name")
            files[path] = file
            entries.append(Entry(path, file.size, file.stamp))
        self._files = files
        return entries

    def _read(self, entry: Entry, size: int) -> bytes:
        name = self._files[entry.path].name
        content = self._remote.read(name, size) if entry.size else b""
        status = self._remote.status(name)
        if (status.size, status.stamp) != (entry.size, entry.stamp):
            raise self.changed(entry)
        return content


def open_tree(address: str) -> Tree:
    """The tree at a path or address; reads nothing yet. Errors: InputError for an address that is not allowed."""
    remote = is_remote(address)
    if is_archive(address):
        from data.archives import Tar, Zip  # they are trees too

        return Zip(address) if _plain(address).endswith(".zip") else Tar(address)
    if not remote and local_path(address).is_file():
        raise InputError(f"{show(address)}: a file; expected a folder or one of {', '.join(ARCHIVES)}")
    return RemoteFolder(address) if remote else Folder(address)


def is_archive(address: str) -> bool:
    """Whether an address names an archive, and no folder that is called like one."""
    return _plain(address).endswith(ARCHIVES) and (is_remote(address) or not local_path(address).is_dir())


def _plain(address: str) -> str:
    return (address.partition("?")[0] if is_remote(address) else address).lower()


def stamp(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}:{status.st_ino}"


def hidden(path: str) -> bool:
    """Whether a member is one that its packer's system keeps for itself."""
    parts = path.split("/")
    return path == "" or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)


def divide(entries: list[Entry], where: str = "the source") -> dict[str, list[tuple[Entry, str]]]:
    """Set → its (entry, class) in order: sets by the top folders, classes by the folders inside them ("": none).

    Top folders named train, test, validation (valid, val) are sets, and so are `NAME-train` and `NAME-test` where there
    are no others; a folder that holds everything may lie around them. Without sets all is `train`. Errors: InputError
    for files beside the sets, and for two folders of one set.
    """
    around = _around([entry.path for entry in entries])
    tops = {_top(entry.path, around) for entry in entries}
    named = _sets(tops)
    if not named:
        return {"train": [(entry, entry.path.rpartition("/")[0]) for entry in entries]} if entries else {}
    if tops != set(named) or len(set(named.values())) < len(named):
        paths = (entry.path for entry in entries if _top(entry.path, around) not in named)
        raise InputError(
            f"{where}: folders named train and test are the source's sets, but there is also "
            f"{show(next(paths, 'two folders of one set'))}; move it into one of them or out of the tree"
        )
    result: dict[str, list[tuple[Entry, str]]] = {}
    for entry in entries:
        top, _, inside = entry.path[len(around) :].partition("/")
        result.setdefault(named[top], []).append((entry, inside.rpartition("/")[0]))
    return {name: result[name] for name in SETS if name in result}


def number_classes(divided: dict[str, list[tuple[Entry, str]]]) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """The class number of every entry of every set, −1 for none, and the classes' names in order."""
    names = sorted({name for pairs in divided.values() for _, name in pairs} - {""})
    numbers = {name: number for number, name in enumerate(names)} | {"": -1}
    return {key: [numbers[name] for _, name in pairs] for key, pairs in divided.items()}, tuple(names)


def _top(path: str, around: str) -> str:
    inside = path[len(around) :]
    return inside.partition("/")[0] if "/" in inside else ""


def _around(paths: list[str]) -> str:
    """`a/b/` if everything lies in a/b and the folders there are sets; else nothing."""
    around = ""
    while True:
        tops = {_top(path, around) for path in paths}
        if _sets(tops):
            return around
        if len(tops) != 1 or "" in tops:
            return ""
        around += f"{tops.pop()}/"


def _sets(tops: set[str]) -> dict[str, str]:
    """Top folder → set, for those that are any."""
    exact = {top: SET_WORDS[top.lower()] for top in tops if top.lower() in SET_WORDS}
    if exact and (tops == set(exact) or {"train", "test"} <= set(exact.values())):
        return exact
    cut = {top: max(top.rfind(mark) for mark in "-_. ") for top in tops}
    words = {top: SET_WORDS.get(top[place + 1 :].lower(), "") for top, place in cut.items() if place > 0}
    same_name = len({top[:place] for top, place in cut.items()}) == 1
    distinct = len(set(words.values())) == len(tops)
    return words if same_name and distinct and {"train", "test"} <= set(words.values()) - {""} else {}
