"""Deep embedded clustering: its loss and gradient against the paper's formulas, its start, its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans as Rival

import lightning_modules as registry
from conf.protocol import Inputs
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.dec import DEC
from lightning_modules.stack import Stack
from tests.pass_jobs import learned, measured, stored
from tests.stage_kills import train_job


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small(**arguments: Any) -> DEC:
    layer = Autoencoder(num_visible=5, num_hidden=3, activation="linear", loss="squared_error")
    return DEC(stack=Stack(layers=[layer]), num_clusters=4, **arguments)


@pytest.mark.parametrize("degrees", [1.0, 2.5])
def test_the_loss_and_its_gradient_are_the_papers(degrees: float) -> None:
    """∂L/∂μ_k = −(α+1)/α Σ_i (1 + ‖z_i − μ_k‖²/α)⁻¹ (p_ik − q_ik)(z_i − μ_k), here a mean over samples (equation 5)."""
    model = small(degrees=degrees).eval()
    model.frequencies.copy_(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    x = torch.randn(30, 5)
    z = model.encode(x).detach()
    away = z[:, None] - model.centres.detach()[None]  # (samples, clusters, width)
    near = 1 / (1 + away.square().sum(2) / degrees)
    q = near ** ((degrees + 1) / 2)
    q = q / q.sum(1, keepdim=True)
    p = q**2 / model.frequencies
    p = p / p.sum(1, keepdim=True)
    losses = model.losses(x)
    assert float(losses["loss"]) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    losses["loss"].backward()
    expected = -(degrees + 1) / degrees * (near * (p - q))[:, :, None] * away
    torch.testing.assert_close(model.centres.grad, expected.mean(0), rtol=1e-4, atol=1e-6)


def test_frequencies_follow_training_batches_alone() -> None:
    model, x = small(averaging=0.9), torch.randn(40, 5)
    q = model.log_memberships(x).exp().mean(0)
    model.eval().losses(x)
    assert model.frequencies.tolist() == [0.25] * 4
    model.train().losses(x)
    torch.testing.assert_close(model.frequencies, 0.9 * torch.full((4,), 0.25) + 0.1 * q.detach())


def test_centres_begin_at_the_best_k_means_of_the_codes() -> None:
    model = small()
    x = torch.randn(4, 5).mul(4).repeat_interleave(60, 0) + 0.3 * torch.randn(240, 5)
    model.start_from_data(x)
    codes = model.encode(x).detach()
    rival = Rival(4, n_init=10, random_state=0).fit(codes.numpy()).inertia_
    assert float(torch.cdist(codes, model.centres.detach()).amin(1).square().sum()) < 1.001 * rival
    torch.testing.assert_close(model.frequencies, model.log_memberships(x).exp().mean(0))
    assert torch.equal(model.assign(x), model.log_memberships(x).argmax(1))


def test_made_of_a_stack_it_sharpens_clusters_and_is_the_same_again(digits: Inputs, tmp_path: Path) -> None:
    """In a stage of its own, on a stage of another; the stack below is left as it was."""
    settings = {"epochs": 10, "optimizer": "adam", "learning_rate": 5e-3, "batch_size": 50}
    below = train_job(digits, "autoencoder", settings, num_visible=64, num_hidden=10, loss="squared_error",
                      activation="linear")  # fmt: skip
    learned(below, tmp_path / "codes")
    before = (tmp_path / "codes" / "model" / "weights.safetensors").read_bytes()
    answers = {}
    for name, epochs in {"start": 0, "once": 6, "again": 6}.items():
        train = {"epochs": epochs, "optimizer": "adam", "learning_rate": 3e-3, "batch_size": 100}
        job = train_job(digits, "dec", train, tmp_path / "codes", num_clusters=10)
        answers[name] = learned(job.model_copy(update={"hand_up": "mean"}), tmp_path / name)[1]
    assert answers["once"]["digest"] == answers["again"]["digest"] != answers["start"]["digest"]
    assert (tmp_path / "codes" / "model" / "weights.safetensors").read_bytes() == before
    models = [registry.load(tmp_path / name / "model") for name in ("start", "once")]
    x = torch.from_numpy(stored(digits, 300))
    sureness = [float(model.log_memberships(x).exp().amax(1).mean()) for model in models]  # type: ignore[operator]
    assert sureness[1] > sureness[0] + 0.05
    found = measured(tmp_path / "once", digits)
    assert found["test/cluster_accuracy"] > measured(tmp_path / "start", digits)["test/cluster_accuracy"] - 3
    assert "test/squared_error" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"degrees": 0.0}, "degrees must be above 0, not 0.0"),
        ({"averaging": 1.0}, r"averaging must be in \[0, 1\), not 1.0"),
        ({"starts": 0}, "starts must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)
