"""General Boltzmann machines against enumeration of all their states, in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.boltzmann import RBM
from lightning_modules.boltzmann_machine import BoltzmannMachine
from lightning_modules.interfaces import Effort
from lightning_modules.likelihood import annealed_importance_sampling
from lightning_modules.stack import Stack


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_machine(
    num_visible: int = 5, num_hidden: int = 4, *, scale: float = 1.0, **given: object
) -> BoltzmannMachine:
    """Parameters drawn from N(0, scale²); mean field to full precision."""
    arguments = {"mean_field_steps": 500, "mean_field_tolerance": 0.0} | given
    machine = BoltzmannMachine(num_visible=num_visible, num_hidden=num_hidden, **arguments).double()  # type: ignore[arg-type]
    for parameter in machine.parameters():
        nn.init.normal_(parameter, std=scale)
    return machine


def all_states(num_units: int) -> Tensor:
    """(2^num_units, num_units), by other means than the library's."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_units)), dtype=torch.float64)


def log_weights(machine: BoltzmannMachine) -> Tensor:
    """−E of all states, pair by pair: (2^num_units,)."""
    x = all_states(machine.num_units)
    total = x @ machine.biases
    for i, j in itertools.combinations(range(machine.num_units), 2):
        total = total + machine.upper_couplings[i, j] * x[:, i] * x[:, j]
    return total


def probabilities(machine: BoltzmannMachine) -> Tensor:
    return log_weights(machine).softmax(0).detach()


def log_p(machine: BoltzmannMachine) -> Tensor:
    """Of all 2^num_visible states of the data; differentiable."""
    weights = log_weights(machine)
    return weights.reshape(2**machine.num_visible, -1).logsumexp(1) - weights.logsumexp(0)


def gradients(machine: BoltzmannMachine, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(machine.parameters()))])


def some_data(machine: BoltzmannMachine, batch: int = 5) -> Tensor:
    return (torch.randn(batch, machine.num_visible) > 0).double()


# ------------------------------------------------------------------------------------------------ energies


def test_energies_and_conditional_means_are_those_of_the_formula() -> None:
    machine = random_machine()
    x, coupled = all_states(9), machine.machine()
    torch.testing.assert_close(-coupled.energy(x), log_weights(machine))
    for i in range(9):
        flipped = x.clone()
        flipped[:, i] = 1 - x[:, i]
        on = torch.where(x[:, i] == 1, coupled.energy(x), coupled.energy(flipped))
        off = torch.where(x[:, i] == 0, coupled.energy(x), coupled.energy(flipped))
        torch.testing.assert_close(coupled.field(x, slice(i, i + 1))[:, 0], off - on)


def test_log_partition_is_exact_up_to_20_units_and_an_estimate_above() -> None:
    machine = random_machine()
    answer = machine.log_partition(effort=Effort())
    assert answer.kind == "exact"
    assert answer.nats == pytest.approx(log_weights(machine).logsumexp(0).item(), abs=1e-9)
    large = random_machine(15, 6, scale=0.1)
    found = large.log_prob(some_data(large), effort=Effort(num_chains=10, num_temperatures=10))
    assert found.kind == "estimate" and found.std_error is not None and found.std_error > 0
    assert found.estimator == "mean-field bound, log Z by AIS (10 chains, 10 temperatures)"


def test_without_couplings_within_a_layer_it_is_an_rbm() -> None:
    machine, rbm = random_machine(), RBM(num_visible=5, num_hidden=4).double()
    with torch.no_grad():
        machine.upper_couplings[:5, :5] = 0
        machine.upper_couplings[5:, 5:] = 0
        rbm.weights.copy_(machine.upper_couplings[:5, 5:])
        rbm.visible_bias.copy_(machine.biases[:5])
        rbm.hidden_bias.copy_(machine.biases[5:])
    v, h = all_states(5), all_states(4)
    torch.testing.assert_close(machine.encode(v), rbm.encode(v))
    torch.testing.assert_close(machine.decode(h), rbm.decode(h))
    torch.testing.assert_close(
        machine.log_prob(v, effort=Effort()).nats, rbm.log_prob(v, effort=Effort()).nats
    )  # the posterior is independent, so that the bound is exact
    assert torch.equal(machine.filters(), rbm.filters())


# ------------------------------------------------------------------------------------------------ inference


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 500])
def test_bound_lies_below_the_exact_value_by_the_divergence_of_q(scale: float, steps: int) -> None:
    """Always: for every state of the data, however strong the couplings and however far mean field got."""
    for seed in range(5):
        torch.manual_seed(seed)
        machine = random_machine(scale=scale, mean_field_steps=steps)
        x = all_states(5)
        answer = machine.log_prob(x, effort=Effort())
        exact = log_p(machine).detach()
        assert answer.kind == "lower_bound" and answer.std_error is None
        assert (answer.nats <= exact + 1e-9).all()
        means, hidden = machine.encode(x).detach()[:, None], all_states(4)
        log_q = (torch.xlogy(hidden, means) + torch.xlogy(1 - hidden, 1 - means)).sum(-1)
        posterior = log_weights(machine).detach().reshape(32, -1).log_softmax(1)
        divergence = (log_q.exp() * (log_q - posterior)).nan_to_num(0.0).sum(1)
        assert divergence.max() > 0.001  # else nothing would be tested
        torch.testing.assert_close(exact - answer.nats, divergence, atol=1e-8, rtol=0)


def test_mean_field_ends_in_a_fixed_point_and_never_lowers_the_bound() -> None:
    machine = random_machine(scale=2.0)
    x, last = all_states(5), torch.tensor(-math.inf)
    for machine.mean_field_steps in (1, 2, 3, 5, 10, 1000):
        means = machine.infer(x)
        bound = machine.bound(means).detach()
        assert (bound >= last - 1e-9).all()
        last = bound
    fixed = torch.sigmoid(machine.machine().field(means, slice(5, 9)))
    torch.testing.assert_close(means[:, 5:], fixed, atol=1e-6, rtol=0)
    h = all_states(4)
    v = machine.decode(h)
    torch.testing.assert_close(
        v, torch.sigmoid(machine.machine().field(torch.cat([v, h], 1), slice(0, 5))), atol=1e-6, rtol=0
    )


def test_codes_are_differentiable_through_all_sweeps() -> None:
    machine = random_machine(3, 3, mean_field_steps=3)
    x = some_data(machine, 2)

    def codes(couplings: Tensor, biases: Tensor) -> Tensor:
        return torch.func.functional_call(
            _Encoder(machine), {"of.upper_couplings": couplings, "of.biases": biases}, (x,)
        )

    given = (machine.upper_couplings.detach().clone(), machine.biases.detach().clone())
    assert torch.autograd.gradcheck(codes, tuple(value.requires_grad_() for value in given))


class _Encoder(nn.Module):
    def __init__(self, of: BoltzmannMachine) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of.encode(x)


# ------------------------------------------------------------------------------------------------ chains


def test_gibbs_marginals_of_an_ising_grid_are_within_a_hundredth_of_the_exact_ones() -> None:
    """3 × 3 spins s = 2x − 1, p(s) ∝ exp(0.3 Σ_neighbours s s' + Σ f_i s_i), eight of them visible and one hidden.

    100,000 chains: a standard error of 0.0016 or less, so that one of 9 means and 36 pair means at 6.3 of them is off
    once in 70 million runs.
    """
    places = list(itertools.product(range(3), repeat=2))
    fields = torch.linspace(-0.4, 0.3, 9, dtype=torch.float64)
    neighbours = torch.tensor([[abs(a - c) + abs(b - d) == 1 for c, d in places] for a, b in places]).double()
    grid = random_machine(8, 1, num_chains=100_000, gibbs_steps=1)
    with torch.no_grad():
        grid.upper_couplings.copy_(4 * 0.3 * neighbours.triu(1))
        grid.biases.copy_(2 * fields - 2 * 0.3 * neighbours.sum(1))
    spins = 2 * all_states(9) - 1
    p = (0.3 * torch.einsum("ni,ij,nj->n", spins, neighbours.triu(1), spins) + spins @ fields).softmax(0)
    torch.testing.assert_close(probabilities(grid), p)
    chains = grid.rank_state()["chains"].double()
    machine = grid.machine()
    with torch.no_grad():
        for _ in range(40):
            chains = machine.sweep(chains, slice(None), draw=True)
    exact = torch.einsum("n,ni,nj->ij", p, all_states(9), all_states(9))  # marginals on the diagonal
    found = chains.t() @ chains / len(chains)
    assert (found - exact).abs().max() < 0.01
    assert (exact - exact.diag()[:, None] * exact.diag()).triu(1).max() > 0.05  # units far from independent


def test_two_ranks_with_half_the_chains_give_the_gradient_of_one() -> None:
    """Fields of some thousand leave nothing to chance, so that the same chains move alike on every rank."""
    whole = random_machine(num_chains=8, scale=1000, mean_field_steps=25)
    data = some_data(whole, 6)
    whole.load_rank_state({"chains": (torch.rand(8, 9) > 0.5).double()})
    chains, parts = whole.rank_state()["chains"], []
    for rank in range(2):
        part = random_machine(num_chains=8, mean_field_steps=25)
        part.load_state_dict(whole.state_dict())
        part.load_rank_state({"chains": chains[4 * rank : 4 * rank + 4]})
        parts.append(gradients(part, part.losses(data[3 * rank : 3 * rank + 3])["loss"]))
        assert part.rank_state()["chains"].shape == (4, 9)
    one = gradients(whole, whole.losses(data)["loss"])
    assert one.norm() > 0.1
    torch.testing.assert_close((parts[0] + parts[1]) / 2, one)


def test_chains_move_in_training_only() -> None:
    machine = random_machine(num_chains=50)
    before = machine.rank_state()["chains"].clone()
    machine.eval().losses(some_data(machine))
    assert torch.equal(machine.rank_state()["chains"], before)
    machine.train().losses(some_data(machine))
    assert not torch.equal(machine.rank_state()["chains"], before)


@pytest.mark.parametrize("state", [{}, {"chains": torch.zeros(10, 5)}, {"chains": torch.zeros(9)}])
def test_chains_of_another_width_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"persistent chains must be 'chains' of shape \(any, 9\)"):
        random_machine().load_rank_state(state)


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("weighted", [False, True])
def test_closed_form_gradient_is_that_of_autograd(weighted: bool) -> None:
    machine = random_machine()
    means = machine.infer(some_data(machine)).detach()
    model = (torch.rand(3, 9) > 0.5).double()
    weights = torch.tensor([0.2, 0.3, 0.5] if weighted else [1 / 3] * 3, dtype=torch.float64)
    by_autograd = -machine.bound(means).mean() - weights @ machine.machine().energy(model)
    closed_form = machine.bound_difference(means, model, weights if weighted else None)
    torch.testing.assert_close(closed_form, by_autograd)
    torch.testing.assert_close(gradients(machine, 3 * closed_form), gradients(machine, 3 * by_autograd))


def test_enumerated_negative_phase_gives_the_gradient_of_the_exact_bound() -> None:
    """Through mean field as well: at an optimum of q the bound's gradient does not see q move."""
    machine = random_machine()
    data = some_data(machine)
    exact = (machine.bound(machine.infer(data)) - log_weights(machine).logsumexp(0)).mean()
    loss = machine.bound_difference(machine.infer(data).detach(), all_states(9), probabilities(machine))
    torch.testing.assert_close(gradients(machine, loss), gradients(machine, -exact), atol=1e-7, rtol=0)


@pytest.mark.parametrize("gibbs_steps", [1, 3])
def test_loss_is_the_difference_to_the_chains_after_so_many_sweeps(gibbs_steps: int) -> None:
    """Drawn again from the same seed, from where the chains stood."""
    machine = random_machine(gibbs_steps=gibbs_steps, num_chains=7)
    data, chains = some_data(machine), machine.rank_state()["chains"].double()
    torch.manual_seed(1)
    loss = machine.losses(data)["loss"]
    torch.manual_seed(1)
    for _ in range(gibbs_steps):
        chains = machine.machine().sweep(chains, slice(None), draw=True).detach()
    torch.testing.assert_close(loss, machine.bound_difference(machine.infer(data), chains))
    assert torch.equal(machine.rank_state()["chains"], chains)


def test_gradient_of_persistent_chains_is_on_average_the_exact_one() -> None:
    """45 parameters at 4.5 s.e. of 20,000 independent chains: false alarm 3 in 10,000 runs."""
    machine = random_machine(num_chains=20_000, gibbs_steps=10, mean_field_steps=20)
    data = some_data(machine)
    for _ in range(4):
        loss = machine.losses(data)["loss"]
    x, p = all_states(9), probabilities(machine)
    exact = gradients(machine, machine.bound_difference(machine.infer(data).detach(), x, p))
    each = torch.cat([x, (x[:, :, None] * x[:, None, :]).triu(1).flatten(1)], dim=1)
    std = (p @ (each - p @ each).square()).sqrt()
    assert exact.norm() > 0.5
    assert ((gradients(machine, loss) - exact).abs() <= 4.5 * std / math.sqrt(20_000)).all()


def test_training_raises_the_bound_to_the_best_there_is() -> None:
    """Four of 64 patterns, equally often: no model of them exceeds −log 4 nats."""
    data = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).double()
    machine = random_machine(6, 3, scale=0.1, mean_field_steps=8)
    optimizer, states = torch.optim.Adam(machine.parameters(), lr=0.1), all_states(9)
    for _ in range(150):
        optimizer.zero_grad()
        p = (-machine.machine().energy(states)).softmax(0).detach()
        machine.bound_difference(machine.infer(data).detach(), states, p).backward()
        optimizer.step()
    reached = machine.log_prob(data, effort=Effort()).nats.mean().item()
    assert -math.log(4) - 0.1 < reached < -math.log(4)


# ------------------------------------------------------------------------------------------------ density, samples


def test_mean_weight_of_ais_is_unbiased_however_few_the_temperatures() -> None:
    """The printed standard error is twice the usual one: 4.5 s.e., false alarm 7 in a million runs."""
    machine = random_machine(scale=0.5)
    exact = machine.log_partition(effort=Effort()).nats
    with torch.no_grad():
        found = annealed_importance_sampling(machine.annealing(40_000), Effort(num_temperatures=4))
    assert found.std_error is not None and found.std_error < 0.05
    assert abs(found.nats - exact) < 2.25 * found.std_error


def test_ais_comes_near_log_z_of_strong_machines() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        machine = random_machine(10, 8)
        exact = machine.log_partition(effort=Effort()).nats
        with torch.no_grad():
            found = annealed_importance_sampling(machine.annealing(200), Effort(num_temperatures=200))
        assert found.std_error is not None
        assert abs(found.nats - exact) < min(0.5, 3 * found.std_error), seed


def test_samples_follow_the_model() -> None:
    """Five means at 4.5 s.e.: false alarm 3 in 100,000 runs."""
    machine = random_machine()
    expected = log_p(machine).exp().detach() @ all_states(5)
    samples = machine.sample(20_000, effort=Effort(num_temperatures=60))
    assert ((samples.mean(0) - expected).abs() < 4.5 * samples.std(0) / math.sqrt(20_000)).all()


def test_starts_from_the_base_rates_of_the_data() -> None:
    machine = random_machine(scale=0.0)
    mean = torch.tensor([0.1, 0.2, 0.5, 0.6, 0.9])
    machine.start_from_data_mean(mean)
    torch.testing.assert_close(machine.decode(torch.zeros(1, 4).double())[0].detach(), mean.double())
    assert machine.biases[5:].count_nonzero() == 0


def test_only_parameters_that_the_model_depends_on_are_counted() -> None:
    machine = random_machine()
    by_gradient = gradients(machine, log_p(machine)[3]).count_nonzero()
    stack = Stack(layers=[RBM(num_visible=7, num_hidden=5), machine])
    assert machine.num_parameters == by_gradient == 9 + 9 * 8 / 2
    assert stack.num_parameters == 7 * 5 + 7 + 5 + by_gradient


@pytest.mark.parametrize(
    ("argument", "value"),
    [("gibbs_steps", 0), ("mean_field_steps", 0), ("mean_field_tolerance", -1.0), ("weight_std", math.nan)],
)
def test_arguments_out_of_range_are_refused(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=argument):
        random_machine(**{argument: value})
