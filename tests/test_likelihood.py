"""Estimates of log Z against enumeration, and the importance-weighted bound against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Effort
from lightning_modules.likelihood import (
    LogPartition,
    annealed_importance_sampling,
    binary_states,
    enumerated_log_partition,
    importance_weighted,
)
from tests.real_digits import mnist


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------ enumeration


@pytest.mark.parametrize("num_units", [1, 5, 13])
def test_enumerates_every_state_once(num_units: int) -> None:
    states = torch.cat(list(binary_states(num_units, like=torch.zeros(()))))
    numbers = states @ 2.0 ** torch.arange(num_units)
    assert torch.equal(numbers.sort().values, torch.arange(2.0**num_units))
    assert set(states.unique().tolist()) == {0.0, 1.0}


def test_log_partition_of_independent_units() -> None:
    """13 units, more states than are held at a time: Σ_s exp(η·s) = Π (1 + exp η)."""
    field = torch.randn(13, dtype=torch.float64)
    found = enumerated_log_partition(lambda states: states @ field, 13, like=field)
    assert found.kind == "exact" and found.std_error is None
    assert found.nats == pytest.approx(torch.nn.functional.softplus(field).sum().item(), abs=1e-10)


def test_enumeration_of_too_many_states_is_refused() -> None:
    with pytest.raises(ValueError, match=r"21 binary units means 2\^21 states; the limit is 2\^20"):
        enumerated_log_partition(lambda states: states.sum(1), 21, like=torch.zeros(()))


# ------------------------------------------------------------------------------------------------ AIS


def random_rbm(visible: str = "bernoulli", *, scale: float = 1.0) -> RBM:
    """8 visible and 6 hidden units, parameters from N(0, scale²), double precision."""
    rbm = RBM(num_visible=8, num_hidden=6, visible=visible).double()
    for parameter in rbm.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return rbm


def by_ais(rbm: RBM, effort: Effort, base_field: Tensor | None = None) -> LogPartition:
    with torch.no_grad():
        return annealed_importance_sampling(rbm.annealing(effort.num_chains, base_field), effort)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("base", ["visible bias", "other"])
def test_mean_weight_is_unbiased_however_few_the_temperatures(visible: str, base: str) -> None:
    """The printed standard error is twice the usual one: 4.5 s.e., false alarm 7 in a million runs of each."""
    rbm = random_rbm(visible, scale=0.4)
    base_field = 0.3 * torch.randn(8).double() if base == "other" else None
    exact = rbm.log_partition(effort=Effort())
    found = by_ais(rbm, Effort(num_chains=40_000, num_temperatures=4), base_field)
    assert exact.kind == "exact" and found.kind == "estimate"
    assert found.std_error is not None and found.std_error < 0.05
    assert abs(found.nats - exact.nats) < 2.25 * found.std_error


def test_standard_error_of_ais_is_twice_the_spread_of_repeated_estimates() -> None:
    """100 repetitions, s.e. of their spread 7 %; 35 % of tolerance: false alarm less than 1 in 100,000 runs."""
    rbm = random_rbm(scale=0.7)
    found = [by_ais(rbm, Effort(num_chains=200, num_temperatures=10)) for _ in range(100)]
    spread = torch.tensor([answer.nats for answer in found]).std().item()
    assert sum(answer.std_error or 0 for answer in found) / 100 == pytest.approx(2 * spread, rel=0.35)


def test_three_standard_errors_cover_the_exact_value() -> None:
    """At least 37 of 40; of 400 further ones all were covered: false alarm less than 1 in 1,000 runs."""
    rbm = random_rbm(scale=2.0)
    exact = rbm.log_partition(effort=Effort()).nats
    found = [by_ais(rbm, Effort(num_chains=50, num_temperatures=100)) for _ in range(40)]
    assert sum(abs(answer.nats - exact) < 3 * (answer.std_error or 0) for answer in found) >= 37


def test_effective_sample_size_tells_easy_from_hard() -> None:
    """Not a random test in effect: 100 of 100 chains where nothing is to be bridged, a few where there is no bridge."""
    easy, hard = random_rbm(scale=0.0), random_rbm(scale=4.0)
    many, few = Effort(num_chains=100, num_temperatures=10), Effort(num_chains=100, num_temperatures=1)
    assert by_ais(easy, many).effective_sample_size == pytest.approx(100)
    assert by_ais(easy, many).std_error == pytest.approx(0, abs=1e-6)
    size = by_ais(hard, few).effective_sample_size
    assert size is not None and 1 <= size < 30


def test_a_single_chain_claims_no_standard_error() -> None:
    assert by_ais(random_rbm(), Effort(num_chains=1, num_temperatures=10)).std_error is None


def digits() -> Tensor:
    """1797 handwritten digits, binarised at half intensity, (1797, 64)."""
    return torch.from_numpy(load_digits().data > 8).float()


@pytest.mark.parametrize(("source", "num_hidden"), [(digits, 14), (mnist, 20)])
def test_ais_finds_log_z_of_a_trained_machine(source, num_hidden: int) -> None:  # type: ignore[no-untyped-def]
    """100 chains × 5000 temperatures within 0.5 nat (Salakhutdinov & Murray 2008); the error's spread is below 0.1."""
    data = source()
    rbm = RBM(num_visible=data.shape[1], num_hidden=num_hidden)
    rbm.start_from_data_mean(data.mean(0))
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        rbm.losses(data[torch.randint(len(data), (100,))])["loss"].backward()
        optimizer.step()
    exact = rbm.log_partition(effort=Effort())
    found = by_ais(rbm, Effort(num_chains=100, num_temperatures=5000))
    assert exact.kind == "exact" and found.std_error is not None
    assert abs(found.nats - exact.nats) < 0.5
    assert abs(found.nats - exact.nats) < 3 * found.std_error


# ------------------------------------------------------------------------------------------------ bounds


def test_importance_weighted_bound_is_the_log_of_the_mean_weight() -> None:
    log_weights = torch.randn(7, 3, dtype=torch.float64) - 1000  # e^−1000 is 0 in double precision
    found = importance_weighted(log_weights, Effort(num_samples=7))
    expected = (log_weights + 1000).exp().mean(0).log() - 1000
    torch.testing.assert_close(found.nats, expected)
    assert (found.kind, found.estimator) == ("lower_bound", "IW-7")
    weights = (log_weights + 1000).exp()
    assert found.effective_sample_size == pytest.approx((weights.sum(0) ** 2 / (weights**2).sum(0)).mean().item())


def test_one_sample_is_the_elbo_and_claims_no_standard_error() -> None:
    log_weights = torch.randn(1, 3)
    found = importance_weighted(log_weights, Effort(num_samples=1))
    torch.testing.assert_close(found.nats, log_weights[0])
    assert found.std_error is None and found.effective_sample_size == pytest.approx(1)


def test_equal_weights_are_certain() -> None:
    found = importance_weighted(torch.full((50, 4), -3.0), Effort(num_samples=50))
    torch.testing.assert_close(found.nats, torch.full((4,), -3.0))
    assert found.std_error == pytest.approx(0, abs=1e-6)
    assert found.effective_sample_size == pytest.approx(50)


def test_standard_error_is_the_spread_of_repeated_bounds() -> None:
    """500 repetitions, s.e. of their spread 3 %; 15 % of tolerance: false alarm 2 in a million runs."""
    bounds, std_errors = [], []
    for _ in range(500):
        found = importance_weighted(0.7 * torch.randn(200, 4, dtype=torch.float64), Effort(num_samples=200))
        bounds.append(found.nats.mean())
        std_errors.append(found.std_error or math.nan)
    assert sum(std_errors) / 500 == pytest.approx(torch.stack(bounds).std().item(), rel=0.15)
