"""Parallel tempering against the machines of its temperatures, and where a single temperature stays stuck."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_modules.boltzmann import RBM
from lightning_modules.tempering import ParallelTempering
from tests.tiny_rbms import all_states, random_rbm, some_data


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def two_modes(algorithm: str, **arguments: object) -> RBM:
    """Twelve units of which the first six are on or, half as often, the last six; hardly ever anything between.

    One hidden unit h: v_i has the field ±8 for h = 1 and ∓8 for h = 0.
    """
    rbm = RBM(num_visible=12, num_hidden=1, algorithm=algorithm, **arguments).double()  # type: ignore[arg-type]
    sign = torch.tensor([1.0] * 6 + [-1.0] * 6, dtype=torch.float64)
    with torch.no_grad():
        rbm.weights.copy_(16 * sign[:, None])
        rbm.visible_bias.copy_(-8 * sign)
        rbm.hidden_bias.fill_(math.log(2))  # p(h = 1) = 2/3, as A_v is the same for both by symmetry
    return rbm


def occupancy(chains: Tensor) -> float:
    """The share of chains whose last six units are on rather than the first."""
    return (chains[:, 6:].sum(1) > chains[:, :6].sum(1)).double().mean().item()


def test_replicas_cross_between_modes_where_plain_chains_stay() -> None:
    """All chains begin in the one mode; after 300 steps a third of 2000 must be in the other: 4.5 s.e. of 0.0105, false
    alarm 7 in a million runs. A plain chain would need a sweep of probability below e^−40.
    """
    data = torch.zeros(2, 12).double()
    mode = torch.tensor([1.0] * 6 + [0.0] * 6).double()
    plain = two_modes("pcd", num_chains=2000)
    plain.load_rank_state({"chains": mode.expand(2000, -1).clone()})
    tempered = two_modes("parallel_tempering", num_chains=2000, num_temperatures=10)
    tempered.load_rank_state({"chains": mode.expand(2000, 10, -1).clone()})
    for _ in range(300):
        plain.losses(data)
        monitors = tempered.losses(data)
    assert occupancy(plain.rank_state()["chains"]) == 0
    assert abs(occupancy(tempered.rank_state()["chains"][:, -1]) - 1 / 3) < 4.5 * math.sqrt(2 / 9 / 2000)
    assert 0.05 < monitors["swap_acceptance"] < 1


def test_fast_weights_need_not_be_learned_for_long_to_leave_a_mode() -> None:
    """A machine with two modes: plain chains stay where they are, those driven by fast weights go over."""
    left = {}
    for algorithm in ("pcd", "fast_pcd"):
        rbm = two_modes(algorithm, num_chains=100, fast_learning_rate=0.5)
        data = torch.tensor([[1.0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]).repeat(20, 1).double()
        rbm.load_rank_state({"chains": data[:1].repeat(100, 1)})
        for _ in range(30):
            rbm.zero_grad()
            rbm.losses(1 - data)["loss"].backward()
            rbm.after_step()  # but no step of the learned weights
        left[algorithm] = occupancy(rbm.rank_state()["chains"])
    assert left["pcd"] < 0.05 < 0.5 < left["fast_pcd"]


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_every_replica_follows_the_machine_of_its_temperature(visible: str) -> None:
    """Means of six units at five temperatures, 4.5 s.e. of 10,000 chains: false alarm 2 in 10,000 runs of each."""
    rbm = random_rbm(visible=visible, scale=0.7, algorithm="parallel_tempering", num_chains=10_000, num_temperatures=5)
    rbm.base_field.copy_(torch.linspace(-1, 1, 6))
    for _ in range(25):
        rbm.losses(some_data(rbm))
    chains, h = rbm.rank_state()["chains"], all_states(4)
    for replica, beta in enumerate(torch.linspace(0, 1, 5, dtype=torch.float64)):
        bias = (1 - beta) * rbm.base_field + beta * rbm.visible_bias
        field = bias + beta * h @ rbm.weights.t()
        log_weight = beta * h @ rbm.hidden_bias + rbm.visible_units.log_partition(field)
        expected = torch.softmax(log_weight, dim=0) @ rbm.visible_units.mean(field)
        found = chains[:, replica]
        assert ((found.mean(0) - expected).abs() < 4.5 * found.std(0) / math.sqrt(10_000)).all(), replica


@pytest.mark.parametrize("num_temperatures", [2, 3, 6])
def test_replicas_change_places_with_the_metropolis_probability(num_temperatures: int) -> None:
    """One swap of pairs at random states: replicas are the same set as before, exchanged as often as the formula says.

    40,000 chains, 4.5 s.e. for each pair: false alarm less than 1 in 10,000 runs of each.
    """
    rbm = random_rbm(scale=1.0)
    rbm.base_field.normal_()
    machine, number = rbm.machine(), 40_000
    states = (torch.rand(num_temperatures, 6) > 0.5).double()
    betas = torch.linspace(0, 1, num_temperatures, dtype=torch.float64)
    phase = ParallelTempering(1, states.expand(number, -1, -1))
    for first in (0, 1):
        with torch.no_grad():
            moved, accepted = phase._swap(machine, states.expand(number, -1, -1), betas[:, None], first)
        assert torch.equal(moved.sum(1), states.sum(0).expand(number, -1))
        for pair, low in enumerate(range(first, num_temperatures - 1, 2)):
            log_p = torch.stack(  # [which β, which state]
                [
                    states @ ((1 - beta) * rbm.base_field + beta * rbm.visible_bias)
                    + torch.nn.functional.softplus(beta * rbm.hidden_field(states)).sum(1)
                    for beta in betas
                ]
            )
            ratio = log_p[low, low + 1] + log_p[low + 1, low] - log_p[low, low] - log_p[low + 1, low + 1]
            expected = min(1.0, ratio.exp().item())
            tolerance = 4.5 * math.sqrt(expected * (1 - expected) / number)
            assert abs(accepted[:, pair].mean().item() - expected) <= tolerance, (first, pair)
            exchanged = (moved[:, low] == states[low + 1]).all(1) & (moved[:, low + 1] == states[low]).all(1)
            assert torch.equal(exchanged, accepted[:, pair] == 1) or torch.equal(states[low], states[low + 1])
