"""Which cells of a table are a number and which a text; a cell that is neither is refused by row and column.

What is NOT here: how rows are read (data/sources/columns.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from conf.errors import InputError, show
from data.sources.lines import MAX_TEXT

if TYPE_CHECKING:
    import pyarrow as pa

MAX_WRITTEN = 1 << 20  # bytes of all the different numbers of a batch, written as texts


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers."""
    import pyarrow as pa

    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts, or bytes that may be some."""
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def texts(column: pa.Array, name: str, rows: np.ndarray, where: str) -> list[bytes]:
    """The UTF-8 of each text. Errors: InputError for an empty cell, another type, and bytes that are not UTF-8."""
    import pyarrow as pa

    coded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if coded else column.type
    if not is_text(kind):
        raise InputError(f"{where}: column {show(repr(name))} holds {show(kind)}; expected texts")
    plain = column.dictionary if coded else column
    values: list[bytes | None] = plain.cast(pa.large_binary()).to_pylist()
    if coded:  # one object for every different text: a long one may stand in a million rows
        values = [values[place] if place >= 0 else None for place in column.indices.fill_null(-1).to_pylist()]
    for place, value in enumerate(values):
        if not value:
            raise _at(where, rows, place, name, "a text", "nothing")
        if len(value) > MAX_TEXT:
            raise _at(where, rows, place, name, f"at most {MAX_TEXT >> 20} MiB", f"{len(value)} bytes")
        try:
            value.decode()
        except UnicodeDecodeError:
            raise _at(where, rows, place, name, "UTF-8", show(repr(value[:40]), 60)) from None
    return values  # type: ignore[return-value]


def numbers(columns: Sequence[pa.Array], names: Sequence[str], rows: np.ndarray, where: str) -> np.ndarray:
    """(n, columns) float64, each value exactly the one written. Errors: InputError for what is no finite number."""
    result = np.empty((len(names), len(rows))).T  # column by column in memory too, since so they come
    for place, (column, name) in enumerate(zip(columns, names, strict=True)):
        result[:, place] = _numbers(column, name, rows, where)
    with np.errstate(over="ignore"):
        fine = np.isfinite(result.astype(np.float32))
    if not fine.all():
        row, place = (int(found[0]) for found in np.nonzero(~fine))
        raise _at(where, rows, row, names[place], "a finite 32-bit number", repr(float(result[row, place])))
    return result


def _numbers(column: pa.Array, name: str, rows: np.ndarray, where: str) -> np.ndarray:
    import pyarrow as pa

    if column.null_count:
        raise _at(where, rows, int(np.argmax(column.is_null().to_numpy(False))), name, "a number", "nothing")
    if pa.types.is_dictionary(column.type):
        if is_text(column.type.value_type) and column.dictionary.nbytes > MAX_WRITTEN:
            raise _at(where, rows, 0, name, "a number", "long texts (source.columns lists what to read)")
        column = column.dictionary_decode()
    if pa.types.is_binary(column.type):
        return _written_numbers(column, name, rows, where)
    if not is_number(column.type):
        raise InputError(
            f"{where}: column {show(repr(name))} holds {show(column.type)}; expected numbers "
            "(source.columns lists the columns to read)"
        )
    values: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        _require_exact(values, column.to_numpy(zero_copy_only=False), name, rows, where)
    return values


def _written_numbers(column: pa.Array, name: str, rows: np.ndarray, where: str) -> np.ndarray:
    """Numbers as a CSV file has them: decimal, or true and false throughout."""
    import pyarrow as pa

    text = column.view(pa.string())  # not checked to be UTF-8; a number is ASCII anyway
    try:
        values: np.ndarray = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        written = [value.strip() for value in column.to_pylist()]
        logical = [value.lower() for value in written]
        if set(logical) <= {b"true", b"false"}:
            return np.array([value == b"true" for value in logical], np.float64)
        values = np.empty(len(written))
        for place, value in enumerate(written):
            try:
                values[place] = pa.scalar(value.decode()).cast(pa.float64()).as_py()
            except (pa.ArrowInvalid, UnicodeDecodeError):
                found = show(repr(value)[1:], 60) if value else "nothing"
                raise _at(
                    where, rows, place, name, "a number", f"{found} (source.columns lists what to read)"
                ) from None
    large = np.flatnonzero(np.abs(values) >= 2**53)
    if len(large):
        whole = [int(value) if value.lstrip(b"+-").isdigit() else None for value in column.take(large).to_pylist()]
        for place, exact in zip(large.tolist(), whole, strict=True):
            if exact is not None and np.isfinite(values[place]) and exact != int(values[place]):
                _require_exact(values[place : place + 1], [exact], name, rows[place : place + 1], where)
    return values


def _require_exact(
    values: np.ndarray, whole: Sequence[int] | np.ndarray, name: str, rows: np.ndarray, where: str
) -> None:
    """Raises InputError for a whole number that even 64 bits of floating point do not hold."""
    for place in np.flatnonzero(np.abs(values) >= 2**53).tolist():
        if int(values[place]) != int(whole[place]):
            found = f"{whole[place]}, which would be rounded"
            raise _at(where, rows, place, name, "a number that a 64-bit float holds", found)


def _at(where: str, rows: np.ndarray, place: int, name: str, expected: str, found: str) -> InputError:
    return InputError(f"{where}: row {rows[place]}, column {show(repr(name))}: expected {expected}, found {found}")
