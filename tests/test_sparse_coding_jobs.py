"""Sparse coding as stages: two ranks, kills, a stack on it, few labels."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from conf.protocol import Inputs
from tests.stage_kills import Stages, finetune_job, outcome, placed, train_job

UPDATES = ["online", "gradient"]
SMALL = {"num_visible": 64, "num_hidden": 24, "tolerance": 1e-5, "max_steps": 100}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load((folder / "model" / "weights.safetensors").read_bytes())


@pytest.mark.parametrize("update", UPDATES)
def test_two_ranks_take_the_steps_of_one(template: Stages, digits: Inputs, tmp_path: Path, update: str) -> None:
    """Statistics are those of the whole batch whatever its pieces: of 1,299 the last batch has one sample for two."""
    settings = {"epochs": 4, "batch_size": 1299, "log_steps": 1}
    job = train_job(digits, "sparse_coding", settings, **SMALL, update=update)
    assert template.do(placed(job, tmp_path / "one")) == 0, template.log
    assert template.do_on_ranks(placed(job, tmp_path / "two"), 2) == [0, 0], template.log
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("update", UPDATES)
def test_killed_and_resumed_it_is_the_same_to_the_byte(
    template: Stages, digits: Inputs, tmp_path: Path, update: str
) -> None:
    """Also across the revival of atoms, at step 50, for which the penalty makes occasion."""
    job = train_job(digits, "sparse_coding", {"epochs": 5}, **SMALL, update=update, penalty=2.5)
    assert template.do(placed(job, tmp_path / "whole")) == 0, template.log
    killed = placed(job, tmp_path / "killed")
    assert template.do(killed, ("step", 46)) == -signal.SIGKILL
    assert template.do(killed, ("step", 12)) == -signal.SIGKILL
    assert template.do(killed) == 0, template.log
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_stands_in_a_stack_and_is_fine_tuned_with_it(template: Stages, digits: Inputs, tmp_path: Path) -> None:
    """On an autoencoder's codes, under another; the classifier's gradient moves its atoms."""
    stack: Path | None = None
    layers: list[tuple[str, dict[str, Any]]] = [
        ("autoencoder", {"num_visible": 64, "num_hidden": 30}),
        ("sparse_coding", {"num_visible": 30, "num_hidden": 24}),
        ("autoencoder", {"num_visible": 24, "num_hidden": 10, "loss": "squared_error"}),
    ]
    for height, (kind, arguments) in enumerate(layers):
        job = train_job(digits, kind, {"epochs": 1}, stack, **arguments).model_copy(update={"hand_up": "mean"})
        assert template.do(placed(job, tmp_path / str(height))) == 0, template.log
        stack = tmp_path / str(height)
    assert stack is not None
    few = tmp_path / "few"
    assert template.do(placed(finetune_job(digits, stack), few)) == 0, template.log
    pretrained, tuned = weights(stack), weights(few / "runs" / "20-0-pretrained")
    moved = tuned["stack.layers.1.dictionary"] - pretrained["layers.1.dictionary"]
    assert 1e-4 < moved.abs().max() < 1
    assert torch.equal(tuned["stack.layers.1.mean"], pretrained["layers.1.mean"])
