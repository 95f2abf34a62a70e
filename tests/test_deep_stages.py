"""Stages of deep nets from plan to evaluation: tied starts, labels on the way to a model, nets made of a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conf import Recipe, Split
from conf.errors import InputError
from conf.protocol import Description, Inputs, Plan, PlanJob
from conf.reading import parse
from flows import figures
from lightning_modules.belief_nets import DBN
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Effort
from lightning_modules.labeled import LabeledRBM
from lightning_modules.planning import plan
from lightning_modules.unrolled import DeepAutoencoder
from lightning_modules.up_down import UpDown
from tests.pass_jobs import learned, measured, read
from tests.shard_folders import Given
from tests.stage_kills import train_job

HEAD = "name: deep\ndata: {source: {kind: digits}}\nstages:\n  layer1: {model: {kind: rbm, num_hidden: 20}}\n"
LABELED = "  top: {on: layer1, model: {kind: labeled_rbm, num_hidden: 9}, train: {epochs: 2, batch_size: 100}}\n"


def planned(declared: str, **described: Any) -> Plan:
    recipe = Recipe.model_validate(parse(HEAD + declared, "recipe"))
    description = Description(
        shape=[64], low=0.0, high=1.0, sizes={"train": 500, "validation": 0, "test": 100},
        labeled=300, labeled_test=100, num_classes=10,
    ).model_copy(update=described)  # fmt: skip
    return plan(PlanJob(recipe=recipe, descriptions={"data": description}))


def test_a_plan_of_deep_nets() -> None:
    found = planned(
        "  tied: {on: layer1, model: {kind: rbm, num_hidden: 64, start: tied}}\n"
        + LABELED
        + "  dbn: {on: top, model: {kind: dbn}}\n"
        "  awake: {on: top, model: {kind: up_down, gibbs_steps: 2}, train: {epochs: 1, batch_size: 100}}\n"
        "  code: {on: layer1, model: {kind: autoencoder, activation: linear, num_hidden: 3}, train: {epochs: 0}}\n"
        "  deep: {on: code, model: {kind: deep_autoencoder, loss: squared_error}, train: {epochs: 1}}\n"
        "  few: {on: deep, finetune: {labels: [10]}}\n"
        "  told: {on: dbn, finetune: {labels: [10]}}\n"
        "  whole: {on: layer1, model: {kind: classifier}, train: {epochs: 1, batch_size: 100}}\n"
    )
    stages = {stage.name: stage for stage in found.stages}
    fitted = [stage for stage in found.stages if stage.flow != "finetune"]
    assert {stage.name: (stage.labeled, stage.samples, stage.steps) for stage in fitted} == {
        "layer1": (False, 500, 50), "tied": (False, 500, 50), "top": (True, 300, 6), "dbn": (True, 0, 0),
        "awake": (True, 300, 3), "code": (False, 500, 0), "deep": (False, 500, 5), "whole": (True, 300, 3),
    }  # fmt: skip
    assert (stages["deep"].shape, stages["deep"].flow, stages["awake"].shape) == (
        "64 → 20 → 3",
        "pretrain",
        "64 → 20 → 9",
    )
    assert stages["top"].spec["arguments"]["num_classes"] == 10 and stages["whole"].flow == "train"
    assert stages["few"].shape == "64 → 20 → 3 → 10 classes"
    assert stages["told"].shape == "64 → 20 → 9 → 10 classes"


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        ("  up: {on: layer1, model: {kind: rbm, num_hidden: 60, start: tied}}",
         "stage up: start: tied mirrors the rbm below, 64 → 20: num_hidden must be 64, not 60"),
        ("  up: {model: {kind: rbm, num_hidden: 64, start: tied}}",
         "stage up: start: tied is the transpose of an rbm below, but it stands on the data"),
        ("  code: {model: {kind: autoencoder, num_hidden: 9}}\n"
         "  up: {on: code, model: {kind: rbm, num_hidden: 64, start: tied}}",
         "stage up: start: tied is the transpose of an rbm below, but it stands on a layer of class Autoencoder"),
        ("  up: {on: layer1, model: {kind: up_down}}", "stage up: up_down: up–down fine-tunes a stack of two layers"),
        ("  up: {model: {kind: up_down}}", "stage up: a up_down is made of a stack; say which one, `on: STAGE`"),
        ("  white: {model: {kind: whitening}}\n  up: {on: white, model: {kind: deep_autoencoder}}",
         "unrolls RBMs and tied autoencoders, but the stack has none"),
        ("  up: {on: layer1, model: {kind: labeled_rbm, num_hidden: 9, num_classes: 3}}",
         "stage up: this labeled_rbm tells 3 classes, but the data have 10; leave num_classes out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_of_the_plan(declared: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(declared + "\n")
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_labels_must_be_there() -> None:
    with pytest.raises(
        InputError, match="stage top: a labeled_rbm learns from labels of two classes or more, found 0 la"
    ):
        planned(LABELED, labeled=0)
    with pytest.raises(InputError, match="found 300 labeled training samples of 0"):
        planned(LABELED, num_classes=0)


# ---- learning


def striped(number: int) -> tuple[np.ndarray, list[int]]:
    """Pictures with their left (class a) or right half (class b) on, one value in twenty flipped."""
    random = np.random.default_rng(number)
    label = random.integers(0, 2, number)
    clean = np.where(np.arange(4) // 2 == label[:, None, None], 1, 0).repeat(4, axis=1)
    return np.where(random.random(clean.shape) < 0.05, 1 - clean, clean).astype(np.float32), label.tolist()


@pytest.fixture(scope="module")
def striped_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """300 training samples of which 120 have a label."""
    (train, labels), (test, test_labels) = striped(300), striped(100)
    known = [label if number < 120 else -1 for number, label in enumerate(labels)]
    source = Given({"train": train, "test": test}, {"train": known, "test": test_labels})
    return read(tmp_path_factory.mktemp("shards"), source, Split(validation=0.2))


@pytest.fixture(scope="module")
def layer1(striped_inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layer1")
    learned(
        train_job(
            striped_inputs, "rbm", {"learning_rate": 0.1, "epochs": 20, "batch_size": 10}, num_visible=16, num_hidden=8
        ),
        folder,
    )
    return folder


def test_a_tied_layer_without_a_step_leaves_the_bound_where_it_was(
    striped_inputs: Inputs, layer1: Path, tmp_path: Path
) -> None:
    """Through shards, files and the training's own start: the same model, to the rounding of float32."""
    job = train_job(striped_inputs, "rbm", {"epochs": 0}, layer1, num_visible=8, num_hidden=16, start="tied")
    stack, answer = learned(job, tmp_path / "tied")
    below, above = stack
    assert answer["details"]["parameters"] == 8 * 16 + 8 + 16  # its own, as the plan counts them
    assert isinstance(below, RBM) and torch.equal(above.weights, below.weights.t())
    x = torch.from_numpy(striped(50)[0].reshape(50, 16))
    exact = below.log_prob(x, effort=Effort()).nats
    torch.testing.assert_close(
        DBN(stack=stack).log_prob(x, effort=Effort(num_samples=3)).nats, exact, atol=1e-4, rtol=0
    )


def test_labels_reach_the_top_layer_and_its_evaluation(striped_inputs: Inputs, layer1: Path, tmp_path: Path) -> None:
    """From the labeled samples alone, validation included; −1 would be no class at all."""
    settings = {"epochs": 30, "batch_size": 10, "learning_rate": 0.1}
    job = train_job(striped_inputs, "labeled_rbm", settings, layer1, num_visible=8, num_hidden=6, num_classes=2)
    stack, answer = learned(job, tmp_path / "top")
    held_out = 120 - answer["steps"] / 30 * 10  # of 120 labeled samples; about a fifth, in whole batches
    assert 0 < held_out < 60 and answer["metrics"]["validation/error"] <= 0.1
    assert isinstance(stack[1], LabeledRBM)

    (dbn,), _ = learned(train_job(striped_inputs, "dbn", {}, tmp_path / "top"), tmp_path / "dbn")
    assert isinstance(dbn, DBN) and dbn.num_classes == 2
    metrics = measured(tmp_path / "dbn", striped_inputs)
    assert metrics["test/error"] < 5 and metrics["test/log_prob"] > 16 * np.log(0.5)
    figure = figures.read(tmp_path / "dbn" / "figures" / "samples_by_class.npz")["images"]
    assert figure.shape == (4, 4, 4)  # two rows of two pictures, a class a row
    assert (figure[:2, :, :2] > figure[:2, :, 2:]).all() and (figure[2:, :, :2] < figure[2:, :, 2:]).all()


def test_the_key_of_a_stage_that_reads_labels_names_them(striped_inputs: Inputs) -> None:
    job = train_job(striped_inputs, "labeled_rbm", {}, num_visible=16, num_hidden=6, num_classes=2)
    other = job.model_copy(update={"inputs": striped_inputs.model_copy(update={"labels_digest": "other"})})
    assert job.labeled and job.identity() != other.identity()
    blind = [one.model_copy(update={"labeled": False}).identity() for one in (job, other)]
    assert blind[0] == blind[1] != job.identity()


@pytest.mark.parametrize("kind", ["up_down", "deep_autoencoder"])
def test_a_net_made_of_a_stack_is_trained_and_is_a_layer(
    striped_inputs: Inputs, layer1: Path, tmp_path: Path, kind: str
) -> None:
    """It starts at the stack's weights, learns from the data, and answers for them afterwards."""
    arguments = {"num_visible": 8, "num_hidden": 4}
    learned(train_job(striped_inputs, "rbm", {"epochs": 10}, layer1, **arguments), tmp_path / "layer2")

    def made(epochs: int) -> tuple[Any, dict[str, Any]]:
        train = {"epochs": epochs, "optimizer": "adam", "learning_rate": 1e-2}
        return learned(train_job(striped_inputs, kind, train, tmp_path / "layer2"), tmp_path / str(epochs))

    (start,), _ = made(0)
    assert isinstance(start, UpDown if kind == "up_down" else DeepAutoencoder)
    first = start.stack[0]
    assert isinstance(first, RBM)
    up_and_down: tuple[Tensor, Tensor] = (
        (first.weights, start.recognition[0])
        if isinstance(start, UpDown)
        else (first.weights, start.decoder_weights[0].t())
    )
    assert torch.equal(*up_and_down)
    (trained,), answer = made(30)
    assert not torch.equal(trained.stack[0].weights, first.weights)
    metrics = [measured(tmp_path / epochs, striped_inputs) for epochs in ("0", "30")]
    if kind == "deep_autoencoder":
        assert metrics[1]["test/squared_error"] < metrics[0]["test/squared_error"] - 0.1
    else:
        assert metrics[1]["test/log_prob"] > metrics[0]["test/log_prob"] + 0.1
        assert {"train/wake", "train/top", "train/sleep"} <= answer["metrics"].keys()
