"""The bytes of a shard: an ordinary ustar archive with one member a sample, and the rows of its index.

    shard = blocks, then 1,024 zero bytes          block = header (512) | member | zeros up to × 512

A member is a .npy file (arrays of one shape and dtype, so blocks of one length) or a .txt file (UTF-8 of any length).
Everything follows from the sample's global number, the schema and the sample, so equal samples give equal shards, byte
for byte, whenever and by whomever they were written. Formats: POSIX.1-1988 ustar; NEP 1 (.npy 1.0).
What is NOT here: opening files.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

BLOCK = 512  # bytes; tar's unit
END = 2 * BLOCK  # zero bytes that end an archive
MAX_MEMBER = 8 << 30  # bytes; what a ustar header can say
TEXT = "text"  # the dtype of samples that are texts
INDEX = np.dtype([("offset", "<u8"), ("length", "<u8"), ("crc32", "<u4"), ("digest", "u1", (16,))])


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What precedes the values in a .npy 1.0 file. Written here: numpy's padding differs between its versions."""
    sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    description = np.lib.format.dtype_to_descr(dtype)
    text = f"{{'descr': {description!r}, 'fortran_order': False, 'shape': ({sizes}), }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def to_npy(values: np.ndarray) -> bytes:
    """A whole .npy file of a little-endian array."""
    return npy_header(values.shape, values.dtype) + values.tobytes()


def npy_pieces(values: np.ndarray) -> Iterator[bytes]:
    """The .npy file of a vector of little-endian numbers: its header, and then its values a megabyte at a time."""
    yield npy_header(values.shape, values.dtype)
    for start in range(0, len(values), 1 << 17):
        yield values[start : start + (1 << 17)].tobytes()


def from_npy(content: bytes) -> memoryview:
    """The raw values of a .npy file that strata wrote and whose digest was checked."""
    return memoryview(content)[10 + int.from_bytes(content[8:10], "little") :]


def layout_of(shape: tuple[int, ...], dtype: str) -> Layout:
    """How samples of a schema lie in a shard; dtype as in data.sources.Description."""
    return TextLayout() if dtype == TEXT else ArrayLayout(shape, np.dtype(dtype).newbyteorder("<"))


class Layout(ABC):
    """How the samples of a schema lie in a shard."""

    @abstractmethod
    def encode(self, first: int, samples: Sequence[np.ndarray], place: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks (bytes) of the samples numbered first, first + 1, …, and their index rows if they begin at `place`.

        A digest is the first 128 bits of the member's SHA-256, CRC-32 is zlib's, both over the whole member.
        """

    @abstractmethod
    def decode(self, shard: np.ndarray, index: np.ndarray) -> Sequence[np.ndarray]:
        """The samples of consecutive index rows, views into the shard's bytes; the index must be that of `encode`."""

    @abstractmethod
    def plausible(self, index: np.ndarray, size: int) -> bool:
        """Whether consecutive members of these offsets and lengths fill a shard of `size` bytes from start to end."""


class ArrayLayout(Layout):
    """Samples of one shape and dtype: member after member at equal distances."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        if self.length >= MAX_MEMBER:
            raise ValueError(f"a sample of {self.length} bytes does not fit a ustar member (8 GiB)")

    @cached_property
    def header(self) -> bytes:
        return npy_header(self.shape, self.dtype)

    @cached_property
    def length(self) -> int:
        """Bytes of a member."""
        return len(self.header) + math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def stride(self) -> int:
        """Bytes from one member to the next."""
        return BLOCK + -(-self.length // BLOCK) * BLOCK

    @property
    def values_offset(self) -> int:
        """Where a block's values begin."""
        return BLOCK + len(self.header)

    def shard_size(self, num_samples: int) -> int:
        return num_samples * self.stride + END

    def encode(self, first: int, samples: Sequence[np.ndarray], place: int) -> tuple[np.ndarray, np.ndarray]:
        count = len(samples)
        blocks = np.tile(self._empty_block, (count, 1))
        blocks[:, :BLOCK] = _headers(first, "npy", np.full(count, self.length))
        raw = np.ascontiguousarray(samples, self.dtype).reshape(count, -1).view(np.uint8)
        blocks[:, self.values_offset : self.values_offset + raw.shape[1]] = raw
        flat = blocks.reshape(-1)
        return flat, _rows(flat, BLOCK + self.stride * np.arange(count), np.full(count, self.length), place)

    def decode(self, shard: np.ndarray, index: np.ndarray) -> np.ndarray:  # type: ignore[override]
        start = int(index["offset"][0]) + len(self.header) if len(index) else 0
        inner = np.empty(self.shape, self.dtype).strides
        return np.ndarray((len(index), *self.shape), self.dtype, shard, start, (self.stride, *inner))

    def plausible(self, index: np.ndarray, size: int) -> bool:
        offsets = np.arange(len(index), dtype=np.uint64) * self.stride + BLOCK
        rows_fit = np.array_equal(index["offset"], offsets) and bool((index["length"] == self.length).all())
        return rows_fit and size == self.shard_size(len(index))

    @cached_property
    def _empty_block(self) -> np.ndarray:
        block = np.zeros(self.stride, np.uint8)
        block[BLOCK : self.values_offset] = np.frombuffer(self.header, np.uint8)
        return block


class TextLayout(Layout):
    """Texts of any length, one UTF-8 .txt member each."""

    def encode(self, first: int, samples: Sequence[np.ndarray], place: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(sample) for sample in samples], np.int64)
        offsets = BLOCK + np.concatenate([[0], np.cumsum(_strides(lengths))[:-1]]).astype(np.int64)
        blocks = np.zeros(int(_strides(lengths).sum()), np.uint8)
        for offset, header, sample in zip(offsets.tolist(), _headers(first, "txt", lengths), samples, strict=True):
            blocks[offset - BLOCK : offset] = header
            blocks[offset : offset + len(sample)] = sample
        return blocks, _rows(blocks, offsets, lengths, place)

    def decode(self, shard: np.ndarray, index: np.ndarray) -> Sequence[np.ndarray]:
        places = zip(index["offset"].tolist(), index["length"].tolist(), strict=True)
        return [shard[offset : offset + length] for offset, length in places]

    def plausible(self, index: np.ndarray, size: int) -> bool:
        if index["length"].max(initial=0) >= MAX_MEMBER:
            return False
        ends = np.cumsum(_strides(index["length"].astype(np.int64)))
        starts = np.concatenate([[0], ends[:-1]]) + BLOCK
        return np.array_equal(index["offset"].astype(np.int64), starts) and size == (ends[-1] if len(ends) else 0) + END


def _strides(lengths: np.ndarray) -> np.ndarray:
    """Bytes of the blocks of members of these lengths."""
    return BLOCK + -(-lengths // BLOCK) * BLOCK


def _headers(first: int, extension: str, lengths: np.ndarray) -> np.ndarray:
    """(n, 512) ustar headers of members named by number."""
    digits, last = max(8, len(str(first))), first + len(lengths) - 1
    if last >= 10**digits:  # names grow by a digit in between
        cut = 10**digits - first
        halves = _headers(first, extension, lengths[:cut]), _headers(first + cut, extension, lengths[cut:])
        return np.concatenate(halves)
    empty = np.zeros(BLOCK, np.uint8)
    fields = {100: b"0000644\0", 108: b"0000000\0", 116: b"0000000\0", 136: b"00000000000\0", 148: b"        "}
    fields |= {digits: b"." + extension.encode(), 156: b"0", 257: b"ustar\x0000"}
    for place, field in fields.items():
        empty[place : place + len(field)] = np.frombuffer(field, np.uint8)
    headers = np.tile(empty, (len(lengths), 1))
    headers[:, :digits] = _figures(np.arange(first, last + 1), 10, digits)
    headers[:, 124:135] = _figures(lengths, 8, 11)
    checksums = int(empty.sum()) + headers[:, :digits].sum(axis=1) + headers[:, 124:135].sum(axis=1)
    headers[:, 148:154] = _figures(checksums.astype(np.int64), 8, 6)
    headers[:, 154] = 0
    return headers


def _figures(numbers: np.ndarray, radix: int, width: int) -> np.ndarray:
    """(n, width) the ASCII figures of numbers ≥ 0, zeros in front."""
    return numbers[:, None] // radix ** np.arange(width - 1, -1, -1) % radix + ord("0")


def _rows(blocks: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, place: int) -> np.ndarray:
    """INDEX rows of the members at these offsets of `blocks`, which begin at `place` of their shard."""
    rows = np.zeros(len(offsets), INDEX)
    rows["offset"], rows["length"] = offsets + place, lengths
    content = blocks.data
    places = zip(offsets.tolist(), lengths.tolist(), strict=True)
    members = [content[start : start + length] for start, length in places]
    rows["crc32"] = [zlib.crc32(member) for member in members]
    digests = b"".join([hashlib.sha256(member).digest() for member in members])
    rows["digest"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)[:, :16]
    return rows
