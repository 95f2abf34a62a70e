"""A table → vectors of its numeric columns, texts of one column, or pictures whose paths stand in one.

A sample's key is its row's number in the whole table, from 0. Numbers are kept in 32 bits, or in 64 if a whole number
needs them; a cell that is missing or not finite is refused, by row and column. The label column may hold whole numbers
(−1: missing) or texts, and be empty where a label is missing. Pictures lie below the table's folder. Of a CSV file
every pass reads from its start; a Parquet file is entered at any row group.
What is NOT here: how rows are read (data/sources/columns.py) and cells understood (data/sources/cells.py).
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import conf
from conf.errors import InputError, show
from data import durable
from data.remote import is_remote, local_path
from data.sources import SET_WORDS, SETS, Description, RawSource, pictures
from data.sources.cells import numbers, texts
from data.sources.classes import Classes
from data.sources.columns import FREE_BYTES, Columns, Parquet
from data.sources.delimited import MAX_RATIO, Csv
from data.sources.rawfile import RawFile, Stamp
from data.sources.words import TextSamples

if TYPE_CHECKING:
    import pyarrow as pa

Schema = dict[str, Any]  # the fields of a Description that follow from what is in the columns


class Table(RawSource):
    """One of three views of a table: Numbers, Texts, Pictures."""

    source: conf.TableSource

    def __init__(self, source: conf.TableSource) -> None:
        super().__init__(source)
        self.file = RawFile(source.path)
        self._view: _View = _Texts(self) if source.text else _Pictures(self) if source.image else _Numbers(self)

    def fingerprint(self) -> str:
        return durable.digest_value([self.file.fingerprint(), self.source.model_dump(), self._view.fingerprint()])

    def keys(self, set_name: str) -> Iterator[str]:
        return map(str, self._rows(set_name))

    def labels(self, set_name: str) -> np.ndarray:
        labels = self._read_labels[0]
        if labels is None:
            return np.full(self.sets[set_name], -1, np.int64)
        return labels[self._rows(set_name)]

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        wanted = np.asarray(rows, np.int64)
        if self.source.set is not None:
            wanted = self._rows(set_name)[wanted]
        for places, columns in self.columns.take(self._view.names, wanted):
            for place, value in zip(places, self._view.values(columns, places), strict=True):
                yield str(place), value

    def _describe(self) -> Description:
        content = self.file.digest()
        self._require_columns()
        if self.source.set is not None and not len(self._set_numbers):
            raise self._empty()
        schema = self._view.describe()
        total = schema.pop("rows")
        if total == 0:
            raise self._empty()
        labels, classes = self._read_labels
        rows = {"train": np.arange(total)} if self.source.set is None else self._rows_of_sets
        sets = {name: len(rows[name]) for name in rows if len(rows[name])}
        known = {name: int((labels[rows[name]] >= 0).sum()) if labels is not None else 0 for name in sets}
        settings = {name: value for name, value in self.source.model_dump().items() if name != "path"}
        about = [settings, content, schema.pop("content", ""), self.revision]
        return Description(
            kind="table", sets=sets, labeled=known, classes=classes, content=durable.digest_value(about), **schema
        )

    # --- columns ---

    @cached_property
    def columns(self) -> Columns:
        with self.file.open() as opened:
            magic = opened.read(4)
        return Parquet(self.file) if magic == b"PAR1" else Csv(self.file, gzipped=magic[:2] == b"\x1f\x8b")

    def batches(self, name: str) -> Iterator[tuple[np.ndarray, pa.Array]]:
        """(row numbers, cells) of a column, all of it."""
        for first, (column,) in self.columns.batches([name]):
            yield np.arange(first, first + len(column)), column

    def _require_columns(self) -> None:
        named = {"text": self.source.text, "image": self.source.image, "label": self.source.label}
        for field, name in (named | {"set": self.source.set}).items():
            if name is not None:
                self.columns.require(name, field)
        for name in self.source.columns or ():
            self.columns.require(name, "columns")

    def _empty(self) -> InputError:
        return InputError(f"{self.file.where}: no rows; expected a table with at least one below its header")

    # --- sets and labels ---

    @cached_property
    def _set_numbers(self) -> np.ndarray:
        """(rows,) uint8, positions in SETS."""
        assert self.source.set is not None
        parts = [np.zeros(0, np.uint8)]
        for rows, column in self.batches(self.source.set):
            values, places = _different(column, self.file.where, self.source.set)
            words = [value.strip().lower() if isinstance(value, str) else None for value in values]
            numbers = np.array([SETS.index(SET_WORDS[word]) if word in SET_WORDS else 255 for word in words] + [255])
            part = numbers[places].astype(np.uint8)
            if (part == 255).any():
                row = int(np.argmax(part == 255))
                found = show(repr(values[places[row]])) if places[row] >= 0 else "nothing"
                raise InputError(
                    f"{self.file.where}: row {rows[row]}, column {show(repr(self.source.set))}: expected train, "
                    f"validation or test, found {found}"
                )
            parts.append(part)
        return np.concatenate(parts)

    def set_of(self, row: int) -> str:
        return SETS[self._set_numbers[row]] if self.source.set is not None else "train"

    @cached_property
    def _rows_of_sets(self) -> dict[str, np.ndarray]:
        return {name: np.flatnonzero(self._set_numbers == place) for place, name in enumerate(SETS)}

    def _rows(self, set_name: str) -> np.ndarray:
        """Row numbers of a set, ascending."""
        return self._rows_of_sets[set_name] if self.source.set is not None else np.arange(self.sets[set_name])

    @cached_property
    def _read_labels(self) -> tuple[np.ndarray | None, tuple[str, ...]]:
        if self.source.label is None:
            return None, ()
        classes = Classes(f"{self.file.where}: column {show(repr(self.source.label))}", minus_one_is_missing=True)
        for _, column in self.batches(self.source.label):
            classes.add(*_different(column, self.file.where, self.source.label))
        return classes.finish()


def _different(column: pa.Array, where: str, name: str) -> tuple[list[Any], np.ndarray]:
    """The different values of a column's cells and each cell's place among them, −1 where there is nothing."""
    import pyarrow as pa

    try:
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        different = coded.dictionary
        values = (different.cast(pa.string()) if pa.types.is_binary(different.type) else different).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        raise InputError(f"{where}: column {show(repr(name))}: expected UTF-8; convert the file to UTF-8") from None
    odd = next((value for value in values if not isinstance(value, str | int | float | None)), None)
    if odd is not None:
        raise InputError(f"{where}: column {show(repr(name))} holds {show(column.type)}; expected numbers or texts")
    return values, coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)


# --- views ---------------------------------------------------------------------------------------------------------


class _View(ABC):
    """What a row is."""

    def __init__(self, table: Table) -> None:
        self.table, self.source, self.where = table, table.source, table.file.where

    def fingerprint(self) -> str:
        """Of what lies outside the table."""
        return ""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """The columns a sample is made of."""

    @abstractmethod
    def describe(self) -> Schema:
        """Reads every row; `rows`, their number, and `content`, a digest of what lies outside the table, are added."""

    @abstractmethod
    def values(self, columns: list[pa.Array], rows: np.ndarray) -> Iterable[np.ndarray]:
        """The samples of these rows."""


class _Numbers(_View):
    """(columns,) float32, or float64 where a whole number needs it."""

    @cached_property
    def names(self) -> list[str]:
        others = {self.source.label, self.source.set}
        names = self.source.columns or [name for name in self.table.columns.names if name not in others]
        if not names:
            raise InputError(f"{self.where}: has no columns beside source.label and source.set")
        return names

    def describe(self) -> Schema:
        low, high, rows, dtype = math.inf, -math.inf, 0, "float32"
        for first, columns in self.table.columns.batches(self.names):
            values = numbers(columns, self.names, np.arange(first, first + len(columns[0])), self.where)
            low, high, rows = min(low, float(values.min())), max(high, float(values.max())), rows + len(values)
            if max(-low, high) > 2**24 and dtype == "float32":
                rounded = values.astype(np.float32).astype(np.float64)
                if ((rounded != values) & (values == np.floor(values)) & (np.abs(values) <= 2**53)).any():
                    dtype = "float64"
        if low == high:
            raise InputError(f"{self.where}: every value of every row is {low:g}, so there is nothing to learn")
        scale = self.source.scale
        shape = {"shape": (len(self.names),), "dtype": dtype, "features": tuple(self.names)}
        return shape | {"rows": rows, "scale": scale, "low": low / scale, "high": high / scale}

    def values(self, columns: list[pa.Array], rows: np.ndarray) -> Iterable[np.ndarray]:
        return numbers(columns, self.names, rows, self.where).astype(self.table.describe().dtype, order="C")


class _Texts(_View):
    """Texts as they are, or counts of the train set's most frequent words."""

    @property
    def names(self) -> list[str]:
        assert self.source.text is not None
        return [self.source.text]

    def describe(self) -> Schema:
        samples, rows = TextSamples(self.source), 0
        left = max(FREE_BYTES, MAX_RATIO * self.table.file.size)
        for places, column in self.table.batches(self.names[0]):
            for place, content in zip(places, self._contents(column, places), strict=True):
                left -= len(content)
                if left < 0:
                    raise InputError(
                        f"{self.where}: more than {MAX_RATIO} times its size in texts; no table but a bomb"
                    )
                samples.add(content, counted=self.table.set_of(place) == "train")
            rows += len(places)
        return (samples.schema(self.where) if rows else {}) | {"rows": rows}

    def values(self, columns: list[pa.Array], rows: np.ndarray) -> Iterable[np.ndarray]:
        description = self.table.describe()
        return (self._samples.stored(content, description, self.where) for content in self._contents(columns[0], rows))

    @cached_property
    def _samples(self) -> TextSamples:
        return TextSamples(self.source)

    def _contents(self, column: pa.Array, rows: np.ndarray) -> list[bytes]:
        return texts(column, self.names[0], rows, self.where)


class _Pictures(_View):
    """uint8 pictures of the recipe's size. Paths and stamps are kept, for every row."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        if is_remote(self.source.path):
            raise InputError(f"{self.where}: pictures of a table are read beside it on this machine; fetch both")
        self.folder = local_path(self.source.path).parent
        self.size = (self.source.size[0], self.source.size[1])
        self._listed: tuple[Stamp, list[str]] | None = None
        self._stamps = np.zeros((0, 3), np.int64)

    @property
    def names(self) -> list[str]:
        assert self.source.image is not None
        return [self.source.image]

    def fingerprint(self) -> str:
        stamp = self.table.file.stamp()
        if self._listed is None or self._listed[0] != stamp:
            self.table.columns.require(self.names[0], "image")
            paths = [
                self._inside(content, int(row))
                for rows, column in self.table.batches(self.names[0])
                for row, content in zip(rows, texts(column, self.names[0], rows, self.where), strict=True)
            ]
            self._listed = stamp, paths
        self._stamps = np.array([RawFile(path).stamp() for path in self._listed[1]], np.int64).reshape(-1, 3)
        return durable.digest_bytes(self._stamps.tobytes())

    def describe(self) -> Schema:
        assert self._listed is not None
        content = hashlib.sha256()
        for row in range(len(self._stamps)):
            picture, where = self._read(row)
            pictures.check_header(picture, where)
            content.update(hashlib.sha256(picture).digest())
        shape = pictures.picture_shape(self.size, self.source.channels)
        about = {"rows": len(self._stamps), "content": content.hexdigest()}
        return about | {"shape": shape, "dtype": "uint8", "scale": 255.0, "low": 0.0, "high": 1.0}

    def values(self, columns: list[pa.Array], rows: np.ndarray) -> Iterable[np.ndarray]:
        for row in rows:
            yield pictures.decode(*self._read(int(row)), size=self.size, channels=self.source.channels)

    def _read(self, row: int) -> tuple[bytes, str]:
        assert self._listed is not None
        size, time, inode = self._stamps[row].tolist()
        file = RawFile(self._listed[1][row], (size, time, inode))
        return file.read(pictures.MAX_BYTES), file.where

    def _inside(self, content: bytes, row: int) -> str:
        """The path of a row's picture. Errors: InputError if it leads out of the table's folder."""
        name = content.decode()
        where = f"{self.where}: row {row}, column {show(repr(self.names[0]))}"
        if not name.strip():
            raise InputError(f"{where}: expected the path of a picture, found nothing")
        if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
            raise InputError(f"{where}: {show(repr(name))} is not a path below the table's folder")
        path = self.folder / name
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder)):
            raise InputError(f"{where}: {show(repr(name))} is a link out of the table's folder")
        return str(path)
