"""Sources that are arrays: read and checked whole before anything is written.

One table per set: (n, …) values and (n,) labels. Checked here, for every kind that only has to load them: dtype,
finiteness, equal shapes, as many labels as samples, classes. Values: uint8 with anything above 1 is a picture, scale
255; every other dtype is taken as it is, scale 1.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from conf.errors import InputError, show
from data import durable
from data.sources import SETS, Description, RawSource, finite

CHUNK_BYTES = 16 << 20  # how much is converted and checked at a time
DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
DTYPES += ("float16", "float32", "float64")


@dataclass(frozen=True)
class Table:
    """One set: data (n, …), labels (n,) or (n, 1) or None, and the file names to blame."""

    data: np.ndarray
    labels: np.ndarray | None
    where: str
    labels_where: str = ""


class WholeSource(RawSource):
    """A source that can load all its tables at once (memory-mapped if they are large)."""

    scale: float | None = None  # stored / scale = value; None: by dtype, as above

    @abstractmethod
    def _load(self) -> dict[str, Table]:
        """The tables by set name. Errors: InputError."""

    @cached_property
    def _tables(self) -> dict[str, Table]:
        tables = self._load()
        return {name: tables[name] for name in SETS if name in tables}

    @cached_property
    def _labels(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        return number_labels(self._tables)

    def keys(self, set_name: str) -> Iterator[str]:
        return map(str, range(len(self._tables[set_name].data)))

    def labels(self, set_name: str) -> np.ndarray:
        return self._labels[0][set_name]

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        data = self._tables[set_name].data
        if isinstance(rows, range) and rows.step == 1:
            for first, chunk in _chunks(data, rows.start, rows.stop):
                for row in range(len(chunk)):
                    yield str(first + row), chunk[row]
        else:
            for row in rows:
                yield str(row), np.asarray(data[row], dtype=data.dtype.newbyteorder("<"))

    def _describe(self) -> Description:
        first = next(iter(self._tables.values()))
        shape, dtype = first.data.shape[1:], first.data.dtype.newbyteorder("<")
        low, high, digests = np.inf, -np.inf, {}
        for name, table in self._tables.items():
            _check_table(table)
            if table.data.shape[1:] != shape or table.data.dtype.newbyteorder("<") != dtype:
                raise InputError(
                    f"{table.where}: samples are {_schema(table)}, but {_schema(first)} in {first.where}; "
                    "all sets of a source need one shape and dtype"
                )
            content = hashlib.sha256()
            for start, chunk in _chunks(table.data):
                _check_finite(chunk, start, table.where)
                low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
                content.update(chunk.data)
            digests[name] = content.hexdigest()
        if low == high:
            raise InputError(f"{first.where}: every value of every sample is {low:g}, so there is nothing to learn")
        scale = self.scale or (255.0 if dtype == np.uint8 and high > 1 else 1.0)
        labels, classes = self._labels
        about: dict[str, Any] = {"shape": list(shape), "dtype": dtype.name, "scale": scale, "classes": list(classes)}
        about["labels"] = {name: _digest(values) for name, values in labels.items()}
        return Description(
            kind=type(self).__name__.lower(),
            sets={name: len(table.data) for name, table in self._tables.items()},
            labeled={name: int((values >= 0).sum()) for name, values in labels.items()},
            shape=tuple(shape),
            dtype=dtype.name,
            scale=scale,
            low=low / scale,
            high=high / scale,
            classes=classes,
            content=durable.digest_value(about | {"data": digests, "revision": self.revision}),
        )


def number_labels(tables: dict[str, Table]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Class numbers per set and the classes' names: the labels found in any set, in order, as text.

    Labels may be integers (−1: missing), floats that are integers (NaN: missing), or text (empty: missing).
    """
    found = {name: _plain_labels(table) for name, table in tables.items()}
    present = [values[known] for values, known in found.values() if known.any()]
    if len({values.dtype.kind for values in present}) > 1:
        raise InputError(f"{next(iter(tables.values())).where}: labels are numbers in one set and text in another")
    names = np.unique(np.concatenate(present)) if present else np.zeros(0, np.int64)
    labels = {}
    for name, (values, known) in found.items():
        if not known.any():
            labels[name] = _unlabeled(len(values))
            continue
        labels[name] = np.full(len(values), -1, np.int64)
        labels[name][known] = np.searchsorted(names, values[known])
    return labels, tuple(str(name) for name in names)


def _unlabeled(number: int) -> np.ndarray:
    """So many −1, in the memory of one."""
    return np.broadcast_to(np.int64(-1), number)


def _plain_labels(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """A set's labels as int64 or text, and which of them are known."""
    if table.labels is None:
        return _unlabeled(len(table.data)), np.zeros(len(table.data), bool)
    labels, where = np.asarray(table.labels), table.labels_where or table.where
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{where}: expected one label per sample, found an array of shape {labels.shape}")
    if len(labels) != len(table.data):
        raise InputError(
            f"{where}: {len(labels)} labels, but {len(table.data)} samples in {table.where}; they must be equally many"
        )
    if labels.dtype.kind == "S":
        try:
            labels = np.char.decode(labels, "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{where}: the labels are bytes that are not UTF-8 text") from None
    if labels.dtype.kind == "U":
        return labels, labels != ""
    if labels.dtype.kind not in "biuf":
        raise InputError(f"{where}: labels of dtype {labels.dtype}; expected whole numbers or text")
    if labels.dtype.kind == "f":
        labels = np.where(np.isnan(labels), -1, labels)
        odd = np.flatnonzero((labels != np.floor(labels)) | (np.abs(labels) > 2**53))
        if len(odd):
            raise InputError(f"{where}: the label of sample {odd[0]} is {labels[odd[0]]:g}; expected a whole number")
    labels = labels.astype(np.int8) if labels.dtype.kind == "b" else labels
    bad = np.flatnonzero((labels < -1) | (labels > 2**53))
    if len(bad):
        raise InputError(
            f"{where}: the label of sample {bad[0]} is {labels[bad[0]]}; expected 0 or more, or −1 where it is missing"
        )
    labels = labels.astype(np.int64)
    return labels, labels >= 0


def _schema(table: Table) -> str:
    return f"{table.data.dtype} of shape {tuple(table.data.shape[1:])}"


def _check_table(table: Table) -> None:
    data = table.data
    if data.dtype.newbyteorder("=").name not in DTYPES:
        raise InputError(f"{table.where}: values of dtype {show(data.dtype)}; expected one of {', '.join(DTYPES)}")
    if data.ndim < 2:
        raise InputError(f"{table.where}: expected samples × values, found an array of shape {data.shape}")
    if data.size == 0:
        raise InputError(f"{table.where}: no samples: an array of shape {data.shape}")


def _check_finite(chunk: np.ndarray, start: int, where: str) -> None:
    fine = finite(chunk)
    if not fine.all():
        row = int(np.argmin(fine))
        values = chunk[row].ravel()
        place = int(np.argmin(finite(values[:, None])))
        raise InputError(
            f"{where}: value {place} of sample {start + row} is {values[place]}; expected a finite 32-bit number"
        )


def _digest(values: np.ndarray) -> str:
    content = hashlib.sha256()
    for _, chunk in _chunks(values):
        content.update(chunk.data)
    return content.hexdigest()


def _chunks(data: np.ndarray, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, contiguous little-endian rows) a few megabytes at a time."""
    rows = max(1, CHUNK_BYTES // max(1, data[:1].nbytes))
    stop = len(data) if stop is None else stop
    for first in range(start, stop, rows):
        chunk = np.asarray(data[first : min(first + rows, stop)])
        yield first, np.ascontiguousarray(chunk, dtype=data.dtype.newbyteorder("<"))
