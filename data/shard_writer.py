"""One shard of an ingest: tar, keys, index, in this order; or the one of an earlier try, if its every byte is right.

A pure function of the source's rows, whichever process does it: `data/workers.py` runs many of these side by side.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import InputError, show
from data import durable
from data.manifest import Shard, plan_shards
from data.moments import Moments
from data.sources import RawSource, finite, reopen
from data.tar import END, INDEX, TEXT, layout_of, npy_header, to_npy

CHUNK_BYTES = 4 << 20  # of a shard handled at a time; part of the format, since statistics are summed chunk by chunk
CHUNK_SAMPLES = 4096
Count = Callable[[int], None]
Files = dict[str, tuple[int, str]]


class ShardWriter:
    """Makes the shards of one folder. `recorded`: what an earlier manifest says of its files, where there is one."""

    def __init__(self, source: RawSource, folder: Path, shard_size: int, recorded: Files) -> None:
        self.source, self.folder, self.recorded = source, folder, recorded
        self.description = source.describe()
        self.layout = layout_of(self.description.shape, self.description.dtype)
        self.shards = list(plan_shards(self.description.sets, shard_size))
        self.is_text = self.description.dtype == TEXT
        bytes_each = max(1, np.dtype(self.description.dtype).itemsize * self.num_values) if not self.is_text else 1
        self.chunk_samples = max(1, min(CHUNK_SAMPLES, CHUNK_BYTES // bytes_each))

    @classmethod
    def from_request(cls, request: dict[str, Any]) -> ShardWriter:
        """In another process: what `request` says."""
        recorded = {name: (size, sha) for name, (size, sha) in request["recorded"].items()}
        return cls(reopen(request["source"]), Path(request["folder"]), request["shard_size"], recorded)

    @property
    def num_values(self) -> int:
        """Values whose moments are kept: those of a sample, or a text's length."""
        return 1 if self.is_text else self.description.num_values

    def make(self, number: int, count: Count) -> dict[str, Any]:
        """Finishes shard `number` → {"shard", "files", "moments"} in JSON types; `count(n)`: n more are done."""
        shard = self.shards[number]
        files, moments = self._keep(shard, count) or self._write(shard, count)
        return {
            "shard": number,
            "files": {name: list(entry) for name, entry in files.items()},
            "moments": moments.to_json(),
        }

    def _write(self, shard: Shard, count: Count) -> tuple[Files, Moments]:
        for name in (shard.index_name, shard.keys_name):  # of a shard that turned out damaged
            (self.folder / name).unlink(missing_ok=True)
        files: Files = {}
        keys, rows, row, place = [], [], 0, 0
        content, moments = hashlib.sha256(), Moments.empty(self.num_values)
        with durable.writing(self.folder / shard.name) as file:
            for chunk_keys, samples in self._chunks(shard):
                blocks, index = self.layout.encode(shard.first + row, samples, place)
                rows.append(index)
                keys += chunk_keys
                row, place = row + len(samples), place + len(blocks)
                content.update(blocks.data)
                file.write(blocks.data)
                moments.merge(self._moments(samples))
                count(len(samples))
            file.write(bytes(END))
            content.update(bytes(END))
        files[shard.name] = (place + END, content.hexdigest())
        if keys != [str(number) for number in range(shard.row, shard.row + shard.count)]:
            self._save(shard.keys_name, "".join(json.dumps(key) + "\n" for key in keys).encode(), files)
        self._save(shard.index_name, to_npy(np.concatenate(rows)), files)
        return files, moments

    def _save(self, name: str, content: bytes, files: Files) -> None:
        durable.write_bytes(self.folder / name, content)
        files[name] = (len(content), durable.digest_bytes(content))

    def _moments(self, samples: Any) -> Moments:
        if self.is_text:
            return Moments.of(np.array([[len(sample)] for sample in samples], np.float64))
        return Moments.of(np.asarray(samples).reshape(len(samples), -1), self.description.scale)

    # --- samples from the source, checked ---

    def _chunks(self, shard: Shard) -> Iterator[tuple[list[str], Any]]:
        """Keys and samples, a few megabytes at a time."""
        stream = self.source.samples(shard.set_name, range(shard.row, shard.row + shard.count))
        seen = 0
        while batch := self._next(stream):
            seen += len(batch)
            keys, samples = [key for key, _ in batch], [sample for _, sample in batch]
            yield keys, samples if self.is_text else self._array(shard.set_name, keys, samples)
        if seen != shard.count:
            raise InputError(f"the source gave {seen} of the {shard.count} samples of {shard.stem}; it has changed")

    def _next(self, stream: Iterator[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
        if not self.is_text:
            return list(itertools.islice(stream, self.chunk_samples))
        batch: list[tuple[str, np.ndarray]] = []
        size = 0
        while size < CHUNK_BYTES and len(batch) < CHUNK_SAMPLES and (pair := next(stream, None)) is not None:
            batch.append(pair)
            size += len(pair[1])
        return batch

    def _array(self, set_name: str, keys: list[str], samples: list[np.ndarray]) -> np.ndarray:
        shape, dtype = self.description.shape, np.dtype(self.description.dtype)
        for key, sample in zip(keys, samples, strict=True):
            if sample.shape == shape and sample.dtype is dtype:  # the usual case, told fast
                continue
            if sample.shape != shape or sample.dtype.newbyteorder("=") != dtype:
                raise InputError(
                    f"{set_name} sample {show(key)}: {sample.dtype} of shape {sample.shape}; "
                    f"expected {self.description.dtype} of shape {shape} like the source's others"
                )
        values = np.stack(samples).astype(dtype.newbyteorder("<"), copy=False)
        fine = finite(values)
        if not fine.all():
            key = keys[int(np.argmin(fine))]
            raise InputError(f"{set_name} sample {show(key)}: holds NaN or infinite values; expected numbers")
        return values

    # --- a shard of an earlier try ---

    def _keep(self, shard: Shard, count: Count) -> tuple[Files, Moments] | None:
        """Its files and moments, read back and made again byte for byte; None unless all is right."""
        try:
            index_file = (self.folder / shard.index_name).read_bytes()
            content = np.memmap(self.folder / shard.name, np.uint8, "r")
        except (FileNotFoundError, ValueError):  # ValueError: an empty file
            return None
        header = npy_header((shard.count,), INDEX)
        if not index_file.startswith(header) or len(index_file) != len(header) + shard.count * INDEX.itemsize:
            return None
        index = np.frombuffer(index_file, INDEX, offset=len(header))
        if not self.layout.plausible(index, len(content)) or content[-END:].any():
            return None
        moments = Moments.empty(self.num_values)
        place = 0
        for row, stop in self._kept_chunks(index):
            samples = self.layout.decode(content, index[row:stop])
            blocks, rows = self.layout.encode(shard.first + row, samples, place)
            if not np.array_equal(content[place : place + len(blocks)], blocks) or rows.tobytes() != (
                index[row:stop].tobytes()
            ):
                return None
            moments.merge(self._moments(samples))
            place += len(blocks)
        names = [name for name in (shard.name, shard.index_name, shard.keys_name) if (self.folder / name).exists()]
        files = {name: self._entry(name) for name in names}
        expected = {name: self.recorded[name] for name in {*names, shard.keys_name} if name in self.recorded}
        if self.recorded and files != expected:
            return None
        count(shard.count)
        return files, moments

    def _kept_chunks(self, index: np.ndarray) -> Iterator[tuple[int, int]]:
        """The same chunks as `_chunks` makes, since statistics are summed chunk by chunk."""
        row = 0
        while row < len(index):
            stop = row + self.chunk_samples
            if self.is_text:
                sizes = np.cumsum(index["length"][row : row + CHUNK_SAMPLES])
                stop = row + min(int(np.searchsorted(sizes, CHUNK_BYTES)) + 1, CHUNK_SAMPLES)
            yield row, min(stop, len(index))
            row = stop

    def _entry(self, name: str) -> tuple[int, str]:
        path = self.folder / name
        return path.stat().st_size, durable.digest_file(path)
