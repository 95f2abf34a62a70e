"""A stage process: `python -m lightning_modules.fit REQUEST.json`, or `-` with a plan's request on stdin.

The composition root: reads what is asked, starts one rank per device through torch's elastic launcher where several
are asked for, does the jobs one after another and answers in lines of JSON on stdout (`conf.protocol`); everything
libraries print goes to stderr. A job is finished when its result.json, written last, is there. Importing Lightning
takes twice as long as importing torch, so each job imports what it needs: planning, evaluating and sampling never do.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from conf import Train, lifeline
from conf.errors import Damaged, Interrupted, OutputError, StrataError, show
from conf.protocol import (
    EncodeJob,
    FinetuneJob,
    IndexJob,
    Job,
    PlanJob,
    Request,
    Result,
    SampleJob,
    SearchJob,
    TrainJob,
)
from data import durable

Tell = Callable[[dict[str, Any]], None]


def do(job: Job, tell: Tell) -> None:
    """One job, unless its result is there; rank 0 writes the result last."""
    if isinstance(job, SearchJob):
        from lightning_modules.searching import search

        search(job, sys.stdin, tell)
        return
    if isinstance(job, (SampleJob, EncodeJob, IndexJob)):
        tell({"answer": _answer(job, tell)})
        return
    done = Path(job.folder) / "result.json"
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    _set_threads(job.train)
    tell({"progress": {"stage": job.stage}})
    began = time.monotonic()
    found = _done(job, tell)
    if _rank() == 0:
        found["placement"] = _placement(job.train) | found.get("placement", {})
        key, seconds = durable.digest_value(job.identity()), time.monotonic() - began
        result = Result(stage=job.stage, key=key, do=job.do, seconds=seconds, **found)
        durable.write_json(done, result.model_dump(mode="json"))
        shutil.rmtree(done.with_name("checkpoint"), ignore_errors=True)


def _answer(job: Any, tell: Tell) -> dict[str, Any]:
    """What a job that leaves no result.json says of its work."""
    if isinstance(job, SampleJob):
        from lightning_modules.sampling import sample

        return sample(job)
    if isinstance(job, IndexJob):
        from lightning_modules.searching import index

        return index(job)
    from lightning_modules.encoding import encode

    return encode(job, tell)


def _done(job: Any, tell: Tell) -> dict[str, Any]:
    """What the job's Result says of it."""
    if isinstance(job, TrainJob):
        from lightning_modules.learning import learn

        return learn(job, tell, save=_rank() == 0)
    if isinstance(job, FinetuneJob):
        from lightning_modules.finetuning import finetune

        digest, metrics, models = finetune(job, tell)
        return {"kind": "classifier", "digest": digest, "metrics": metrics, "models": models}
    from lightning_modules.evaluation import evaluate

    kind, metrics, details = evaluate(job, tell)
    return {"kind": kind, "digest": durable.digest_value(metrics), "metrics": metrics, "details": details}


def _set_threads(train: Train) -> None:
    import torch

    torch.set_num_threads(train.threads or max(1, (os.cpu_count() or 1) // train.devices))


def _placement(train: Train) -> dict[str, Any]:
    import torch

    return {
        "devices": train.devices,
        "accelerator": train.accelerator,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _launch(request: Path, devices: int) -> int:
    """One process per device under torch's elastic agent, which is this process; no rank outlives it."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
    program, *arguments = lifeline.command([sys.executable, "-m", "lightning_modules.fit", str(request)])
    try:
        elastic_launch(config, program)(*arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((128 - code if code < 0 else code for code in codes if code not in (0, 1)), 1)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0


def main(arguments: list[str]) -> int:
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    debug = False
    try:
        if arguments == ["-"]:
            from lightning_modules.planning import plan

            answer = plan(PlanJob.model_validate_json(sys.stdin.read()))
            _tell(channel, {"answer": answer.model_dump(mode="json")})
            return 0
        request = Request.model_validate_json(Path(arguments[0]).read_bytes())
        debug = request.debug
        devices = max(getattr(job, "train", Train()).devices for job in request.jobs)
        if devices > 1 and "RANK" not in os.environ:
            os.dup2(channel.fileno(), 1)
            return _launch(Path(arguments[0]), devices)
        for job in request.jobs:
            do(job, lambda line: _tell(channel, line) if _rank() == 0 else None)
        return 0
    except Interrupted as stop:
        return 128 + stop.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except StrataError as error:
        return _fail(channel, error.status, str(error), debug)
    except OSError as error:
        where = show(error.filename or "output")
        return _fail(channel, OutputError.status, f"{where}: {error.strerror or error}", debug)
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
