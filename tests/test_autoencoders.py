"""Autoencoders against finite differences, principal components and counting.

Seeds are fixed; the one test that counts random events states its false-alarm rate.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from lightning_modules.autoencoders import Autoencoder

VARIANTS = [
    {"activation": activation, "tied": tied, "loss": loss}
    for activation in ("sigmoid", "relu", "linear")
    for tied in (True, False)
    for loss in ("cross_entropy", "squared_error")
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_gradient_is_the_slope_of_the_loss(variant: dict[str, Any]) -> None:
    """Central differences in double precision; deterministic."""
    torch.manual_seed(0)
    model = Autoencoder(num_visible=5, num_hidden=3, **variant).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    v = torch.rand(4, 5, dtype=torch.double)
    model.losses(v)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, finite_differences(model, parameter, v), rtol=1e-6, atol=1e-8, msg=name
        )


def finite_differences(model: Autoencoder, parameter: Tensor, v: Tensor, step: float = 1e-5) -> Tensor:
    slopes = torch.zeros_like(parameter)
    with torch.no_grad():
        for position in range(parameter.numel()):
            flat = parameter.view(-1)
            flat[position] += step
            above = model.losses(v)["loss"]
            flat[position] -= 2 * step
            below = model.losses(v)["loss"]
            flat[position] += step
            slopes.view(-1)[position] = (above - below) / (2 * step)
    return slopes


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_losses_are_nats_per_example(loss: Any) -> None:
    """− log p(v | code) under Bernoulli units, and under Gaussian units of deviation 1 less their constant."""
    torch.manual_seed(0)
    model, v = Autoencoder(num_visible=5, num_hidden=3, loss=loss), torch.rand(7, 5).round()
    mean = model.decode(model.encode(v))
    if loss == "cross_entropy":
        expected = -Bernoulli(mean).log_prob(v)
    else:
        expected = Normal(v, 1.0).log_prob(v) - Normal(mean, 1.0).log_prob(v)
    losses = model.losses(v)
    torch.testing.assert_close(losses["loss"], expected.sum(1).mean())
    torch.testing.assert_close(losses["reconstruction_error"], (v - mean).square().sum(1).mean().detach())


def test_tied_weights_are_one_parameter() -> None:
    tied = Autoencoder(num_visible=5, num_hidden=3, activation="linear", loss="squared_error")
    assert {name: tuple(p.shape) for name, p in tied.named_parameters()} == {
        "weights": (5, 3), "hidden_bias": (3,), "visible_bias": (5,),
    }  # fmt: skip
    v = torch.rand(2, 5)
    expected = v @ tied.weights @ tied.weights.T
    torch.testing.assert_close(tied.decode(tied.encode(v)), expected)
    untied = Autoencoder(num_visible=5, num_hidden=3, tied=False)
    assert sum(p.numel() for p in untied.parameters()) == 2 * 15 + 8


def test_filters_are_the_rows_that_codes_look_through() -> None:
    model = Autoencoder(num_visible=5, num_hidden=3, activation="linear", loss="squared_error")
    v = torch.rand(2, 5)
    torch.testing.assert_close(model.filters() @ v.T, model.encode(v).T)


def test_linear_tied_autoencoder_finds_the_principal_subspace() -> None:
    """Baldi & Hornik 1989: its only minimum. Sines of all principal angles below 0.02; deterministic given the seed."""
    torch.manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 1.5, 0.5, 0.4, 0.3])
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    x = torch.randn(500, 6) * scales @ rotation.T
    x = x - x.mean(0)
    model = Autoencoder(num_visible=6, num_hidden=3, activation="linear", loss="squared_error")
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.losses(x)["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    principal = torch.linalg.svd(x, full_matrices=False).Vh[:3].T  # (6, 3)
    learned = torch.linalg.qr(model.weights.detach()).Q
    cosines = torch.linalg.svdvals(principal.T @ learned)
    assert (1 - cosines.square()).clamp(min=0).sqrt().max() < 0.02
    remaining = torch.linalg.svdvals(x)[3:].square().sum() / 500
    torch.testing.assert_close(model.losses(x)["reconstruction_error"], remaining, rtol=1e-3, atol=0)


def corrupted(noise: Any, level: float, v: Tensor) -> Tensor:
    torch.manual_seed(0)
    return Autoencoder(num_visible=v.shape[1], num_hidden=2, noise=noise, noise_level=level)._corrupt(v)


def test_corruption_hits_its_share() -> None:
    """100,000 components, shares within 4 standard errors: each of four fails by chance at 6e-5."""
    v = torch.full((1000, 100), 0.5)
    for level in (0.1, 0.3):
        tolerance = 4 * (level * (1 - level) / v.numel()) ** 0.5
        assert abs((corrupted("masking", level, v) == 0).float().mean() - level) < tolerance
        hit = corrupted("salt_and_pepper", level, v)
        assert abs((hit != 0.5).float().mean() - level) < tolerance
        share_salt = (hit == 1).sum() / (hit != 0.5).sum()
        assert abs(share_salt - 0.5) < 4 * 0.5 / (level * v.numel()) ** 0.5
    added = corrupted("gaussian", 0.2, v) - v
    assert abs(added.std() - 0.2) < 4 * 0.2 / (2 * v.numel()) ** 0.5


def test_only_the_loss_sees_corrupted_data_and_the_target_is_clean() -> None:
    """With everything masked the best reconstruction of the clean data is their mean, whatever the code."""
    torch.manual_seed(0)
    v = torch.rand(50, 4)
    model = Autoencoder(num_visible=4, num_hidden=3, noise="masking", noise_level=1.0)
    clean = Autoencoder(num_visible=4, num_hidden=3)
    clean.load_state_dict(model.state_dict())
    assert torch.equal(model.encode(v), clean.encode(v))
    optimizer = torch.optim.SGD([model.visible_bias], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        model.losses(v)["loss"].backward()
        optimizer.step()
    torch.testing.assert_close(model.decode(model.encode(torch.zeros(1, 4)))[0], v.mean(0), rtol=0, atol=1e-3)


def test_cross_entropy_stays_finite_at_any_field() -> None:
    model = Autoencoder(num_visible=2, num_hidden=2)
    with torch.no_grad():
        model.visible_bias.copy_(torch.tensor([1e4, -1e4]))
    loss = model.losses(torch.tensor([[0.0, 1.0]]))["loss"]
    assert loss.isfinite() and loss > 1e4


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_hidden": 0}, {"noise_level": 0.1}, {"noise": "masking"}, {"noise": "masking", "noise_level": 1.5},
        {"noise": "gaussian", "noise_level": -1.0},
    ],
)  # fmt: skip
def test_contradictions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Autoencoder(**({"num_visible": 3, "num_hidden": 2} | wrong))
