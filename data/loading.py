"""Where shards become batches: exact epochs whose order is a pure function of (samples, seed, epoch).

A rank's share of a step is a pure function of the step and (rank, world size), and the position is just the step, so a
run resumes at once, exactly, and with any number of ranks and loader workers. What is NOT here: reading
(data/shards.py) and anything a model does with a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from conf.errors import InputError, StrataError, show
from data.order import BLOCK, WINDOW, Order
from data.selection import Selection
from data.shard_cache import require_room
from data.shards import Reader, check


class Step(NamedTuple):
    """What one rank sees of one optimizer step.

    A rank's mean loss times `share` = samples here × ranks / samples of the step, averaged over the ranks (as DDP does
    with gradients), is the mean over the whole step.
    """

    number: int  # of the step, over all epochs, from 0
    share: float  # 0 for an empty piece
    x: Tensor  # (b, num_values) float32; b may be 0
    label: Tensor | None  # (b,) int64


def piece(step_samples: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """A rank's part of a step's samples: world_size consecutive pieces whose sizes differ by at most one."""
    start, stop = (len(step_samples) * r // world_size for r in (rank, rank + 1))
    return step_samples[start:stop]


class Batches(IterableDataset[Step]):
    """The steps start_step … total_steps − 1 of one rank, in one pass over all epochs.

    An epoch of N samples has ⌈N / B⌉ steps for a global batch B. Worker w of W yields every W-th step from
    start_step + w on, which DataLoader's round-robin puts in order again.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        samples: np.ndarray | Selection,
        batch_size: int,
        seed: int,
        start_step: int,
        total_steps: int,
        rank: int,
        world_size: int,
        labeled: bool,
    ) -> None:
        self.reader, self.samples, self.batch_size, self.seed = reader, samples, batch_size, seed
        self.start_step, self.total_steps, self.rank, self.world_size = start_step, total_steps, rank, world_size
        self.labels = reader.labels() if labeled else None

    def __iter__(self) -> Iterator[Step]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        steps_per_epoch = -(-len(self.samples) // self.batch_size)
        order: Order | None = None
        for number in range(self.start_step + first, self.total_steps, stride):
            epoch, place = divmod(number, steps_per_epoch)
            if order is None or order.epoch != epoch:
                order = Order(self.samples, self.seed, epoch)
            yield self._step(number, order[place * self.batch_size : (place + 1) * self.batch_size])

    def _step(self, number: int, whole: np.ndarray) -> Step:
        """whole: the samples of the step, of all ranks together."""
        mine = piece(whole, self.rank, self.world_size)
        x = torch.from_numpy(self.reader.values(mine))
        label = torch.from_numpy(self.labels[mine]) if self.labels is not None else None
        return Step(number, len(mine) * self.world_size / len(whole), x, label)


class StepLoader:
    """A DataLoader whose workers' errors arrive as they were raised: one line, not the text of a traceback."""

    def __init__(self, batches: Batches, num_workers: int) -> None:
        cuda = torch.cuda.is_available()
        self.loader = DataLoader(batches, batch_size=None, num_workers=num_workers, pin_memory=cuda)

    def __iter__(self) -> Iterator[Step]:
        try:
            yield from self.loader
        except StrataError as error:
            last = str(error).rstrip().splitlines()[-1]
            raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")) from None


class ShardData(pl.LightningDataModule):
    """Training batches from a chosen set of samples.

    shards: a finished folder; samples: global numbers of the set to train on (all of them labeled if `labeled`);
    batch_size: global, shared by all ranks, at most the number of samples; epochs: passes over the samples; seed: of
    the order; loader_workers: processes that read ahead; remembered, without: see data.verification.check. Set
    `start_step` before fit to go on from there; train with max_epochs=1, the loader passes over all epochs by itself.
    Errors: InputError (no samples, no labels), Damaged.
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
    ) -> None:
        super().__init__()
        self.reader = Reader(shards)
        self.samples = Selection.of(samples)
        if not len(self.samples):
            sets = ", ".join(f"{name} {summary.samples}" for name, summary in self.reader.manifest.sets.items())
            raise InputError(f"{show(shards)}: no samples to train on; samples per set of the source: {sets}")
        missing = int((self.reader.labels()[self.samples[:]] < 0).sum()) if labeled else 0
        if missing:
            raise InputError(f"{show(shards)}: {missing} of {len(self.samples)} samples to train on have no label")
        self.shards, self.seed, self.labeled, self.remembered = Path(shards), seed, labeled, remembered
        self.batch_size = min(batch_size, len(self.samples))
        self.loader_workers, self.without = loader_workers, frozenset(without)
        self.steps_per_epoch = -(-len(self.samples) // self.batch_size)
        self.total_steps = epochs * self.steps_per_epoch
        self.start_step = 0

    def prepare_data(self) -> None:
        """Once per node, before training: verifies what is not remembered as verified."""
        require_room(self.reader.manifest, Order(self.samples, self.seed, 0)[: BLOCK * WINDOW])
        check(self.shards, self.remembered, self.without)

    def train_dataloader(self) -> StepLoader:
        trainer = self.trainer
        batches = Batches(
            reader=self.reader,
            samples=self.samples,
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=self.start_step,
            total_steps=self.total_steps,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
            labeled=self.labeled,
        )
        return StepLoader(batches, self.loader_workers)

    def examples(self, samples: np.ndarray, limit: int | None = None) -> Tensor:
        """(n, num_values) float32: the first `limit` of these samples, in their order."""
        return torch.from_numpy(self.reader.values(np.asarray(samples, np.int64)[:limit]))
