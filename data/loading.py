"""Where shards become batches: exact epochs whose order is a pure function of (samples, seed, epoch).

A rank's share of a step is a pure function of the step and (rank, world size), and the position is just the step, so a
run resumes at once, exactly, and with any number of ranks and loader workers. What is NOT here: reading
(data/shards.py) and anything a model does with a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from conf.errors import InputError, StrataError, show
from data.mixture import Mixture, Readers
from data.order import BLOCK, WINDOW, Endless, Epochs, Order
from data.selection import Selection
from data.shard_cache import require_room
from data.shards import Reader, check

LABELED = 1 << 40  # between the seed of the labeled samples' order and that of the unlabeled ones


class Labeled(NamedTuple):
    """What one rank sees of the labeled samples that go beside a step's unlabeled ones; share as in Step."""

    share: float
    x: Tensor  # (b, num_values) float32; b may be 0
    label: Tensor  # (b,) int64


class Step(NamedTuple):
    """What one rank sees of one optimizer step.

    A rank's mean loss times `share` = samples here × ranks / samples of the step, averaged over the ranks (as DDP does
    with gradients), is the mean over the whole step.
    """

    number: int  # of the step, over all epochs, from 0
    share: float  # 0 for an empty piece
    x: Tensor  # (b, num_values) float32; b may be 0
    label: Tensor | None  # (b,) int64
    labeled: Labeled | None = None


def piece(step_samples: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """A rank's part of a step's samples: world_size consecutive pieces whose sizes differ by at most one."""
    start, stop = (len(step_samples) * r // world_size for r in (rank, rank + 1))
    return step_samples[start:stop]


class Beside(NamedTuple):
    """Labeled samples that go beside the steps, `size` a step, through epochs of their own."""

    samples: Endless
    size: int


class Batches(IterableDataset[Step]):
    """The steps start_step … total_steps − 1 of one rank, in one pass over all epochs.

    drawn: the samples of each step, of all ranks together. Worker w of W yields every W-th step from start_step + w on,
    which DataLoader's round-robin puts in order again.
    """

    def __init__(
        self,
        *,
        reader: Reader | Readers,
        drawn: Epochs | Mixture,
        start_step: int,
        total_steps: int,
        rank: int,
        world_size: int,
        labels: np.ndarray | None = None,
        beside: Beside | None = None,
    ) -> None:
        """labels: of all samples by number, if each step shall have its own or others `beside` it."""
        self.reader, self.drawn, self.labels, self.beside = reader, drawn, labels, beside
        self.start_step, self.total_steps, self.rank, self.world_size = start_step, total_steps, rank, world_size

    def __iter__(self) -> Iterator[Step]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for number in range(self.start_step + first, self.total_steps, stride):
            share, mine = self._mine(self.drawn[number])
            label = None if self.beside or self.labels is None else torch.from_numpy(self.labels[mine])
            yield Step(number, share, self._values(mine), label, self._labeled(number))

    def _labeled(self, number: int) -> Labeled | None:
        if self.beside is None:
            return None
        assert self.labels is not None
        share, mine = self._mine(self.beside.samples[number * self.beside.size : (number + 1) * self.beside.size])
        return Labeled(share, self._values(mine), torch.from_numpy(self.labels[mine]))

    def _mine(self, whole: np.ndarray) -> tuple[float, np.ndarray]:
        mine = piece(whole, self.rank, self.world_size)
        return len(mine) * self.world_size / len(whole), mine

    def _values(self, samples: np.ndarray) -> Tensor:
        return torch.from_numpy(self.reader.values(samples))


class StepLoader:
    """A DataLoader whose workers' errors arrive as they were raised: one line, not the text of a traceback."""

    def __init__(self, batches: Batches, num_workers: int) -> None:
        cuda = torch.cuda.is_available()
        self.loader: Iterable[Step] = batches  # with no processes and nothing to pin, a DataLoader only takes time
        if num_workers or cuda:
            self.loader = DataLoader(batches, batch_size=None, num_workers=num_workers, pin_memory=cuda)

    def __iter__(self) -> Iterator[Step]:
        try:
            yield from self.loader
        except StrataError as error:
            last = str(error).rstrip().splitlines()[-1]
            raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")) from None


@dataclass(frozen=True)
class Mixed:
    """A further shard set that steps are drawn from. `without`: see data.verification.check."""

    shards: Path
    samples: np.ndarray | Selection
    weight: float
    without: Collection[str] = ()


class ShardData(pl.LightningDataModule):
    """Training batches from a chosen set of samples.

    shards: a finished folder; samples: global numbers of the set to train on (all of them labeled if `labeled`);
    batch_size: global, shared by all ranks, at most the number of samples; epochs: passes over the samples; seed: of
    the order; loader_workers: processes that read ahead; remembered, without: see data.verification.check.

    mixed: further sets to draw from (data/mixture.py), beside the first one's weight; their samples have its shape and
    no labels. labeled_samples: of the first set; `labeled_batch_size` of them, at most all, go beside each step's
    unlabeled ones, through epochs of their own.

    Set `start_step` before fit to go on from there; train with max_epochs=1, the loader passes over all epochs by
    itself. Errors: InputError (no samples, no labels, shapes or weights that do not mix), Damaged.
    """

    def __init__(
        self,
        *,
        shards: Path,
        samples: np.ndarray | Selection,
        batch_size: int,
        epochs: int,
        seed: int,
        labeled: bool = False,
        loader_workers: int = 0,
        remembered: Path | None = None,
        without: Collection[str] = (),
        weight: float = 1.0,
        mixed: Sequence[Mixed] = (),
        labeled_samples: np.ndarray | Selection | None = None,
        labeled_batch_size: int = 1,
    ) -> None:
        super().__init__()
        if labeled and mixed:
            raise ValueError("steps drawn from several sets have no labels of their own")
        self.samples = Selection.of(samples)
        first = Mixed(Path(shards), self.samples, weight, frozenset(without))
        self.mixed = [first, *(replace(one, samples=Selection.of(one.samples)) for one in mixed)]
        self.readers = [Reader(one.shards) for one in self.mixed]
        self.reader = self.readers[0]
        for one, reader in zip(self.mixed, self.readers, strict=True):
            if not len(one.samples):
                sets = ", ".join(f"{name} {summary.samples}" for name, summary in reader.manifest.sets.items())
                raise InputError(f"{show(one.shards)}: no samples to train on; samples per set of the source: {sets}")
        self.labels = self.reader.labels() if labeled or labeled_samples is not None else None
        self.beside: Beside | None = None
        if labeled:
            self._require_labels(self.samples)
        elif labeled_samples is not None:
            chosen = Selection.of(labeled_samples)
            self._require_labels(chosen)
            self.beside = Beside(Endless(chosen, seed + LABELED), min(labeled_batch_size, len(chosen)))
        self.seed, self.remembered, self.loader_workers = seed, remembered, loader_workers
        self.batch_size = min(batch_size, sum(len(one.samples) for one in self.mixed))
        self.steps_per_epoch = self._drawn().steps_per_epoch
        self.total_steps = epochs * self.steps_per_epoch
        self.start_step = 0

    def _require_labels(self, chosen: Selection) -> None:
        assert self.labels is not None
        missing = int((self.labels[chosen[:]] < 0).sum())
        if missing or not len(chosen):
            found = f"{missing} of {len(chosen)} samples to train on have no label" if missing else "no labeled samples"
            raise InputError(f"{show(self.reader.folder)}: {found}")

    def _drawn(self) -> Epochs | Mixture:
        if len(self.mixed) == 1:
            return Epochs(self.samples, self.batch_size, self.seed)
        shapes = [reader.manifest.shape for reader in self.readers]
        if len(set(shapes)) > 1:
            where = show(self.mixed[0].shards)
            raise InputError(f"{where}: sets to mix must have samples of one shape, found {shapes}")
        samples, weights = [one.samples for one in self.mixed], [one.weight for one in self.mixed]
        try:
            return Mixture(samples, Readers(self.readers).firsts.tolist(), weights, self.batch_size, self.seed)
        except ValueError as error:
            raise InputError(f"{show(self.mixed[0].shards)}: sets to mix: {error}; raise it, or the weight") from None

    def prepare_data(self) -> None:
        """Once per node, before training: verifies what is not remembered as verified."""
        for one, reader in zip(self.mixed, self.readers, strict=True):
            require_room(reader.manifest, Order(one.samples, self.seed, 0)[: BLOCK * WINDOW])
            check(one.shards, self.remembered, one.without)

    def train_dataloader(self) -> StepLoader:
        trainer = self.trainer
        batches = Batches(
            reader=self.reader if len(self.readers) == 1 else Readers(self.readers),
            drawn=self._drawn(),
            start_step=self.start_step,
            total_steps=self.total_steps,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
            labels=self.labels,
            beside=self.beside,
        )
        return StepLoader(batches, self.loader_workers)

    def examples(self, samples: np.ndarray, limit: int | None = None) -> Tensor:
        """(n, num_values) float32: the first `limit` of these samples of the first set, in their order."""
        return torch.from_numpy(self.reader.values(np.asarray(samples, np.int64)[:limit]))
