"""Chains on the way to a machine, against the definition of that way by enumeration, in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.annealing import RBMAnnealing, softplus_gain
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Effort


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_rbm(num_visible: int = 4, num_hidden: int = 3, *, scale: float = 1.0, **arguments: object) -> RBM:
    """Parameters drawn from N(0, scale²), double precision."""
    rbm = RBM(num_visible=num_visible, num_hidden=num_hidden, **arguments).double()  # type: ignore[arg-type]
    for parameter in rbm.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return rbm.requires_grad_(False)


def all_states(num_units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_units)), dtype=torch.float64)


def log_weight(rbm: RBM, base_field: Tensor, v: Tensor, beta: float) -> Tensor:
    """log p*_β(v) by summing over the hidden states, (batch,)."""
    h = all_states(rbm.num_hidden)
    bias = (1 - beta) * base_field + beta * rbm.visible_bias
    joint = (v @ bias)[:, None] + beta * (rbm.hidden_bias + v @ rbm.weights) @ h.t()
    return rbm.visible_units.log_base(v) + joint.logsumexp(1)


@pytest.mark.parametrize("num_units", [1, 7, 512, 1300])
@pytest.mark.parametrize(("beta", "next_beta"), [(0.0, 1e-4), (0.3, 0.3001), (0.0, 1.0), (0.999, 1.0)])
def test_softplus_gain_is_the_difference_of_two(num_units: int, beta: float, next_beta: float) -> None:
    """With fields of up to 1000, where a logistic function is 0 or 1 to the last bit."""
    field = torch.randn(5, num_units, dtype=torch.float64) * torch.tensor([[0.0], [1], [10], [100], [1000]])
    upper, lower = (torch.logaddexp(torch.zeros(()), factor * field) for factor in (next_beta, beta))
    expected = (upper - lower).sum(-1)
    torch.testing.assert_close(softplus_gain(field, beta, next_beta), expected, atol=1e-9, rtol=1e-9)
    single = softplus_gain(field.float(), beta, next_beta)
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, expected, atol=1e-7 * num_units, rtol=1e-5)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(("beta", "next_beta"), [(0.0, 0.3), (0.3, 0.35), (0.9, 1.0)])
def test_log_ratio_is_that_of_the_densities_on_the_way(visible: str, beta: float, next_beta: float) -> None:
    rbm = random_rbm(visible=visible)
    v, base_field = rbm.visible_units.sample(torch.randn(9, 4).double()), torch.randn(4).double()
    chains = RBMAnnealing(rbm.machine(), 9, base_field, start=v)
    expected = log_weight(rbm, base_field, v, next_beta) - log_weight(rbm, base_field, v, beta)
    torch.testing.assert_close(chains.log_ratio(beta, next_beta), expected)


def test_log_partition_at_the_start_is_that_of_independent_units() -> None:
    rbm, base_field = random_rbm(), torch.randn(4).double()
    expected = log_weight(rbm, base_field, all_states(4), 0.0).logsumexp(0).item()
    assert rbm.annealing(1, base_field).log_partition_at_start == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_step_keeps_its_distribution_and_detailed_balance(beta: float) -> None:
    """Of 200,000 chains drawn from p_β as many go from one state to another as back: 136 comparisons at 4.5 s.e.,
    false alarm 1 in 1,000 runs of each.
    """
    rbm, base_field, number = random_rbm(scale=1.5), torch.randn(4).double(), 200_000
    probabilities = log_weight(rbm, base_field, all_states(4), beta).softmax(0)
    before = torch.multinomial(probabilities, number, replacement=True)
    chains = RBMAnnealing(rbm.machine(), number, base_field, start=all_states(4)[before])
    chains.step(beta)
    after = states_of(chains, rbm, base_field)
    counts = torch.bincount(16 * before + after, minlength=256).view(16, 16).double()
    assert ((counts - counts.t()).abs() <= 4.5 * (counts + counts.t()).sqrt()).all()
    error = torch.bincount(after, minlength=16) - number * probabilities
    assert (error.abs() < 4.5 * (number * probabilities).sqrt()).all()
    assert (before != after).double().mean() > 0.1


def states_of(chains: RBMAnnealing, rbm: RBM, base_field: Tensor) -> Tensor:
    """Which of all states each chain is in, told by log ratios, which differ from state to state."""
    names = RBMAnnealing(rbm.machine(), 16, base_field, start=all_states(4)).log_ratio(0.2, 0.7)
    found = (chains.log_ratio(0.2, 0.7)[:, None] - names).abs().min(1)
    assert found.values.max() < 1e-9 and (names[:, None] - names + torch.eye(16)).abs().min() > 1e-6
    return found.indices


def test_chains_begin_at_the_base_rates_of_the_data() -> None:
    """Twelve means at 4.5 s.e.: false alarm 8 in 100,000 runs. Without data it is the visible bias."""
    rbm, mean = random_rbm(), torch.tensor([0.1, 0.4, 0.7, 0.95]).double()
    assert log_partition_at_start(rbm) == pytest.approx(field_log_partition(rbm.visible_bias), abs=1e-10)
    rbm.start_from_data_mean(mean)
    torch.nn.init.normal_(rbm.visible_bias)
    assert log_partition_at_start(rbm) == pytest.approx(field_log_partition(torch.logit(mean)), abs=1e-10)
    rbm.weights.zero_()
    rbm.hidden_bias.zero_()
    rbm.visible_bias.copy_(rbm.base_field)
    drawn = rbm.sample(20_000, effort=Effort(num_temperatures=1))
    torch.testing.assert_close(drawn, mean.expand(20_000, -1))


def log_partition_at_start(rbm: RBM) -> float:
    return rbm.annealing(2).log_partition_at_start


def field_log_partition(field: Tensor) -> float:
    return functional.softplus(field).sum().item() + 3 * math.log(2)


def test_base_rates_are_saved_with_the_weights() -> None:
    rbm, other = random_rbm(), random_rbm()
    rbm.start_from_data_mean(torch.tensor([0.1, 0.4, 0.7, 0.95]))
    other.load_state_dict(rbm.state_dict())
    assert torch.equal(other.base_field, rbm.base_field) and rbm.base_field.any()
