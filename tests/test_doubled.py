"""RBMs of doubled units against machines whose every unit is written out, and what a deep machine gets from them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.boltzmann import RBM
from lightning_modules.deep_boltzmann import DBM
from lightning_modules.interfaces import Effort
from lightning_modules.likelihood import annealed_importance_sampling
from lightning_modules.stack import Stack

DOUBLED = ["visible", "hidden", "both"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_rbm(doubled: str, num_visible: int = 3, num_hidden: int = 2, *, scale: float = 1.0, **given: object) -> RBM:
    rbm = RBM(num_visible=num_visible, num_hidden=num_hidden, doubled=doubled, **given).double()  # type: ignore[arg-type]
    for parameter in rbm.parameters():
        nn.init.normal_(parameter, std=scale)
    return rbm


def states(values: tuple[float, ...], num_units: int) -> Tensor:
    return torch.tensor(list(itertools.product(values, repeat=num_units)), dtype=torch.float64)


def visible_states(rbm: RBM) -> Tensor:
    """All values the visible layer can show."""
    return states((0.0, 0.5, 1.0) if rbm.doubled in ("visible", "both") else (0.0, 1.0), rbm.num_visible)


def written_out(rbm: RBM) -> RBM:
    """The plain machine of as many units as there are copies, those of a pair side by side."""
    rows, columns = (2 if rbm.doubled in (side, "both") else 1 for side in ("visible", "hidden"))
    plain = RBM(num_visible=rows * rbm.num_visible, num_hidden=columns * rbm.num_hidden).double()
    with torch.no_grad():
        plain.weights.copy_(rbm.weights.repeat_interleave(rows, 0).repeat_interleave(columns, 1))
        plain.visible_bias.copy_(rbm.visible_bias.repeat_interleave(rows))
        plain.hidden_bias.copy_(rbm.hidden_bias.repeat_interleave(columns))
    return plain


def log_p_written_out(rbm: RBM) -> Tensor:
    """Of `visible_states`, from the probabilities of all states of all copies."""
    plain = written_out(rbm)
    v = states((0.0, 1.0), plain.num_visible)
    log_p = plain.log_prob(v, effort=Effort()).nats
    shown = v.reshape(len(v), rbm.num_visible, -1).mean(-1)
    return torch.stack([log_p[(shown == one).all(1)].logsumexp(0) for one in visible_states(rbm)])


def gradients(rbm: RBM, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rbm.parameters()))])


# ------------------------------------------------------------------------------------------------ the machine itself


@pytest.mark.parametrize("doubled", DOUBLED)
def test_free_energy_is_that_of_the_machine_written_out(doubled: str) -> None:
    rbm = random_rbm(doubled)
    found = (-rbm.free_energy(visible_states(rbm))).log_softmax(0)
    torch.testing.assert_close(found.detach(), log_p_written_out(rbm))


@pytest.mark.parametrize("doubled", DOUBLED)
def test_means_see_both_copies(doubled: str) -> None:
    rbm = random_rbm(doubled)
    v, h = states((0.0, 1.0), 3), states((0.0, 1.0), 2)
    rows, columns = (2 if doubled in (side, "both") else 1 for side in ("visible", "hidden"))
    torch.testing.assert_close(rbm.encode(v), torch.sigmoid(rbm.hidden_bias + rows * v @ rbm.weights))
    torch.testing.assert_close(rbm.decode(h), torch.sigmoid(rbm.visible_bias + columns * h @ rbm.weights.t()))


@pytest.mark.parametrize("doubled", ["visible", "hidden"])
def test_log_partition_is_exact_over_the_units_that_are_single(doubled: str) -> None:
    rbm = random_rbm(doubled)
    answer = rbm.log_partition(effort=Effort())
    assert answer.kind == "exact"
    assert answer.nats == pytest.approx((-rbm.free_energy(visible_states(rbm))).logsumexp(0).item())


@pytest.mark.parametrize("doubled", DOUBLED)
def test_mean_weight_of_ais_is_unbiased(doubled: str) -> None:
    """The printed standard error is twice the usual one: 4.5 s.e., false alarm 7 in a million runs of each."""
    rbm = random_rbm(doubled, scale=0.6)
    exact = (-rbm.free_energy(visible_states(rbm))).logsumexp(0).item()
    with torch.no_grad():
        found = annealed_importance_sampling(rbm.annealing(40_000), Effort(num_temperatures=3))
    assert found.std_error is not None and found.std_error < 0.05
    assert abs(found.nats - exact) < 2.25 * found.std_error


def test_what_is_said_of_two_copies_is_a_bound_for_one() -> None:
    rbm = random_rbm("visible")
    v = states((0.0, 1.0), 3)
    answer = rbm.log_prob(v, effort=Effort())
    assert answer.kind == "lower_bound" and answer.estimator == "both copies of the visible units, enumeration"
    plain = written_out(rbm)
    pairs = states((0.0, 1.0), 6)
    log_p = plain.log_prob(pairs, effort=Effort()).nats
    one = torch.stack([log_p[(pairs[:, ::2] == x).all(1)].logsumexp(0) for x in v])
    both = torch.stack([log_p[(pairs == x.repeat_interleave(2)).all(1)][0] for x in v])
    torch.testing.assert_close(answer.nats, both)
    assert (answer.nats < one).all()


@pytest.mark.parametrize("doubled", DOUBLED)
def test_gradients_are_those_of_autograd(doubled: str) -> None:
    rbm = random_rbm(doubled)
    data, model = states((0.0, 1.0), 3)[:5], visible_states(rbm)
    probabilities = (-rbm.free_energy(model)).softmax(0).detach()
    exact = ((-rbm.free_energy(data)) - (-rbm.free_energy(model)).logsumexp(0)).mean()
    loss = rbm.free_energy_difference(data, model, probabilities)
    torch.testing.assert_close(gradients(rbm, loss), gradients(rbm, -exact))


@pytest.mark.parametrize("doubled", DOUBLED)
def test_gradient_of_persistent_chains_is_on_average_the_exact_one(doubled: str) -> None:
    """11 parameters at 4.5 s.e. of 20,000 independent chains: false alarm 7 in 100,000 runs of each."""
    rbm = random_rbm(doubled, algorithm="pcd", num_chains=20_000)
    data, model = states((0.0, 1.0), 3)[:5], visible_states(rbm)
    for _ in range(60):
        loss = rbm.losses(data)["loss"]
    assert set(rbm.rank_state()["chains"].unique().tolist()) == set(model.unique().tolist())
    probabilities = (-rbm.free_energy(model)).softmax(0).detach()
    exact = gradients(rbm, rbm.free_energy_difference(data, model, probabilities))
    statistic = rbm.visible_units.statistic(model)
    hidden = rbm.hidden_units.statistic(rbm.encode(model)).detach()
    each = torch.cat([(statistic[:, :, None] * hidden[:, None, :]).flatten(1), statistic, hidden], dim=1)
    std = (probabilities @ (each - probabilities @ each).square()).sqrt()
    assert ((gradients(rbm, loss) - exact).abs() < 4.5 * std / math.sqrt(20_000)).all()


def test_only_binary_units_can_be_doubled() -> None:
    with pytest.raises(ValueError, match="only bernoulli units can be doubled, not gaussian ones"):
        RBM(num_visible=3, num_hidden=2, visible="gaussian", doubled="visible")
    with pytest.raises(ValueError, match="doubled must be none, visible, hidden or both, not 'twice'"):
        RBM(num_visible=3, num_hidden=2, doubled="twice")


# ------------------------------------------------------------------------------------------------ the deep machine


def log_p_of_codes(rbm: RBM, hidden: Tensor) -> Tensor:
    """log p(h) of an RBM with visible units doubled."""
    log_weight = hidden @ rbm.hidden_bias + rbm.visible_units.log_partition(rbm.visible_field(hidden))
    return log_weight.log_softmax(0)


@pytest.mark.parametrize(("pair", "exact"), [(("visible", "hidden"), True), (("none", "none"), False)])
def test_two_doubled_machines_meet_in_their_geometric_mean(pair: tuple[str, str], exact: bool) -> None:
    """p(h₁) ∝ √(p_below(h₁) p_above(h₁)): what doubling is for; plain RBMs put together give something else."""
    below, above = random_rbm(pair[0], 5, 4), random_rbm(pair[1], 4, 3)
    dbm = DBM(stack=Stack(layers=[below, above]))
    h1 = states((0.0, 1.0), 4)
    log_below, log_above = log_p_of_codes(below, h1), (-above.free_energy(h1)).log_softmax(0)
    expected = ((log_below + log_above) / 2).log_softmax(0)
    found = (-dbm.machine().free_energy([torch.empty(0), h1, torch.empty(0)], range(1, 2))).log_softmax(0)
    assert torch.allclose(found, expected, atol=1e-10) == exact
    assert (log_below - log_above).abs().max() > 0.5


def test_where_two_machines_agree_the_deep_one_agrees_with_them() -> None:
    """The top machine as the lowest one's mirror: p(h₁) stays, and with it p(v | h₁) p(h₁), the distribution of the
    data. One pass up is then the posterior's mean given both sides.
    """
    below = random_rbm("visible", 5, 4)
    above = random_rbm("hidden", 4, 5)
    with torch.no_grad():
        above.weights.copy_(below.weights.t())
        above.visible_bias.copy_(below.hidden_bias)
        above.hidden_bias.copy_(below.visible_bias)
    dbm = DBM(stack=Stack(layers=[below, above]))
    h1, v = states((0.0, 1.0), 4), states((0.0, 1.0), 5)
    found = (-dbm.machine().free_energy([torch.empty(0), h1, torch.empty(0)], range(1, 2))).log_softmax(0)
    torch.testing.assert_close(found, log_p_of_codes(below, h1))
    torch.testing.assert_close(dbm.machine().mean(1, [v, v, v]), below.encode(v))


def test_the_way_back_is_that_of_the_stack_where_the_layers_agree_on_their_biases() -> None:
    """Three layers, the middle one doubled on both sides."""
    layers = [random_rbm("visible", 4, 3), random_rbm("both", 3, 3), random_rbm("hidden", 3, 2)]
    with torch.no_grad():
        for below, above in itertools.pairwise(layers):
            above.visible_bias.copy_(below.hidden_bias)
    stack = Stack(layers=layers)
    h = states((0.0, 1.0), 2)
    torch.testing.assert_close(DBM(stack=stack).decode(h), stack.decode(h))


def test_parameters_come_from_the_stack_and_leave_it_alone() -> None:
    stack = Stack(layers=[random_rbm("visible", 4, 3), random_rbm("both", 3, 3), random_rbm("hidden", 3, 2)])
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    first, second, third = stack
    dbm = DBM(stack=stack)
    assert isinstance(first, RBM) and isinstance(second, RBM) and isinstance(third, RBM)
    for found, expected in zip(dbm.weights, (first, second, third), strict=True):
        assert torch.equal(found, expected.weights)
    assert torch.equal(dbm.biases[0], first.visible_bias) and torch.equal(dbm.biases[3], third.hidden_bias)
    torch.testing.assert_close(dbm.biases[1], (first.hidden_bias + second.visible_bias) / 2)
    torch.testing.assert_close(dbm.biases[2], (second.hidden_bias + third.visible_bias) / 2)
    assert dbm.stack is stack and not any(name.startswith("stack") for name in dbm.state_dict())
    dbm.losses(torch.ones(2, 4).double())["loss"].backward()
    torch.optim.SGD(dbm.parameters(), lr=1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())
    assert not torch.equal(dbm.weights[0], first.weights)


def test_stacks_a_deep_machine_cannot_have_are_refused() -> None:
    rbm = random_rbm("none", 4, 3)
    with pytest.raises(ValueError, match="at least two layers of hidden units"):
        DBM(stack=Stack(layers=[rbm]))
    with pytest.raises(ValueError, match="every layer of a DBM is an RBM, but layer 2 is Stack"):
        DBM(stack=Stack(layers=[rbm, Stack(layers=[random_rbm("none", 3, 2)])]))
    gaussian = RBM(num_visible=4, num_hidden=3, visible="gaussian")
    with pytest.raises(ValueError, match="layer 1 of 2 of a DBM is doubled: visible or none, not hidden"):
        DBM(stack=Stack(layers=[random_rbm("hidden", 4, 3), random_rbm("none", 3, 2)]))
    with pytest.raises(ValueError, match="layer 2 of 2 of a DBM is doubled: hidden or none, not both"):
        DBM(stack=Stack(layers=[random_rbm("visible", 4, 3), random_rbm("both", 3, 2)]))
    with pytest.raises(ValueError, match="all units of a DBM are binary, but layer 1 has Gaussian ones"):
        DBM(stack=Stack(layers=[gaussian, random_rbm("none", 3, 2)]))
