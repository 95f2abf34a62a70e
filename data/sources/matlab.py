"""MATLAB .mat files of versions 5 to 7: numeric arrays by name, nothing else.

Format: The MathWorks, MAT-File Format (2019): a header of 128 bytes, then elements, each with its type and length, most
of them compressed by zlib, whose checksums are checked here. scipy reads the arrays; before it does, what an array says
of its size is compared with the bytes that are there. Numbers come as MATLAB stored them, which is as small as they
allow; `is_bytes` tells an array of class uint8 from a double that fits one. What is NOT here: which array is what.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import InputError, show
from data.sources import unreadable
from data.sources.rawfile import RawFile

HEADER = 128  # bytes
COMPRESSED, MATRIX = 15, 14  # types of elements
NUMERIC = (
    "double",
    "single",
    "logical",
    "sparse",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
MAX_RATIO = 200  # unpacked / packed bytes, from FREE_BYTES on; deflated zeros have 1,032
FREE_BYTES = 64 << 20
MAX_DENSE = 2 << 30  # bytes of a sparse matrix once it is none
READ_BYTES = 1 << 20
ELEMENT = re.compile(r"(.+)\[(\d{1,9})\]")  # X[0]: an element of a cell array
BROKEN = (ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, NotImplementedError, struct.error)


def is_mat(head: bytes) -> bool:
    """Whether a file begins like a .mat of version 5 or later."""
    return len(head) >= HEADER and head[126:128] in (b"IM", b"MI") and head.startswith(b"MATLAB")


class Mat:
    """One file. Errors of every method: InputError, one line."""

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        try:
            self._size = self._unpacked_size()
            listed = self._scipy("whosmat")
        except OSError as error:
            raise unreadable(path, error) from None
        self.variables = {name: (shape, kind) for name, shape, kind in listed}

    @property
    def names(self) -> list[str]:
        """Numeric arrays with more than one number."""
        return [name for name, (shape, kind) in self.variables.items() if kind in NUMERIC and math.prod(shape) > 1]

    def read(self, name: str, *, strings: bool = False) -> tuple[np.ndarray, bool]:
        """An array `X`, or an element `X[0]` of a cell array, and whether it is of class uint8.

        strings: a cell array of strings will do too.
        """
        match = ELEMENT.fullmatch(name)
        variable = name if name in self.variables or match is None else match[1]
        if variable not in self.variables:
            raise InputError(
                f"{self.where}: has no array {show(repr(name))}; its arrays are {show(', '.join(self.variables))}"
            )
        shape, kind = self.variables[variable]
        where = f"{self.where}: array {show(repr(name))}"
        if kind == "cell" and variable != name and match is not None:
            return self._element(variable, int(match[2]), where)
        if kind == "cell" and strings:
            return self._strings(variable, where), False
        if kind not in NUMERIC:
            says = f" (an element of it is called {show(variable)}[0])" if kind == "cell" else ""
            raise InputError(f"{where} is of class {show(kind)}; expected numbers{says}")
        if kind == "sparse":
            return self._dense(variable, shape, where), False
        self._require_room(math.prod(shape), where)
        return self._numbers(self._load(variable), where), kind == "uint8"

    def _element(self, variable: str, place: int, where: str) -> tuple[np.ndarray, bool]:
        cells = self._load(variable).ravel(order="F")
        if place >= len(cells):
            raise InputError(f"{where}: the cell array {show(variable)} has {len(cells)} elements, counted from 0")
        values = self._numbers(cells[place], where)
        if values.dtype == np.uint8:  # only MATLAB's own types tell what these are
            return values, self._load(variable, mat_dtype=True).ravel(order="F")[place].dtype == np.uint8
        return values, False

    def _strings(self, variable: str, where: str) -> np.ndarray:
        cells = [np.asarray(cell) for cell in self._load(variable).ravel(order="F")]
        if not all(cell.dtype.kind == "U" and cell.size <= 1 for cell in cells):
            raise InputError(f"{where} is of class cell; expected numbers, or strings alone")
        return np.array([str(cell.ravel()[0]) if cell.size else "" for cell in cells])

    def _dense(self, variable: str, shape: tuple[int, ...], where: str) -> np.ndarray:
        if math.prod(shape) * 8 > MAX_DENSE:
            raise InputError(
                f"{where}: a sparse matrix {shape} that needs {math.prod(shape) * 8} bytes once it is none; "
                f"expected at most {MAX_DENSE}; leave columns out, or save parts of it"
            )
        matrix = self._load(variable)
        return self._numbers(matrix.toarray() if hasattr(matrix, "toarray") else matrix, where)

    @staticmethod
    def _numbers(values: Any, where: str) -> np.ndarray:
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufc" or values.dtype.names:
            raise InputError(f"{where} is no array of numbers")
        return values

    def _require_room(self, values: int, where: str) -> None:
        if values > self._size:
            raise InputError(
                f"{where}: {values} values do not fit the {self._size} bytes there are; fetch the file again"
            )
        require_memory(8 * values, where)

    def _load(self, variable: str, **options: Any) -> Any:
        return self._scipy("loadmat", variable_names=[variable], **options)[variable]

    def _scipy(self, function: str, **options: Any) -> Any:
        from scipy import io
        from scipy.io import matlab

        try:
            return getattr(io, function)(str(self.path), appendmat=False, **options)
        except (*BROKEN, matlab.MatReadError, zlib.error, MemoryError) as error:
            raise self._damaged(error) from None

    # --- the file's bytes ---

    def _unpacked_size(self) -> int:
        """Bytes of all elements without their compression, after every length and checksum was checked."""
        with RawFile(self.path).open() as file:
            head, end, total = file.read(HEADER), os.fstat(file.fileno()).st_size, 0
            order = "<" if head[126:128] == b"IM" else ">"
            version = struct.unpack(f"{order}H", head[124:126])[0]
            if version == 0x0200:
                raise InputError(
                    f"{self.where}: a MATLAB 7.3 file (HDF5), which is not read here; "
                    "save it again in MATLAB with save(…, '-v7'), or its arrays as .npy"
                )
            if version != 0x0100:
                raise InputError(f"{self.where}: a MATLAB file of version {version:#x}; expected versions 5 to 7")
            place = HEADER
            while place < end:
                tag = file.read(8)
                kind, length = struct.unpack(f"{order}II", tag) if len(tag) == 8 else (0, 0)
                if kind not in (COMPRESSED, MATRIX) or place + 8 + length > end:
                    raise self._damaged("cut short, or an element that is no array")
                total += self._compressed_size(file, length) if kind == COMPRESSED else length
                place = file.seek(place + 8 + length)
        require_memory(total, self.where)
        return total

    def _compressed_size(self, file: Any, length: int) -> int:
        packed, size, given = zlib.decompressobj(), 0, length
        try:
            while length:
                part = file.read(min(READ_BYTES, length))
                length -= len(part)
                while part and not packed.eof:
                    size += len(packed.decompress(part, 16 * READ_BYTES))
                    require_no_bomb(size, given, self.where)
                    part = packed.unconsumed_tail
                if not part and packed.eof and length:
                    break
        except zlib.error as error:
            raise self._damaged(error) from None
        if not packed.eof or packed.unused_data or length:
            raise self._damaged("an element is cut short")
        return size

    def _damaged(self, error: object) -> InputError:
        return InputError(f"{self.where}: damaged .mat file ({show(error)}); fetch or save it again")


def require_no_bomb(size: int, packed: int, where: str) -> None:
    """Raises InputError for content that unpacks to far more than real data do. Sizes in bytes."""
    if size > max(FREE_BYTES, MAX_RATIO * packed):
        raise InputError(
            f"{where}: unpacks to more than {MAX_RATIO} times its size; a bomb, or so sparse that it is better saved "
            "as .npy, which is read in place"
        )


def require_memory(size: int, where: str) -> None:
    """Raises InputError for an array of more bytes than this machine's memory, before any is allocated."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise InputError(
            f"{where}: needs {size} bytes of memory, this machine has {memory}; save it as .npy, which is read in place"
        )
