"""A `train` job: shards, the finished stack below, a new model, its training, a model directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lightning_modules as registry
from conf.journal import read as read_journal
from conf.protocol import Inputs, TrainJob
from data.loading import Mixed, ShardData
from data.selection import Selection
from data.shards import Manifest, Reader
from data.splits import divide, some
from lightning_modules.interfaces import ComposedModel, Fitted, IteratedModel, Layer, StartsFromBelow, StreamingModel
from lightning_modules.passes import fit_in_one_pass
from lightning_modules.rounds import fit_in_rounds
from lightning_modules.seeding import seed_torch
from lightning_modules.stack import Stack
from lightning_modules.training import Training, fit

VALIDATION_EXAMPLES = 1000
Tell = Callable[[dict[str, Any]], None]


def learn(job: TrainJob, tell: Tell, *, save: bool) -> dict[str, Any]:
    """Trains the job's model and, if `save` (one rank does), writes its directory → fields of the job's Result."""
    folder = Path(job.folder)
    below = registry.load(Path(job.below.folder)) if job.below else None
    assert below is None or isinstance(below, Stack)
    seed_torch(job.seed, "init")
    steps, exact = 0, True
    facts: dict[str, float] = {}
    if below is not None and registry.made_of_stack(job.spec["kind"]):
        model, below = registry.build_on(below, job.spec), None
    else:
        model = registry.build(job.spec)
        if isinstance(model, StartsFromBelow):
            model.start_from_below(below[-1] if below is not None else None)
    if isinstance(model, IteratedModel):
        steps, facts = fit_in_rounds(job, model, below, tell)
    elif isinstance(model, StreamingModel):
        steps, facts = fit_in_one_pass(job, model, below, tell)
    elif not isinstance(model, ComposedModel):
        module = _fit(job, model, below, tell)
        steps, exact = module.total_steps, module.exact
    final = Stack(layers=[*(below or []), model]) if isinstance(model, Layer) else model
    rows, _ = read_journal(folder / "journal.jsonl")
    metrics = {name: value for row in rows for name, value in row["metrics"].items() if name != "train/learning_rate"}
    metrics |= {f"train/{name}": value for name, value in facts.items()}
    digest = ""
    if save:
        about = {"stage": job.stage, "recipe_seed": job.seed, **trained_on(job.inputs), **job.samples()}
        digest = registry.save(final, folder / "model", about)["digest"]
    return {
        "kind": job.spec["kind"],
        "digest": digest,
        "metrics": metrics,
        "model": True,
        "steps": steps,
        "details": {"parameters": model.num_parameters},
        "placement": {"exact": exact},
    }


def trained_on(inputs: Inputs) -> dict[str, Any]:
    """What a model directory remembers of its data: which samples, how they were split, their shape as a picture."""
    return inputs.identity() | {"shape": list(Manifest.load(Path(inputs.shards)).shape)}


def _parts(inputs: Inputs) -> dict[str, Selection]:
    return divide(Reader(Path(inputs.shards)), inputs.split, inputs.without)


def _fit(job: TrainJob, model: Fitted, below: Stack | None, tell: Tell) -> Training:
    inputs, train = job.inputs, job.train
    parts = _parts(inputs)
    if job.labeled:
        labels = Reader(Path(inputs.shards)).labels()
        parts |= {name: Selection.of(part[:][labels[part[:]] >= 0]) for name, part in parts.items()}
    data = ShardData(
        shards=Path(inputs.shards),
        samples=parts["train"],
        labeled=job.labeled,
        batch_size=train.batch_size,
        epochs=train.epochs,
        seed=job.seed,
        loader_workers=train.loader_workers,
        remembered=Path(inputs.remembered) if inputs.remembered else None,
        without=inputs.without,
        weight=inputs.weight,
        mixed=[Mixed(Path(one.shards), _parts(one)["train"], one.weight, one.without) for one in job.mixed],
    )
    held_out = some(parts["validation"], VALIDATION_EXAMPLES, "validation")
    x = data.examples(held_out)
    validation = {"x": x, "label": torch.from_numpy(labels[held_out])} if job.labeled else x
    seen = data.examples(some(parts["train"], len(held_out), "free energy gap"))
    return fit(
        model,  # type: ignore[arg-type]
        data,
        train,
        stage=job.stage,
        seed=job.seed,
        folder=Path(job.folder),
        below=below,
        hand_up=job.hand_up,
        validation=validation if len(held_out) else None,
        seen=seen if len(held_out) else None,
        progress=lambda done, of, loss: tell({"progress": {"done": done, "of": of, "loss": loss}}),
    )
