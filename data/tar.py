"""The bytes of a shard: an ordinary ustar archive of equally long .npy members, and the rows of its index.

    shard = n blocks, then 1,024 zero bytes          block = header (512) | .npy header | values | zeros up to × 512

Everything but the values follows from the sample's global number and the schema, so equal samples give equal shards,
byte for byte, whenever and by whomever they were written. Formats: POSIX.1-1988 ustar; NEP 1 (.npy 1.0).
What is NOT here: opening files.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BLOCK = 512  # bytes; tar's unit
END = 2 * BLOCK  # zero bytes that end an archive
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


def from_npy(content: bytes) -> memoryview:
    """The raw values of a .npy file that strata wrote and whose digest was checked."""
    return memoryview(content)[10 + int.from_bytes(content[8:10], "little") :]


@dataclass(frozen=True)
class Layout:
    """How samples of one shape and dtype lie in a shard."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self) -> None:
        if self.length >= 8 << 30:
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

    @cached_property
    def _empty_block(self) -> np.ndarray:
        block = np.zeros(self.stride, np.uint8)
        fields = {100: b"0000644\0", 108: b"0000000\0", 116: b"0000000\0", 124: b"%011o\0" % self.length}
        fields |= {136: b"00000000000\0", 148: b"        ", 156: b"0", 257: b"ustar\x0000", BLOCK: self.header}
        for place, field in fields.items():
            block[place : place + len(field)] = np.frombuffer(field, np.uint8)
        return block

    def encode(self, first: int, values: np.ndarray) -> np.ndarray:
        """(n, stride) bytes of the samples numbered first, first + 1, …; values (n, *shape) of this dtype."""
        count = len(values)
        blocks = np.tile(self._empty_block, (count, 1))
        names = np.array([b"%08d.npy" % number for number in range(first, first + count)], "S100")
        blocks[:, :100] = names.view(np.uint8).reshape(count, 100)
        sums = blocks[:, :BLOCK].sum(axis=1, dtype=np.int64)
        checksums = np.array([b"%06o\0 " % value for value in sums], "S8")
        blocks[:, 148:156] = checksums.view(np.uint8).reshape(count, 8)
        raw = np.ascontiguousarray(values, self.dtype).reshape(count, -1).view(np.uint8)
        blocks[:, self.values_offset : self.values_offset + raw.shape[1]] = raw
        return blocks

    def decode(self, shard: memoryview | np.ndarray, num_samples: int) -> np.ndarray:
        """(num_samples, *shape) view of the values in a shard's bytes; copies nothing."""
        inner = np.empty(self.shape, self.dtype).strides
        return np.ndarray((num_samples, *self.shape), self.dtype, shard, self.values_offset, (self.stride, *inner))

    def index(self, blocks: np.ndarray, first_row: int = 0) -> np.ndarray:
        """INDEX rows of (n, stride) blocks that begin at `first_row` of their shard.

        A digest is the first 128 bits of the member's SHA-256, CRC-32 is zlib's, both over the whole member.
        """
        rows = np.zeros(len(blocks), INDEX)
        rows["offset"] = (first_row + np.arange(len(blocks), dtype=np.uint64)) * self.stride + BLOCK
        rows["length"] = self.length
        members = blocks.reshape(-1).data
        places = range(BLOCK, BLOCK + len(blocks) * self.stride, self.stride)
        rows["crc32"] = [zlib.crc32(members[place : place + self.length]) for place in places]
        digests = [hashlib.sha256(members[place : place + self.length]).digest()[:16] for place in places]
        rows["digest"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
        return rows
