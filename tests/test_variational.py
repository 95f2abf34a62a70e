"""Variational autoencoders against closed forms: pPCA's marginal likelihood, KL divergences, gradients of moments.

Monte Carlo comparisons allow 4 standard errors with fixed seeds: a false alarm has probability 6e-5 each.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from lightning_modules.interfaces import Effort
from lightning_modules.variational import VAE, kl_from_standard_normal, reparameterised


def affine(network: nn.Sequential) -> nn.Linear:
    """The only map of a perceptron without hidden layers."""
    (layer,) = network
    assert isinstance(layer, nn.Linear)
    return layer


def ppca(num_visible: int = 6, num_latent: int = 2, std: float = 0.7) -> tuple[VAE, MultivariateNormal, Tensor]:
    """A linear VAE set to the exact posterior of x = W z + c + std ε; its marginal; 200 draws from it.

    Posterior: N(M⁻¹ Wᵀ (x − c), std² M⁻¹), M = WᵀW + std² I (Tipping & Bishop 1999, eq. 6 f.). The encoder's covariance
    is diagonal, so W has orthogonal columns.
    """
    model = VAE(num_visible=num_visible, num_latent=num_latent, hidden=(), likelihood="gaussian").double()
    weights = torch.linalg.qr(torch.randn(num_visible, num_latent, dtype=torch.double)).Q
    weights = weights * torch.tensor([2.0, 1.2], dtype=torch.double)
    offset = torch.randn(num_visible, dtype=torch.double)
    precision = weights.square().sum(0) + std**2  # the diagonal of M
    to_mean = (weights / precision).T
    log_std = 0.5 * torch.log(std**2 / precision)
    decoder, encoder = affine(model.decoder), affine(model.encoder)
    with torch.no_grad():
        decoder.weight.copy_(weights)
        decoder.bias.copy_(offset)
        encoder.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        encoder.bias.copy_(torch.cat([-to_mean @ offset, 7 * torch.atanh(log_std / 7)]))
        assert model.visible_log_std is not None
        model.visible_log_std.fill_(math.log(std))
    covariance = weights @ weights.T + std**2 * torch.eye(num_visible, dtype=torch.double)
    marginal = MultivariateNormal(offset, covariance)
    return model, marginal, marginal.sample((200,))


def test_the_bound_is_exact_where_the_posterior_is() -> None:
    """Then every importance weight equals p(x): no Monte Carlo error at all."""
    torch.manual_seed(0)
    model, marginal, x = ppca()
    exact = marginal.log_prob(x)
    torch.testing.assert_close(model.log_weights(x, 3), exact.expand(3, -1), rtol=0, atol=1e-10)
    answer = model.log_prob(x, effort=Effort(num_samples=5))
    torch.testing.assert_close(answer.nats.double(), exact, rtol=0, atol=1e-5)
    assert (answer.kind, answer.estimator) == ("lower_bound", "IW-5")


def test_the_trained_linear_vae_reaches_ppca() -> None:
    """The ELBO comes within 0.5 nat of the maximum likelihood, and not above it beyond 4 s.e. (false alarm 3e-5)."""
    torch.manual_seed(0)
    _, _, x = ppca()
    x = x.float()
    model = VAE(num_visible=6, num_latent=2, hidden=(), likelihood="gaussian")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        model.losses(x)["loss"].backward()
        optimizer.step()
        model.after_step()
    best = ppca_maximum_likelihood(x, num_latent=2)
    with torch.no_grad():
        elbos = torch.stack([-model.losses(x)["loss"] for _ in range(200)])
    assert best - 0.5 < elbos.mean() < best + 4 * elbos.std() / math.sqrt(200)


def ppca_maximum_likelihood(x: Tensor, num_latent: int) -> float:
    """max over W, std of the mean log p(x), nats per example (Tipping & Bishop 1999, eq. 7 f.)."""
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    variance = eigenvalues[num_latent:].mean()
    log_determinant = eigenvalues[:num_latent].log().sum() + (len(eigenvalues) - num_latent) * variance.log()
    return float(-0.5 * (len(eigenvalues) * math.log(2 * math.pi) + log_determinant + len(eigenvalues)))


def test_bounds_rise_with_samples_towards_the_likelihood() -> None:
    """L_1 ≤ L_5 ≤ L_50 ≤ log p(x) (Burda et al. 2016, theorem 1), paired over 10,000 draws of posterior samples."""
    torch.manual_seed(0)
    model, marginal, x = ppca()
    with torch.no_grad():
        affine(model.encoder).weight.mul_(0.8)  # a posterior that is off, so that the bounds differ
        affine(model.encoder).bias.add_(0.3)
    x, repeats = x[:4], 10_000
    with torch.no_grad():
        weights = model.log_weights(x, 50 * repeats).view(repeats, 50, 4)
    bounds = {k: (weights[:, :k].logsumexp(1) - math.log(k)).mean(1) for k in (1, 5, 50)}  # (repeats,)
    exact = marginal.log_prob(x).mean()
    for low, high in ((bounds[1], bounds[5]), (bounds[5], bounds[50]), (bounds[50], exact.expand(repeats))):
        gap = high - low
        assert gap.mean() > -4 * gap.std() / math.sqrt(repeats)
    assert bounds[5].mean() - bounds[1].mean() > 0.05  # the test can tell them apart
    assert exact - bounds[50].mean() < 0.05
    closed_form_elbo = -torch.stack([model.losses(x)["loss"].detach() for _ in range(2000)])
    error = math.hypot(closed_form_elbo.std() / math.sqrt(2000), bounds[1].std() / math.sqrt(repeats))
    assert abs(closed_form_elbo.mean() - bounds[1].mean()) < 4 * error


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_loss_is_the_sum_of_its_parts(likelihood: Any) -> None:
    torch.manual_seed(0)
    model = VAE(num_visible=12, num_latent=3, hidden=(8,), likelihood=likelihood)
    parts = model.losses(torch.rand(20, 12).round())
    torch.testing.assert_close(parts["loss"], parts["reconstruction"] + parts["kl"], rtol=0, atol=1e-5)


def test_kl_is_the_closed_form() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.randn(5, 3), torch.randn(5, 3)
    prior = Normal(torch.zeros(5, 3), torch.ones(5, 3))
    kl = kl_from_standard_normal(mean, log_std)
    torch.testing.assert_close(kl, kl_divergence(Normal(mean, log_std.exp()), prior).sum(-1))
    posterior = Normal(mean, log_std.exp())
    z = posterior.sample((100_000,))
    draws = (posterior.log_prob(z) - prior.log_prob(z)).sum(-1)  # (100000, 5)
    assert ((draws.mean(0) - kl).abs() < 4 * draws.std(0) / math.sqrt(len(draws))).all()
    assert (kl > 0).all() and kl_from_standard_normal(torch.zeros(1, 3), torch.zeros(1, 3)) == 0
    tiny = kl_from_standard_normal(torch.zeros(1000, 1), 1e-3 * torch.randn(1000, 1))
    assert (tiny >= -1e-9).all()


def test_reparameterised_gradients_are_unbiased_and_quiet() -> None:
    """Slopes of E z² = μ² + σ² and E sin z = sin(μ) e^{−σ²/2} in μ and log σ; 10 times the variance by the score."""
    torch.manual_seed(0)
    mu, log_sigma, draws = 1.5, -0.4, 100_000
    sigma = math.exp(log_sigma)
    damped = math.exp(-(sigma**2) / 2)
    for function, slopes in (
        (torch.square, (2 * mu, 2 * sigma**2)),
        (torch.sin, (math.cos(mu) * damped, -(sigma**2) * math.sin(mu) * damped)),
    ):
        mean = torch.full((draws,), mu, requires_grad=True)
        log_std = torch.full((draws,), log_sigma, requires_grad=True)
        function(reparameterised(mean, log_std)).sum().backward()
        for gradient, slope in zip((mean.grad, log_std.grad), slopes, strict=True):
            assert gradient is not None
            assert abs(gradient.mean() - slope) < 4 * gradient.std() / math.sqrt(draws)
        if function is torch.square:
            z = mu + sigma * torch.randn(draws)
            score = z.square() * (z - mu) / sigma**2
            assert mean.grad is not None and score.var() > 10 * mean.grad.var()


def test_the_evaluation_is_the_same_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, marginal, x = ppca()
    monkeypatch.setattr("lightning_modules.variational._CHUNK", 1)
    answer = model.log_prob(x, effort=Effort(num_samples=7))
    torch.testing.assert_close(answer.nats.double(), marginal.log_prob(x), rtol=0, atol=1e-5)
    assert answer.estimator == "IW-7"


def test_numbers_stay_finite_on_absurd_inputs() -> None:
    model = VAE(num_visible=3, num_latent=2, hidden=(4,), likelihood="gaussian")
    assert model.visible_log_std is not None
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(100)
        model.visible_log_std.fill_(-50.0)
    model.after_step()
    assert model.visible_log_std == -7
    losses = model.losses(100 * torch.ones(2, 3))
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_samples_have_the_moments_of_the_model() -> None:
    """Means of the decoder for z ~ N(0, I): offset c, covariance W Wᵀ."""
    torch.manual_seed(0)
    model, marginal, _ = ppca()
    draws = model.sample(50_000, effort=Effort())
    error = 4 * draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - marginal.mean).abs() < error).all()
    expected = marginal.covariance_matrix - 0.7**2 * torch.eye(6)
    torch.testing.assert_close(torch.cov(draws.T), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"num_latent": 0}, {"hidden": (3, 0)}, {"visible_std": 1.0}, {"likelihood": "gaussian", "visible_std": 0.0}],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        VAE(**({"num_visible": 3, "num_latent": 2} | wrong))


def test_a_fixed_standard_deviation_is_no_parameter() -> None:
    model = VAE(num_visible=3, num_latent=2, hidden=(), likelihood="gaussian", visible_std=0.5)
    assert model.visible_log_std is None
    x, z = torch.randn(4, 3), torch.zeros(4, 2)
    expected = Normal(model.decode(z), 0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(model._log_likelihood(x, z), expected)
