"""A stage process: `python -m lightning_modules.fit REQUEST.json`, or `-` with a plan's request on stdin.

The composition root: reads what is asked, starts one rank per device through torch's elastic launcher where several
are asked for, does the jobs one after another and answers in lines of JSON on stdout (`conf.protocol`); everything
libraries print goes to stderr. A job is finished when its result.json, written last, is there.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from pydantic import ValidationError

import lightning_modules as registry
from conf import Train
from conf.errors import Damaged, OutputError, StrataError
from conf.journal import read as read_journal
from conf.lifeline import die_with
from conf.protocol import EncodeJob, EvaluateJob, FinetuneJob, Job, PlanJob, Request, Result, SampleJob, TrainJob
from data import durable
from data.loading import ShardData
from data.shards import Reader
from data.splits import partition
from lightning_modules.evaluation import encode, evaluate, sample
from lightning_modules.finetuning import finetune
from lightning_modules.interfaces import ComposedModel, Layer
from lightning_modules.planning import plan
from lightning_modules.stack import Stack
from lightning_modules.training import Stopped, fit, seed_torch

VALIDATION_EXAMPLES = 1000
Tell = Callable[[dict[str, Any]], None]


def train(job: TrainJob, tell: Tell) -> Result:
    """Trains one model on the shards (through the stack below) and writes its model directory."""
    folder = Path(job.folder)
    below = registry.load(Path(job.below.folder)) if job.below else None
    assert below is None or isinstance(below, Stack)
    seed_torch(job.seed, "init")
    spec, composed = job.spec, False
    if below is not None and issubclass(registry.MODELS[job.spec["kind"]], ComposedModel):
        spec, composed = {**spec, "arguments": spec["arguments"] | {"stack": registry.spec_of(below)}}, True
    model = registry.build(spec)
    steps = 0
    if composed:
        model.stack.load_state_dict(below.state_dict())  # type: ignore[union-attr, operator]
    else:
        data = _data(job)
        held_out = partition(Reader(Path(job.inputs.shards)), job.inputs.split)["validation"]
        module = fit(
            model,  # type: ignore[arg-type]
            data,
            job.train,
            stage=job.stage,
            seed=job.seed,
            folder=folder,
            below=below,
            hand_up=job.hand_up,
            validation=data.examples(held_out, VALIDATION_EXAMPLES) if len(held_out) else None,
            progress=lambda done, of, loss: tell({"progress": {"done": done, "of": of, "loss": loss}}),
        )
        steps = module.total_steps
    final = Stack(layers=[*(below or []), model]) if isinstance(model, Layer) else model  # type: ignore[list-item]
    rows, _ = read_journal(folder / "journal.jsonl")
    metrics = {name: value for row in rows for name, value in row["metrics"].items() if name != "train/learning_rate"}
    digest = ""
    if _rank() == 0:
        about = {"stage": job.stage, "samples_digest": job.inputs.samples_digest, "recipe_seed": job.seed}
        digest = registry.save(final, folder / "model", about)["digest"]
    parameters = sum(p.numel() for p in final.parameters())
    return _result(job, spec["kind"], digest, metrics, model=True, steps=steps, details={"parameters": parameters})


def _data(job: TrainJob) -> ShardData:
    inputs = job.inputs
    shards = Path(inputs.shards)
    return ShardData(
        shards=shards,
        samples=partition(Reader(shards), inputs.split)["train"],
        batch_size=job.train.batch_size,
        epochs=job.train.epochs,
        seed=job.seed,
        loader_workers=job.train.loader_workers,
        remembered=Path(inputs.remembered) if inputs.remembered else None,
    )


def _result(job: Job, kind: str, digest: str, metrics: dict[str, float], **more: Any) -> Result:
    settings: Train = getattr(job, "train", Train())
    placement = {
        "devices": settings.devices,
        "accelerator": settings.accelerator,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    key = durable.digest_value(job.identity()) if hasattr(job, "identity") else ""
    stage = getattr(job, "stage", "")
    return Result(
        stage=stage, key=key, do=job.do, kind=kind, digest=digest, metrics=metrics, placement=placement,
        seconds=0.0, **more,
    )  # fmt: skip


def do(job: Job, tell: Tell) -> None:
    """One job, unless its result is there; rank 0 writes the result last."""
    if isinstance(job, (SampleJob, EncodeJob)):
        tell({"answer": sample(job) if isinstance(job, SampleJob) else encode(job, tell)})
        return
    done = Path(job.folder) / "result.json"
    if done.exists():
        return
    settings = job.train
    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) // settings.devices))
    tell({"progress": {"stage": job.stage}})
    began = time.monotonic()
    if isinstance(job, TrainJob):
        result = train(job, tell)
    elif isinstance(job, FinetuneJob):
        digest, metrics, models = finetune(job, tell)
        result = _result(job, "classifier", digest, metrics, models=models)
    else:
        assert isinstance(job, EvaluateJob)
        kind, metrics, details = evaluate(job, tell)
        result = _result(job, kind, durable.digest_value(metrics), metrics, details=details)
    if _rank() == 0:
        result = result.model_copy(update={"seconds": time.monotonic() - began})
        durable.write_json(done, result.model_dump(mode="json"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _launch(request: Path, devices: int, parent: int) -> int:
    """One process per device under torch's elastic agent; this process is the agent and dies with the flow."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    die_with(parent)
    os.environ["STRATA_AGENT"] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "lightning_modules.fit", str(request))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 1), 1)
    return 0


def main(arguments: list[str]) -> int:
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    debug = False
    try:
        if arguments == ["-"]:
            answer = plan(PlanJob.model_validate_json(sys.stdin.read()))
            _tell(channel, {"answer": answer.model_dump(mode="json")})
            return 0
        request = Request.model_validate_json(Path(arguments[0]).read_bytes())
        debug = request.debug
        devices = max(getattr(job, "train", Train()).devices for job in request.jobs)
        if devices > 1 and "RANK" not in os.environ:
            os.dup2(channel.fileno(), 1)
            return _launch(Path(arguments[0]), devices, request.parent)
        die_with(int(os.environ.get("STRATA_AGENT", request.parent)))
        for job in request.jobs:
            do(job, lambda line: _tell(channel, line) if _rank() == 0 else None)
        return 0
    except Stopped as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except StrataError as error:
        return _fail(channel, error.status, str(error), debug)
    except OSError as error:
        return _fail(channel, OutputError.status, f"{error.filename or 'output'}: {error.strerror}", debug)
    except ValidationError as error:
        return _fail(channel, Damaged.status, f"the stage's request cannot be read: {error.errors()[0]['msg']}", debug)


def _tell(channel: TextIO, line: dict[str, Any]) -> None:
    channel.write(json.dumps(line) + "\n")
    channel.flush()


def _fail(channel: TextIO, status: int, message: str, debug: bool) -> int:
    traceback.print_exc() if debug else None
    _tell(channel, {"error": {"status": status, "message": message}})
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
