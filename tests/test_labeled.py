"""A machine of data and labels against the sum over all its states, in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.belief_nets import DBN
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Effort
from lightning_modules.labeled import LabeledRBM, WithLabel
from lightning_modules.stack import Stack

CLASSES = 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_machine(num_visible: int = 4, num_hidden: int = 3) -> LabeledRBM:
    machine = LabeledRBM(num_visible=num_visible, num_hidden=num_hidden, num_classes=CLASSES).double()
    for parameter in machine.parameters():
        nn.init.normal_(parameter, std=1.5)
    return machine


def all_states(num_units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_units)), dtype=torch.float64)


def log_joint(machine: LabeledRBM) -> Tensor:
    """log p(v, y, h) of all states from the energy as the module states it: (2^num_visible, K, 2^num_hidden)."""
    visible, hidden = all_states(machine.num_visible), all_states(machine.num_hidden)
    weights, label_weights = machine.joint.weights.split([machine.num_visible, CLASSES])
    bias, label_bias = machine.joint.visible_bias.split([machine.num_visible, CLASSES])
    total = torch.zeros(len(visible), CLASSES, len(hidden)).double()
    for (i, v), y, (j, h) in itertools.product(enumerate(visible), range(CLASSES), enumerate(hidden)):
        total[i, y, j] = bias @ v + label_bias[y] + machine.joint.hidden_bias @ h + v @ weights @ h
        total[i, y, j] += label_weights[y] @ h
    return (total - total.flatten().logsumexp(0)).detach()


def test_labels_given_the_data_are_exact() -> None:
    machine = random_machine()
    conditional = log_joint(machine).logsumexp(2).log_softmax(1)
    torch.testing.assert_close(machine.logits(all_states(4)).log_softmax(1), conditional)
    assert conditional.exp().std(0).min() > 0.05  # they do depend on the data


def test_the_density_of_the_data_sums_labels_out() -> None:
    machine = random_machine()
    answer = machine.log_prob(all_states(4), effort=Effort())
    assert answer.kind == "exact"
    torch.testing.assert_close(answer.nats, log_joint(machine).logsumexp((1, 2)))


def test_codes_are_the_hidden_units_given_the_data_alone() -> None:
    machine = random_machine()
    given_data = log_joint(machine).logsumexp(1).softmax(1)  # over the hidden states
    torch.testing.assert_close(machine.encode(all_states(4)), given_data @ all_states(3))


def test_hidden_samples_are_those_given_the_data_alone() -> None:
    """Three means at 4.5 s.e. of 20,000 draws: false alarm 2 in 100,000 runs."""
    machine = random_machine()
    v = all_states(4)[5:6]
    mean = machine.encode(v)[0]
    found = machine.sample_hidden(v.expand(20_000, -1)).mean(0)
    assert ((found - mean).abs() < 4.5 * (mean * (1 - mean) / 20_000).sqrt()).all()


def test_annealing_counts_the_label_units() -> None:
    """Hidden units too many to enumerate, data and labels few enough.

    The answer states twice its standard error; three of those make 6 s.e.
    """
    machine = random_machine(4, 21)
    for parameter in machine.parameters():
        parameter.data *= 0.5
    states = torch.cat([machine.join(all_states(4), torch.full((16,), y)) for y in range(CLASSES)])
    exact = (-machine.joint.free_energy(states)).logsumexp(0).item()
    estimate = machine.log_partition(effort=Effort(num_chains=200, num_temperatures=200))
    assert estimate.kind == "estimate" and estimate.std_error is not None and estimate.std_error < 0.2
    assert abs(estimate.nats - exact) < 3 * estimate.std_error


def test_samples_of_a_class_follow_it() -> None:
    """Twelve means at 4.5 s.e.: false alarm 8 in 100,000 runs. 40 sweeps forget the start to 1e-6 (a 4-3 machine)."""
    machine = random_machine()
    given_class = log_joint(machine).logsumexp(2).log_softmax(0).exp()  # p(v | y), (16, K)
    for y in range(CLASSES):
        label = torch.full((20_000,), y)
        found = machine.sample_class(label, effort=Effort(num_temperatures=40))
        error = found.mean(0) - given_class[:, y] @ all_states(4)
        assert (error.abs() < 4.5 * found.std(0) / math.sqrt(20_000)).all()
    assert (given_class[:, 0] - given_class[:, 1]).abs().sum() > 0.2  # a label ignored would be seen


def test_samples_without_a_class_follow_the_density() -> None:
    """Four means at 4.5 s.e.: false alarm 3 in 100,000 runs."""
    machine = random_machine()
    found = machine.sample(20_000, effort=Effort(num_temperatures=40))
    error = found.mean(0) - log_joint(machine).logsumexp((1, 2)).exp() @ all_states(4)
    assert (error.abs() < 4.5 * found.std(0) / math.sqrt(20_000)).all()


def test_units_with_a_label_are_an_exponential_family() -> None:
    """Normalised over their states, with the mean as the gradient of the log-partition."""
    units = WithLabel(CLASSES)
    field = torch.randn(4 + CLASSES).double().requires_grad_()
    labels = torch.eye(CLASSES).double()
    states = torch.stack([torch.cat([v, y]) for v in all_states(4) for y in labels])
    assert units.log_prob(states, field).exp().sum().item() == pytest.approx(1)
    (gradient,) = torch.autograd.grad(units.log_partition(field), field)
    torch.testing.assert_close(units.mean(field), gradient)
    again = units.mean(units.field_of_mean(units.mean(field)))
    torch.testing.assert_close(again, units.mean(field))


def test_exactly_one_label_is_drawn_as_often_as_its_share() -> None:
    """Seven means at 4.5 s.e. of 20,000 draws: false alarm 5 in 100,000 runs."""
    units = WithLabel(CLASSES)
    mean = units.mean(torch.randn(4 + CLASSES).double())
    drawn = units.draw(mean.expand(20_000, -1))
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and (drawn[:, 4:].sum(1) == 1).all()
    assert ((drawn.mean(0) - mean).abs() < 4.5 * (mean * (1 - mean) / 20_000).sqrt()).all()
    assert units.draw(mean).shape == mean.shape


@pytest.mark.parametrize("algorithm", ["cd", "pcd"])
def test_it_learns_which_data_go_with_which_label(algorithm: str) -> None:
    """Three prototypes of 12 values with every tenth value flipped; two flips are not enough to confuse them.

    The learning rate falls, so that persistent chains catch up: six other seeds had errors up to 0.01 and 0.96 or more
    of the samples right.
    """
    prototypes = torch.eye(CLASSES).repeat_interleave(4, dim=1)
    machine = LabeledRBM(num_visible=12, num_hidden=8, num_classes=CLASSES, algorithm=algorithm, num_chains=200)  # type: ignore[arg-type]
    steps = 800
    optimizer = torch.optim.Adam(machine.parameters(), lr=0.02)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps)

    def draw(number: int) -> dict[str, Tensor]:
        label = torch.randint(CLASSES, (number,))
        flips = torch.rand(number, 12) < 0.1
        return {"x": (prototypes[label].bool() ^ flips).float(), "label": label}

    for _ in range(steps):
        optimizer.zero_grad()
        machine.losses(draw(60))["loss"].backward()
        optimizer.step()
        falling.step()
    held_out = draw(1000)
    assert machine.eval().losses(held_out)["error"] < 0.03
    of_class = machine.sample_class(torch.arange(CLASSES).repeat(50), effort=Effort(num_temperatures=50))
    assert (machine.logits(of_class.round()).argmax(1) == torch.arange(CLASSES).repeat(50)).float().mean() > 0.9


def test_persistent_chains_carry_labels() -> None:
    machine = LabeledRBM(num_visible=4, num_hidden=3, num_classes=CLASSES, algorithm="pcd", num_chains=7)
    for _ in range(2):
        chains = machine.rank_state()["chains"]
        assert chains.shape == (7, 4 + CLASSES) and (chains[:, 4:].sum(1) == 1).all()
        machine.losses({"x": torch.rand(2, 4), "label": torch.tensor([0, 2])})


def test_a_belief_net_with_labels_in_its_top() -> None:
    """Its bound lies below the exact value, its labels are those of the top layer, its samples by class are of it.

    Two comparisons at 4.5 s.e. and five means at 4.5 s.e.: false alarm 5 in 100,000 runs.
    """
    below, top = RBM(num_visible=5, num_hidden=4).double(), random_machine()
    for parameter in below.parameters():
        nn.init.normal_(parameter)
    dbn = DBN(stack=Stack(layers=[below, top]))
    assert dbn.num_classes == CLASSES
    x = (torch.rand(2, 5) > 0.5).double()
    torch.testing.assert_close(dbn.logits(x), top.logits(below.encode(x)))

    hidden, top_joint = all_states(4), log_joint(top)
    log_p_hidden = top_joint.logsumexp((1, 2))
    for one in x:
        log_q = below.hidden_units.log_prob(hidden, below.hidden_field(one[None])).detach()
        log_p = below.visible_units.log_prob(one, below.visible_field(hidden)).detach() + log_p_hidden
        bound = (log_q.exp() @ (log_p - log_q)).item()
        answer = dbn.log_prob(one.expand(300, -1), effort=Effort(num_samples=10))
        assert answer.kind == "lower_bound" and answer.std_error is not None
        assert abs(answer.nats.mean().item() - bound) < 4.5 * answer.std_error
        assert bound < log_p.logsumexp(0).item()

    of_class = dbn.sample_class(torch.full((20_000,), 1), effort=Effort(num_temperatures=40))
    share = top_joint.logsumexp(2)[:, 1].softmax(0)
    mean = share @ below.decode(hidden).detach()
    assert ((of_class.mean(0) - mean).abs() < 4.5 * of_class.std(0) / math.sqrt(20_000)).all()


def test_what_a_belief_net_without_labels_does_not_tell() -> None:
    dbn, x = DBN.example()
    assert dbn.num_classes is None
    with pytest.raises(ValueError, match="has no label units; its top layer would have to be a labeled_rbm"):
        dbn.logits(x)
    with pytest.raises(ValueError, match="label units belong in the top layer of a DBN, but layer 1 has them"):
        DBN(stack=Stack(layers=[random_machine(), RBM(num_visible=3, num_hidden=2)]))
