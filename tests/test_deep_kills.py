"""A deep belief net grown layer by layer, killed in its second layer: what lies below stays, the rest goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lightning_modules as registry
from data import durable
from lightning_modules.stack import Stack
from tests.conftest import Command, stage, trained

LAYERS = """\
  layer1: {model: {kind: rbm, num_hidden: 16}}
  layer2:
    on: layer1
    hand_up: sample
    model: {kind: rbm, num_hidden: 64, algorithm: pcd, start: tied}
    train: {epochs: 20}
  dbn: {on: layer2, model: {kind: dbn}}
"""


def weights(out: Path, name: str) -> dict[str, Any]:
    """By layer and name of the stack a stage left behind."""
    model = registry.load(stage(out, name) / "model")
    assert isinstance(model, Stack)
    return dict(model.state_dict())


def test_layers_below_are_finished_once_and_stay_as_they_are(
    strata: Command, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    command, out = ("run", recipe(LAYERS), "evaluate=null"), tmp_path / "out"
    process = strata.start(*command, "--out", out)
    seen = trained(out, "layer2", 20)
    while not seen():
        assert process.poll() is None, process.communicate()
    strata.kill_all()
    assert process.wait(10) == -signal.SIGKILL
    process.communicate()
    finished = {file: file.stat().st_mtime_ns for file in out.glob("stages/*/result.json")}
    assert [durable.read_json(file)["stage"] for file in finished] == ["layer1"]

    ended = strata(*command, "--out", out, "--json")
    assert ended.status == 0, ended
    assert {file: file.stat().st_mtime_ns for file in finished} == finished, "a finished layer was trained again"
    cached = {name: found["cached"] for name, found in ended.answer["stages"].items()}
    assert cached == {"layer1": True, "layer2": False, "dbn": False}

    below = weights(out, "layer1")
    for name, place in (("layer2", "layers.0."), ("dbn", "layers.0.stack.layers.0.")):
        above = weights(out, name)
        for of_layer, tensor in below.items():
            assert torch.equal(above[place + of_layer.removeprefix("layers.0.")], tensor), f"{name} moved {of_layer}"
