"""A tree of .wav files (class = folder) → windows of log-mel frames.

A recording is mixed to one channel, resampled to the recipe's rate, cut into frames and these into windows that do not
overlap; a rest that fills no window is left out, and a recording too short for one is refused. A sample's key is
`path#window`. What is NOT here: the file format (wav.py), the frames (mel.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

import conf
from conf.errors import InputError
from data import durable
from data.files import Entry, divide, number_classes, open_tree
from data.sources import Description, RawSource
from data.sources.mel import LogMel
from data.sources.wav import HEAD_BYTES, CutShort, Header, read_header, read_mono

MAX_BYTES = 256 << 20  # of one recording, which is held in memory
MAX_SAMPLES = MAX_BYTES // 2  # of it at the recipe's rate: a header may say that a few bytes last for days


class Audio(RawSource):
    """Samples (frames, mels) float32, nats."""

    revision = 2  # a recording's windows are no longer divided between sets

    def __init__(self, source: conf.AudioSource) -> None:
        super().__init__(source)
        self.tree = open_tree(source.path)
        length, hop = (round(source.sample_rate * ms / 1000) for ms in (source.frame_ms, source.hop_ms))
        if length < 2 or hop < 1:
            raise InputError(f"frames of {length} samples, {hop} apart; raise frame_ms, hop_ms or sample_rate")
        self.mel = LogMel(source.sample_rate, source.mels, length, hop)
        if not self.mel.filters.any(axis=1).all():
            raise InputError(f"{source.mels} mels are too many for frames of {length} samples: some hear nothing")

    def fingerprint(self) -> str:
        settings = self.source.model_dump(exclude={"kind", "path"})
        return durable.digest_value([self.tree.fingerprint(_is_sound), settings])

    def keys(self, set_name: str) -> Iterator[str]:
        for (entry, _), count in zip(self._recordings[set_name], self._windows[set_name], strict=True):
            yield from (f"{entry.path}#{number}" for number in range(count))

    def labels(self, set_name: str) -> np.ndarray:
        numbers = number_classes(self._recordings)[0][set_name]
        return np.repeat(np.array(numbers, np.int64), self._windows[set_name])

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        recordings = self._recordings[set_name]
        firsts = np.cumsum([0, *self._windows[set_name]])
        held, sound = -1, np.zeros(0, np.float32)
        window, span = self.source.frames * self.mel.hop, (self.source.frames - 1) * self.mel.hop + self.mel.length
        for row in rows:
            file = int(np.searchsorted(firsts, row, "right")) - 1
            entry = recordings[file][0]
            if file != held:
                held, sound = file, self._sound(entry, self.tree.read(entry, MAX_BYTES))
            number = row - int(firsts[file])
            part = sound[number * window :][:span]
            yield f"{entry.path}#{number}", self.mel.frames(part)

    def _describe(self) -> Description:
        labels = {name: self.labels(name) for name in self._recordings}
        content = hashlib.sha256()
        for recordings in self._recordings.values():
            for entry, _ in recordings:
                data = self.tree.read(entry, MAX_BYTES) if self.tree.by_content else b""
                content.update(durable.canonical([entry.path, self.tree.digest(entry, data)]))
        about = self.source.model_dump(exclude={"kind", "path"})
        low, high = self.mel.bounds
        return Description(
            kind="audio",
            sets={name: len(values) for name, values in labels.items()},
            labeled={name: int((values >= 0).sum()) for name, values in labels.items()},
            shape=(self.source.frames, self.source.mels),
            dtype="float32",
            scale=1.0,
            low=low,
            high=high,
            classes=number_classes(self._recordings)[1],
            content=durable.digest_value(about | {"files": content.hexdigest(), "revision": self.revision}),
        )

    @cached_property
    def _recordings(self) -> dict[str, list[tuple[Entry, str]]]:
        sounds = [entry for entry in self.tree.entries() if _is_sound(entry)]
        if not sounds:
            raise InputError(f"{self.tree.name}: no recordings in this folder; expected .wav files")
        return divide(sounds, self.tree.name)

    @cached_property
    def _windows(self) -> dict[str, list[int]]:
        """Windows of every recording of every set, by their headers."""
        return {name: [self._count(entry) for entry, _ in pairs] for name, pairs in self._recordings.items()}

    def _count(self, entry: Entry) -> int:
        where = self.tree.where(entry)
        try:
            header = read_header(self.tree.head(entry, HEAD_BYTES), entry.size, where)
        except CutShort:
            header = read_header(self.tree.read(entry, MAX_BYTES), entry.size, where)
        if self._resampled(header) > MAX_SAMPLES:
            raise InputError(
                f"{where}: {self._resampled(header)} samples once it is at {self.source.sample_rate} Hz; expected at "
                f"most {MAX_SAMPLES}; cut it into parts"
            )
        count = self.mel.num_frames(self._resampled(header)) // self.source.frames
        if count == 0:
            seconds = header.length / header.rate
            raise InputError(f"{where}: {seconds:.3g} seconds, too short for {self.source.frames} frames; remove it")
        return count

    def _resampled(self, header: Header) -> int:
        """Samples per channel at the recipe's rate."""
        return -(-header.length * self.source.sample_rate // header.rate)

    def _sound(self, entry: Entry, content: bytes) -> np.ndarray:
        """(samples,) float32 at the recipe's rate, one channel."""
        where = self.tree.where(entry)
        header = read_header(content, entry.size, where)
        sound = read_mono(content, header, where)
        if header.rate != self.source.sample_rate:
            from scipy.signal import resample_poly

            common = math.gcd(self.source.sample_rate, header.rate)
            sound = resample_poly(sound, self.source.sample_rate // common, header.rate // common)
        return np.asarray(sound, np.float32)


def _is_sound(entry: Entry) -> bool:
    """Notes are none. Whatever else is no .wav is refused by its content."""
    return not entry.is_note
