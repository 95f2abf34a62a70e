"""Few labels: a pretrained stack and its supervised twin, fine-tuned on the same revealed labels, seed by seed.

A seed draws which labels are revealed (balanced over the classes) and the new weights; batches come in the same order
on both sides, and both start from an output layer at zero. Nothing is chosen by hidden labels: fixed epochs, no early
stopping. Errors are percent of the test set; the gain is the mean over seeds of (twin − pretrained), paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

import lightning_modules as registry
from conf import Labels, Train
from conf.errors import Damaged
from conf.journal import Journal
from conf.protocol import FinetuneJob, Inputs
from data import durable
from data.loading import ShardData
from data.shards import Reader
from data.splits import divide, reveal
from lightning_modules.classifier import Classifier
from lightning_modules.evaluation import percent_wrong
from lightning_modules.learning import trained_on
from lightning_modules.seeding import seed_torch
from lightning_modules.stack import Stack
from lightning_modules.training import fit

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    labels: Labels
    seed: int
    pretrained: bool

    @property
    def name(self) -> str:
        return f"{self.labels}-{self.seed}-{'pretrained' if self.pretrained else 'supervised'}"


def finetune(job: FinetuneJob, tell: Tell) -> tuple[str, dict[str, float], list[dict[str, Any]]]:
    """Does every run that is not done yet → digest of the answer, metrics, one entry a run."""
    folder = Path(job.folder)
    stack = registry.load(Path(job.below.folder))
    if not isinstance(stack, Stack):
        raise Damaged(f"{job.below.folder}: expected a stack to fine-tune, found a {type(stack).__name__}")
    settings = job.finetune
    runs = [
        Run(labels, seed, pretrained)
        for labels in settings.labels
        for seed in range(settings.per_labels("seeds", labels))
        for pretrained in ((True, False) if settings.twin else (True,))
    ]
    data = _Data(job.inputs)
    done: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        about = folder / "runs" / run.name / "run.json"
        if not about.exists():
            tell({"progress": {"stage": f"{job.stage} {number + 1}/{len(runs)}"}})
            durable.write_json(about, _one_run(job, run, stack, data, about.parent, tell))
        done.append(durable.read_json(about))
    metrics = _summary(settings.labels, done)
    _write_journal(folder, done)
    return durable.digest_value(done), metrics, done


class _Data:
    """What all runs read."""

    def __init__(self, inputs: Inputs) -> None:
        self.reader = Reader(Path(inputs.shards))
        self.parts = divide(self.reader, inputs.split, inputs.without)
        self.labels = self.reader.labels()


def _one_run(job: FinetuneJob, run: Run, stack: Stack, found: _Data, folder: Path, tell: Tell) -> dict[str, Any]:
    settings, inputs = job.finetune, job.inputs
    reader, labels = found.reader, found.labels
    num_classes = len(reader.manifest.classes)
    revealed = reveal(labels, found.parts["train"][:], run.labels, num_classes, run.seed)

    seed_torch(run.seed, "new weights", str(run.labels))
    own = registry.build(registry.spec_of(stack))
    assert isinstance(own, Stack)
    own.load_state_dict(stack.state_dict())  # the twin too: a whitening layer's statistics are no weights
    if not run.pretrained:
        own.randomize()
    classifier = Classifier(
        stack=own, num_classes=num_classes, dropout=settings.dropout, input_noise=settings.input_noise
    )
    rate = settings.learning_rate if run.pretrained else settings.twin_learning_rate or settings.learning_rate
    train = Train(
        epochs=settings.per_labels("epochs", run.labels),
        batch_size=settings.per_labels("batch_size", run.labels),
        optimizer="adam",
        learning_rate=rate,
        schedule="linear",
        weight_decay=settings.weight_decay,
        precision=job.train.precision,
        accelerator=job.train.accelerator,
    )
    data = ShardData(
        shards=reader.folder,
        samples=revealed,
        batch_size=train.batch_size,
        epochs=train.epochs,
        seed=run.seed,
        labeled=True,
        remembered=Path(inputs.remembered) if inputs.remembered else None,
        without=inputs.without,
    )
    fit(
        classifier,
        data,
        train,
        stage=f"{job.stage} ({run.name})",
        seed=run.seed,
        progress=lambda done, of, loss: tell({"progress": {"done": done, "of": of, "loss": loss}}),
    )
    error = percent_wrong(classifier, reader, found.parts["test"][:], labels)
    about = {"stage": job.stage, "labels": run.labels, "seed": run.seed, **trained_on(inputs)}
    digest = registry.save(classifier, folder / "model", about)
    durable.write_json(
        folder / "revealed.json",
        {"labels": run.labels, "seed": run.seed, "keys": "all" if run.labels == "all" else _keys(reader, revealed)},
    )
    path = f"runs/{run.name}"
    return {
        "labels": run.labels,
        "seed": run.seed,
        "pretrained": run.pretrained,
        "error": error,
        "path": f"{path}/model",
        "digest": digest["digest"],
        "revealed": f"{path}/revealed.json",
        "num_revealed": len(revealed),
    }


def _keys(reader: Reader, samples: np.ndarray) -> list[str]:
    """Source keys of samples, whose numbers ascend."""
    found = []
    for shard in reader.manifest.shards:
        start, stop = np.searchsorted(samples, [shard.first, shard.first + shard.count])
        if start < stop:
            keys = reader.manifest.keys_of(shard)
            found += [keys[number - shard.first] for number in samples[start:stop].tolist()]
    return found


def _summary(labels: list[Labels], done: list[dict[str, Any]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for number in labels:
        errors = {
            side: {run["seed"]: run["error"] for run in done if run["labels"] == number and run["pretrained"] is side}
            for side in (True, False)
        }
        name = f"test/error@{number}"
        metrics |= _mean_and_error(name, list(errors[True].values()))
        if errors[False]:
            metrics |= _mean_and_error(f"{name}/supervised", list(errors[False].values()))
            gains = [errors[False][seed] - error for seed, error in errors[True].items()]
            metrics |= _mean_and_error(f"test/gain@{number}", gains)
    return metrics


def _mean_and_error(name: str, values: list[float]) -> dict[str, float]:
    """The mean, and with two values or more its standard error s/√n."""
    found = {name: mean(values)}
    return found | ({f"{name}/std_error": stdev(values) / math.sqrt(len(values))} if len(values) > 1 else {})


def _write_journal(folder: Path, done: list[dict[str, Any]]) -> None:
    """One row a seed, so that the tracker shows every run behind the means."""
    journal = Journal(folder / "journal.jsonl")
    for seed in sorted({run["seed"] for run in done}):
        row = {
            f"test/error@{run['labels']}" + ("" if run["pretrained"] else "/supervised"): run["error"]
            for run in done
            if run["seed"] == seed
        }
        journal.append(seed, {f"seeds/{name}": value for name, value in row.items()})
    journal.close()
