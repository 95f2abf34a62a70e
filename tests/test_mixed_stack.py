"""conf/mixed_stack.yaml, layers of three families: each stage's process killed by SIGKILL and run again, to the bit."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_modules as registry
from conf.protocol import Job
from conf.reading import read
from data import durable
from flows import preparing, stage
from flows.engine import RecipeRun
from flows.progress import Reporter
from lightning_modules.planning import plan
from lightning_modules.stack import Stack
from tests.stage_kills import Stages, outcome

SHORT = [
    "evaluate=null", "train.checkpoint_steps=7", "train.log_steps=5", "stages.sparse.train.epochs=1",
    "stages.rbm.train.epochs=1", "stages.code.train.epochs=1",
    "stages.classify.finetune={labels: [20], seeds: 2, epochs: 2, batch_size: 10}",
]  # fmt: skip
MOMENTS = {"sparse": ("step", 17), "rbm": ("after step", 9), "code": ("step", 20), "classify": ("rename", 3)}


def run(out: Path, template: Stages, monkeypatch: pytest.MonkeyPatch, *, killed: bool) -> dict[str, Path]:
    """The recipe through the engine, each stage in a forked process → folders of its stages, by name."""

    def run_jobs(name: str, jobs: Sequence[Job], *_: Any, **__: Any) -> None:
        (job,) = jobs
        Path(job.folder).mkdir(parents=True, exist_ok=True)
        if killed:
            assert template.do(job, MOMENTS[name]) == -signal.SIGKILL, f"{name} ended before its moment"
            assert not (Path(job.folder) / "result.json").exists()
        assert template.do(job) == 0, template.log

    monkeypatch.setattr(stage, "run_jobs", run_jobs)
    monkeypatch.setattr(stage, "ask_plan", plan)
    recipe = read(Path("conf/mixed_stack.yaml"), SHORT)
    started = RecipeRun(preparing.prepare(recipe), out, Reporter())
    started.do_rest()
    return {step.name: out / step.folder for step in started.steps if step.flow != "ingest"}


def test_killed_in_every_stage_it_ends_the_same(
    template: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", template, monkeypatch, killed=False)
    killed = run(tmp_path / "killed", template, monkeypatch, killed=True)
    assert list(whole) == list(killed) == list(MOMENTS)
    for name in MOMENTS:
        assert outcome(killed[name]) == outcome(whole[name]), name
    stacks = [registry.load(whole[name] / "model") for name in ("sparse", "rbm", "code")]
    kinds = [registry.spec_of(layer)["kind"] for layer in stacks[-1]]  # type: ignore[union-attr]
    assert kinds == ["sparse_coding", "rbm", "autoencoder"]
    top = stacks[-1].state_dict()
    for below in stacks[:-1]:
        assert isinstance(below, Stack)
        assert all(torch.equal(top[name], tensor) for name, tensor in below.state_dict().items())
    assert {"test/error@20", "test/error@20/supervised"} <= durable.read_json(whole["classify"] / "result.json")[
        "metrics"
    ].keys()
