"""A .npy file, or an .npz or MATLAB .mat with the arrays of one or more sets. Nothing pickled is ever loaded.

In an .npz or .mat, arrays are known by name: `x`, `data`, `images` … and `y`, `labels`, `targets` …, alone or with the
name of a set before or behind (`x_train`, `test_labels`, `valid_data`), or the set alone (`train`). Where a recipe
names `data`, only what it names is read; in its names, one that ends in .npy or .mat is a file, any other an array in
`path`. Samples come first, or last with `columns`; a scale of 255 is assumed of arrays of bytes alone, not of a MATLAB
double that was stored as such. What is NOT here: the bytes of a .mat (data/sources/matlab.py).
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
from data import durable, remote
from data.sources import SET_WORDS, unreadable
from data.sources.matlab import HEADER, Mat, is_mat, require_memory, require_no_bomb
from data.sources.rawfile import RawFile
from data.sources.whole import Table, WholeSource

ROLES = dict.fromkeys(("x", "data", "images", "features", "inputs", "samples"), "data") | dict.fromkeys(
    ("y", "label", "labels", "target", "targets", "classes"), "labels"
)
MAX_HEADER = 10_000  # bytes of a .npy header


class Arrays(WholeSource):
    """The arrays a recipe names, or those with the usual names."""

    source: conf.ArraysSource

    def __init__(self, source: conf.ArraysSource) -> None:
        super().__init__(source)
        self.scale = source.scale
        self.image_shape = tuple(source.image_shape) if source.image_shape else None
        self._named = {
            ("train", "data"): source.data,
            ("train", "labels"): source.labels,
            ("validation", "data"): source.validation_data,
            ("validation", "labels"): source.validation_labels,
            ("test", "data"): source.test_data,
            ("test", "labels"): source.test_labels,
        }

    def fingerprint(self) -> str:
        others = [name for name in self._named.values() if name is not None and names_file(name)]
        files = [remote.fingerprint(name) for name in [self.source.path, *others]]
        return durable.digest_value([files, self.source.model_dump()])

    def _load(self) -> dict[str, Table]:
        self._where = remote.shown(self.source.path)
        path = remote.local_file(self.source.path)
        try:
            with RawFile(path).open() as file:
                head = file.read(HEADER)
        except OSError as error:
            raise unreadable(path, error) from None
        if head[:6] == npy.MAGIC_PREFIX:
            return self._tables_of({("train", "data"): self.source.path}, None)
        if is_mat(head):
            return self._tables_of({}, Mat(path, self._where))
        if head[:4] != b"PK\x03\x04":
            raise InputError(
                f"{self._where}: expected a .npy or .npz file or a MATLAB .mat of versions 5 to 7, "
                f"found the bytes {head[:6].hex(' ')}"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                return self._tables_of({}, _Npz(archive, self._where))
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise InputError(f"{self._where}: damaged .npz ({show(error)}); write or fetch it again") from None

    def _tables_of(self, fixed: dict[tuple[str, str], str], container: _Npz | Mat | None) -> dict[str, Table]:
        named = {place: name for place, name in self._named.items() if name is not None}
        if container is not None and ("train", "data") not in named:
            named = _guess(container.names, self._where) | named
        named |= fixed
        arrays = {place: self._array(name, place[1], container) for place, name in named.items()}
        data = {set_name: values for (set_name, role), values in arrays.items() if role == "data"}
        kinds = {values.dtype for values in data.values()}
        if isinstance(container, Mat) and len(kinds) > 1 and all(kind.kind in "biuf" for kind in kinds):
            # MATLAB stores every double array as small as its own numbers allow.
            data = {set_name: values.astype(np.result_type(*kinds)) for set_name, values in data.items()}
        tables = {}
        for set_name, values in data.items():
            where, labels_name = self._place(named[set_name, "data"]), named.get((set_name, "labels"))
            labels = arrays.get((set_name, "labels"))
            shaped = self._shaped(values, where)
            tables[set_name] = Table(shaped, labels, where, self._place(labels_name) if labels_name else "")
        orphans = [named[place] for place in arrays if place[1] == "labels" and place[0] not in tables]
        if orphans:
            raise InputError(f"{self._where}: {show(orphans[0])!r} are labels of a set that has no data; name both")
        return tables

    def _place(self, name: str) -> str:
        return remote.shown(name) if names_file(name) else f"{self._where}: array {show(name)!r}"

    def _array(self, name: str, role: str, container: _Npz | Mat | None) -> np.ndarray:
        if name.endswith(".npy"):
            return _map_npy(remote.local_file(name))
        if name.endswith(".mat"):
            container = Mat(remote.local_file(name), remote.shown(name))
            name = _only(container, role)
        if container is None:
            raise InputError(f"{self._where}: is a single array; {show(name)!r} must be another .npy or .mat file")
        if isinstance(container, _Npz):
            return container.read(name)
        values, is_bytes = container.read(name, strings=role == "labels")
        if role == "labels":
            return values.reshape(-1) if values.ndim == 2 and 1 in values.shape else values
        if values.dtype == np.uint8 and not is_bytes:
            self.scale = self.scale or 1.0
        return values

    def _shaped(self, data: np.ndarray, where: str) -> np.ndarray:
        """(n, …): samples first, vectors folded into pictures if the recipe says so."""
        if self.source.columns and data.ndim > 1:
            data = np.moveaxis(data, -1, 0)
        if self.image_shape is None or data.ndim < 2:
            return data
        if math.prod(self.image_shape) != math.prod(data.shape[1:]):
            raise InputError(
                f"{where}: samples of shape {data.shape[1:]} do not fit source.image_shape {list(self.image_shape)}"
            )
        if self.source.image_order == "columns":
            *outer, height, width = self.image_shape
            return data.reshape(len(data), *outer, width, height).swapaxes(-1, -2)
        return data.reshape(len(data), *self.image_shape)


class _Npz:
    """An open .npz."""

    def __init__(self, archive: zipfile.ZipFile, where: str) -> None:
        self.archive, self.where = archive, where
        self.names = [name.removesuffix(".npy") for name in archive.namelist()]

    def read(self, name: str) -> np.ndarray:
        if f"{name}.npy" not in self.archive.namelist():
            raise InputError(f"{self.where}: has no array {show(name)!r}; its arrays are {show(', '.join(self.names))}")
        return _read_member(self.archive, f"{name}.npy", f"{self.where}: array {show(name)!r}")


def names_file(name: str) -> bool:
    """Whether a name that a recipe gives is a file's, and not that of an array in `path`."""
    return name.endswith((".npy", ".mat"))


def _guess(names: list[str], where: str) -> dict[tuple[str, str], str]:
    """Which array is what, by its name. Errors: InputError for a name that fits twice, or no data at all."""
    found: dict[tuple[str, str], str] = {}
    for name in names:
        words = [word for word in re.split(r"[-_. ]+", name.lower()) if word]
        sets, roles = [word for word in words if word in SET_WORDS], [word for word in words if word in ROLES]
        if len(sets) + len(roles) != len(words) or len(sets) > 1 or len(roles) > 1:
            continue
        place = SET_WORDS[sets[0]] if sets else "train", ROLES[roles[0]] if roles else "data"
        if place in found:
            raise InputError(
                f"{where}: both {show(found[place])!r} and {show(name)!r} could be the {place[0]} "
                f"{place[1]}; say which with source.data, source.labels, source.test_data, source.test_labels"
            )
        found[place] = name
    if not any(role == "data" for _, role in found):
        if len(names) == 1:
            return {("train", "data"): names[0]}
        raise InputError(
            f"{where}: none of its arrays {show(', '.join(names))} has a usual name "
            "(x, data, x_train …); say which one to read with source.data"
        )
    return found


def _only(mat: Mat, role: str) -> str:
    """The one array of this role in a .mat that a recipe names for it."""
    names = [name for (_, what), name in _guess(mat.names, mat.where).items() if what == role]
    if len(names) != 1 and len(mat.names) == 1:
        names = mat.names
    if len(names) != 1:
        raise InputError(
            f"{mat.where}: expected one array of {role}, found {show(', '.join(names or mat.names) or 'none')}; "
            "save it in a file of its own, or make this file the source.path and name the array"
        )
    return names[0]


def _map_npy(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped, after its header was compared with its size. Errors: InputError."""
    try:
        with RawFile(path).open() as file:
            check_npy(file, path.stat().st_size, show(path))
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise InputError(f"{show(path)}: cannot be mapped ({show(error)}); write or fetch it again") from None


def _read_member(archive: zipfile.ZipFile, member: str, where: str) -> np.ndarray:
    """An array of an .npz, after its header was compared with its size. Errors: InputError."""
    entry = archive.getinfo(member)
    require_no_bomb(entry.file_size, entry.compress_size, where)
    try:
        with archive.open(member) as file:
            check_npy(file, entry.file_size, where)
            require_memory(entry.file_size, where)
        with archive.open(member) as file:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = npy.read_array(file, allow_pickle=False)
            file.read(1)  # zipfile checks the CRC at a member's end, which reading just its size need not reach
            return array
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{where}: damaged ({show(error)}); write or fetch it again") from None


def check_npy(file: BinaryIO | IO[bytes], size: int, where: str) -> None:
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
