"""A whole output folder as the engine leaves it, without training: real digits, stand-ins for everything learned.

`build(out)` writes OUT/<run> and OUT/stages for a recipe with two RBM layers, a VAE, a GAN, few-label classifiers and
their evaluations. `stage(…)` writes one stage at a time, for tests that need a run in the middle.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from conf import Recipe
from conf.journal import Journal, read
from conf.protocol import Result
from conf.reading import parse
from data import durable

RECIPE = """\
# Real digits: two RBM layers, a VAE, a GAN and a few-label classifier (Hinton, Osindero & Teh 2006).
# strata run conf/digits.yaml        2 min on 2 cores; expect: error 12 % at 100 labels
name: digits
data:
  source: {kind: digits}
stages:
  layer1: {model: {kind: rbm, num_visible: 64, num_hidden: 200}, train: {epochs: 20}}
  layer2: {on: layer1, model: {kind: rbm, num_visible: 200, num_hidden: 100}, train: {epochs: 20}}
  vae: {model: {kind: vae, num_visible: 64, num_latents: 8}, train: {epochs: 40, optimizer: adam}}
  gan: {model: {kind: gan, num_visible: 64, num_latents: 16}, train: {epochs: 60, optimizer: adam}}
  classify: {on: layer2, finetune: {labels: [20, 100, all], seeds: 5}}
"""
RUN = "digits-1a2b3c4d"
STARTED = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
Array = NDArray[np.float32]


def key(name: str) -> str:
    return durable.digest_value(["a stage of the fixture", name])


def digits() -> Array:
    return (load_digits().images / 16).astype(np.float32)


def noisy(images: Array, seed: int, amount: float = 0.08) -> Array:
    noise = np.random.default_rng(seed).normal(0, amount, images.shape)
    return np.clip(images + noise, 0, 1).astype(np.float32)


def projected(images: Array, components: int) -> tuple[Array, Array]:
    """Principal directions as pictures, and the images seen through them."""
    flat = images.reshape(len(images), -1)
    mean = flat.mean(0)
    _, _, directions = np.linalg.svd(flat - mean, full_matrices=False)
    directions = directions[:components]
    seen = (flat - mean) @ directions.T @ directions + mean
    return directions.reshape(-1, *images.shape[1:]), seen.reshape(images.shape).clip(0, 1)


def write_journal(folder: Path, curves: dict[str, tuple[float, float]], *, steps: int = 400, seed: int = 0) -> int:
    """Curves that fall (or rise) from the first to the second number; the journal's length."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.jsonl")
    for step in range(10, steps + 1, 10):
        metrics = {}
        for name, (first, last) in curves.items():
            if name.startswith("validation/") and step % 50:
                continue
            trend = last + (first - last) * math.exp(-4 * step / steps)
            metrics[name] = float(trend + random.normal(0, 0.02) * abs(first - last))
        journal.append(step, metrics)
    journal.close()
    return journal.length


def stage(
    out: Path,
    name: str,
    do: str,
    kind: str,
    *,
    metrics: dict[str, float],
    curves: dict[str, tuple[float, float]] | None = None,
    figures: dict[str, dict[str, Array]] | None = None,
    model: bool = False,
    finished: bool = True,
    **fields: Any,
) -> Path:
    """One folder OUT/stages/<key>, with its result unless it is to look unfinished."""
    folder = out / "stages" / key(name)
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_json(folder / "request.json", {"jobs": []})
    if curves:
        length = write_journal(folder, curves, seed=len(name))
        rows, _ = read(folder / "journal.jsonl")  # a result repeats the journal's last values
        metrics = metrics | {n: v for row in rows for n, v in row["metrics"].items() if n != "train/learning_rate"}
        durable.write_json(folder / "checkpoint" / "position.json", {"step": 400, "journal": length})
    for figure, arrays in (figures or {}).items():
        (folder / "figures").mkdir(exist_ok=True)
        np.savez(folder / "figures" / f"{figure}.npz", **arrays)  # type: ignore[arg-type]
    if model:
        durable.write_json(folder / "model" / "model.json", {"kind": kind})
        durable.write_bytes(folder / "model" / "weights.safetensors", f"weights of {name}".encode())
    if finished:
        result = Result(
            stage=name, key=key(name), do=do, kind=kind, digest=key(name + "!"), metrics=metrics, model=model,
            seconds=fields.pop("seconds", 12.3), steps=400 if curves else 0,
            placement={"devices": 1, "threads": 2, "versions": {"torch": "2.13.0", "strata": "0.1.0"}}, **fields,
        )  # fmt: skip
        durable.write_json(folder / "result.json", result.model_dump(mode="json"))
    return folder


def likelihood(nats: float, kind: str, estimator: str, **fields: Any) -> dict[str, Any]:
    return {
        "set": "test", "nats": nats, "kind": kind, "estimator": estimator, "std_error": None,
        "effective_sample_size": None, "binarization": "sample", "split": "test, first 360",
        "num_examples": 360, "effort": {"num_samples": 100, "num_chains": 100, "num_temperatures": 1000},
    } | fields  # fmt: skip


def fewlabel(out: Path) -> Path:
    """Five seeds of paired classifiers at three numbers of labels, with the keys they were shown."""
    random = np.random.default_rng(0)
    metrics: dict[str, float] = {}
    errors: dict[int, dict[str, float]] = {}
    models = []
    folder = out / "stages" / key("classify")
    for labels, error, gain, seeds in ((20, 34.0, 9.0, 5), (100, 12.4, 3.4, 5), ("all", 3.1, 0.4, 2)):
        ours = error + random.normal(0, 0.8, seeds)
        theirs = ours + gain + random.normal(0, 0.4, seeds)
        for suffix, values in (("", ours), ("/supervised", theirs)):
            metrics[f"test/error@{labels}{suffix}"] = float(values.mean())
            metrics[f"test/error@{labels}{suffix}/std_error"] = float(values.std(ddof=1) / math.sqrt(seeds))
        metrics[f"test/gain@{labels}"] = float((theirs - ours).mean())
        metrics[f"test/gain@{labels}/std_error"] = float((theirs - ours).std(ddof=1) / math.sqrt(seeds))
        for seed in range(seeds):
            errors.setdefault(seed, {}).update({f"test/error@{labels}": float(ours[seed])})
            for pretrained, values in ((True, ours), (False, theirs)):
                path = f"runs/{labels}-{seed}-{'pretrained' if pretrained else 'supervised'}"
                shown = {"labels": labels, "seed": seed, "keys": ["row 3", "row 17"]}
                durable.write_json(folder / path / "revealed.json", shown)
                models.append({
                    "labels": labels, "seed": seed, "pretrained": pretrained, "path": f"{path}/model",
                    "error": float(values[seed]), "revealed": f"{path}/revealed.json",
                })  # fmt: skip
    journal = Journal(folder / "journal.jsonl")
    for seed, row in errors.items():
        journal.append(seed, row)
    journal.close()
    return stage(out, "classify", "finetune", "classifier", metrics=metrics, models=models, seconds=31.0)


def record(out: Path, stages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """OUT/<run>/run.json from rows of (name, flow, kind, …)."""
    rows = []
    for row in stages:
        evaluates = row["name"] if row["flow"] == "evaluate" else None
        named = key(f"{evaluates}-evaluate" if evaluates else row["name"])
        base = {"key": named, "folder": f"stages/{named}", "status": "finished", "cached": False, "what": "64 → 200"}
        rows.append(base | {"seconds": 12.3, "evaluates": evaluates} | row)
    recipe = Recipe.model_validate(parse(RECIPE, "digits.yaml")).model_dump(mode="json")
    content = {
        "run": RUN, "name": "digits", "recipe": recipe, "recipe_text": RECIPE,
        "overrides": ["stages.layer1.train.epochs=20"], "started": STARTED.isoformat(), "status": "finished",
        "error": None, "seconds": 112.4, "stages": rows,
        "shards": {"data": {"folder": "shards/0123abcd", "samples_digest": "5a" * 32, "labels_digest": "1b" * 32,
                            "sizes": {"train": 1294, "validation": 143, "test": 360}, "shape": [8, 8]}},
    } | fields  # fmt: skip
    durable.write_json(out / content["run"] / "run.json", content)
    return content


STAGES: list[dict[str, Any]] = [
    {"name": "data", "flow": "ingest", "kind": "digits", "folder": "shards/0123abcd", "seconds": 0.4},
    {"name": "layer1", "flow": "pretrain", "kind": "rbm"},
    {"name": "layer2", "flow": "pretrain", "kind": "rbm", "seconds": 9.0},
    {"name": "vae", "flow": "train", "kind": "vae", "seconds": 21.0},
    {"name": "gan", "flow": "train", "kind": "gan", "seconds": 25.0},
    {"name": "classify", "flow": "finetune", "kind": "classifier", "seconds": 31.0},
    *(
        {"name": name, "flow": "evaluate", "kind": kind, "seconds": 4.0}
        for name, kind in (("layer1", "rbm"), ("layer2", "dbn"), ("vae", "vae"), ("gan", "gan"))
    ),
]


def layer1(out: Path, *, finished: bool = True) -> Path:
    curves = {"train/loss": (6.0, 0.4), "train/reconstruction_error": (0.2, 0.05),
              "validation/reconstruction_error": (0.21, 0.06), "validation/free_energy_gap": (0.1, 2.4),
              "train/learning_rate": (0.05, 0.05)}  # fmt: skip
    details = {"widths": [64, 200], "parameters": 13064}
    return stage(out, "layer1", "train", "rbm", metrics={}, curves=curves, model=True, finished=finished,
                 details=details)  # fmt: skip


def hidden_units(seed: int, layers: int) -> dict[str, dict[str, Array]]:
    """Activity and weights of layers of 48 units: the first is dead and the second always on."""
    random = np.random.default_rng(seed)
    activity: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for height in range(1, layers + 1):
        q = random.beta(0.4, 2.0, (90, 48))
        q[:, 0], q[:, 1] = 0.01, 0.97
        activity |= {f"layer{height}_units": q.mean(0), f"layer{height}_examples": q.mean(1),
                     f"layer{height}_lowest": q.min(0), f"layer{height}_highest": q.max(0)}  # fmt: skip
        w = random.normal(0, 0.3, (48, 64))
        counts, edges = np.histogram(w, 41, (-1.5, 1.5))
        weights |= {f"layer{height}_norms": np.linalg.norm(w, axis=1), f"layer{height}_counts": counts,
                    f"layer{height}_edges": edges}  # fmt: skip
    return {"activity": activity, "weights": weights}


def build(out: Path, **fields: Any) -> dict[str, Any]:
    """A finished run; `fields` replace parts of its run.json."""
    images = digits()
    data, test = images[:100], images[-100:]
    filters, seen = projected(images, 48)
    pairs = {"originals": test[:40], "reconstructions": seen[-100:][:40]}
    layer1(out)
    stage(out, "layer2", "train", "rbm", metrics={}, model=True,
          curves={"train/loss": (9.0, 0.7), "train/reconstruction_error": (0.2, 0.08)},
          details={"widths": [64, 200, 100], "parameters": 33264})  # fmt: skip
    stage(out, "vae", "train", "vae", metrics={}, model=True,
          curves={"train/loss": (44.0, 20.9), "validation/loss": (44.0, 21.3), "train/kl": (0.5, 7.1),
                  "train/reconstruction": (43.0, 13.8)},
          details={"widths": [64, 8], "parameters": 25000})  # fmt: skip
    stage(out, "gan", "train", "gan", metrics={}, model=True,
          curves={"train/discriminator/loss": (1.4, 1.1), "train/generator/loss": (0.7, 1.2)},
          details={"widths": [16, 64], "parameters": 31000})  # fmt: skip
    fewlabel(out)
    back = {"nats": -21.61, "kind": "estimate", "estimator": "reverse AIS (25 × 4 chains, 1000 temperatures)",
            "std_error": 0.2, "effective_sample_size": 55.0}  # fmt: skip
    ais = likelihood(-21.42, "estimate", "AIS", std_error=0.11, effective_sample_size=71.3, reverse=back)
    sweeps = [*range(26), 125]
    walks = np.stack([noisy(data[:8], sweep, sweep / 250) for sweep in sweeps])
    chains: dict[str, Any] = {"frames": walks, "sweeps": np.array(sweeps)}
    iwae = likelihood(-19.87, "lower_bound", "importance weighting", std_error=0.03, effective_sample_size=14.2)
    elbo = likelihood(-21.3, "lower_bound", "ELBO", std_error=0.05)
    measured: dict[str, tuple[str, list[dict[str, Any]], dict[str, dict[str, Array]]]] = {
        "layer1": ("rbm", [ais], {"filters": {"layer1": filters}, "reconstructions": pairs, "chains": chains,
                                  "samples": {"images": noisy(data, 1)}, "data": {"images": test}}
                   | hidden_units(1, layers=1)),
        "layer2": ("dbn", [likelihood(-20.9, "estimate", "variational bound (100 draws of q), log Z by AIS")],
                   {"filters": {"layer1": filters, "layer2": filters[:24] * 3}, "data": {"images": test},
                    "samples": {"images": noisy(data[::-1], 2, 0.04)}} | hidden_units(1, layers=2)),
        "vae": ("vae", [iwae, elbo], {"reconstructions": pairs, "samples": {"images": noisy(seen[:100], 3, 0.02)},
                                      "data": {"images": test}}),
        "gan": ("gan", [], {"samples": {"images": noisy(images[200:300], 4, 0.12)}, "data": {"images": test}}),
    }  # fmt: skip
    for name, (kind, likelihoods, figures) in measured.items():
        metrics = {"test/log_prob": likelihoods[0]["nats"]} if likelihoods else {"test/coverage": 0.61}
        stage(out, f"{name}-evaluate", "evaluate", kind, metrics=metrics, figures=figures,
              details={"set": "test", "likelihoods": likelihoods}, seconds=4.0)  # fmt: skip
    return record(out, STAGES, **fields)
