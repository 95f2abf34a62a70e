"""Machines of other units as finished stages: evaluated without a likelihood, or with a perplexity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightning_modules as registry
from conf import CountsSource, Split
from conf.errors import InputError
from conf.protocol import Inputs
from data.sources import open_source
from lightning_modules.belief_nets import DBN
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Fitted
from lightning_modules.stack import Stack
from lightning_modules.topics import LDA
from tests.pass_jobs import learned, read
from tests.pass_jobs import measured as evaluated
from tests.stage_kills import train_job

WORDS = [[3, 1, 0, 0], [0, 2, 2, 0], [1, 1, 1, 1], [5, 0, 0, 1], [0, 0, 0, 2]]


@pytest.fixture
def counts(tmp_path: Path) -> Inputs:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("train", "test"):
        lines = [" ".join(f"{word}:{n}" for word, n in enumerate(row, start=1) if n) for row in WORDS]
        (raw / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return read(tmp_path / "shards", open_source(CountsSource(kind="counts", path=str(raw))), Split(validation=0))


def measured(model: Fitted, folder: Path, shards: Inputs) -> dict[str, Any]:
    registry.save(model, folder / "model", {"shape": []})
    return evaluated(folder, shards, num_examples=100)


def test_a_machine_of_rectified_units_is_evaluated_without_a_likelihood(digits: Inputs, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rbm = RBM(num_visible=64, num_hidden=10, visible="gaussian", hidden="relu")
    metrics = measured(Stack(layers=[rbm]), tmp_path / "stage", digits)
    assert math.isfinite(metrics["test/squared_error"]) and "test/log_prob" not in metrics


def test_gray_levels_are_no_states(digits: Inputs, tmp_path: Path) -> None:
    job = train_job(digits, "rbm", {"epochs": 1}, num_visible=64, num_hidden=4, visible="softmax", num_states=4)
    with pytest.raises(InputError, match=r"stage \w+: softmax units are states: of every 4 values one is 1"):
        learned(job, tmp_path / "stage")


@pytest.mark.parametrize("kind", ["rbm", "dbn", "lda"])
def test_models_of_documents_are_measured_by_perplexity(kind: str, counts: Inputs, tmp_path: Path) -> None:
    """Untrained, with words of equal shares, all are in doubt about all four words."""
    model: Fitted = LDA(num_visible=4, num_topics=2)
    rbm = RBM(num_visible=4, num_hidden=3, visible="replicated_softmax", weight_std=0)
    if kind == "rbm":
        model = Stack(layers=[rbm])
    if kind == "dbn":
        model = Stack(layers=[DBN(stack=Stack(layers=[rbm, RBM(num_visible=3, num_hidden=2, weight_std=0)]))])
    metrics = measured(model, tmp_path / "stage", counts)
    assert metrics["test/perplexity"] == pytest.approx(4, rel=1e-5)
    shares = np.array(WORDS).sum(0) / np.sum(WORDS)
    each = [np.array(row) @ np.log(shares) / sum(row) for row in WORDS]
    assert metrics["test/unigram_perplexity"] == pytest.approx(math.exp(-np.mean(each)), rel=1e-5)
    assert "test/squared_error" not in metrics
