"""Many files as one range of memory, so that one numpy operation gathers samples from all of them.

Addresses for all files are reserved at once; a file is mapped into its place when it is first needed and takes no file
descriptor afterwards. What is NOT here: what the files hold, and whether it is right (data/shards.py).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import durable

_FIXED = 0x10  # MAP_FIXED of <sys/mman.h>, on Linux and macOS alike; Python's mmap does not know it


class WrongSize(Exception):
    """A file is not as long as expected; the argument is its length in bytes."""


class Mapping:
    """Read-only files of known sizes; `starts[k]` is where file k begins in `content`, which reads as 0 until `add(k)`.

    The range lives as long as this object or an array into `content`.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        pages = -(-np.asarray(sizes, np.int64) // mmap.PAGESIZE) * mmap.PAGESIZE
        ends = np.cumsum(pages)
        self.starts = ends - pages
        reserved = mmap.mmap(-1, int(ends[-1]), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        self.content: np.ndarray = np.frombuffer(reserved, np.uint8)
        self.memory = self.content.data
        self._map = ctypes.CDLL(None, use_errno=True).mmap
        self._map.restype = ctypes.c_void_p
        self._map.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

    def add(self, number: int, path: Path) -> None:
        """Maps a file into its place. Errors: OSError, WrongSize."""
        with durable.opened(path) as file:
            found = os.fstat(file.fileno()).st_size
            if found != self.sizes[number]:
                raise WrongSize(found)
            self._place(number, mmap.MAP_SHARED, file.fileno())

    def drop(self, number: int) -> None:
        """Lets go of a file: its place reads as 0 again."""
        self._place(number, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)

    def _place(self, number: int, flags: int, descriptor: int) -> None:
        start, size = self.content.ctypes.data + int(self.starts[number]), int(self.sizes[number])
        if self._map(start, size, mmap.PROT_READ, flags | _FIXED, descriptor, 0) != start:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def items(self, dtype: np.dtype) -> np.ndarray:
        """One item for every byte of `content`: item p is the `dtype` that begins at byte p. Gather by indexing."""
        return np.ndarray((len(self.content) - dtype.itemsize + 1,), dtype, self.content, 0, (1,))
