"""What a finished model is worth: its log-likelihood with what the number promises, errors, and figures to look at.

Figures are arrays (figures/NAME.npz), each a function in `figures`; the report draws them.
Every likelihood is printed with its kind, estimator, standard error, binarization and split, because numbers that
differ in one of these cannot be compared (Salakhutdinov & Murray 2008; Theis et al. 2016).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import lightning_modules as registry
from conf.errors import InputError, show
from conf.protocol import EvaluateJob
from data import durable
from data.shards import Reader
from data.splits import divide, some
from lightning_modules import clustering, dictionaries, figures
from lightning_modules.interfaces import (
    Classifies,
    Effort,
    Encodes,
    Fitted,
    HasLogProb,
    Layer,
    LogLikelihood,
    Measures,
    SamplesByClass,
    labeled,
)
from lightning_modules.perplexity import perplexity, unigram
from lightning_modules.retrieval import retrieved
from lightning_modules.seeding import seed_torch
from lightning_modules.stack import Stack

EXAMPLES_AT_A_TIME = 2000
Tell = Callable[[dict[str, Any]], None]
Measured = tuple[str, dict[str, float], dict[str, Any]]


@torch.no_grad()
def evaluate(job: EvaluateJob, tell: Tell) -> Measured:
    """→ kind of the model, metrics, details; writes the figures."""
    model = registry.load(Path(job.model.folder)).eval()
    reader = Reader(Path(job.inputs.shards))
    parts = divide(reader, job.inputs.split, job.inputs.without)
    name = next((name for name in ("test", "validation", "train") if len(parts[name])), "train")
    _refuse_unfit(model, reader, job)
    chosen = some(parts[name], job.evaluate.num_examples, "evaluate")
    x, labels = torch.from_numpy(reader.values(chosen)), reader.labels()
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {"set": name, "num_examples": len(x), "likelihoods": []}

    density = figures.able(model, HasLogProb)
    if density is not None and density.has_log_prob:
        seed_torch(job.seed, "evaluate", "log_prob")
        entry, found = _likelihood(density, x, name, job)
        details["likelihoods"].append(entry)
        metrics[f"{name}/log_prob"] = entry["nats"]
        if density.reads_counts:
            metrics[f"{name}/perplexity"] = perplexity(found.nats, x)
            if found.reverse is not None:
                metrics[f"{name}/reverse_perplexity"] = perplexity(found.reverse.nats, x)
            if "train" in reader.manifest.sets:
                mean_counts = torch.from_numpy(reader.manifest.feature_mean("train").copy())
                metrics[f"{name}/unigram_perplexity"] = perplexity(unigram(x, mean_counts), x)
    decode = getattr(model, "decode", None)
    if isinstance(model, Encodes) and decode is not None and not figures.reads_counts(model):
        squared = [((decode(model.encode(part)) - part) ** 2).sum(dim=1) for part in x.split(EXAMPLES_AT_A_TIME)]
        metrics[f"{name}/squared_error"] = float(torch.cat(squared).mean())
    joint = density if density is not None else model
    if labeled(joint):
        samples = parts[name][:]
        if not isinstance(joint, SamplesByClass) or (labels[samples] >= 0).any():
            metrics[f"{name}/error"] = percent_wrong(joint, reader, samples, labels)
    if isinstance(model, Stack) and isinstance(top := model[-1], Measures):
        for held_out in [part for part in ("validation", "test") if len(parts[part]) > 1] or [name]:
            samples = some(parts[held_out], job.evaluate.num_examples, "evaluate")
            inputs = _through(list(model)[:-1], torch.from_numpy(reader.values(samples)))
            metrics |= {f"{held_out}/{quantity}": value for quantity, value in top.measure(inputs).items()}
    groups = clustering.groups(model, x, labels[chosen], list(reader.manifest.classes), job.evaluate.map)
    metrics |= {f"{name}/{quantity}": value for quantity, value in groups.metrics.items()}
    atoms = dictionaries.seen(model, x, reader.manifest.image_shape)
    metrics |= {f"{name}/{quantity}": value for quantity, value in atoms.metrics.items()}
    alike = retrieved(model, reader, parts, name, job.evaluate.retrieval)
    metrics |= {f"{name}/{quantity}": value for quantity, value in alike.metrics.items()}
    details |= groups.details | alike.details
    if (names := reader.manifest.features()) and (words := figures.named(model, names)):
        details["words"] = words
    _draw(model, x, job, reader.manifest.image_shape, groups, atoms, alike.curves)
    return kind_of(model), metrics, details


@torch.no_grad()
def percent_wrong(classifier: Classifies, reader: Reader, samples: np.ndarray, labels: np.ndarray) -> float:
    """Of the labeled ones among these samples, how many get another class than their label as the most probable one.

    labels: of all samples, −1 where missing. Errors: InputError if none has one, or there are other classes.
    """
    samples = samples[labels[samples] >= 0]
    shards, classes = show(reader.folder), len(reader.manifest.classes)
    if not len(samples):
        raise InputError(f"{shards}: none of the samples to measure errors by has a label")
    if classes != classifier.num_classes:
        raise InputError(f"{shards}: labels of {classes} classes, but the classifier tells {classifier.num_classes}")
    cast(nn.Module, classifier).eval().cpu()
    wrong = 0
    for start in range(0, len(samples), EXAMPLES_AT_A_TIME):
        part = samples[start : start + EXAMPLES_AT_A_TIME]
        found = classifier.logits(torch.from_numpy(reader.values(part))).argmax(dim=1).numpy()
        wrong += int((found != labels[part]).sum())
    return 100 * wrong / len(samples)


def _through(layers: list[Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = torch.cat([layer.encode(part) for part in x.split(EXAMPLES_AT_A_TIME)])
    return x


def _refuse_unfit(model: Fitted, reader: Reader, job: EvaluateJob) -> None:
    """Shards of another width or range give numbers that mean nothing."""
    manifest, shards = reader.manifest, job.inputs.shards
    if manifest.num_values != model.num_visible:
        raise InputError(
            f"{shards}: a sample has {manifest.num_values} values, but the model takes {model.num_visible}"
        )
    low, high = model.visible_range or (-math.inf, math.inf)
    if manifest.low < low or manifest.high > high:
        found = f"[{manifest.low:g}, {manifest.high:g}]"
        raise InputError(f"{shards}: values lie in {found}, but the model takes [{low:g}, {high:g}]")


def kind_of(model: Fitted) -> str:
    top = model[-1] if isinstance(model, Stack) else model
    return str(registry.spec_of(top)["kind"])  # type: ignore[arg-type]


def _likelihood(
    density: HasLogProb, x: Tensor, set_name: str, job: EvaluateJob
) -> tuple[dict[str, Any], LogLikelihood]:
    """What a report says of it, and all of it."""
    settings = job.evaluate
    binarization = "none"
    binary = bool(((x == 0) | (x == 1)).all())
    if getattr(density, "visible_range", None) == (0.0, 1.0):
        binarization = "data are binary" if binary else settings.binarize
        if not binary and settings.binarize == "sample":
            seed_torch(job.seed, "evaluate", "binarize")
            x = torch.bernoulli(x)
        elif not binary and settings.binarize == "threshold":
            x = (x > 0.5).to(x.dtype)
    effort = Effort(settings.num_samples, settings.num_chains, settings.num_temperatures)
    found = density.log_prob(x, effort=effort)
    entry = {
        "set": set_name,
        **_in_numbers(found),
        "reverse": None if found.reverse is None else _in_numbers(found.reverse),
        "binarization": binarization,
        "split": set_name,
        "num_examples": len(x),
        "effort": {
            "num_samples": effort.num_samples,
            "num_chains": effort.num_chains,
            "num_temperatures": effort.num_temperatures,
        },
    }
    return entry, found


def _in_numbers(found: LogLikelihood) -> dict[str, Any]:
    return {
        "nats": float(found.nats.double().mean()),
        "kind": found.kind,
        "estimator": found.estimator,
        "std_error": found.std_error,
        "effective_sample_size": found.effective_sample_size,
    }


def _draw(
    model: Fitted,
    x: Tensor,
    job: EvaluateJob,
    shape: tuple[int, ...] | None,
    groups: clustering.Groups,
    atoms: dictionaries.Seen,
    curves: dict[str, Tensor],
) -> None:
    """Every figure this model has, into files; what is drawn at random has a seed of its own."""
    effort = Effort(num_temperatures=job.evaluate.gibbs_steps)
    seed_torch(job.seed, "evaluate", "chains")
    frames, sweeps = figures.chains(model, x, effort)
    seed_torch(job.seed, "evaluate", "sample")
    samples = figures.samples(model, effort)
    seed_torch(job.seed, "evaluate", "corrupt")
    reconstructions = figures.reconstructions(model, x)
    seed_torch(job.seed, "evaluate", "sample_class")
    data = {
        "filters": figures.filters(model),
        "reconstructions": reconstructions,
        "samples": samples,
        "data": {"images": figures.spread(x, figures.NUM_SAMPLES)} if samples else {},
        "samples_by_class": figures.samples_by_class(model, effort),
        "chains": frames,
        "clusters": groups.pictures,
        "dictionary": atoms.pictures,
    }
    numbers = {"activity": figures.activity(model, x), "weights": figures.weights(model), "chains": sweeps}
    numbers |= {"map": groups.map, "dictionary": atoms.numbers, "codes": atoms.codes, "sparsity": atoms.sparsity}
    numbers["retrieval"] = curves
    for name in dict.fromkeys([*data, *numbers]):
        arrays = {key: _as_pictures(values, shape) for key, values in data.get(name, {}).items()}
        arrays |= {key: values.detach().cpu().numpy() for key, values in numbers.get(name, {}).items()}
        if arrays:
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)  # type: ignore[arg-type]
            durable.write_bytes(Path(job.folder) / "figures" / f"{name}.npz", buffer.getvalue())


def _as_pictures(values: Tensor, shape: tuple[int, ...] | None) -> np.ndarray:
    """(…, num_visible) → (…, height, width[, channels]) where a sample is a picture, else as it is."""
    array = values.detach().float().cpu().numpy()
    if shape is None:
        return array
    array = array.reshape(*array.shape[:-1], *shape)  # channels first where there are any
    if len(shape) == 2:
        return array
    return array[..., 0, :, :] if shape[0] == 1 else np.moveaxis(array, -3, -1)
