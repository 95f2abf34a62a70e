"""A CSV file's columns. CSV as RFC 4180 has it, in UTF-8, gzipped or not.

A quote that opens a field must be closed before a delimiter or a line's end, and one inside is doubled; a file that
says otherwise is refused, since any guess could swallow rows. The delimiter is a tab or semicolon if the header has one
and no comma, and a tab if the name ends in .tsv.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from conf.errors import InputError, show
from data.sources.columns import Batch, Columns
from data.sources.rawfile import RawFile, gunzipping

BLOCK = 8 << 20  # bytes that are parsed at a time; no row may be longer
MAX_RATIO = 500  # decompressed / compressed bytes of a .csv.gz; more is no table but a bomb
BOM = b"\xef\xbb\xbf"
QUOTE = ord('"')


class Csv(Columns):
    """Every column comes as bytes, as written; nothing is guessed from the first rows."""

    def __init__(self, file: RawFile, *, gzipped: bool) -> None:
        self.gzipped, self.delimiter = gzipped, ","
        super().__init__(file)

    def _names(self) -> list[str]:
        with self.file.open() as opened:
            raw = io.BufferedReader(self._plain(opened))  # type: ignore[type-var]
            try:
                line = raw.readline(BLOCK).removeprefix(BOM).decode()
                stem = self.file.address.lower().removesuffix(".gz")
                if stem.endswith(".tsv") or ("," not in line and "\t" in line):
                    self.delimiter = "\t"
                elif "," not in line and ";" in line:
                    self.delimiter = ";"
                rest = (more.decode() for more in iter(lambda: raw.readline(BLOCK), b""))
                names = next(csv.reader(itertools.chain([line], rest), delimiter=self.delimiter, strict=True), [])
            except UnicodeDecodeError:
                raise InputError(f"{self.where}: its header is not UTF-8; convert the file to UTF-8") from None
            except csv.Error as error:
                raise InputError(f"{self.where}: its header cannot be read ({show(error)})") from None
        if not names or names == [""]:
            raise InputError(f"{self.where}: expected a table whose first line names the columns; found an empty line")
        return names

    def better(self, here: int, row: int) -> bool:
        return False

    def batches(self, columns: Sequence[str], start: int = 0) -> Iterator[Batch]:
        import pyarrow as pa
        from pyarrow import csv as arrow

        bad: list[Any] = []

        def refuse(row: Any) -> str:
            bad.append(row)
            return "error"

        with self.file.open() as opened:
            checked = _Quotes(self._plain(opened), self.delimiter, self.where)
            try:
                reader = arrow.open_csv(
                    checked,
                    # Without threads the rows of a block are numbered, and no block is read ahead.
                    read_options=arrow.ReadOptions(use_threads=False, block_size=BLOCK),
                    parse_options=arrow.ParseOptions(
                        delimiter=self.delimiter,
                        newlines_in_values=True,
                        ignore_empty_lines=len(self.names) > 1,  # in one column an empty line is an empty value
                        invalid_row_handler=refuse,
                    ),
                    convert_options=arrow.ConvertOptions(
                        column_types=dict.fromkeys(self.names, pa.binary()),
                        include_columns=list(columns),
                        check_utf8=False,
                        strings_can_be_null=False,
                    ),
                )
                row = 0
                for batch in reader:
                    if len(batch):
                        yield row, batch.columns
                    row += len(batch)
            except (pa.ArrowException, OSError, ValueError) as error:
                if checked.problem is not None:
                    raise checked.problem from None
                raise InputError(f"{self.where}: {self._reason(error, bad)}") from None
            if checked.problem is not None:
                raise checked.problem

    @staticmethod
    def _reason(error: Exception, bad: list[Any]) -> str:
        if bad:
            row = bad[0]
            return (
                f"row {row.number - 2} has {row.actual_columns} values, but there are {row.expected_columns} columns; "
                f"found {show(repr(row.text), 80)}"
            )
        if "straddling" in str(error):
            return f"a row is longer than {BLOCK >> 20} MiB; is a quote missing?"
        return f"cannot be read as CSV ({show(error)})"

    def _plain(self, opened: BinaryIO) -> BinaryIO:
        plain = _Gunzip(opened, self.file.size, self.where) if self.gzipped else opened
        return plain  # type: ignore[return-value]


class _Gunzip(gzip.GzipFile):
    """Decompresses; says what is wrong as an InputError."""

    def __init__(self, opened: BinaryIO, size: int, where: str) -> None:
        super().__init__(fileobj=opened, mode="rb")
        self._limit, self._shown = MAX_RATIO * size + BLOCK, where

    def read(self, size: int | None = -1) -> bytes:
        return self._guarded(super().read, size)

    def read1(self, size: int = -1) -> bytes:
        return self._guarded(super().read1, size)

    def _guarded(self, read: Any, size: int | None) -> bytes:
        with gunzipping(self._shown):
            content: bytes = read(size)
        if self.tell() > self._limit:
            raise InputError(f"{self._shown}: decompresses to more than {MAX_RATIO} times its size; this is no table")
        return content


class _Quotes(io.RawIOBase):
    """Passes a CSV file on and checks its quotes: pyarrow closes an open one at the file's end, and says nothing."""

    def __init__(self, inner: BinaryIO, delimiter: str, where: str) -> None:
        self.inner, self.where = inner, where
        self.problem: InputError | None = None
        self._ends = np.frombuffer(delimiter.encode() + b"\r\n", np.uint8)
        self._before = 10  # the byte before what comes next
        self._open = False  # whether that lies inside quotes
        self._closed = False  # whether _before was a quote that may have closed
        self._line, self._begin = 1, True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            content = self.inner.read(size)
            self._check(content)
        except InputError as error:
            self.problem = error
            raise OSError("refused") from None
        return content

    def _check(self, content: bytes) -> None:
        if not content:
            if self._open:
                self._refuse("is still open at the file's end", 0, content)
            return
        if self._begin:
            self._begin, content = False, content.removeprefix(BOM) or b"\n"
        values = np.frombuffer(content, np.uint8)
        if self._closed and values[0] != QUOTE and values[0] not in self._ends:
            self._refuse("is followed by text; double it if it is part of a value", 0, content)
        places = np.flatnonzero(values == QUOTE)
        if len(places):
            opens = (np.arange(len(places)) + self._open) % 2 == 0
            before = np.where(places > 0, values[places - 1], self._before)
            after = values[np.minimum(places + 1, len(values) - 1)]
            fine_before = np.isin(before, self._ends) | (before == QUOTE)
            fine_after = np.isin(after, self._ends) | (after == QUOTE) | (places == len(values) - 1)
            wrong = np.flatnonzero(~np.where(opens, fine_before, fine_after))
            if len(wrong):
                way = "opens inside a value" if opens[wrong[0]] else "is followed by text"
                self._refuse(f"{way}; double it if it is part of a value", int(places[wrong[0]]), content)
            self._open = bool((len(places) + self._open) % 2)
        self._before = int(values[-1])
        self._closed = self._before == QUOTE and not self._open
        self._line += content.count(b"\n")

    def _refuse(self, what: str, place: int, content: bytes) -> None:
        line = self._line + content.count(b"\n", 0, place)
        raise InputError(f"{self.where}: line {line}: a quote {what}")
