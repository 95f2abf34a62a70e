"""How a model takes its steps: the only LightningModule, for one objective or several phases, exactly resumable.

Lightning loops, places, wraps for several devices and casts; everything that decides a number is a function of the
step: the batch (data.loading), torch's seed (drawn here from seed, purpose, rank and step before every step), the
learning rate. So a resume needs the weights, the optimizers, each rank's chains and the step, nothing else.

Distributed: a rank's loss is weighted by its share of the global batch, so that DistributedDataParallel's mean of the
gradients is the gradient of the global batch's mean, also where the pieces differ in size. An empty piece gives a
zero loss that still takes part in the collective.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from conf import Train
from conf.errors import Diverged, InputError, Interrupted
from conf.journal import Journal
from data.loading import ShardData, Step, piece
from data.splits import some
from lightning_modules.checkpoint import Checkpoints, Saved
from lightning_modules.draws import bernoulli
from lightning_modules.interfaces import (
    Batch,
    HasFreeEnergy,
    HasMonitors,
    Losses,
    Model,
    MovingAverages,
    Phase,
    PhasedModel,
    RankState,
    StartsFromData,
)
from lightning_modules.optimizer import optimizer_for
from lightning_modules.seeding import seed_torch
from lightning_modules.stack import Stack

STEPS_AT_A_TIME = 100  # that Lightning sees as one
LARGEST = 1e6  # a weight no sound model comes near; past it a training has diverged, finite or not
Progress = Callable[[int, int, float], None]  # step, of, loss


class Training(pl.LightningModule):
    """Takes steps on `model`; `below` is the frozen stack whose codes it learns from.

    validation: held-out samples; seen: a fixed part of the training samples to compare them with.
    """

    def __init__(
        self,
        model: Model | PhasedModel,
        train: Train,
        *,
        stage: str,
        seed: int,
        total_steps: int,
        steps_per_epoch: int,
        journal: Journal | None,
        checkpoints: Checkpoints | None,
        saved: Saved | None,
        below: Stack | None = None,
        hand_up: str = "mean",
        validation: Batch | None = None,
        seen: Tensor | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.below = below.requires_grad_(False) if below is not None else None
        if below is not None:  # read from one file by all ranks: DDP need not send its buffers round at every step
            self._ddp_params_and_buffers_to_ignore = [f"below.{name}" for name in below.state_dict()]
        self.train_settings = train
        self.stage, self.seed, self.hand_up = stage, seed, hand_up
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.log_steps = min(train.log_steps, steps_per_epoch)  # a short epoch still shows a curve
        self.journal, self.checkpoints, self.saved = journal, checkpoints, saved
        self.validation, self.seen, self.progress = validation, seen, progress
        self.phases = _phases(model)
        self.next_step = saved.step if saved else 0
        self.sums: dict[str, Tensor] = {}
        self.exact = True  # False: resumed on other ranks, threads or another torch, so not bit for bit the same run
        self.signal = 0  # the number of the one that asked us to stop
        self._told = 0.0

    # Lightning's hooks, in the order it calls them.

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer_for(phase.parameters, self.train_settings) for phase in self.phases]

    def on_train_start(self) -> None:
        _note_signals(self)  # Lightning has just put its own SIGTERM handler in front of ours
        self._rank_slice()
        if self.saved is None:
            return
        for optimizer, state in zip(self.trainer.optimizers, self.saved.state["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._take_sums(self.saved.state["sums"])
        self.exact = self.saved.state["exact"] and self.saved.state["where"] == self._where()
        self.saved = None

    def on_train_end(self) -> None:
        """Ranks that drifted apart are a bug; the model one of them saves would be nobody's."""
        digest = hashlib.sha256()
        for parameter in self.model.parameters() if self.trainer.world_size > 1 else ():
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if len(set(self._gather(digest.hexdigest()))) > 1:
            raise RuntimeError(f"stage {self.stage}: the ranks' weights differ after step {self.next_step}")

    def training_step(self, dataloader_iter: Iterator[tuple[Step, int, int]]) -> None:
        """Many steps at a time, since Lightning's own work between two calls takes as long as a small step."""
        optimizers = self._optimizers()
        for step, _, _ in islice(dataloader_iter, STEPS_AT_A_TIME):
            if self.device.type != "cpu":
                step = self.trainer.strategy.batch_to_device(step)
            self.take_step(step, optimizers)
            if self.trainer.should_stop:
                break

    def take_step(self, step: Step, optimizers: Sequence[Any]) -> None:
        seed_torch(self.seed, "step", self.global_rank, step.number)
        self._set_learning_rate(step.number)
        batch = self._inputs(step)
        for phase, optimizer in zip(self.phases, optimizers, strict=True):
            with self._own_gradients(optimizer):
                for _ in range(phase.steps):
                    self._descend(phase, optimizer, batch, step)
        self._after(step, batch)

    def _descend(self, phase: Phase, optimizer: Any, batch: Any, step: Step) -> None:
        for parameter in phase.parameters:
            parameter.grad = None
        losses = phase.losses(batch) if step.share > 0 else _no_loss(phase)
        self._refuse_non_finite(losses, phase, step.number)
        loss = losses["loss"] * step.share if step.share != 1 else losses["loss"]
        if self.trainer.world_size > 1:
            self.manual_backward(loss)
        else:  # the same without hooks
            loss.backward()
        optimizer.step()
        self._share_averages(step)
        if isinstance(self.model, Model):
            self.model.after_step()
        for name, value in losses.items():
            value = value.detach() * step.share
            name = f"{phase.name}_{name}" if phase.name and name == "loss" else name
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _after(self, step: Step, batch: Batch) -> None:
        self.next_step = done = step.number + 1
        last = done == self.total_steps
        if done % self.steps_per_epoch == 0 and self.validation is not None and self.global_rank == 0:
            self._validate(done)
        if done % self.log_steps == 0 or last:
            self._log(done, self._monitors(step, batch))
        asked = self.signal
        if self.trainer.world_size > 1:  # all ranks stop after the same step; a signal may come while they agree
            asked = int(self.trainer.strategy.reduce(torch.tensor(asked, device=self.device), reduce_op="max"))
        if asked:
            self.signal = asked
            self.trainer.should_stop = True
        if (done % self.train_settings.checkpoint_steps == 0 and not last) or self.trainer.should_stop:
            self._checkpoint(done)

    # What a step is made of.

    def _inputs(self, step: Step) -> Any:
        return self._learned_from(step.x if step.label is None else {"x": step.x, "label": step.label})

    def _learned_from(self, batch: Batch) -> Batch:
        if isinstance(batch, Tensor):
            return self.from_data(batch)
        return {**batch, "x": self.from_data(batch["x"])}

    def from_data(self, x: Tensor) -> Tensor:
        """Scaled data → what the model learns from: binarized if asked, then handed up by the stack below."""
        if self.train_settings.binarize == "sample":
            x = bernoulli(x)
        if self.below is None or len(x) == 0:
            return x if self.below is None else x.new_zeros(0, self.below.num_hidden)
        with torch.no_grad():
            return self.below.hand_up(x, sample=self.hand_up == "sample")

    def _optimizers(self) -> Sequence[Any]:
        optimizers = self.optimizers(use_pl_optimizer=False)  # wrapping one costs time and serves loss scaling only
        return optimizers if isinstance(optimizers, list) else [optimizers]

    @contextmanager
    def _own_gradients(self, optimizer: Any) -> Iterator[None]:
        """Within a phase only its own parameters ask for gradients."""
        if len(self.phases) == 1:
            yield
            return
        self.toggle_optimizer(optimizer)
        yield
        self.untoggle_optimizer(optimizer)

    def _set_learning_rate(self, step: int) -> None:
        if self.train_settings.schedule == "linear":
            rate = self.train_settings.learning_rate * (1 - step / self.total_steps)
            for optimizer in self.trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate

    def _refuse_non_finite(self, losses: Losses, phase: Phase, step: int) -> None:
        if math.isfinite(losses["loss"].item()):
            return
        parts = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        part = f"the {phase.name}'s " if phase.name else ""
        raise Diverged(
            f"stage {self.stage}: {part}loss is not finite at step {step} of {self.total_steps} ({parts}); "
            f"lower train.learning_rate (now {self.train_settings.learning_rate:g}) or check the data's scale"
        )

    # The journal, validation, checkpoints, progress.

    @torch.no_grad()
    def _monitors(self, step: Step, batch: Batch) -> Losses:
        """This rank's share of the numbers that are asked for only when a row is written."""
        if not isinstance(self.model, HasMonitors) or step.share == 0:
            return {}
        seed_torch(self.seed, "monitors", self.global_rank, step.number)
        return {name: value * step.share for name, value in self.model.monitors(batch).items()}

    def _log(self, done: int, monitors: Losses) -> None:
        steps = (done - 1) % self.log_steps + 1
        mine = {name: value / steps for name, value in self.sums.items()} | monitors
        values = torch.stack([value.to(self.device, torch.float64) for value in mine.values()]).tolist()
        shares = self._gather(dict(zip(mine, values, strict=True)))
        names = dict.fromkeys(name for share in shares for name in share)  # an empty piece knows no parts of a loss
        row = {f"train/{name}": sum(share.get(name, 0.0) for share in shares) / len(shares) for name in names}
        self.sums = {}
        if self.journal is not None:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.journal.append(done, row | {"train/learning_rate": rate})
        loss = next((value for name, value in row.items() if name.endswith("loss")), math.nan)
        if self.progress and (time.monotonic() - self._told > 0.2 or done == self.total_steps):
            self.progress(done, self.total_steps, loss)
            self._told = time.monotonic()

    @torch.no_grad()
    def _validate(self, done: int) -> None:
        """The objective on held-out data, without moving chains or dropping units."""
        if not isinstance(self.model, Model) or self.journal is None:
            return
        kept = self.model.rank_state() if isinstance(self.model, RankState) else {}
        kept = {name: value.clone() for name, value in kept.items()}
        seed_torch(self.seed, "validation", done)
        self.model.eval()
        assert self.validation is not None
        held_out = self.transfer_batch_to_device(self.validation, self.device, 0)
        learned_from = self._learned_from(held_out)
        losses = self.model.losses(learned_from)
        if isinstance(self.model, HasMonitors):
            losses |= self.model.monitors(learned_from)
        found = {name: float(value) for name, value in losses.items()} | self._free_energy_gap(held_out)
        self.model.train()
        if isinstance(self.model, RankState):
            self.model.load_rank_state(kept)
        self.journal.append(done, {f"validation/{name}": value for name, value in found.items()})

    def _free_energy_gap(self, held_out: Batch) -> dict[str, float]:
        """mean F(held out) − mean F(seen), nats a sample: how much more probable what it has seen is (Hinton 2010, §6).

        log Z cancels: the gap is a difference of mean log p. Draws on the way are the same at every epoch.
        """
        if not isinstance(self.model, HasFreeEnergy) or not self.model.has_free_energy or self.seen is None:
            return {}
        means = []
        for x in (held_out if isinstance(held_out, Tensor) else held_out["x"], self.seen.to(self.device)):
            seed_torch(self.seed, "free energy gap")
            means.append(self.model.free_energy(self.from_data(x)).mean().item())
        return {"free_energy_gap": means[0] - means[1]}

    def _checkpoint(self, done: int) -> None:
        if self.checkpoints is None:
            return
        if isinstance(self.model, RankState):
            chains = {name: value.detach().cpu() for name, value in self.model.rank_state().items()}
            self.checkpoints.save_rank(done, self.global_rank, chains)
        sums = self._gather({name: value.cpu() for name, value in self.sums.items()})  # and every rank has saved
        if self.global_rank == 0 and self.journal is not None:
            state = {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.trainer.optimizers],
                "sums": sums,
                "where": self._where(),
                "exact": self.exact,
            }
            self.checkpoints.commit(done, state, ranks=self.trainer.world_size, journal=self.journal.sync())

    # What ranks tell one another.

    def _gather(self, mine: Any) -> list[Any]:
        """One small value of every rank, in their order, on every rank; also a meeting point."""
        found = [mine] * self.trainer.world_size
        if len(found) > 1:
            torch.distributed.all_gather_object(found, mine)
        return found

    def _share_averages(self, step: Step) -> None:
        """Every rank's averages have moved by its piece of the batch; DDP leaves buffers alone after the first step."""
        if self.trainer.world_size > 1 and isinstance(self.model, MovingAverages):
            for average in self.model.moving_averages():
                average *= step.share
                torch.distributed.all_reduce(average)
                average /= self.trainer.world_size

    def _where(self) -> dict[str, Any]:
        """What a bit-exact resume must find unchanged."""
        return {"ranks": self.trainer.world_size, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}

    def _take_sums(self, shares: list[dict[str, Tensor]]) -> None:
        """This rank's own sums; on another number of ranks than saved them, everybody the mean."""
        if len(shares) == self.trainer.world_size:
            shares = [shares[self.global_rank]]
        for name in dict.fromkeys(name for share in shares for name in share):
            values = [share[name] for share in shares if name in share]
            self.sums[name] = (sum(values, torch.zeros_like(values[0])) / len(shares)).to(self.device)

    def _rank_slice(self) -> None:
        """Gives this rank its share of the global chains: those of the checkpoint, or the ones the model began with."""
        if not isinstance(self.model, RankState):
            return
        whole = self.saved.rank_state if self.saved else self.model.rank_state()
        if whole:
            number = len(next(iter(whole.values())))
            mine = torch.from_numpy(piece(np.arange(number), self.global_rank, self.trainer.world_size))
            self.model.load_rank_state({name: value[mine].to(self.device) for name, value in whole.items()})


def _phases(model: Model | PhasedModel) -> Sequence[Phase]:
    if isinstance(model, PhasedModel):
        return model.phases()
    return [Phase("", [p for p in model.parameters() if p.requires_grad], model.losses)]


def _no_loss(phase: Phase) -> Losses:
    return {"loss": sum((p.sum() * 0 for p in phase.parameters), torch.zeros(()))}


def fit(
    model: Model | PhasedModel,
    data: ShardData,
    train: Train,
    *,
    stage: str,
    seed: int,
    folder: Path | None = None,
    below: Stack | None = None,
    hand_up: str = "mean",
    validation: Batch | None = None,
    seen: Tensor | None = None,
    progress: Progress | None = None,
) -> Training:
    """Trains `model` in place to the end, from the newest checkpoint in `folder` if there is one.

    Without a folder nothing is journaled or saved on the way (a run short enough to be done again).
    Errors: Diverged; Damaged (checkpoints); Interrupted, after the step a signal fell into is saved.
    """
    checkpoints = Checkpoints(folder / "checkpoint") if folder else None
    saved = checkpoints.load() if checkpoints else None
    if saved:
        model.load_state_dict(saved.state["model"])
    trainer = pl.Trainer(
        accelerator=train.accelerator,
        devices=train.devices,
        strategy="ddp_find_unused_parameters_true" if train.devices > 1 else "auto",
        precision="bf16-mixed" if train.precision == "bf16-mixed" else "32-true",
        max_epochs=1,  # one pass over all steps; epochs are arithmetic on the step (data.loading)
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    journal = None
    if folder and trainer.global_rank == 0:
        journal = Journal(folder / "journal.jsonl", saved.journal if saved else 0)
    module = Training(
        model,
        train,
        stage=stage,
        seed=seed,
        total_steps=data.total_steps,
        steps_per_epoch=data.steps_per_epoch,
        journal=journal,
        checkpoints=checkpoints,
        saved=saved,
        below=below,
        hand_up=hand_up,
        validation=validation,
        seen=seen,
        progress=progress,
    )
    if saved is None and isinstance(model, StartsFromData):
        seed_torch(seed, "data mean")
        x = module.from_data(data.examples(some(data.samples, 10_000, "data mean")))
        try:
            model.start_from_data(x)
        except ValueError as error:
            raise InputError(f"stage {stage}: {error}") from None
    data.start_step = module.next_step
    before = _note_signals(module)
    try:
        if data.start_step < data.total_steps:
            trainer.fit(module, data)
    except SIGTERMException:  # Lightning's handler, while it was starting
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if journal:
        journal.close()
    if module.next_step < data.total_steps:
        raise Interrupted(module.signal or signal.SIGTERM)
    for name, parameter in model.named_parameters():
        if not parameter.abs().max() < LARGEST:  # also false for NaN
            raise Diverged(
                f"stage {stage}: {name} is not finite or beyond {LARGEST:g} after the last step, {data.total_steps}; "
                f"lower train.learning_rate (now {train.learning_rate:g})"
            )
    model.eval()
    return module


def _note_signals(module: Training) -> dict[int, Any]:
    """From here on Ctrl-C and SIGTERM end the training after the current step, with a checkpoint → handlers before."""

    def note(number: int, frame: Any) -> None:
        module.signal = number

    return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
