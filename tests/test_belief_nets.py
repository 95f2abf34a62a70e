"""The variational bound of deep belief nets against enumeration of all hidden states, in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.belief_nets import DBN
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Effort, Layer
from lightning_modules.stack import Stack


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_rbm(num_visible: int, num_hidden: int, visible: str = "bernoulli") -> RBM:
    rbm = RBM(num_visible=num_visible, num_hidden=num_hidden, visible=visible).double()
    for parameter in rbm.parameters():
        nn.init.normal_(parameter)
    return rbm


def tied_transpose(rbm: RBM) -> RBM:
    """The layer that may be put on top without changing the model: its visible units are the hidden ones of `rbm`."""
    above = RBM(num_visible=rbm.num_hidden, num_hidden=rbm.num_visible, start="tied").double()
    above.start_from_below(rbm)
    return above


def dbn_of(*layers: RBM) -> DBN:
    return DBN(stack=Stack(layers=layers))


def all_states(num_units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_units)), dtype=torch.float64)


def enumerate_hidden(dbn: DBN, x: Tensor) -> tuple[Tensor, Tensor]:
    """log q(h | x) and log p(x, h) of one x under all states of all directed layers' hidden units, by definition."""
    log_q, log_p = [], []
    log_z = torch.logsumexp(-dbn.top.free_energy(all_states(dbn.top.num_visible)), dim=0)
    for hidden in itertools.product(*(all_states(layer.num_hidden) for layer in dbn.directed_layers)):
        below, q, p = x, torch.zeros(()).double(), -log_z
        for layer, h in zip(dbn.directed_layers, hidden, strict=True):
            up, down = layer.encode(below[None])[0], layer.visible_field(h[None])[0]
            q = q + (h * up.log() + (1 - h) * (1 - up).log()).sum()
            p = p + layer.visible_units.log_prob(below, down)
            below = h
        log_q.append(q)
        log_p.append(p - dbn.top.free_energy(below[None])[0])
    return torch.stack(log_q).detach(), torch.stack(log_p).detach()


def exact_bound(dbn: DBN, x: Tensor) -> float:
    log_q, log_p = enumerate_hidden(dbn, x)
    return (log_q.exp() @ (log_p - log_q)).item()


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_bound_lies_below_the_exact_value_by_the_divergence_of_q(visible: str) -> None:
    """Four comparisons at 4.5 s.e.: false alarm 3 in 100,000 runs."""
    dbn = dbn_of(random_rbm(5, 4, visible), random_rbm(4, 3), random_rbm(3, 4))
    for x in (torch.rand(4, 5) > 0.5).double():
        log_q, log_p = enumerate_hidden(dbn, x)
        exact = log_p.logsumexp(0).item()
        divergence = (log_q.exp() @ (log_q - log_p + exact)).item()
        assert divergence > 0.01  # else nothing would be tested
        answer = dbn.log_prob(x.expand(300, -1), effort=Effort(num_samples=10))
        assert answer.kind == "lower_bound" and answer.std_error is not None
        bound = answer.nats.mean().item()
        assert abs(bound - (exact - divergence)) < 4.5 * answer.std_error
        assert bound < exact


def test_directed_model_is_normalised() -> None:
    """The enumeration that the other tests trust."""
    dbn = dbn_of(random_rbm(4, 3), random_rbm(3, 2))
    total = sum(enumerate_hidden(dbn, x)[1].exp().sum().item() for x in all_states(4))
    assert total == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_layer_of_tied_transposed_weights_leaves_the_bound_unchanged(depth: int) -> None:
    """Hinton, Osindero & Teh 2006, §4: the bound starts where it was, so that training the new layer improves it."""
    layers = [random_rbm(5, 4), random_rbm(4, 3)][:depth]
    before, after = dbn_of(*layers), dbn_of(*layers, tied_transpose(layers[-1]))
    for x in all_states(5)[::7]:
        assert exact_bound(after, x) == pytest.approx(exact_bound(before, x), abs=1e-4)


def test_a_tied_start_survives_the_start_from_data_means() -> None:
    below = random_rbm(5, 4)
    above = tied_transpose(below)
    above.start_from_data_mean(torch.full((4,), 0.3))
    assert torch.equal(above.visible_bias, below.hidden_bias) and torch.equal(above.hidden_bias, below.visible_bias)
    assert torch.equal(above.weights, below.weights.t())


def test_training_a_tied_layer_raises_the_bound_by_what_it_learns() -> None:
    """E_q log p_top(h_1), raised by exact gradients over what a stack hands up as samples, lifts the bound as much."""
    below = random_rbm(5, 4)
    below.weights.data *= 3  # the code depends on the data
    data = all_states(5)[torch.tensor([3, 12, 17, 30])]
    above = tied_transpose(below)
    dbn, hidden = dbn_of(below, above), all_states(4)
    log_q = below.hidden_units.log_prob(hidden, below.hidden_field(data)[:, None]).detach()
    share = log_q.exp().mean(0)  # q(h_1) over the data

    def bound() -> float:
        return sum(exact_bound(dbn, x) for x in data) / len(data)

    before, expected_before = bound(), (share @ above.log_prob(hidden, effort=Effort()).nats).item()
    optimizer = torch.optim.SGD(above.parameters(), lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        free_energy = above.free_energy(hidden)
        (share @ free_energy + (-free_energy).logsumexp(0)).backward()
        optimizer.step()
    gain = (share @ above.log_prob(hidden, effort=Effort()).nats).item() - expected_before
    assert gain > 0.5
    assert bound() == pytest.approx(before + gain, abs=1e-8)


def test_a_tied_start_needs_a_mirrored_rbm() -> None:
    def tied(num_visible: int, num_hidden: int, **arguments: str) -> RBM:
        return RBM(num_visible=num_visible, num_hidden=num_hidden, start="tied", **arguments)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="mirrors the rbm below, 5 → 4: num_hidden must be 5, not 6"):
        tied(4, 6).start_from_below(random_rbm(5, 4))
    with pytest.raises(ValueError, match="the transpose of an rbm below, but it stands on the data"):
        tied(4, 5).start_from_below(None)
    with pytest.raises(ValueError, match="but it stands on a layer of class Identity"):
        tied(4, 4).start_from_below(Identity())
    with pytest.raises(ValueError, match="its visible and hidden units must be Bernoulli and Gaussian"):
        tied(4, 5).start_from_below(random_rbm(5, 4, "gaussian"))
    with pytest.raises(ValueError, match="start must be random or tied, not 'tide'"):
        RBM(num_visible=4, num_hidden=5, start="tide")  # type: ignore[arg-type]
    random = RBM(num_visible=4, num_hidden=5)
    weights = random.weights.clone()
    random.start_from_below(random_rbm(5, 4))
    assert torch.equal(random.weights, weights)


def test_bound_is_exact_without_noise_where_q_is_the_posterior() -> None:
    """One RBM, or one RBM below its own transpose."""
    rbm = random_rbm(5, 4)
    x = all_states(5)
    exact = rbm.log_prob(x, effort=Effort()).nats
    for dbn in (dbn_of(rbm), dbn_of(rbm, tied_transpose(rbm))):
        answer = dbn.log_prob(x, effort=Effort(num_samples=3))
        torch.testing.assert_close(answer.nats, exact, atol=1e-8, rtol=0)
        assert answer.std_error == pytest.approx(0, abs=1e-6)


def test_standard_error_joins_that_of_the_draws_and_that_of_log_z() -> None:
    dbn = dbn_of(random_rbm(5, 21), random_rbm(21, 21))
    effort = Effort(num_samples=10, num_chains=20, num_temperatures=20)
    x = all_states(5)[:3]
    torch.manual_seed(1)
    answer = dbn.log_prob(x, effort=effort)
    torch.manual_seed(1)
    draws = dbn.log_weights(x, 10)
    log_z = dbn.top.log_partition(effort=effort, examples=dbn.infer(x)[-1])
    torch.testing.assert_close(answer.nats, draws.mean(0) - log_z.nats)
    sampling = math.sqrt(sum(draws[:, n].var().item() / 10 for n in range(3))) / 3  # three independent errors, averaged
    assert log_z.std_error is not None and min(sampling, log_z.std_error) > 0.01
    assert answer.std_error == pytest.approx(math.hypot(sampling, log_z.std_error))
    assert answer.estimator == "variational bound (10 draws of q), log Z by AIS (20 chains, 20 temperatures)"
    assert answer.effective_sample_size == log_z.effective_sample_size
    back = log_z.reverse
    assert answer.reverse is not None and back is not None and back.std_error is not None
    torch.testing.assert_close(answer.reverse.nats, draws.mean(0) - back.nats)
    assert answer.reverse.std_error == pytest.approx(math.hypot(sampling, back.std_error))


def test_a_single_draw_claims_no_standard_error() -> None:
    dbn = dbn_of(random_rbm(5, 4), random_rbm(4, 3))
    assert dbn.log_prob(all_states(5), effort=Effort(num_samples=1)).std_error is None


def test_samples_follow_the_model() -> None:
    """Five means at 4.5 s.e.: false alarm 3 in 100,000 runs."""
    dbn = dbn_of(random_rbm(5, 4), random_rbm(4, 3), random_rbm(3, 4))
    states = all_states(5)
    probabilities = torch.stack([enumerate_hidden(dbn, x)[1].logsumexp(0).exp() for x in states])
    samples = dbn.sample(20_000, effort=Effort(num_temperatures=60))
    error = samples.mean(0) - probabilities @ states
    assert (error.abs() < 4.5 * samples.std(0) / math.sqrt(20_000)).all()


def test_codes_are_those_of_the_stack() -> None:
    stack = Stack(layers=[random_rbm(5, 4), random_rbm(4, 3)])
    dbn = DBN(stack=stack)
    assert torch.equal(dbn.encode(all_states(5)), stack.encode(all_states(5)))
    assert torch.equal(dbn.decode(all_states(3)), stack.decode(all_states(3)))
    assert torch.equal(dbn.filters(), stack.filters()[-1])
    assert (dbn.num_visible, dbn.num_hidden, dbn.visible_range, dbn.hidden_range) == (5, 3, (0, 1), (0, 1))


@pytest.mark.parametrize("depth", [1, 2])
def test_hidden_samples_are_drawn_in_every_layer(depth: int) -> None:
    """Seven means at 4.5 s.e.: false alarm 5 in 100,000 runs."""
    rbms = [random_rbm(5, 4), random_rbm(4, 3)][:depth]
    with torch.no_grad():
        rbms[-1].weights.mul_(4)  # so that a mean handed up would show
    v = all_states(5)[11:12]
    expected = rbms[0].encode(v)
    if depth == 2:
        states = all_states(4)
        expected = (expected * states + (1 - expected) * (1 - states)).prod(1) @ rbms[1].encode(states)
    samples = dbn_of(*rbms).sample_hidden(v.expand(20_000, -1))
    assert ((samples.mean(0) - expected).abs() < 4.5 * samples.std(0) / math.sqrt(20_000)).all()


class Identity(nn.Module, Layer):
    num_visible = num_hidden = 4

    def encode(self, v: Tensor) -> Tensor:
        return v

    def decode(self, h: Tensor) -> Tensor:
        return h


def test_layers_a_belief_net_cannot_have_are_refused() -> None:
    with pytest.raises(ValueError, match="every layer of a DBN is an RBM, but layer 2 is Identity"):
        DBN(stack=Stack(layers=[random_rbm(5, 4), Identity()]))
    doubled = RBM(num_visible=5, num_hidden=4, doubled="hidden")
    with pytest.raises(ValueError, match="a DBN has every unit once, but layer 1 is doubled: hidden; a dbm takes it"):
        DBN(stack=Stack(layers=[doubled, random_rbm(4, 3)]))
    with pytest.raises(ValueError, match="layer 2 of a DBN stands on binary units"):
        DBN(stack=Stack(layers=[random_rbm(5, 4), random_rbm(4, 3, "gaussian")]))
