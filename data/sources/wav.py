"""What lies in a .wav file: PCM of 8 to 32 bits, or floats, as numbers in [−1, 1].

Format: RIFF/WAVE with a `fmt ` and a `data` chunk (IBM and Microsoft, Multimedia Programming Interface and Data
Specifications 1.0, 1991; WAVE_FORMAT_EXTENSIBLE, 2001). The length is in the header, so a recording need not be read
to know it; scipy and the standard library only read them whole. RF64, RIFX and compressed kinds are refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from conf.errors import InputError

HEAD_BYTES = 64 << 10  # enough for the header of any ordinary file
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
MAX_CHANNELS = 64
MAX_RATE = 1_000_000  # Hz


@dataclass(frozen=True)
class Header:
    """rate: samples per second and channel; offset: of the first sample in the file; length: samples per channel."""

    rate: int
    channels: int
    kind: int
    bits: int
    offset: int
    length: int


class CutShort(Exception):
    """The header goes on behind the bytes that were given."""


def read_header(head: bytes, size: int, where: str) -> Header:
    """The header in the first bytes of a file of `size`. Errors: InputError, naming `where`; CutShort."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        raise InputError(f"{where}: no RIFF/WAVE file; expected a .wav with PCM or floats")
    place, form = 12, None
    while place + 8 <= size:
        if place + 8 > len(head):
            raise CutShort
        name, count = struct.unpack_from("<4sI", head, place)
        place += 8
        if name == b"data":
            if form is None:
                break
            rate, channels, kind, bits = form
            if place + count > size:
                raise InputError(
                    f"{where}: its header says {count} bytes of sound, {size - place} are there; cut short"
                )
            frame = channels * bits // 8
            if count % frame:
                raise InputError(f"{where}: {count} bytes of sound are no whole number of {frame}-byte frames")
            return Header(rate, channels, kind, bits, place, count // frame)
        if name == b"fmt ":
            if place + min(count, 40) > min(size, len(head)) or count < 16:
                break
            form = _form(head[place : place + count], where)
        place += count + count % 2
    raise InputError(f"{where}: no complete 'fmt ' and 'data' chunks; the file is damaged or cut short")


def _form(chunk: bytes, where: str) -> tuple[int, int, int, int]:
    kind, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == EXTENSIBLE and len(chunk) >= 26:
        kind = struct.unpack_from("<H", chunk, 24)[0]
    if (kind, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise InputError(f"{where}: format {kind} with {bits} bits; expected PCM of 8, 16, 24, 32 bits or floats")
    if not 1 <= channels <= MAX_CHANNELS or not 1 <= rate <= MAX_RATE or align != channels * bits // 8:
        raise InputError(f"{where}: {channels} channels, {rate} Hz, frames of {align} bytes; no sound is like that")
    return rate, channels, kind, bits


def read_mono(content: bytes, header: Header, where: str) -> np.ndarray:
    """(length,) float32 in [−1, 1], the mean of the channels. Errors: InputError for floats that are not in there."""
    count = header.length * header.channels
    if header.kind == FLOAT:
        values = np.frombuffer(content, f"<f{header.bits // 8}", count, header.offset)
        if not np.all(np.abs(values) <= 1):  # NaN is not either
            raise InputError(f"{where}: sound outside −1 … 1 or NaN; scale the recording")
    elif header.bits == 8:
        values = np.frombuffer(content, np.uint8, count, header.offset).astype(np.float32) / 128 - 1
    elif header.bits == 24:
        parts = np.frombuffer(content, np.uint8, 3 * count, header.offset).reshape(count, 3)
        wide = np.zeros((count, 4), np.uint8)
        wide[:, 1:] = parts
        values = wide.view("<i4")[:, 0] / np.float32(2**31)
    else:
        values = np.frombuffer(content, f"<i{header.bits // 8}", count, header.offset) / np.float32(
            2 ** (header.bits - 1)
        )
    return values.reshape(header.length, header.channels).mean(axis=1, dtype=np.float32)
