"""A plain file, gzipped or not, with a text a line: any line can be read at any time.

Lines end with \\n or \\r\\n; those of white space alone are no texts and are passed over. Where each text lies is kept
in an unlinked temporary file (24 bytes a text), so that memory does not grow with the number of lines; each process
makes its own in one pass. What is NOT here: what the texts mean (data/sources/texts.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from conf.errors import InputError, OutputError
from data import remote
from data.archives import unpack
from data.files import stamp
from data.sources import unreadable

MAX_TEXT = 64 << 20  # bytes of one text
BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 4096
NEWLINE, RETURN = 10, 13
_SOLID = np.ones(256, bool)  # bytes that are no ASCII white space
_SOLID[list(b" \t\n\r\v\f")] = False


class Lines:
    """The texts of one file, each with the number of its line, from 1."""

    def __init__(self, path: str) -> None:
        self.path, self.name = path, remote.shown(path)

    def __len__(self) -> int:
        return len(self._places)

    def fingerprint(self) -> str:
        return remote.fingerprint(self.path)

    def numbers(self) -> Iterator[int]:
        """Line numbers, in order."""
        for first in range(0, len(self), BLOCK_ROWS):
            yield from self._places[first : first + BLOCK_ROWS, 2].tolist()

    def read(self, rows: Sequence[int]) -> Iterator[tuple[int, int, bytes]]:
        """(line number, place of its first byte, bytes) of these texts, in their order. Errors: InputError."""
        for first in range(0, len(rows), BLOCK_ROWS):
            places = self._places[list(rows[first : first + BLOCK_ROWS])]
            start, stop = int(places[:, 0].min()), int(places[:, 1].max())
            block = self._bytes(start, stop) if stop - start <= BLOCK_BYTES else None
            for begin, end, number in places.tolist():
                yield number, begin, self._bytes(begin, end) if block is None else block[begin - start : end - start]

    def blocks(self) -> Iterator[bytes]:
        """The whole content."""
        place = 0
        while block := self._bytes(place, min(place + BLOCK_BYTES, self._size)):
            place += len(block)
            yield block

    # --- the file ---

    @cached_property
    def _opened(self) -> tuple[BinaryIO, tuple[int, str], BinaryIO]:
        """The file, what it was when it was opened, and the same unpacked."""
        path = remote.local_file(self.path)
        try:
            if not path.is_file():
                path.stat()
                raise InputError(f"{self.name}: no file; expected one with a text a line")
            file = path.open("rb")
            status = os.fstat(file.fileno())
            packed = os.pread(file.fileno(), 2, 0) == b"\x1f\x8b"
        except OSError as error:
            raise unreadable(Path(path), error) from None
        return file, (status.st_size, stamp(status)), unpack(path, self.name) if packed else file

    @cached_property
    def _size(self) -> int:
        return os.fstat(self._opened[2].fileno()).st_size

    def _bytes(self, start: int, stop: int) -> bytes:
        file, before, content = self._opened
        try:
            result = os.pread(content.fileno(), stop - start, start)
            status = os.fstat(file.fileno())
        except OSError as error:
            raise unreadable(Path(self.path), error) from None
        if len(result) != stop - start or (status.st_size, stamp(status)) != before:
            raise InputError(f"{self.name}: changed while it was read; run again once nobody writes it")
        return result

    # --- where the texts lie ---

    @cached_property
    def _places(self) -> np.ndarray:
        """(n, 3) int64, mapped from disk: first byte, byte after the last, line number."""
        folder = os.environ.get(remote.CACHE)
        count = 0
        parts = self._find()
        try:
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                for part in parts:
                    file.write(part.tobytes())
                    count += len(part)
                file.flush()
                if count:
                    return np.memmap(file, np.int64, "r", shape=(count, 3))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"{folder or tempfile.gettempdir()}: {reason}; expected room for an index") from None
        raise InputError(f"{self.name}: no text in it; expected one a line")

    def _find(self) -> Iterator[np.ndarray]:
        place, number, carry = 0, 1, b""
        for block in self.blocks():
            carry += block
            cut = carry.rfind(b"\n") + 1
            if cut:
                part = _texts(np.frombuffer(carry, np.uint8, cut), place, number)
                number += carry.count(b"\n", 0, cut)
                yield part
                place, carry = place + cut, carry[cut:]
            if len(carry) > MAX_TEXT:
                raise InputError(
                    f"{self.name}: line {number} has more than {MAX_TEXT >> 20} MiB; expected a text a line"
                )
        if carry:
            yield _texts(np.frombuffer(carry + b"\n", np.uint8), place, number)


def _texts(content: np.ndarray, place: int, number: int) -> np.ndarray:
    """The places of the texts in whole lines, of which the first is line `number` and begins at `place`."""
    stops = np.flatnonzero(content == NEWLINE)
    starts = np.concatenate([[0], stops[:-1] + 1])
    solid = np.add.reduceat(_SOLID[content], starts, dtype=np.int64) > 0
    returns = content[stops - 1] == RETURN  # before an empty line lies a newline
    rows = np.stack([starts + place, stops - returns + place, np.arange(number, number + len(stops))], axis=1)
    return rows[solid].astype(np.int64)
