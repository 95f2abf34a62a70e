"""`train.devices=2` from the command line: one key, one ingest, one flow run, the weights of one device."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.conftest import Command

TWO = ("train.devices=2", "train.accelerator=cpu")
PAUSED = 2.0  # seconds an orphan may take to be gone
HEAD = """\
name: ranks
data: {source: {kind: digits}, split: {validation: 0}}
train: {threads: 1, epochs: 2, batch_size: 97, log_steps: 5, checkpoint_steps: 6}
evaluate: null
stages:
"""
AUTOENCODER = "  ae: {model: {kind: autoencoder, num_hidden: 16}}\n"


def weights(answer: dict[str, Any], stage: str) -> dict[str, np.ndarray]:
    return load_file(Path(answer["stages"][stage]["model"]) / "weights.safetensors")


def test_two_ranks_train_what_one_trains_under_one_flow_run(strata: Command, recipe: Callable[..., Path]) -> None:
    """A model without noise: the only difference is the order of float32 sums. Through a real Prefect server."""
    path = recipe(AUTOENCODER, HEAD)
    quiet = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    two = strata("run", path, "--out", "two", "--json", *TWO, environment=quiet)
    one = strata("run", path, "--out", "one", "--json")
    assert two.status == one.status == 0, two.err + one.err
    for name, value in weights(two.answer, "ae").items():
        assert np.abs(value - weights(one.answer, "ae")[name]).max() < 1e-6
    folders = [Path(ended.answer["stages"]["ae"]["model"]).parent.name for ended in (one, two)]
    assert folders[0] == folders[1], "devices must not enter a stage's key"

    database = next((strata.folder / "two" / "prefect").glob("*.db"))
    with sqlite3.connect(database) as prefect:
        rows = prefect.execute("select name, parent_task_run_id from flow_run").fetchall()
        flows = prefect.execute("select f.name from flow f join flow_run r on r.flow_id = f.id").fetchall()
    assert sum(parent is None for _, parent in rows) == 1
    assert sorted(name for (name,) in flows) == ["ingest", "pretrain", "run"]
    manifests = list((strata.folder / "two" / "shards").glob("*/manifest.json"))
    assert len(manifests) == 1
    strata.await_quiet(PAUSED)
