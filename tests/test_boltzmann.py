"""RBMs against enumeration of all their states, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Effort
from tests.tiny_rbms import all_states, random_rbm, some_data

UNITS = ("bernoulli", "gaussian")  # the other families: test_families.py


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def energy(rbm: RBM, v: Tensor, h: Tensor) -> Tensor:
    """E(v, h) of the module's docstring, written out for one pair."""
    base = 0.0 if rbm.visible_range else -0.5 * (v @ v) - 0.5 * len(v) * math.log(2 * math.pi)
    return -base - rbm.visible_bias @ v - rbm.hidden_bias @ h - v @ rbm.weights @ h


def exact_probabilities(rbm: RBM) -> Tensor:
    """p(v) of all states of a Bernoulli machine, (2^num_visible,); differentiable."""
    return torch.softmax(-rbm.free_energy(all_states(rbm.num_visible)), dim=0)


def gradients(rbm: RBM, loss: Tensor) -> Tensor:
    """All parameters' gradients in one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rbm.parameters()))])


# ------------------------------------------------------------------------------------------------ energies


@pytest.mark.parametrize("visible", UNITS)
def test_free_energy_is_minus_log_of_the_sum_over_hidden_states(visible: str) -> None:
    rbm = random_rbm(visible=visible)
    data = some_data(rbm)
    expected = [-torch.stack([-energy(rbm, v, h) for h in all_states(4)]).logsumexp(0) for v in data]
    torch.testing.assert_close(rbm.free_energy(data), torch.stack(expected), atol=1e-10, rtol=0)
    torch.testing.assert_close(rbm.float().free_energy(data.float()).double(), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("visible", UNITS)
def test_conditional_means_are_those_of_the_energy(visible: str) -> None:
    rbm = random_rbm(visible=visible)
    v, h = some_data(rbm, 1)[0], all_states(4)
    posterior = torch.softmax(torch.stack([-energy(rbm, v, state) for state in h]), dim=0)
    torch.testing.assert_close(rbm.encode(v[None])[0], posterior @ h)
    if visible == "bernoulli":
        states = all_states(6)
        posterior = torch.softmax(torch.stack([-energy(rbm, state, h[5]) for state in states]), dim=0)
        torch.testing.assert_close(rbm.decode(h[5:6])[0], posterior @ states)
    else:
        mean = rbm.decode(h[5:6])[0].detach().requires_grad_()  # where the quadratic energy has its minimum
        assert torch.autograd.grad(energy(rbm, mean, h[5]), mean)[0].abs().max() < 1e-10


@pytest.mark.parametrize(("num_visible", "num_hidden"), [(4, 7), (7, 4)])
def test_probabilities_of_all_states_sum_to_one(num_visible: int, num_hidden: int) -> None:
    """Enumerated over the visible units where they are fewer, else over the hidden ones."""
    answer = random_rbm(num_visible, num_hidden).log_prob(all_states(num_visible), effort=Effort())
    assert answer.kind == "exact" and answer.std_error is None
    assert answer.nats.exp().sum().item() == pytest.approx(1, abs=1e-10)


def test_gaussian_density_integrates_to_one() -> None:
    rbm = random_rbm(2, 3, visible="gaussian")
    line = torch.arange(-12, 12, 0.05, dtype=torch.float64)
    answer = rbm.log_prob(torch.cartesian_prod(line, line), effort=Effort())
    assert answer.kind == "exact"
    assert (answer.nats.exp().sum() * 0.05**2).item() == pytest.approx(1, abs=1e-6)


def test_large_machines_answer_with_an_estimate() -> None:
    rbm = random_rbm(22, 21, scale=0.1)
    answer = rbm.log_prob(some_data(rbm), effort=Effort(num_chains=10, num_temperatures=10))
    assert answer.kind == "estimate" and answer.estimator == "AIS (10 chains, 10 temperatures)"
    assert answer.std_error is not None and answer.std_error > 0
    assert answer.effective_sample_size is not None and 1 <= answer.effective_sample_size <= 10


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("visible", UNITS)
@pytest.mark.parametrize("algorithm", ["cd", "pcd"])
@pytest.mark.parametrize("gibbs_steps", [1, 3])
def test_loss_is_the_free_energy_difference_to_the_chains(visible: str, algorithm: str, gibbs_steps: int) -> None:
    """The chains are drawn again from the same seed, from the start that each algorithm names."""
    rbm = random_rbm(visible=visible, algorithm=algorithm, gibbs_steps=gibbs_steps, num_chains=7)
    data = some_data(rbm)
    chains = rbm.rank_state()["chains"].double() if algorithm == "pcd" else data
    torch.manual_seed(1)
    loss = rbm.losses(data)["loss"]
    torch.manual_seed(1)
    for _ in range(gibbs_steps):
        chains = rbm.sample_visible(rbm.sample_hidden(chains))
    expected = rbm.free_energy(data).mean() - rbm.free_energy(chains).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(rbm, loss), gradients(rbm, expected))


def test_enumerated_negative_phase_gives_the_likelihood_gradient() -> None:
    rbm = random_rbm()
    data, states = some_data(rbm), all_states(6)
    log_likelihood = (-rbm.free_energy(data) - (-rbm.free_energy(states)).logsumexp(0)).mean()
    loss = rbm.free_energy_difference(data, states, exact_probabilities(rbm).detach())
    torch.testing.assert_close(gradients(rbm, loss), gradients(rbm, -log_likelihood))


def test_exact_gradient_training_reaches_the_maximum_likelihood() -> None:
    """Four of 256 patterns, equally often: no model of them exceeds −log 4 nats."""
    patterns = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0], [0] * 8])
    data, states = patterns.double(), all_states(8)
    rbm = random_rbm(8, 6, scale=0.1)
    optimizer = torch.optim.Adam(rbm.parameters(), lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        rbm.free_energy_difference(data, states, exact_probabilities(rbm).detach()).backward()
        optimizer.step()
    reached = rbm.log_prob(data, effort=Effort()).nats.mean().item()
    assert -math.log(4) - 0.02 < reached < -math.log(4)


def negative_phase(rbm: RBM, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """E[∂F/∂(W, b, c)] and its standard deviation where visible states have these probabilities: (num_parameters,)."""
    v = all_states(rbm.num_visible)
    h = rbm.encode(v).detach()
    each = -torch.cat([(v[:, :, None] * h[:, None, :]).flatten(1), v, h], dim=1)
    mean = probabilities @ each
    return mean, (probabilities @ (each - mean).square()).sqrt()


def transition(rbm: RBM) -> Tensor:
    """p(v' | v) of one Gibbs sweep, (2^num_visible, 2^num_visible), rows sum to 1."""
    v, h = all_states(rbm.num_visible), all_states(rbm.num_hidden)
    up = torch.stack([rbm.hidden_units.log_prob(h, field.expand(len(h), -1)) for field in rbm.hidden_field(v)])
    down = torch.stack([rbm.visible_units.log_prob(v, field.expand(len(v), -1)) for field in rbm.visible_field(h)])
    return (up.exp() @ down.exp()).detach()


@pytest.mark.parametrize("gibbs_steps", [1, 3, 30])
def test_cd_k_gradient_is_that_of_k_exact_transitions(gibbs_steps: int) -> None:
    """34 parameters at 4.5 s.e.: false alarm 2 in 10,000 runs of each."""
    rbm = random_rbm(gibbs_steps=gibbs_steps, scale=1.5)
    number = 40_000
    states = torch.randint(4, (number,))  # the first four of 64 states, far from the model's own
    data = all_states(6)[states]
    start = torch.bincount(states, minlength=64).double() / number
    positive, _ = negative_phase(rbm, start)
    negative, std = negative_phase(rbm, start @ torch.linalg.matrix_power(transition(rbm), gibbs_steps))
    error = gradients(rbm, rbm.losses(data)["loss"]) - (positive - negative)
    assert (error.abs() < 4.5 * std / math.sqrt(number)).all()


def test_bias_of_cd_k_decreases_in_k_to_nothing() -> None:
    """Errors of 0.4, 0.1 and 0.03 with a standard error of 0.01; k = 30 is off by less than 4.5 s.e. in 34 parameters:
    false alarm 2 in 10,000 runs.
    """
    rbm = random_rbm(scale=1.5)
    number = 40_000
    data = all_states(6)[torch.randint(4, (number,))]
    exact = gradients(rbm, rbm.free_energy_difference(data, all_states(6), exact_probabilities(rbm).detach()))
    errors = {}
    for rbm.negative_phase.gibbs_steps in (1, 2, 4, 30):
        errors[rbm.negative_phase.gibbs_steps] = gradients(rbm, rbm.losses(data)["loss"]) - exact
    assert errors[1].norm() > 2 * errors[2].norm() > 4 * errors[4].norm()
    _, std = negative_phase(rbm, exact_probabilities(rbm).detach())
    assert (errors[30].abs() < 4.5 * std / math.sqrt(number)).all()


def test_pcd_gradient_is_on_average_the_exact_one() -> None:
    """34 parameters at 4 s.e. of 20,000 independent chains: false alarm 2 in 1000 runs."""
    rbm = random_rbm(algorithm="pcd", num_chains=20_000)
    data = some_data(rbm)
    for _ in range(60):
        loss = rbm.losses(data)["loss"]
    probabilities = exact_probabilities(rbm).detach()
    exact = gradients(rbm, rbm.free_energy_difference(data, all_states(6), probabilities))
    _, std = negative_phase(rbm, probabilities)
    assert ((gradients(rbm, loss) - exact).abs() < 4 * std / math.sqrt(20_000)).all()


# ------------------------------------------------------------------------------------------------ persistent chains


def test_two_ranks_with_half_the_chains_give_the_gradient_of_one() -> None:
    """Fields of some thousand leave nothing to chance, so that the same chains move alike on every rank."""
    whole = random_rbm(algorithm="pcd", num_chains=8, scale=1000)
    data, chains = some_data(whole, 6), whole.rank_state()["chains"]
    means = []
    for rank in range(2):
        part = random_rbm(algorithm="pcd", num_chains=8)
        part.load_state_dict(whole.state_dict())
        part.load_rank_state({"chains": chains[4 * rank : 4 * rank + 4]})
        means.append(gradients(part, part.losses(data[3 * rank : 3 * rank + 3])["loss"]))
        assert part.rank_state()["chains"].shape == (4, 6)
    one = gradients(whole, whole.losses(data)["loss"])
    assert one.norm() > 0.1
    torch.testing.assert_close((means[0] + means[1]) / 2, one)


def test_chains_move_in_training_only() -> None:
    rbm = random_rbm(algorithm="pcd", num_chains=50)
    before = rbm.rank_state()["chains"].clone()
    rbm.eval().losses(some_data(rbm))
    assert torch.equal(rbm.rank_state()["chains"], before)
    rbm.train().losses(some_data(rbm))
    assert not torch.equal(rbm.rank_state()["chains"], before)


@pytest.mark.parametrize("num_chains", [3, 40])
def test_any_number_of_chains_can_be_loaded(num_chains: int) -> None:
    rbm = random_rbm(algorithm="pcd", num_chains=10)
    rbm.load_rank_state({"chains": torch.zeros(num_chains, 6)})
    assert rbm.losses(some_data(rbm))["loss"].isfinite()
    assert rbm.rank_state()["chains"].shape == (num_chains, 6)


@pytest.mark.parametrize("state", [{}, {"chains": torch.zeros(10, 5)}, {"chains": torch.zeros(6)}])
def test_chains_of_another_width_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"persistent chains must be 'chains' of shape \(any, 6\)"):
        random_rbm(algorithm="pcd").load_rank_state(state)


def test_contrastive_divergence_keeps_no_chains() -> None:
    rbm = random_rbm()
    assert rbm.rank_state() == {}
    rbm.load_rank_state({})


def test_persistent_chains_are_no_part_of_the_weights() -> None:
    """DistributedDataParallel would overwrite every rank's buffers by those of rank 0."""
    assert set(random_rbm(algorithm="pcd").state_dict()) == {"weights", "visible_bias", "hidden_bias", "base_field"}


# ------------------------------------------------------------------------------------------------ the rest


def test_reconstruction_error_is_the_squared_error_per_example() -> None:
    rbm = random_rbm(scale=0)  # reconstructs everything as 1/2
    assert rbm.monitors(some_data(rbm))["reconstruction_error"].item() == pytest.approx(6 / 4)


def test_log_pseudolikelihood_is_on_average_the_sum_of_log_conditionals() -> None:
    """One comparison at 4.5 s.e.: false alarm 7 in a million runs."""
    rbm = random_rbm(algorithm="pcd")
    v = some_data(rbm, 1)
    flipped = (v - torch.eye(6)).abs()
    expected = torch.log_softmax(-torch.stack([rbm.free_energy(v).expand(6), rbm.free_energy(flipped)]), dim=0)[0].sum()
    many = v.expand(20_000, -1)
    estimates = rbm.machine().log_pseudolikelihood(many, rbm.hidden_field(many))
    assert abs(estimates.mean() - expected) < 4.5 * estimates.std() / math.sqrt(20_000)


@pytest.mark.parametrize("visible", UNITS)
def test_starts_from_the_base_rates_of_the_data(visible: str) -> None:
    rbm = random_rbm(scale=0, visible=visible)
    mean = torch.tensor([0.1, 0.2, 0.5, 0.6, 0.9, 0.99])
    rbm.start_from_data_mean(mean)
    torch.testing.assert_close(rbm.decode(torch.zeros(1, 4, dtype=torch.float64))[0].detach(), mean.double())


@pytest.mark.parametrize("visible", UNITS)
def test_samples_follow_the_model(visible: str) -> None:
    """Six means at 4.5 s.e.: false alarm 4 in 100,000 runs of each."""
    rbm = random_rbm(visible=visible, scale=0.7)
    h = all_states(4)
    log_weight = h @ rbm.hidden_bias + rbm.visible_units.log_partition(rbm.visible_field(h))
    expected = (torch.softmax(log_weight, dim=0) @ rbm.decode(h)).detach()
    samples = rbm.sample(20_000, effort=Effort(num_temperatures=60))
    assert ((samples.mean(0) - expected).abs() < 4.5 * samples.std(0) / math.sqrt(20_000)).all()


def test_filters_are_one_row_per_hidden_unit() -> None:
    rbm = random_rbm()
    assert torch.equal(rbm.filters()[2], rbm.weights[:, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_visible": 0}, "num_visible must be at least 1, not 0"),
        ({"num_hidden": -1}, "num_hidden must be at least 1"),
        ({"gibbs_steps": 0}, "gibbs_steps must be at least 1"),
        ({"num_chains": 0}, "num_chains must be at least 1"),
        ({"visible": "poisson"}, "visible must be one of bernoulli, gaussian, .*, not 'poisson'"),
        ({"weight_std": -0.1}, "weight_std must not be negative"),
        ({"weight_std": math.nan}, "weight_std must not be negative"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBM(**{"num_visible": 6, "num_hidden": 4, **arguments})  # type: ignore[arg-type]
