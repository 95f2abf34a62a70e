"""`strata evaluate`, `sample` and `encode`: a model directory at work, each in a stage process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conf import Evaluate, Split, Train
from conf.errors import Damaged, InputError, show
from conf.protocol import Below, EncodeJob, EvaluateJob, Inputs, Job, SampleJob
from conf.reading import explain, override
from data import durable
from data.shards import check
from flows.places import refuse_unwritable
from flows.progress import Reporter
from flows.stage import run_jobs
from flows.wording import apart, in_words


def evaluate(model: Path, shards: Path, settings: list[str], *, silent: bool) -> dict[str, Any]:
    """Measures a model on the test set of some shards; writes nothing that stays.

    The shards are split as those the model was trained on, by the hash of each sample's key, so that no test sample is
    one it has seen, even where the source has grown since.
    """
    tree: dict[str, Any] = {}
    for assignment in settings:
        override(tree, assignment)
    try:
        asked = Evaluate.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"evaluate: {explain(error, tree, Evaluate)}") from None
    about = _about(model)
    manifest = check(shards)
    split = Split.model_validate(about.get("split", {}))
    inputs = Inputs(
        shards=str(manifest.folder.absolute()),
        samples_digest=manifest.samples_digest,
        labels_digest=manifest.labels_digest,
        split=split,
    )
    with tempfile.TemporaryDirectory(prefix="strata-") as folder:
        job = EvaluateJob(
            stage="evaluate", folder=folder, model=Below(folder=str(model.absolute()), digest=about["digest"]),
            inputs=inputs, evaluate=asked, train=Train(), seed=0,
        )  # fmt: skip
        _do("evaluate", job, Path(folder), silent)
        result = durable.read_json(Path(folder) / "result.json")
    if not silent:
        if "test" not in manifest.sets:
            print(f"test set: {split.test:.0%} of the samples by the hash of their keys, as in the model's training")
        for name, value in result["metrics"].items():
            print(f"{name:<24} {value:.4f}")
        for entry in result["details"]["likelihoods"]:
            measured = f"binarization: {entry['binarization']}, {entry['num_examples']:,} samples"
            print(f"{entry['set']} log p(x): {in_words(entry)}, {measured}")
            if entry["reverse"]:
                print(f"{'':<{len(entry['set'])}} other side: {in_words(entry['reverse'])}")
            if said := apart(entry):
                print(said)
    return {"model": str(model), "metrics": result["metrics"], "likelihoods": result["details"]["likelihoods"]}


def sample(model: Path, number: int, seed: int, out: Path, *, silent: bool) -> dict[str, Any]:
    """Draws from a model into OUT.npy."""
    _about(model)
    if number < 1:
        raise InputError(f"-n {number}: expected at least 1")
    target = out if out.suffix == ".npy" else out.with_name(out.name + ".npy")
    return _answer("sample", SampleJob(model=str(model.absolute()), number=number, out=str(target), seed=seed), silent)


def encode(model: Path, shards: Path, out: Path, bits: bool, *, silent: bool) -> dict[str, Any]:
    """Codes of every sample of some shards into OUT/SET.npy, or packed ones into OUT/SET.bits.npy.

    Codes that are there already are left as they are; others are refused.
    """
    _about(model)
    check(shards)
    refuse_unwritable(out)
    job = EncodeJob(model=str(model.absolute()), shards=str(shards.absolute()), out=str(out.absolute()), bits=bits)
    return _answer("encode", job, silent)


def _answer(name: str, job: Job, silent: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="strata-") as folder:
        answer = _do(name, job, Path(folder), silent)
    if not silent:
        for path in answer["written"]:
            print(path)
        if answer.get("cached"):
            print("written before, of this model and these samples: left as they are")
    return answer


def _do(name: str, job: Job, folder: Path, silent: bool) -> dict[str, Any]:
    with Reporter(silent=silent).bar(name, "samples") as progress:
        return run_jobs(name, [job], folder / "request.json", folder / "log.txt", progress)


def _about(model: Path) -> dict[str, Any]:
    """What stands in model.json."""
    path = model / "model.json"
    if not path.is_file():
        raise InputError(
            f"{show(model)}: expected a model directory (with model.json), found none; "
            "a run's report names its models under Provenance, and strata run --json under stages"
        )
    try:
        about: dict[str, Any] = durable.read_json(path)
        return about | {"digest": str(about["digest"])}
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{show(path)}: cannot be read; train the stage again or restore the file") from None
