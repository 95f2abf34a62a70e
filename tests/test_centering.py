"""Centered gradients and sparse activity: exact relations to the plain gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_modules.boltzmann import RBM
from lightning_modules.centering import Centering
from tests.tiny_rbms import gradients, probabilities, random_rbm, some_data


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------ centering


def directions(rbm: RBM, data: Tensor, model: Tensor, visible: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    """ΔW, Δb, Δc of the free energy difference for given offsets."""
    centering = Centering(6, 4).double()
    centering.visible_offset.copy_(visible)
    centering.hidden_offset.copy_(hidden)
    machine = rbm.machine()
    weights, visible_bias, hidden_bias = centering(rbm.weights, rbm.visible_bias, rbm.hidden_bias)
    machine = replace(machine, weights=weights, visible_bias=visible_bias, hidden_bias=hidden_bias)
    field = rbm.hidden_field(torch.cat([data, model])).detach()
    return gradients(rbm, machine.free_energy_difference(torch.cat([data, model]), field, len(data)))


def test_centered_gradient_without_offsets_is_the_plain_one() -> None:
    rbm = random_rbm()
    data, model = some_data(rbm), some_data(rbm, 3)
    found = directions(rbm, data, model, torch.zeros(6), torch.zeros(4))
    plain = gradients(rbm, rbm.free_energy_difference(data, model))
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_offsets_halfway_between_data_and_model_give_the_enhanced_gradient() -> None:
    """Cho, Raiko & Ilin 2011: covariances instead of products; biases by means minus the weights' part."""
    rbm = random_rbm()
    data, model = some_data(rbm), some_data(rbm, 3)
    h_data, h_model = rbm.encode(data).detach(), rbm.encode(model).detach()
    mu, lam = (data.mean(0) + model.mean(0)) / 2, (h_data.mean(0) + h_model.mean(0)) / 2

    def covariance(v: Tensor, h: Tensor) -> Tensor:
        return (v - v.mean(0)).t() @ (h - h.mean(0)) / len(v)

    weights = covariance(data, h_data) - covariance(model, h_model)
    visible = data.mean(0) - model.mean(0) - weights @ lam
    hidden = h_data.mean(0) - h_model.mean(0) - weights.t() @ mu
    found = directions(rbm, data, model, mu, lam)
    torch.testing.assert_close(found, (-weights, -visible, -hidden))


def test_a_centered_step_is_a_plain_step_of_the_centered_parametrisation() -> None:
    """E = −(v − μ)ᵀ W (h − λ) − b'·v − c'·h by autograd, whatever the offsets."""
    rbm = random_rbm()
    data, model = some_data(rbm), some_data(rbm, 3)
    mu, lam, rate = torch.rand(6).double(), torch.rand(4).double(), 0.1
    weights = rbm.weights.detach().clone().requires_grad_()
    visible = (rbm.visible_bias + rbm.weights @ lam).detach().requires_grad_()
    hidden = (rbm.hidden_bias + rbm.weights.t() @ mu).detach().requires_grad_()

    def free_energy(v: Tensor) -> Tensor:
        field = hidden + (v - mu) @ weights
        return -v @ visible + (v - mu) @ weights @ lam - torch.nn.functional.softplus(field).sum(1)

    steps = torch.autograd.grad(free_energy(data).mean() - free_energy(model).mean(), [weights, visible, hidden])
    weights, visible, hidden = (p.detach() - rate * s for p, s in zip((weights, visible, hidden), steps, strict=True))
    found = directions(rbm, data, model, mu, lam)
    torch.testing.assert_close(rbm.weights - rate * found[0], weights)
    torch.testing.assert_close(rbm.visible_bias - rate * found[1], visible - weights @ lam)
    torch.testing.assert_close(rbm.hidden_bias - rate * found[2], hidden - weights.t() @ mu)


def test_offsets_start_at_the_data_and_follow_it_in_training_only() -> None:
    rbm = random_rbm(centered=True)
    mean = torch.linspace(0.1, 0.9, 6).double()
    rbm.start_from_data_mean(mean)
    centering = rbm.centering
    assert centering is not None
    torch.testing.assert_close(centering.visible_offset, mean)
    torch.testing.assert_close(centering.hidden_offset, rbm.encode(mean[None])[0].detach())
    before, data = centering.hidden_offset.clone(), some_data(rbm)
    rbm.eval().losses(data)
    assert torch.equal(centering.hidden_offset, before)
    rbm.train().losses(data)
    torch.testing.assert_close(centering.hidden_offset, 0.99 * before + 0.01 * rbm.encode(data).mean(0).detach())
    torch.testing.assert_close(centering.visible_offset, 0.99 * mean + 0.01 * data.mean(0))


@pytest.mark.parametrize("centered", [True, False])
def test_a_centered_machine_learns_a_picture_as_its_negative(centered: bool) -> None:
    """With v' = 1 − v in data and start, W' = −W, b' = −b, c' = c + Wᵀ1: the same distribution after every step, which
    plain gradients do not keep (Melchior, Fischer & Wiskott 2016, §3).
    """
    bright = random_rbm(scale=0.3, algorithm="exact", centered=centered)
    dark = random_rbm(algorithm="exact", centered=centered)
    data = (torch.rand(30, 6) < 0.85).double()
    bright.start_from_data_mean(data.mean(0))
    with torch.no_grad():
        dark.weights.copy_(-bright.weights)
        dark.visible_bias.copy_(-bright.visible_bias)
        dark.hidden_bias.copy_(bright.hidden_bias + bright.weights.sum(0))
    if centered:
        assert bright.centering is not None and dark.centering is not None
        dark.centering.visible_offset.copy_(1 - bright.centering.visible_offset)
        dark.centering.hidden_offset.copy_(bright.centering.hidden_offset)
    for _ in range(20):
        for rbm, x in ((bright, data), (dark, 1 - data)):
            rbm.zero_grad()
            rbm.losses(x)["loss"].backward()
            torch.optim.SGD(rbm.parameters(), lr=0.3).step()
    apart = (probabilities(bright) - probabilities(dark).flip(0)).abs().max()
    assert apart < 1e-12 if centered else apart > 1e-3


# ------------------------------------------------------------------------------------------------ sparsity


@pytest.mark.parametrize("centered", [False, True])
def test_sparsity_pulls_fields_by_how_far_activity_is_from_its_target(centered: bool) -> None:
    rbm = random_rbm(algorithm="exact", sparsity_target=0.1, sparsity_cost=0.5, centered=centered)
    plain = random_rbm(algorithm="exact", centered=centered)
    assert rbm.sparsity is not None
    rbm.sparsity.activity.copy_(torch.tensor([0.1, 0.2, 0.4, 0.05]))
    plain.load_state_dict(rbm.state_dict(), strict=False)
    data = some_data(rbm)
    losses, without = rbm.losses(data), plain.losses(data)
    torch.testing.assert_close(losses["loss"], without["loss"])
    torch.testing.assert_close(losses["hidden_activity"], rbm.encode(data).mean())
    weights, visible, hidden = (
        one - other
        for one, other in zip(gradients(rbm, losses["loss"]), gradients(plain, without["loss"]), strict=True)
    )
    pull = 0.5 * torch.tensor([0.0, 0.1, 0.3, -0.05]).double()
    torch.testing.assert_close(hidden, pull)
    torch.testing.assert_close(weights, torch.outer(data.mean(0), pull))
    assert visible.abs().max() < 1e-12


def test_a_sparsity_target_is_reached() -> None:
    """The mean activity of the hidden units, 0.1 within 0.03 where without a target it is above 0.25."""
    data = (torch.rand(200, 20) < torch.rand(20)).float()
    activity = {}
    for target in (None, 0.1):
        rbm = RBM(num_visible=20, num_hidden=10, sparsity_target=target, sparsity_cost=3.0)
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
        for _ in range(500):
            optimizer.zero_grad()
            rbm.losses(data)["loss"].backward()
            optimizer.step()
        activity[target] = rbm.encode(data).mean().item()
    assert activity[None] > 0.25
    assert activity[0.1] == pytest.approx(0.1, abs=0.03)
