"""Round after round over the training samples for a model that goes on from where the last one ended (k-means, EM).

A round takes all samples, in their order, or a mini-batch of an order drawn by seed and pass. Its batches, what is
drawn on the way and, merged over ranks in their order, its statistics are functions of the round, and what it ends with
are the model's buffers: so a resume needs these and the round's number. No Lightning here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from conf.journal import Journal
from conf.protocol import TrainJob
from data.order import Epochs
from data.splits import some
from lightning_modules.checkpoint import Checkpoints
from lightning_modules.interfaces import IteratedModel
from lightning_modules.passes import Reading, Tell, num_batches, reading
from lightning_modules.seeding import seed_torch
from lightning_modules.stack import Stack

SECONDS_BETWEEN_CHECKPOINTS = 2.0
SIZES = ("samples", "patches")  # the same in every round: no curve


def num_rounds(samples: int, model: IteratedModel) -> int:
    """At most."""
    return model.passes * (1 if model.batch_size is None else -(-samples // min(model.batch_size, samples)))


@torch.no_grad()
def fit_in_rounds(job: TrainJob, model: IteratedModel, below: Stack | None, tell: Tell) -> tuple[int, dict[str, float]]:
    """Fits `model` in place, to the codes of `below` if there is one → rounds, facts about the last one.

    Errors: as of one pass; Damaged (checkpoints).
    """
    with reading(job, below) as read:
        model.to(read.device)
        last = num_rounds(len(read.samples), model)
        in_a_pass = last // model.passes
        progress = _Progress(job, model, read)
        done, settled, facts = progress.resume()
        if not done:
            read.first(lambda: _start(model, read))
            read.share(model)
        while done < last and not settled:
            for number, samples in _batches(model, read, below, done):
                model.update(read.inputs(samples, "round", done, number))
            facts = read.finish(model)
            model.forget()
            read.share(model)
            settled = read.agree(model.settled)
            done += 1
            whole = done % in_a_pass == 0
            progress.note(done, facts, row=whole or done % job.train.log_steps == 0, settled=settled)
            tell({"progress": {"done": done, "of": last, "loss": facts.get("inertia", float("nan"))}})
        progress.close()
    return done, facts | {"rounds": float(done), "settled": float(settled)}


def _start(model: IteratedModel, read: Reading) -> None:
    x = read.inputs(some(read.samples, model.start_samples, "start"), "start")
    seed_torch(read.job.seed, "start")
    model.start(x)


def _batches(model: IteratedModel, read: Reading, below: Stack | None, number: int) -> Iterator[tuple[int, np.ndarray]]:
    """This rank's batches of a round: their number among all of it, their samples."""
    steps = num_batches(len(read.samples), model, below)
    if model.batch_size is None:
        for step in read.piece(np.arange(steps)).tolist():
            first, last = (len(read.samples) * edge // steps for edge in (step, step + 1))
            yield step, read.samples[first:last]
        return
    mine = read.piece(Epochs(read.samples, min(model.batch_size, len(read.samples)), read.job.seed)[number])
    if len(mine):
        yield read.rank, mine


class _Progress:
    """Rank 0's journal and resume points."""

    def __init__(self, job: TrainJob, model: IteratedModel, read: Reading) -> None:
        self._model, self._read = model, read
        self._sums: dict[str, float] = {}
        self._number, self._saved_at = 0, time.monotonic()
        self._checkpoints: Checkpoints | None = None
        self._journal: Journal | None = None
        if read.rank == 0 and job.folder:
            self._checkpoints = Checkpoints(Path(job.folder) / "checkpoint")

    def resume(self) -> tuple[int, bool, dict[str, float]]:
        """Sets the model to where it was → rounds done, whether they have settled, facts about the last."""
        saved = self._checkpoints.load() if self._checkpoints else None
        if saved:
            self._model.load_state_dict(saved.state["model"])
        known = (saved.step, saved.state["settled"], saved.state["facts"]) if saved else (0, False, {})
        known = self._read.agree(known)
        if known[0]:
            self._read.share(self._model)
        if self._checkpoints:
            self._journal = Journal(self._checkpoints.folder.parent / "journal.jsonl", saved.journal if saved else 0)
        return known

    def note(self, done: int, facts: dict[str, float], *, row: bool, settled: bool) -> None:
        """A row holds the means since the one before; a resume point stands behind a row."""
        if self._journal is None or self._checkpoints is None:
            return
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in facts.items()}
        self._number += 1
        if not row:
            return
        means = {f"train/{name}": total / self._number for name, total in self._sums.items() if name not in SIZES}
        self._journal.append(done, means)
        self._sums, self._number = {}, 0
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS:
            state = {"model": self._model.state_dict(), "settled": settled, "facts": facts}
            self._checkpoints.commit(done, state, ranks=1, journal=self._journal.sync())
            self._saved_at = time.monotonic()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
