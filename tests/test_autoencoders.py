"""Autoencoders against finite differences, Jacobians, principal components and counting.

Seeds are fixed; the one test that counts random events states its false-alarm rate. What penalties and noise do in
training stands in `test_autoencoders_learning`.
"""

from __future__ import annotations

import math
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
PENALIZED = [
    {"num_active": 2},
    {"activation": "relu", "num_active": 1, "contraction": 0.3},
    {"activation": "linear", "num_active": 2, "contraction": 0.3, "loss": "squared_error"},
    {"sparsity_target": 0.1, "sparsity_cost": 2.0},
    {"sparsity_target": 0.1, "contraction": 0.3, "tied": False},
    {"contraction": 0.3},
]


@pytest.mark.parametrize("variant", VARIANTS + PENALIZED, ids=lambda v: "-".join(map(str, v.values())))
def test_gradient_is_the_slope_of_the_loss(variant: dict[str, Any]) -> None:
    """Central differences in double precision; deterministic."""
    torch.manual_seed(0)
    model = randomized(**variant)
    v = torch.rand(4, 5, dtype=torch.double)
    model.losses(v)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, finite_differences(model, parameter, v), rtol=1e-6, atol=1e-8, msg=name
        )


def randomized(**arguments: Any) -> Autoencoder:
    """In evaluation mode: its moving averages stay where they are."""
    model = Autoencoder(**{"num_visible": 5, "num_hidden": 3} | arguments).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if model.sparsity is not None:
            model.sparsity.activity.uniform_(0.02, 0.98)
    return model


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


# ------------------------------------------------------------------------------------------------ penalties


def test_the_largest_are_kept_as_they_are_and_the_others_are_zero() -> None:
    torch.manual_seed(0)
    for activation in ("sigmoid", "relu", "linear"):
        model, v = randomized(num_hidden=9, num_active=4, activation=activation), torch.randn(20, 5).double()
        every = randomized(num_hidden=9, activation=activation)
        every.load_state_dict(model.state_dict())
        for code, values in zip(model.encode(v).tolist(), every.encode(v).tolist(), strict=True):
            fourth = sorted(values)[-4]
            assert code == [value if value >= fourth else 0.0 for value in values]
    assert torch.equal(randomized(num_active=3).encode(v) == 0, torch.zeros(20, 3) > 0)


@pytest.mark.parametrize("num_active", [None, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "linear"])
def test_contraction_is_the_jacobians_squared_norm(activation: str, num_active: int | None) -> None:
    """Where the code was taken: of the corrupted data."""
    torch.manual_seed(0)
    model = randomized(
        num_hidden=9, activation=activation, num_active=num_active, contraction=0.7, noise="masking", noise_level=0.3
    )
    plain = randomized(num_hidden=9, activation=activation, num_active=num_active, noise="masking", noise_level=0.3)
    plain.load_state_dict(model.state_dict())
    v = torch.randn(6, 5).double().sigmoid()
    torch.manual_seed(1)
    seen = model.corruption(v)
    norms = [torch.autograd.functional.jacobian(model.encode, one[None]).square().sum() for one in seen]
    torch.manual_seed(1)
    losses = model.losses(v)
    torch.manual_seed(1)
    without = plain.losses(v)
    torch.testing.assert_close(losses["jacobian_norm"], torch.stack(norms).mean())
    torch.testing.assert_close(losses["loss"], without["loss"] + 0.7 * torch.stack(norms).mean())
    assert "jacobian_norm" not in without


def test_the_sparsity_penalty_is_the_divergence_from_the_target() -> None:
    """By hand, where the moving average is the batch's own mean; its gradient is then that of the divergence itself."""
    torch.manual_seed(0)
    model, v = randomized(sparsity_target=0.1, sparsity_cost=2.0), torch.rand(7, 5).double()
    plain = randomized()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert model.sparsity is not None
    means = model.encode(v).mean(0).detach()
    model.sparsity.activity.copy_(means)
    loss, without = model.losses(v)["loss"], plain.losses(v)["loss"]
    by_hand = sum(0.1 * math.log(0.1 / q) + 0.9 * math.log(0.9 / (1 - q)) for q in means.tolist())
    assert (loss - without).item() == pytest.approx(2 * by_hand, rel=1e-9)
    means = model.encode(v).mean(0)
    divergence = 2 * (0.1 * (0.1 / means).log() + 0.9 * (0.9 / (1 - means)).log()).sum()
    with_penalty = torch.autograd.grad(loss, [model.weights, model.hidden_bias])
    without_it = torch.autograd.grad(without, [plain.weights, plain.hidden_bias])
    penalty = torch.autograd.grad(divergence, [model.weights, model.hidden_bias])
    for whole, part, rest in zip(with_penalty, without_it, penalty, strict=True):
        torch.testing.assert_close(whole - part, rest)


def test_activity_follows_codes_in_training_and_units_that_died_come_back() -> None:
    torch.manual_seed(0)
    model = Autoencoder(num_visible=5, num_hidden=3, sparsity_target=0.2)
    assert model.sparsity is not None and torch.equal(model.moving_averages()[0], torch.full((3,), 0.2))
    v = torch.rand(8, 5)
    expected = 0.95 * 0.2 + 0.05 * model.encode(v).mean(0)
    assert model.losses(v)["hidden_activity"] == pytest.approx(model.encode(v).mean().item())
    torch.testing.assert_close(model.moving_averages()[0], expected.detach())
    model.eval().losses(v)
    torch.testing.assert_close(model.moving_averages()[0], expected.detach())
    model.sparsity.activity.zero_()
    model.losses(v)["loss"].backward()
    assert model.hidden_bias.grad is not None and model.hidden_bias.grad.isfinite().all()
    assert (model.hidden_bias.grad < 0).all()
    assert list(Autoencoder(num_visible=5, num_hidden=3).moving_averages()) == []


def test_two_halves_of_a_batch_give_the_gradient_and_the_activity_of_the_whole() -> None:
    """What two ranks do: gradients and moving averages are averaged over them."""
    torch.manual_seed(0)
    model, v = randomized(sparsity_target=0.1, contraction=0.2), torch.rand(8, 5).double()
    assert model.sparsity is not None
    start, found = model.sparsity.activity.clone(), {}
    for name, batch in {"whole": v, "low": v[:4], "high": v[4:]}.items():
        model.sparsity.activity.copy_(start)
        model.train().zero_grad()
        model.losses(batch)["loss"].backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found[name] = [*gradients, model.sparsity.activity.clone()]
    for whole, low, high in zip(*found.values(), strict=True):
        torch.testing.assert_close((low + high) / 2, whole)


# ------------------------------------------------------------------------------------------------ noise


def corrupted(noise: Any, level: float, v: Tensor) -> Tensor:
    torch.manual_seed(0)
    return Autoencoder(num_visible=v.shape[1], num_hidden=2, noise=noise, noise_level=level).corruption(v)


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
        {"noise": "gaussian", "noise_level": -1.0}, {"num_active": 3}, {"contraction": -0.1},
        {"contraction": math.nan}, {"sparsity_target": 1.0}, {"sparsity_target": 0.1, "sparsity_cost": 0.0},
        {"sparsity_target": 0.1, "activation": "relu"}, {"sparsity_target": 0.1, "num_active": 1},
    ],
)  # fmt: skip
def test_contradictions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Autoencoder(**({"num_visible": 3, "num_hidden": 2} | wrong))
