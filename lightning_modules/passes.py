"""One pass over the training samples for a model fitted by statistics: read once, in order, merged over ranks.

A batch holds about 2²³ values, whatever `train.batch_size` says: the statistics do not depend on it but for rounding.
Ranks take consecutive shares of the same batches, so that each reads its own shards; rank 0 merges their statistics in
rank order, finishes, and gives its buffers to all. A killed pass begins anew and ends with the same bytes: it is one
reading of the data. No Lightning here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from conf.errors import InputError
from conf.protocol import TrainJob
from data.selection import Selection
from data.shards import Reader
from data.splits import divide
from lightning_modules.interfaces import StreamingModel
from lightning_modules.seeding import seed_torch
from lightning_modules.stack import Stack

VALUES_AT_A_TIME = 2**23  # 64 MiB in float64
Tell = Callable[[dict[str, Any]], None]


def num_batches(samples: int, model: StreamingModel, below: Stack | None) -> int:
    """Of one pass, shared by all ranks."""
    widths = [model.num_visible, *([below.num_visible] + [layer.num_hidden for layer in below] if below else [])]
    return -(-samples // max(1, VALUES_AT_A_TIME // max(widths)))


@torch.no_grad()
def fit_in_one_pass(
    job: TrainJob, model: StreamingModel, below: Stack | None, tell: Tell
) -> tuple[int, dict[str, float]]:
    """Fits `model` in place, to the codes of `below` if there is one → batches read, facts about the fit.

    Errors: InputError where the data do not allow the fit; InputError and Damaged of the shards.
    """
    with reading(job, below) as read:
        steps = num_batches(len(read.samples), model, below)
        mine = read.piece(np.arange(steps))
        for done, step in enumerate(mine.tolist(), start=1):
            first, last = (len(read.samples) * edge // steps for edge in (step, step + 1))
            model.update(read.inputs(read.samples[first:last], "pass", step))
            tell({"progress": {"done": done, "of": len(mine), "loss": float("nan")}})
        facts = read.finish(model)
        read.share(model)
    return steps, facts


class Reading:
    """What a rank of a job that learns by passes reads, and how it and the others become one."""

    def __init__(self, job: TrainJob, below: Stack | None, rank: int, world_size: int) -> None:
        from data.loading import ShardData  # imports Lightning, which a plan that asks for num_batches does without

        self.job, self.rank, self.world_size = job, rank, world_size
        shards = Path(job.inputs.shards)
        self._data = ShardData(
            shards=shards,
            samples=divide(Reader(shards), job.inputs.split, job.inputs.without)["train"],
            batch_size=1,
            epochs=1,
            seed=job.seed,
            remembered=Path(job.inputs.remembered) if job.inputs.remembered else None,
            without=job.inputs.without,
        )
        self.device = _device(job.train.accelerator)
        self._below = below.to(self.device).eval() if below is not None else None
        if rank == 0:
            self._data.prepare_data()
        if world_size > 1:
            distributed.barrier()

    @property
    def samples(self) -> Selection:
        """The training samples, of all ranks."""
        return self._data.samples

    def piece(self, numbers: np.ndarray) -> np.ndarray:
        """This rank's part of them."""
        from data.loading import piece

        return piece(numbers, self.rank, self.world_size)

    def inputs(self, samples: np.ndarray, *purpose: str | int) -> Tensor:
        """What the model learns from, (n, its num_visible) on the device; `purpose` seeds what is drawn on the way."""
        seed_torch(self.job.seed, *purpose)
        return _inputs(self.job, self._data.examples(samples).to(self.device), self._below)

    def finish(self, model: StreamingModel) -> dict[str, float]:
        """Rank 0 takes in everybody's statistics and finishes → its facts; {} elsewhere."""
        _merge(model, self.rank, self.world_size)
        return self.first(model.finish) or {}

    def first(self, do: Callable[[], Any]) -> Any:
        """What rank 0 finds, done there alone; None elsewhere. ValueError becomes an InputError."""
        if self.rank:
            return None
        try:
            return do()
        except ValueError as error:
            raise InputError(f"stage {self.job.stage}: {error}") from None

    def share(self, model: StreamingModel) -> None:
        """Gives rank 0's buffers to all."""
        if self.world_size > 1:
            for buffer in model.state_dict().values():
                distributed.broadcast(buffer, src=0)

    def agree(self, value: Any) -> Any:
        """Rank 0's value, everywhere."""
        values = [value]
        if self.world_size > 1:
            distributed.broadcast_object_list(values, src=0)
        return values[0]


@contextmanager
def reading(job: TrainJob, below: Stack | None) -> Iterator[Reading]:
    """Errors: InputError and Damaged of the shards."""
    with _ranks() as (rank, world_size):
        yield Reading(job, below, rank, world_size)


def _inputs(job: TrainJob, x: Tensor, below: Stack | None) -> Tensor:
    if job.train.binarize == "sample":
        x = torch.bernoulli(x)
    return x if below is None else below.hand_up(x, sample=job.hand_up == "sample")


def _device(accelerator: str) -> torch.device:
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def _ranks() -> Iterator[tuple[int, int]]:
    """(rank, world size), with a process group where the launcher has started several."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield 0, 1
        return
    distributed.init_process_group("gloo")
    yield distributed.get_rank(), world_size
    distributed.destroy_process_group()


def _merge(model: StreamingModel, rank: int, world_size: int) -> None:
    """Rank 0 takes in everybody's statistics in rank order."""
    if world_size == 1:
        return
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    distributed.gather_object(model.partial(), gathered, dst=0)
    for partial in (gathered or [])[1:]:
        model.merge(partial)
