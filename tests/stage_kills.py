"""Stage processes to be killed: jobs on real digits, a template that forks them, and deaths at chosen moments.

Importing torch and Lightning takes seconds, a stage here less than one: the template imports them once and forks a
process a request. A moment is the n-th training step or round, or the n-th rename of a finished file (before or after
it); there the process sends itself SIGKILL, which nothing can catch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import lightning_modules as registry
from conf import Finetune, Split, Train
from conf.journal import read as read_journal
from conf.protocol import Below, FinetuneJob, Inputs, Job, Request, TrainJob
from data import durable
from data.ingest import ingest
from flows import servers
from tests.shard_folders import digits

TEMPLATE = """
import json, os, signal, sys, traceback
import lightning_modules.finetuning, lightning_modules.evaluation
from lightning_modules import fit, learning, passes, rounds, training
import torch

rounds.SECONDS_BETWEEN_CHECKPOINTS = 0.0  # stages here are over before

def die(): os.kill(os.getpid(), signal.SIGKILL)

def drift(module):
    with torch.no_grad(): next(module.model.parameters()).add_(1e-3)

def at(what, number):
    count = 0
    def counted(do):
        def call(*given):
            nonlocal count
            count += 1
            if count == number and not what.startswith("after"): drift(given[0]) if what == "drift" else die()
            answer = do(*given)
            if count == number and what.startswith("after"): die()
            return answer
        return call
    if what.endswith("rename"): os.replace = counted(os.replace)
    elif what == "round": passes.Reading.finish = counted(passes.Reading.finish)
    else: training.Training.take_step = counted(training.Training.take_step)

def become(rank, ranks, port, request, said, moment):
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.dup2(os.open(said, flags), 1)
    os.dup2(os.open(said + ".log", flags), 2)
    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({name: str(value) for name, value in names.items()})
    if moment and rank == ranks - 1: at(*moment)
    status = 1
    try: status = fit.main([request])
    except Exception: traceback.print_exc()
    finally: os._exit(status)

for line in sys.stdin:
    ranks, port, request, said, moment = json.loads(line)
    children = []
    for rank in range(ranks):
        children.append(os.fork())
        if children[-1] == 0: become(rank, ranks, port, request, said, moment)
    print(json.dumps(children), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Stages:
    """Starts stage processes by forking the template, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", TEMPLATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, job: Job, moment: tuple[str, int] | None = None, ranks: int = 1) -> list[int]:
        """→ process ids, one a rank; the last rank kills itself at the moment, if there is one."""
        request, said = self.folder / "request.json", self.folder / "said"
        durable.write_json(request, Request(jobs=[job]).model_dump(mode="json"))
        for path in (said, said.with_name("said.log")):
            path.write_bytes(b"")
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = [ranks, servers.free_port(), str(request), str(said), moment]
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return list(json.loads(self.process.stdout.readline()))

    def wait(self) -> list[int]:
        """→ exit status of every rank, or −n for signal n."""
        assert self.process.stdout is not None
        return list(json.loads(self.process.stdout.readline()))

    def do(self, job: Job, moment: tuple[str, int] | None = None) -> int:
        """One rank from start to end → its exit status."""
        self.start(job, moment)
        return self.wait()[0]

    def do_on_ranks(self, job: Any, ranks: int, moment: tuple[str, int] | None = None) -> list[int]:
        self.start(on_ranks(job, ranks), moment, ranks)
        return self.wait()

    def kill_around_renames(self, job: Any, folder: Path) -> int:
        """Before and after each rename of a run, which then goes on and must end as an undisturbed one → kills."""
        assert self.do(placed(job, folder / "whole")) == 0, self.log
        whole, kills = outcome(folder / "whole"), 0
        for moment in ("before rename", "after rename"):
            for number in count(1):
                again = folder / f"{moment}-{number}"
                if self.do(placed(job, again), (moment, number)) == 0:
                    break
                assert self.do(placed(job, again)) == 0, self.log
                assert outcome(again) == whole, f"killed {moment} {number}"
                kills += 1
        return kills

    @property
    def log(self) -> str:
        return (self.folder / "said.log").read_text()

    @property
    def error(self) -> dict[str, Any]:
        return next(iter(self.said("error")), {})

    def said(self, what: str) -> list[dict[str, Any]]:
        """What the stage has said of this kind, in its order."""
        lines = [json.loads(line) for line in (self.folder / "said").read_text().splitlines()]
        return [line[what] for line in lines if what in line]


@contextmanager
def stages(folder: Path) -> Iterator[Stages]:
    started = Stages(folder)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def inputs(folder: Path) -> Inputs:
    """The digits as shards in a folder."""
    manifest = ingest(digits(), folder, shard_size=500)
    return Inputs(
        shards=str(folder),
        samples_digest=manifest.samples_digest,
        labels_digest=manifest.labels_digest,
        split=Split(),
        remembered=str(folder / "verified.json"),
    )


def train_job(read: Inputs, kind: str, train: dict[str, Any], below: Path | None = None, **arguments: Any) -> TrainJob:
    spec = {"kind": kind, "arguments": arguments}
    if not registry.made_of_stack(kind):
        spec = registry.complete(spec)
    settings = {"threads": 1, "epochs": 2, "log_steps": 5, "checkpoint_steps": 7, "accelerator": "cpu"}
    return TrainJob(
        stage="some",
        spec=spec,
        revision=1 if registry.made_of_stack(kind) else registry.revision(spec),
        below=standing_on(below) if below else None,
        hand_up="sample" if below else "mean",
        inputs=read,
        train=Train(**settings | train),
        seed=1,
        labeled=kind == "labeled_rbm",
    )


def finetune_job(read: Inputs, below: Path) -> FinetuneJob:
    few = Finetune(labels=[10, 20], seeds=2, epochs=3)
    return FinetuneJob(
        stage="few", revision=1, below=standing_on(below), inputs=read, finetune=few, train=Train(threads=1)
    )


def standing_on(folder: Path) -> Below:
    return Below(folder=str(folder / "model"), digest=durable.read_json(folder / "model" / "model.json")["digest"])


def on_ranks(job: Any, ranks: int) -> Any:
    return job.model_copy(update={"train": job.train.model_copy(update={"devices": ranks})})


def placed(job: Any, folder: Path) -> Any:
    return job.model_copy(update={"folder": str(folder)})


def outcome(folder: Path) -> dict[str, Any]:
    """All of a finished stage that must not depend on kills: weights to the byte, journal and result without clocks."""
    models = {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("*.safetensors", "model.json", "revealed.json", "run.json")
        for path in folder.rglob(name)
    }
    rows, _ = read_journal(folder / "journal.jsonl")
    result = durable.read_json(folder / "result.json")
    return models | {"journal": [(row["step"], row["metrics"]) for row in rows], "result": result | {"seconds": 0}}
