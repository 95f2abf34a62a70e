"""A .npy file (samples first), or an .npz with the arrays of one or more sets. Nothing pickled is ever loaded.

In an .npz, arrays are known by name: `x`, `data`, `images` … and `y`, `labels`, `targets` …, alone or with the name of
a set before or behind (`x_train`, `test_labels`, `valid_data`), or the set alone (`train`). Where a recipe names
`data`, only what it names is read; in its names, one that ends in .npy is a file, any other an array of the .npz.
"""

from __future__ import annotations

import math
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.lib import format as npy

import conf
from conf.errors import InputError, show
from data.sources import fingerprint_files, unreadable
from data.sources.whole import Table, WholeSource

SETS = {"train": "train", "test": "test", "valid": "validation", "validation": "validation", "val": "validation"}
ROLES = dict.fromkeys(("x", "data", "images", "features", "inputs", "samples"), "data") | dict.fromkeys(
    ("y", "label", "labels", "target", "targets", "classes"), "labels"
)
MAX_RATIO = 2000  # decompressed / compressed bytes: deflate reaches 1,032 on zeros, and sparse data come close
MAX_HEADER = 10_000  # bytes of a .npy header


class Arrays(WholeSource):
    """The arrays a recipe names, or those with the usual names."""

    def __init__(self, source: conf.ArraysSource) -> None:
        super().__init__(source)
        self.path = Path(source.path)
        self.image_shape = tuple(source.image_shape) if source.image_shape else None
        self._named = {
            ("train", "data"): source.data,
            ("train", "labels"): source.labels,
            ("test", "data"): source.test_data,
            ("test", "labels"): source.test_labels,
        }

    def fingerprint(self) -> str:
        others = [Path(name) for name in self._named.values() if name is not None and name.endswith(".npy")]
        settings = [[*place, name] for place, name in self._named.items()]
        return fingerprint_files(self.path.parent, [self.path, *others], [settings, self.image_shape])

    def _load(self) -> dict[str, Table]:
        try:
            with self.path.open("rb") as file:
                magic = file.read(6)
        except OSError as error:
            raise unreadable(self.path, error) from None
        if magic == npy.MAGIC_PREFIX:
            return self._tables_of({("train", "data"): str(self.path)}, None)
        if magic[:4] != b"PK\x03\x04":
            raise InputError(f"{show(self.path)}: expected a .npy or .npz file, found the bytes {magic.hex(' ')}")
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self._tables_of({}, archive)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise InputError(f"{show(self.path)}: damaged .npz ({show(error)}); write or fetch it again") from None

    def _tables_of(self, fixed: dict[tuple[str, str], str], archive: zipfile.ZipFile | None) -> dict[str, Table]:
        named = {place: name for place, name in self._named.items() if name is not None}
        if archive is not None and ("train", "data") not in named:
            named = self._guess(archive) | named
        named |= fixed
        arrays = {place: self._array(name, archive) for place, name in named.items()}
        tables = {}
        for (set_name, role), data in arrays.items():
            if role == "data":
                where, labels_name = self._where(named[set_name, role]), named.get((set_name, "labels"))
                labels = arrays.get((set_name, "labels"))
                tables[set_name] = Table(
                    self._shaped(data, where), labels, where, self._where(labels_name) if labels_name else ""
                )
        orphans = [named[place] for place in arrays if place[1] == "labels" and place[0] not in tables]
        if orphans:
            raise InputError(f"{show(self.path)}: {show(orphans[0])!r} are labels of a set that has no data; name both")
        return tables

    def _guess(self, archive: zipfile.ZipFile) -> dict[tuple[str, str], str]:
        """Which array is what, by its name. Errors: InputError for a name that fits twice, or no data at all."""
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        found: dict[tuple[str, str], str] = {}
        for name in names:
            words = [word for word in re.split(r"[-_. ]+", name.lower()) if word]
            sets, roles = [word for word in words if word in SETS], [word for word in words if word in ROLES]
            if len(sets) + len(roles) != len(words) or len(sets) > 1 or len(roles) > 1:
                continue
            place = SETS[sets[0]] if sets else "train", ROLES[roles[0]] if roles else "data"
            if place in found:
                raise InputError(
                    f"{show(self.path)}: both {show(found[place])!r} and {show(name)!r} could be the {place[0]} "
                    f"{place[1]}; say which with source.data, source.labels, source.test_data, source.test_labels"
                )
            found[place] = name
        if not any(role == "data" for _, role in found):
            if len(names) == 1:
                return {("train", "data"): names[0]}
            raise InputError(
                f"{show(self.path)}: none of its arrays {show(', '.join(names))} has a usual name "
                "(x, data, x_train …); say which one to read with source.data"
            )
        return found

    def _where(self, name: str) -> str:
        return show(name) if name.endswith(".npy") else f"{show(self.path)}: array {show(name)!r}"

    def _array(self, name: str, archive: zipfile.ZipFile | None) -> np.ndarray:
        if name.endswith(".npy"):
            return _map_npy(Path(name))
        if archive is None:
            raise InputError(f"{show(self.path)}: is a single array; {show(name)!r} must be another .npy file")
        if f"{name}.npy" not in archive.namelist():
            names = ", ".join(member.removesuffix(".npy") for member in archive.namelist())
            raise InputError(f"{show(self.path)}: has no array {show(name)!r}; its arrays are {show(names)}")
        return _read_member(archive, f"{name}.npy", self._where(name))

    def _shaped(self, data: np.ndarray, where: str) -> np.ndarray:
        if self.image_shape is None or data.ndim < 2:
            return data
        if math.prod(self.image_shape) != math.prod(data.shape[1:]):
            raise InputError(
                f"{where}: samples of shape {data.shape[1:]} do not fit source.image_shape {list(self.image_shape)}"
            )
        return data.reshape(len(data), *self.image_shape)


def _map_npy(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped, after its header was compared with its size. Errors: InputError."""
    try:
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size, show(path))
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise InputError(f"{show(path)}: cannot be mapped ({show(error)}); write or fetch it again") from None


def _read_member(archive: zipfile.ZipFile, member: str, where: str) -> np.ndarray:
    """An array of an .npz, after its header was compared with its size. Errors: InputError."""
    entry = archive.getinfo(member)
    if entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
        raise InputError(f"{where}: decompresses to more than {MAX_RATIO} times its size; this is no data set")
    try:
        with archive.open(member) as file:
            _check_header(file, entry.file_size, where)
        with archive.open(member) as file:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = npy.read_array(file, allow_pickle=False)
            file.read(1)  # zipfile checks the CRC at a member's end, which reading just its size need not reach
            return array
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{where}: damaged ({show(error)}); write or fetch it again") from None


def _check_header(file: BinaryIO | IO[bytes], size: int, where: str) -> None:
    """Refuses pickles, and headers that do not tell the size of what follows."""
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # files of Python 2 are slower to read, and fine
            shape, _, dtype = read(file, max_header_size=MAX_HEADER)
    except ValueError as error:
        raise InputError(f"{where}: expected a NumPy array, found a broken header ({show(error)})") from None
    if dtype.hasobject:
        raise InputError(f"{where}: holds Python objects, which only a pickle can carry; save plain numbers instead")
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if expected != size:
        raise InputError(f"{where}: {shape} {dtype} need {expected} bytes, found {size}; write or fetch it again")
