"""Raw source → a folder of shards: one writer at a time, killed and continued at will, the same bytes at the end.

Order of writing: plan, then per shard tar, keys, index; then per set labels and mean; last the manifest. Every file is
whole or absent (data/durable.py). A shard whose index is there is finished; the next try reads it back, and keeps it if
every byte is what its index says. Ingesting into a finished folder again therefore repairs it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import Busy, Damaged, InputError, OutputError, show
from data import durable
from data.manifest import FORMAT, NAME, PLAN, Manifest, SetSummary, Shard, plan_shards
from data.sources import SETS, Description, RawSource, finite
from data.tar import END, Layout, to_npy

CHUNK_BYTES = 4 << 20  # of a shard handled at a time; part of the format, since statistics are summed chunk by chunk
WRITTEN = re.compile(rf"({'|'.join(SETS)})-(\d{{5,}}\.(tar|index\.npy|keys\.jsonl)|(labels|mean)\.npy)")
LEFTOVER = re.compile(r"\..+\.\d+\.tmp")  # durable.writing's temporary files, after a kill
Progress = Callable[[int, int], None]


def ingest(source: RawSource, folder: Path, *, shard_size: int, progress: Progress | None = None) -> Manifest:
    """Writes the source's samples and labels as shards of `shard_size` samples; returns the committed manifest.

    `progress(done, total)` counts samples. Errors: InputError (the raw data; nothing or only finished shards are left),
    Busy (another process ingests into this folder), OutputError (disk full, not writable; run again to go on).
    """
    folder = Path(folder)
    description = source.describe()
    task = _Task(source, folder, description, shard_size, progress or (lambda done, total: None))
    try:
        with durable.lock(folder / ".lock"):
            return task.run()
    except durable.Locked as holder:
        raise Busy(f"{show(folder)}: {holder} is ingesting into this folder; wait for it or choose another") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(
            f"{show(folder)}: {reason}; {task.committed} of {len(task.shards)} shards are committed, "
            "run again to go on from there"
        ) from None


@dataclass
class _Moments:
    """Count, mean and summed squared deviation of values, per feature; range over all (Chan, Golub & LeVeque 1983)."""

    count: int
    mean: np.ndarray
    squares: np.ndarray
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: np.ndarray) -> None:
        """values: (n, num_values) float64."""
        count, total = len(values), self.count + len(values)
        mean = values.mean(axis=0)
        delta = mean - self.mean
        self.squares += ((values - mean) ** 2).sum(axis=0) + delta**2 * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def overall(self) -> tuple[float, float]:
        """Mean and standard deviation of all values."""
        mean = float(self.mean.mean())
        variance = float(self.squares.mean()) / self.count + float(((self.mean - mean) ** 2).mean())
        return mean, math.sqrt(variance)


class _Task:
    def __init__(
        self, source: RawSource, folder: Path, description: Description, shard_size: int, progress: Progress
    ) -> None:
        self.source, self.folder, self.description, self.progress = source, folder, description, progress
        self.shard_size = shard_size
        self.layout = Layout(description.shape, np.dtype(description.dtype).newbyteorder("<"))
        self.shards = list(plan_shards(description.sets, shard_size))
        self.total = sum(description.sets.values())
        self.committed = 0
        self.done = 0
        self.files: dict[str, tuple[int, str]] = {}
        self.recorded: dict[str, tuple[int, str]] = {}  # what an earlier manifest says, where there is one

    def run(self) -> Manifest:
        self._begin()
        moments: dict[str, _Moments] = {}
        contents = {name: hashlib.sha256() for name in self.description.sets}
        keys = {name: hashlib.sha256() for name in self.description.sets}
        for shard in self.shards:
            size = self.description.num_values
            moment = moments.setdefault(shard.set_name, _Moments(0, np.zeros(size), np.zeros(size)))
            index = self._keep(shard, moment)
            if index is None:
                index = self._write(shard, moment)
            self.committed += 1
            contents[shard.set_name].update(index["digest"].tobytes())
            if shard.keys_name in self.files:
                keys[shard.set_name].update((self.folder / shard.keys_name).read_bytes())
        try:
            self.source.require_unchanged()
        except InputError:
            # These shards may mix old and new content: the next try starts anew.
            durable.write_json(self.folder / PLAN, {"format": FORMAT, "changed": True})
            raise
        return self._commit(moments, {name: [contents[name].hexdigest(), keys[name].hexdigest()] for name in contents})

    # --- before and after the shards ---

    def _begin(self) -> None:
        """Finds out whether the folder is new, a try to go on with, or somebody else's; removes what kills left."""
        plan = {"format": FORMAT, "description": self.description.to_json(), "shard_size": self.shard_size}
        try:
            earlier = durable.read_json(self.folder / PLAN)
        except (FileNotFoundError, ValueError):
            earlier = None
        same = earlier == plan
        if (self.folder / NAME).exists():
            same = self._recall(same)
        for path in sorted(self.folder.iterdir()):
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
            elif WRITTEN.fullmatch(path.name) and not same:
                if not isinstance(earlier, dict) or "format" not in earlier:
                    raise InputError(
                        f"{show(path)}: a file of this name is in the way and not known to be strata's own; "
                        "choose an empty folder"
                    )
                path.unlink()  # of a try with other data or another shard size that never finished
        durable.write_json(self.folder / PLAN, plan)
        self._note(PLAN, (self.folder / PLAN).read_bytes())

    def _recall(self, same: bool) -> bool:
        """Whether the finished shards here are those we would write. Errors: InputError if they are anything else."""
        try:
            manifest = Manifest.load(self.folder)
        except Damaged:
            if same:
                return True  # rewritten at the end, from shards that are read back and checked
            raise InputError(
                f"{show(self.folder)}: holds shards whose manifest cannot be read; choose another folder or remove it"
            ) from None
        if (manifest.content, manifest.shard_size) != (self.description.content, self.shard_size):
            raise InputError(
                f"{show(self.folder)}: holds finished shards of other data or of another shard size; "
                "choose another folder or remove it"
            )
        self.recorded = manifest.files
        return True

    def _commit(self, moments: dict[str, _Moments], digests: dict[str, list[str]]) -> Manifest:
        description = self.description
        sets, labels = {}, {}
        for name in (name for name in SETS if name in description.sets):
            values = self.source.labels(name)
            labels[name] = durable.digest_bytes(values.astype("<i8").tobytes())
            self._save(f"{name}-labels.npy", to_npy(values.astype("<i8")))
            self._save(f"{name}-mean.npy", to_npy(moments[name].mean.reshape(description.shape).astype("<f8")))
            mean, std = moments[name].overall
            known = int((values >= 0).sum())
            sets[name] = SetSummary(len(values), known, mean, std, moments[name].low, moments[name].high)
        if len({bound for summary in sets.values() for bound in (summary.low, summary.high)}) == 1:
            raise InputError(
                f"{description.kind} source: every value of every sample is the same, so there is nothing to learn"
            )
        schema: dict[str, Any] = {"shape": list(description.shape), "dtype": description.dtype, "sets": digests}
        manifest = Manifest(
            folder=self.folder,
            source=description.kind,
            content=description.content,
            samples_digest=durable.digest_value(schema | {"scale": description.scale}),
            labels_digest=durable.digest_value({"labels": labels, "classes": list(description.classes)}),
            shape=description.shape,
            dtype=description.dtype,
            scale=description.scale,
            classes=description.classes,
            shard_size=self.shard_size,
            sets=sets,
            files=self.files,
        )
        manifest.write()
        return manifest

    def _note(self, name: str, content: bytes) -> None:
        self.files[name] = (len(content), durable.digest_bytes(content))

    def _save(self, name: str, content: bytes) -> None:
        durable.write_bytes(self.folder / name, content)
        self._note(name, content)

    # --- one shard ---

    def _write(self, shard: Shard, moments: _Moments) -> np.ndarray:
        """Writes a shard from the source and adds it to the moments; returns its index."""
        (self.folder / shard.index_name).unlink(missing_ok=True)  # of a shard that turned out damaged
        (self.folder / shard.keys_name).unlink(missing_ok=True)
        keys, rows, row = [], [], 0
        content = hashlib.sha256()
        with durable.writing(self.folder / shard.name) as file:
            for chunk_keys, values in self._chunks(shard):
                blocks = self.layout.encode(shard.first + row, values)
                rows.append(self.layout.index(blocks, row))
                keys += chunk_keys
                row += len(values)
                content.update(blocks.data)
                file.write(blocks.data)
                self._count(values, moments)
            file.write(bytes(END))
            content.update(bytes(END))
        self.files[shard.name] = (self.layout.shard_size(shard.count), content.hexdigest())
        if keys != [str(number) for number in range(shard.row, shard.row + shard.count)]:
            self._save(shard.keys_name, "".join(json.dumps(key) + "\n" for key in keys).encode())
        index = np.concatenate(rows)
        self._save(shard.index_name, to_npy(index))
        return index

    def _chunks(self, shard: Shard) -> Iterator[tuple[list[str], np.ndarray]]:
        """The shard's samples from the source, checked, a few megabytes at a time."""
        stream = self.source.samples(shard.set_name, range(shard.row, shard.row + shard.count))
        size, seen = self._chunk_samples, 0
        while batch := list(itertools.islice(stream, size)):
            for key, value in batch:
                if value.shape != self.layout.shape or value.dtype.newbyteorder("<") != self.layout.dtype:
                    raise InputError(
                        f"{shard.set_name} sample {show(key)}: {value.dtype} of shape {value.shape}; "
                        f"expected {self.description.dtype} of shape {self.layout.shape} like the source's others"
                    )
            values = np.stack([value for _, value in batch]).astype(self.layout.dtype, copy=False)
            fine = finite(values)
            if not fine.all():
                key = batch[int(np.argmin(fine))][0]
                raise InputError(f"{shard.set_name} sample {show(key)}: holds NaN or infinite values; expected numbers")
            seen += len(batch)
            yield [key for key, _ in batch], values
        if seen != shard.count:
            raise InputError(f"the source gave {seen} of the {shard.count} samples of {shard.stem}; it has changed")

    def _keep(self, shard: Shard, moments: _Moments) -> np.ndarray | None:
        """The index of a shard that an earlier try finished, if every byte is right; adds it to the moments."""
        try:
            index_file = (self.folder / shard.index_name).read_bytes()
            content = np.memmap(self.folder / shard.name, np.uint8, "r")
        except (FileNotFoundError, ValueError):  # ValueError: an empty file
            return None
        if len(content) != self.layout.shard_size(shard.count) or content[-END:].any():
            return None
        values, rows = self.layout.decode(content, shard.count), []
        for row in range(0, shard.count, self._chunk_samples):
            blocks = self.layout.encode(shard.first + row, values[row : row + self._chunk_samples])
            if not np.array_equal(content[row * self.layout.stride :][: blocks.size], blocks.reshape(-1)):
                return None
            rows.append(self.layout.index(blocks, row))
        index = np.concatenate(rows)
        if to_npy(index) != index_file:
            return None
        names = [name for name in (shard.name, shard.index_name, shard.keys_name) if (self.folder / name).exists()]
        entries = {name: self._entry(name) for name in names}
        expected = {name: self.recorded[name] for name in {*names, shard.keys_name} if name in self.recorded}
        if self.recorded and entries != expected:
            return None
        self.files |= entries
        for row in range(0, shard.count, self._chunk_samples):
            self._count(values[row : row + self._chunk_samples], moments)
        return index

    def _entry(self, name: str) -> tuple[int, str]:
        path = self.folder / name
        return path.stat().st_size, durable.digest_file(path)

    @property
    def _chunk_samples(self) -> int:
        return max(1, CHUNK_BYTES // self.layout.stride)

    def _count(self, values: np.ndarray, moments: _Moments) -> None:
        moments.add(values.reshape(len(values), -1).astype(np.float64) / self.description.scale)
        self.done += len(values)
        self.progress(self.done, self.total)
