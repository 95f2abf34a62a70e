"""Columns of a table, a batch of rows at a time, from any row on; those of a Parquet file are here.

Rows are counted from 0, the first after the header. What is NOT here: the bytes of a CSV file
(data/sources/delimited.py) and what columns mean (data/sources/tables.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from conf.errors import InputError, show
from data.sources.cells import is_number, is_text
from data.sources.rawfile import RawFile

if TYPE_CHECKING:
    import pyarrow as pa

NUMBER_BYTES = 8 << 20  # of a Parquet batch of numbers
TEXT_ROWS = 512  # of a Parquet batch of texts, or fewer if they are long
MAX_RATIO = 200  # unpacked / packed bytes of a column in a row group, from FREE_BYTES on
FREE_BYTES = 64 << 20
MAX_COLUMNS = 1 << 16  # pyarrow takes 9 KB for each, so a header of a few megabytes would take all memory
Batch = tuple[int, "list[pa.Array]"]  # its first row, the columns


class Columns(ABC):
    """A table's columns by name. Errors of every method: InputError, one line naming file and row or column."""

    def __init__(self, file: RawFile) -> None:
        self.file, self.where = file, file.where
        self.names = self._names()
        if len(self.names) > MAX_COLUMNS:
            raise InputError(
                f"{self.where}: {len(self.names)} columns; expected at most {MAX_COLUMNS}; save them as rows of a .npy"
            )
        twice = next((name for name, times in Counter(self.names).items() if times > 1), None)
        if twice is not None:
            raise InputError(f"{self.where}: two columns are called {show(repr(twice))}; rename one")
        self._cursors: dict[tuple[str, ...], _Cursor] = {}

    @abstractmethod
    def _names(self) -> list[str]: ...

    @abstractmethod
    def batches(self, columns: Sequence[str], start: int = 0) -> Iterator[Batch]:
        """Batches of these columns from row `start` on, or from a row before it if that is where reading can begin."""

    @abstractmethod
    def better(self, here: int, row: int) -> bool:
        """Whether reading goes on sooner at `row` by beginning anew than by skipping the rows since `here`."""

    def require(self, name: str, field: str) -> None:
        """Raises InputError if the column that a recipe names is not there."""
        if name not in self.names:
            raise InputError(
                f"{self.where}: has no column {show(repr(name))}, which source.{field} names; its columns are "
                f"{show(', '.join(self.names))}"
            )

    def take(self, columns: Sequence[str], rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[pa.Array]]]:
        """These ascending rows, in pieces: (row numbers, the columns there). Goes on where the last call ended."""
        cursor = self._cursors.setdefault(tuple(columns), _Cursor(self, columns))
        place = 0
        while place < len(rows):
            first, batch = cursor.seek(int(rows[place]))
            end = int(np.searchsorted(rows, first + len(batch[0])))
            here = rows[place:end] - first
            if here[-1] - here[0] + 1 == len(here):
                yield rows[place:end], [column.slice(here[0], len(here)) for column in batch]
            else:
                yield rows[place:end], [column.take(here) for column in batch]
            place = end


class _Cursor:
    """Where reading some columns has come to."""

    def __init__(self, table: Columns, columns: Sequence[str]) -> None:
        self.table, self.columns = table, columns
        self._batches: Iterator[Batch] = iter(())
        self._batch: Batch | None = None

    def seek(self, row: int) -> Batch:
        """The batch that holds a row."""
        if self._batch is not None:
            first, end = self._batch[0], self._batch[0] + len(self._batch[1][0])
            if first <= row < end:
                return self._batch
            if row < first or self.table.better(end - 1, row):
                self._batch = None
        if self._batch is None:
            self._batches = self.table.batches(self.columns, row)
        for batch in self._batches:
            if row < batch[0] + len(batch[1][0]):
                self._batch = batch
                return batch
        self._batch = None
        raise InputError(f"{self.table.where}: has no row {row} any more; it changed while it was read, run again")


class Parquet(Columns):
    """Columns come with their own types; reading begins at any row group."""

    _coded: Sequence[str] = ()  # columns of texts, read as dictionaries: one text may stand in a million rows

    def _names(self) -> list[str]:
        with self.file.open() as opened:
            parquet = self._opened(opened)
            about = parquet.metadata
            groups = [about.row_group(number) for number in range(about.num_row_groups)]
            sizes = [group.num_rows for group in groups]
            for number, group in enumerate(groups):
                self._require_no_bomb(number, group)
            mean = sum(group.total_byte_size for group in groups) / max(1, about.num_rows)
            self._text_rows = max(1, min(TEXT_ROWS, int(NUMBER_BYTES / max(1, mean))))
            self.schema = parquet.schema_arrow
            self._coded = [field.name for field in self.schema if is_text(field.type)]
        self.starts = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
        if min(sizes, default=0) < 0 or self.starts[-1] != about.num_rows:
            raise InputError(f"{self.where}: its row groups hold {sizes} rows, its footer says {about.num_rows}")
        return list(self.schema.names)

    def _opened(self, opened: BinaryIO) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        options = {"pre_buffer": False, "page_checksum_verification": True, "read_dictionary": list(self._coded)}
        try:
            return parquet.ParquetFile(opened, **options)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.where}: damaged Parquet file ({show(error)}); fetch it again") from None

    def _require_no_bomb(self, number: int, group: Any) -> None:
        if group.total_byte_size <= FREE_BYTES:
            return
        for column in (group.column(place) for place in range(group.num_columns)):
            if column.total_uncompressed_size > max(FREE_BYTES, MAX_RATIO * column.total_compressed_size):
                raise InputError(
                    f"{self.where}: column {show(repr(column.path_in_schema))} of row group {number} unpacks to "
                    f"{column.total_uncompressed_size} bytes, more than {MAX_RATIO} times its size; no data but a bomb"
                )

    def better(self, here: int, row: int) -> bool:
        return self._group(row) > self._group(here)

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def batches(self, columns: Sequence[str], start: int = 0) -> Iterator[Batch]:
        import pyarrow as pa

        group = self._group(start)
        plain = all(is_number(self.schema.field(name).type) for name in columns)
        size = max(1, min(1 << 16, NUMBER_BYTES // (8 * len(columns)))) if plain else self._text_rows
        row = int(self.starts[group])
        with self.file.open() as opened:
            parquet = self._opened(opened)
            try:
                for batch in parquet.iter_batches(
                    size, list(range(group, len(self.starts) - 1)), list(columns), use_threads=False
                ):
                    if batch.schema.names != list(columns):
                        batch = batch.select(list(columns))
                    if len(batch):
                        yield row, batch.columns
                    row += len(batch)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise InputError(f"{self.where}: damaged Parquet file ({show(error)}); fetch it again") from None
        if row != self.starts[-1]:
            raise InputError(f"{self.where}: its footer says {self.starts[-1]} rows, found {row}; fetch it again")
