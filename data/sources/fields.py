"""The bytes of a member of a shard → a sample: pictures, .npy arrays of one shape, texts; a list, and nothing else.

What is NOT here: the shards (data/sources/foreign.py).
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

import conf
from conf.errors import InputError, show
from data.sources import Description, finite
from data.sources.arrays import check_npy
from data.sources.lines import MAX_TEXT
from data.sources.pictures import MAX_BYTES, check_header, decode, picture_shape
from data.sources.texts import to_utf8
from data.sources.whole import DTYPES
from data.sources.words import TextSamples

KINDS = dict.fromkeys(("jpg", "jpeg", "png", "bmp", "gif", "ppm", "pgm", "pbm", "pnm", "webp"), "pictures")
KINDS |= {"npy": "arrays", "txt": "texts", "text": "texts"}  # last part of an extension → what it is
MAX_ARRAY = 256 << 20  # bytes
Schema = dict[str, Any]  # the fields of a Description that follow from the samples


def open_decoder(extension: str, source: conf.WebDatasetSource) -> Decoder:
    """What decodes members of an extension."""
    return _DECODERS[KINDS[extension.rpartition(".")[2]]](source)


class Decoder(ABC):
    """Bytes of a field → a sample. `add` sees every sample once; `schema` then says what they are."""

    limit: int

    def __init__(self, source: conf.WebDatasetSource) -> None:
        self.source = source

    @abstractmethod
    def add(self, content: bytes, where: str, counted: bool) -> None: ...

    @abstractmethod
    def schema(self, where: str) -> Schema: ...

    @abstractmethod
    def value(self, content: bytes, where: str, description: Description) -> np.ndarray: ...


class _Pictures(Decoder):
    limit = MAX_BYTES

    def add(self, content: bytes, where: str, counted: bool) -> None:
        check_header(content, where)

    def schema(self, where: str) -> Schema:
        shape = picture_shape((self.source.size[0], self.source.size[1]), self.source.channels)
        return {"shape": shape, "dtype": "uint8", "scale": 255.0, "low": 0.0, "high": 1.0}

    def value(self, content: bytes, where: str, description: Description) -> np.ndarray:
        return decode(content, where, size=(self.source.size[0], self.source.size[1]), channels=self.source.channels)


class _Arrays(Decoder):
    limit = MAX_ARRAY

    def __init__(self, source: conf.WebDatasetSource) -> None:
        super().__init__(source)
        self._first: tuple[np.ndarray, str] | None = None
        self._low, self._high = math.inf, -math.inf
        self._known = b"", 0, np.zeros(0)  # the header of an array that was read, the length of its file, the array

    def add(self, content: bytes, where: str, counted: bool) -> None:
        values = self._array(content, where)
        if self._first is None:
            self._first = values, where
        first, place = self._first
        if (values.shape, values.dtype) != (first.shape, first.dtype):
            raise InputError(
                f"{where}: {values.dtype} of shape {values.shape}, but {first.dtype} of shape {first.shape} in "
                f"{place}; all samples of a source need one shape and dtype"
            )
        if not finite(values[None])[0]:
            raise InputError(f"{where}: holds NaN, or infinite or too large values; expected finite 32-bit numbers")
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def schema(self, where: str) -> Schema:
        assert self._first is not None
        values = self._first[0]
        if self._low == self._high:
            raise InputError(f"{where}: every value of every sample is {self._low:g}, so there is nothing to learn")
        scale = 255.0 if values.dtype == np.uint8 and self._high > 1 else 1.0
        bounds = {"low": self._low / scale, "high": self._high / scale}
        return bounds | {"shape": values.shape, "dtype": values.dtype.name, "scale": scale}

    def value(self, content: bytes, where: str, description: Description) -> np.ndarray:
        return self._array(content, where)

    def _array(self, content: bytes, where: str) -> np.ndarray:
        header, length, like = self._known
        if header and length == len(content) and content.startswith(header):  # parsing it again would take most time
            return np.ndarray(like.shape, like.dtype, content, len(header))
        check_npy(io.BytesIO(content), len(content), where)
        values: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        if values.dtype.newbyteorder("=").name not in DTYPES:
            raise InputError(f"{where}: values of dtype {show(values.dtype)}; expected one of {', '.join(DTYPES)}")
        if values.ndim == 0 or values.size == 0:
            raise InputError(f"{where}: expected an array with values, found one of shape {values.shape}")
        plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        if values.flags.c_contiguous and values.dtype == plain.dtype:
            self._known = content[: len(content) - values.nbytes], len(content), plain
        return plain


class _Texts(Decoder):
    limit = MAX_TEXT

    def __init__(self, source: conf.WebDatasetSource) -> None:
        super().__init__(source)
        self._samples = TextSamples(source)

    def add(self, content: bytes, where: str, counted: bool) -> None:
        self._samples.add(self._text(content, where), counted)

    def schema(self, where: str) -> Schema:
        return self._samples.schema(where)

    def value(self, content: bytes, where: str, description: Description) -> np.ndarray:
        return self._samples.stored(self._text(content, where), description, where)

    @staticmethod
    def _text(content: bytes, where: str) -> bytes:
        text = to_utf8(content, "utf-8", where)
        if not text:
            raise InputError(f"{where}: empty; expected a text")
        return text


_DECODERS: dict[str, type[Decoder]] = {"pictures": _Pictures, "arrays": _Arrays, "texts": _Texts}
