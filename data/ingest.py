"""Raw source → a folder of shards: one writer at a time, killed and continued at will, the same bytes at the end.

Order of writing: plan, then the shards in any order (tar, keys, index each), then per set labels and mean, names of the
values, duplicates; last the manifest. Every file is whole or absent (data/durable.py). A shard whose index is there is
finished; the next try reads it back, and keeps it if every byte is what its index says. Ingesting into a finished
folder again therefore repairs it. Who makes the shards, and how many at a time, leaves no trace.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import Busy, Damaged, InputError, OutputError, show
from data import durable, sources
from data.duplicates import find_duplicates
from data.manifest import DUPLICATES, FEATURES, FORMAT, NAME, PLAN, Manifest, SetSummary, Shard, plan_shards
from data.moments import Moments
from data.shard_writer import ShardWriter
from data.sources import SETS, RawSource
from data.tar import INDEX, from_npy, npy_pieces, to_npy
from data.workers import made_by_processes, num_workers

WRITTEN = re.compile(rf"({'|'.join(SETS)})-(\d{{5,}}\.(tar|index\.npy|keys\.jsonl)|(labels|mean)\.npy)")
LEFTOVER = re.compile(r"\..+\.\d+\.tmp")  # durable.writing's temporary files, after a kill
SHARDS_PER_WORKER = 2  # fewer are not worth a process's start
Progress = Callable[[int, int], None]
Makers = Callable[[dict[str, Any], Sequence[int], Callable[[int], None]], Iterator[dict[str, Any]]]


def ingest(
    source: RawSource,
    folder: Path,
    *,
    shard_size: int,
    workers: int | None = 1,
    makers: Makers | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Writes the source's samples and labels as shards of `shard_size` samples; returns the committed manifest.

    `workers`: processes side by side, as in data.workers.num_workers; `makers` makes the shards instead (a cluster): it
    is given a request for ShardWriter.from_request and shard numbers, and yields the answers in any order.
    `progress(done, total)` counts samples. Errors: InputError (the raw data; nothing or only finished shards are left),
    Busy (another process ingests into this folder), OutputError (disk full, not writable; run again to go on).
    """
    task = _Task(source, Path(folder), shard_size, progress or (lambda done, total: None))
    try:
        with durable.lock(task.folder / ".lock"):
            return task.run(num_workers(workers), makers)
    except durable.Locked as holder:
        raise Busy(f"{show(folder)}: {holder} is ingesting into this folder; wait for it or choose another") from None
    except OSError as error:
        raise task.not_writable((error.strerror or str(error)).lower()) from None


class _Task:
    def __init__(self, source: RawSource, folder: Path, shard_size: int, progress: Progress) -> None:
        self.source, self.folder, self.shard_size, self.progress = source, folder, shard_size, progress
        self.description = source.describe()
        self.shards = list(plan_shards(self.description.sets, shard_size))
        self.total = sum(self.description.sets.values())
        self.committed = 0
        self.done = 0
        self.files: dict[str, tuple[int, str]] = {}
        self.recorded: dict[str, tuple[int, str]] = {}  # what an earlier manifest says, where there is one

    def run(self, workers: int, makers: Makers | None) -> Manifest:
        self._begin()
        moments = self._make_shards(workers, makers)
        try:
            self.source.require_unchanged()
        except InputError:
            # These shards may mix old and new content: the next try starts anew.
            durable.write_json(self.folder / PLAN, {"format": FORMAT, "changed": True})
            raise
        return self._commit(moments)

    def not_writable(self, reason: str) -> OutputError:
        return OutputError(
            f"{show(self.folder)}: {reason}; {self.committed} of {len(self.shards)} shards are committed, "
            "run again to go on from there"
        )

    # --- before the shards ---

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

    # --- the shards ---

    def _make_shards(self, workers: int, makers: Makers | None) -> dict[str, Moments]:
        """Finishes all shards; the moments of every set, merged in the order of its shards."""
        moments: dict[str, Moments] = {}
        early: dict[int, Moments] = {}  # of shards that were finished before their turn
        turn = 0
        for answer in self._answers(workers, makers):
            self.committed += 1
            self.files |= {name: (size, sha) for name, (size, sha) in answer["files"].items()}
            early[answer["shard"]] = Moments.from_json(answer["moments"])
            while turn in early:
                found, name = early.pop(turn), self.shards[turn].set_name
                moments.setdefault(name, Moments.empty(len(found.mean))).merge(found)
                turn += 1
        return moments

    def _answers(self, workers: int, makers: Makers | None) -> Iterator[dict[str, Any]]:
        numbers = range(len(self.shards))
        workers = min(workers, len(numbers) // SHARDS_PER_WORKER)
        if makers is None and workers <= 1:
            writer = ShardWriter(self.source, self.folder, self.shard_size, self.recorded)
            return (writer.make(number, self._count) for number in numbers)
        request = {
            "source": sources.request(self.source),
            "folder": str(self.folder.absolute()),
            "shard_size": self.shard_size,
            "recorded": {name: list(entry) for name, entry in self.recorded.items()},
        }
        if makers is not None:
            return makers(request, numbers, self._count)
        return made_by_processes(request, numbers, workers, self._count)

    def _count(self, number: int) -> None:
        self.done += number
        self.progress(self.done, self.total)

    # --- after the shards ---

    def _commit(self, moments: dict[str, Moments]) -> Manifest:
        description = self.description
        sets, labels = {}, {}
        for name in (name for name in SETS if name in description.sets):
            values = self.source.labels(name)
            labels[name] = self._save_labels(f"{name}-labels.npy", values.astype("<i8", copy=False))
            found = moments[name]
            mean, std = found.overall
            sets[name] = SetSummary(len(values), int(np.count_nonzero(values >= 0)), mean, std, found.low, found.high)
            if description.shape:
                self._save(f"{name}-mean.npy", to_npy(found.mean.reshape(description.shape).astype("<f8")))
        if description.shape and len({bound for each in sets.values() for bound in (each.low, each.high)}) == 1:
            raise InputError(
                f"{description.kind} source: every value of every sample is the same, so there is nothing to learn"
            )
        if description.features:
            self._save(FEATURES, durable.canonical(list(description.features)))
        pairs = find_duplicates(self.folder, self.shards, self._index)
        if len(pairs):
            self._save(DUPLICATES, to_npy(pairs.astype("<i8")))
        manifest = Manifest(
            folder=self.folder,
            source=description.kind,
            content=description.content,
            samples_digest=self._samples_digest(),
            labels_digest=durable.digest_value({"labels": labels, "classes": list(description.classes)}),
            shape=description.shape,
            dtype=description.dtype,
            scale=description.scale,
            classes=description.classes,
            shard_size=self.shard_size,
            sets=sets,
            num_duplicates=len(pairs),
            files=self.files,
        )
        for name in (FEATURES, DUPLICATES):  # of an earlier try that had them
            if name not in self.files:
                (self.folder / name).unlink(missing_ok=True)
        manifest.write()
        return manifest

    def _samples_digest(self) -> str:
        """Names the samples, their order and keys, whatever their labels and the shards' size."""
        contents = {name: hashlib.sha256() for name in self.description.sets}
        keys = {name: hashlib.sha256() for name in self.description.sets}
        for shard in self.shards:
            contents[shard.set_name].update(self._index(shard)["digest"].tobytes())
            if shard.keys_name in self.files:
                keys[shard.set_name].update((self.folder / shard.keys_name).read_bytes())
        schema: dict[str, Any] = {
            "shape": list(self.description.shape),
            "dtype": self.description.dtype,
            "scale": self.description.scale,
            "sets": {name: [contents[name].hexdigest(), keys[name].hexdigest()] for name in contents},
        }
        if self.description.features:
            schema["features"] = list(self.description.features)
        return durable.digest_value(schema)

    def _index(self, shard: Shard) -> np.ndarray:
        return np.frombuffer(from_npy((self.folder / shard.index_name).read_bytes()), INDEX)

    def _save_labels(self, name: str, values: np.ndarray) -> str:
        """Returns the digest of the labels alone."""
        whole, content, size = hashlib.sha256(), hashlib.sha256(), 0
        with durable.writing(self.folder / name) as file:
            for number, piece in enumerate(npy_pieces(values)):
                file.write(piece)
                whole.update(piece)
                content.update(piece if number else b"")
                size += len(piece)
        self.files[name] = size, whole.hexdigest()
        return content.hexdigest()

    def _note(self, name: str, content: bytes) -> None:
        self.files[name] = (len(content), durable.digest_bytes(content))

    def _save(self, name: str, content: bytes) -> None:
        durable.write_bytes(self.folder / name, content)
        self._note(name, content)
