"""Mixtures of Gaussians against scikit-learn's from the same start, and against what EM and densities promise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from sklearn.mixture import GaussianMixture as Rival
from torch import Tensor

from conf.protocol import Inputs
from lightning_modules.interfaces import Effort
from lightning_modules.mixture_model import GaussianMixture
from tests.pass_jobs import learned, measured
from tests.stage_kills import train_job

Covariance = Literal["diagonal", "full", "spherical"]
KINDS: list[Covariance] = ["diagonal", "full", "spherical"]
THEIRS = {"diagonal": "diag", "full": "full", "spherical": "spherical"}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def overlapping(number: int = 600) -> Tensor:
    """Three Gaussians of different shapes, some of whose samples could be of either."""
    shapes = torch.stack([torch.eye(4), torch.diag(torch.tensor([3.0, 1, 0.3, 1])), torch.eye(4) + 0.8])
    means = torch.tensor([[0.0, 0, 0, 0], [2, 2, 0, 0], [0, 3, 3, 1]])
    which = torch.randint(3, (number,))
    return means[which] + (shapes[which] @ torch.randn(number, 4, 1))[:, :, 0]


def begun(x: Tensor, covariance: Covariance, **arguments: Any) -> GaussianMixture:
    model = GaussianMixture(num_visible=x.shape[1], num_components=3, covariance=covariance, **arguments)
    model.start(x)
    return model


def stepped(model: GaussianMixture, x: Tensor) -> float:
    for part in x.split(170):
        model.update(part)
    return model.finish()["log_likelihood"]


@pytest.mark.parametrize("covariance", KINDS)
def test_steps_are_scikit_learns(covariance: Covariance) -> None:
    """The same likelihood before each step, and the same parameters after six."""
    x = overlapping()
    model = begun(x, covariance)
    precisions = model.covariances.inverse() if covariance == "full" else 1 / model.covariances
    start = {"weights_init": model.weights.clone().numpy(), "means_init": model.means.clone().numpy(),
             "precisions_init": precisions.numpy()}  # fmt: skip
    found = [stepped(model, x) for _ in range(6)]
    for steps in (1, 6):
        rival = Rival(3, covariance_type=THEIRS[covariance], max_iter=steps, tol=0, **start).fit(x.double().numpy())
        assert found[steps - 1] == pytest.approx(rival.lower_bound_, abs=1e-10)
    torch.testing.assert_close(model.means, torch.from_numpy(rival.means_), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.covariances, torch.from_numpy(rival.covariances_), rtol=0, atol=1e-9)
    answer = model.log_prob(x, effort=Effort())
    assert answer.kind == "exact"
    torch.testing.assert_close(answer.nats, torch.from_numpy(rival.score_samples(x.double().numpy())))
    assert torch.equal(model.assign(x), torch.from_numpy(rival.predict(x.double().numpy())))
    torch.testing.assert_close(model.encode(x.double()), torch.from_numpy(rival.predict_proba(x.double().numpy())))


@pytest.mark.parametrize("covariance", KINDS)
def test_no_step_lowers_the_likelihood(covariance: Covariance) -> None:
    x = overlapping()
    model = begun(x, covariance, regularization=0.0)
    rises = torch.tensor([stepped(model, x) for _ in range(25)]).diff()
    assert (rises > -1e-12).all() and rises[:5].min() > 1e-6


@pytest.mark.parametrize("covariance", KINDS)
def test_probabilities_sum_to_one_over_the_plane(covariance: Covariance) -> None:
    model = begun(overlapping()[:, :2], covariance)
    edge = torch.linspace(-15, 20, 500, dtype=torch.float64)
    nats = model.log_prob(torch.cartesian_prod(edge, edge), effort=Effort()).nats
    assert nats.exp().sum() * (edge[1] - edge[0]) ** 2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("covariance", KINDS)
def test_draws_have_the_mean_and_covariance_of_the_mixture(covariance: Covariance) -> None:
    """Each of 20 numbers within 5 standard errors: false alarm 1 in 80,000 runs a kind, with one seed."""
    model = begun(overlapping(), covariance)
    draws = model.sample(40_000, effort=Effort()).double()
    mean = model.weights @ model.means
    shapes = model.covariances
    if covariance != "full":
        shapes = torch.diag_embed(shapes.reshape(3, -1).expand(3, 4))
    away = model.means - mean
    whole = (model.weights[:, None, None] * (shapes + away[:, :, None] * away[:, None, :])).sum(0)
    assert ((draws.mean(0) - mean).abs() < 5 * (whole.diagonal() / 40_000).sqrt()).all()
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None, :]
    assert ((products.mean(0) - whole).abs() < 5 * products.std(0) / math.sqrt(40_000)).all()


def test_planted_components_are_found_far_from_the_origin() -> None:
    planted = 1e4 + 20 * torch.randn(5, 3)
    x = planted.repeat_interleave(200, 0) + torch.randn(1000, 3)
    model = GaussianMixture(num_visible=3, num_components=5)
    model.start(x)
    for _ in range(10):
        stepped(model, x)
    assert torch.cdist(planted.double(), model.means).min(1).values.max() < 0.4
    assert (model.covariances - 1).abs().max() < 0.5 and (model.weights - 0.2).abs().max() < 0.01
    assert model.settled


def test_as_a_stage_it_is_measured_by_its_density_and_its_clusters(digits: Inputs, tmp_path: Path) -> None:
    job = train_job(digits, "gaussian_mixture", {}, num_visible=64, num_components=10, regularization=0.01)
    model, answer = learned(job, tmp_path)
    curve = answer["metrics"]["train/log_likelihood"]
    found = measured(tmp_path, digits)
    assert answer["metrics"]["train/settled"] == 1 and 3 < answer["steps"] < 100
    assert abs(found["test/log_prob"] - curve) < 3 and found["test/cluster_accuracy"] > 60
    assert model[0].encode(torch.rand(5, 64)).sum(1).sub(1).abs().max() < 1e-5


def test_a_component_without_variance_is_one_line() -> None:
    x = torch.cat([torch.randn(50, 2), torch.full((9, 2), 40.0)])
    model = GaussianMixture(num_visible=2, num_components=2, covariance="full", regularization=0.0)
    with pytest.raises(
        ValueError, match=r"component \d, on 9.0 samples, is not positive definite; raise regularization"
    ):
        model.start(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": 0}, "num_components must be at least 1, not 0"),
        ({"regularization": -1.0}, "regularization must be 0 or more"),
        ({"tolerance": -1.0}, "tolerance must be 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**{"num_visible": 4, "num_components": 2, **arguments})
