"""What stands for the model in the gradient of an RBM, held against enumeration of all its states."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lightning_modules.algorithms import ALGORITHMS
from lightning_modules.boltzmann import RBM
from lightning_modules.enumeration import differentiable_log_partition
from lightning_modules.interfaces import Effort
from lightning_modules.negative_phase import FastPersistentChains
from tests.tiny_rbms import all_states, flat, gradients, probabilities, random_rbm, some_data

MOVING = ("pcd", "fast_pcd", "parallel_tempering")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------ exact


@pytest.mark.parametrize(("num_visible", "num_hidden"), [(4, 7), (7, 4), (5, 5), (13, 14)])
def test_exact_loss_is_minus_log_likelihood_and_so_is_its_gradient(num_visible: int, num_hidden: int) -> None:
    """Over the smaller layer, whichever it is; 2^13 states are more than are held at a time."""
    rbm = random_rbm(num_visible, num_hidden, scale=0.5, algorithm="exact")
    data = some_data(rbm)
    loss = rbm.losses(data)["loss"]
    expected = rbm.free_energy(data).mean() + (-rbm.free_energy(all_states(num_visible))).logsumexp(0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(flat(gradients(rbm, 3 * loss)), flat(gradients(rbm, 3 * expected)))


def test_exact_gradient_of_gaussian_units_sums_over_the_hidden_ones() -> None:
    rbm = random_rbm(3, 4, scale=0.5, visible="gaussian", algorithm="exact")
    h = all_states(4)
    expected = (h @ rbm.hidden_bias + rbm.visible_units.log_partition(rbm.visible_field(h))).logsumexp(0)
    log_z = differentiable_log_partition(rbm.machine())
    torch.testing.assert_close(log_z, expected)
    torch.testing.assert_close(flat(gradients(rbm, log_z)), flat(gradients(rbm, expected)))


def test_exact_training_converges_to_the_maximum_of_the_likelihood() -> None:
    """8 × 6 on data of another 8 × 2 machine, whose distribution it can hold: KL(data ‖ model) falls to nothing."""
    target = probabilities(random_rbm(8, 2, scale=1.5)).detach()
    states, rbm = all_states(8), random_rbm(8, 6, scale=0.1, algorithm="exact")
    entropy = torch.special.entr(target).sum()
    optimizer = torch.optim.Adam(rbm.parameters(), lr=0.05)
    divergences = []
    for _ in range(600):
        machine, field = rbm.machine(), rbm.hidden_field(states).detach()
        loss = machine.weighted_free_energy(states, field, target) + differentiable_log_partition(machine)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        divergences.append((loss - entropy).item())
    assert divergences[0] > 0.5
    assert 0 <= divergences[-1] < 1e-3
    assert max(after - before for before, after in itertools.pairwise(divergences[20:])) < 0.01


def test_exact_gradient_of_a_large_machine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 2\^20; 21 × 30 units are too many: choose pcd"):
        RBM(num_visible=21, num_hidden=30, algorithm="exact")
    with pytest.raises(ValueError, match="too many"):
        RBM(num_visible=4, num_hidden=21, algorithm="exact", visible="gaussian")
    RBM(num_visible=784, num_hidden=20, algorithm="exact")


# ------------------------------------------------------------------------------------------------ chains


@pytest.mark.parametrize("algorithm", MOVING)
def test_gradient_of_moving_chains_is_on_average_the_exact_one(algorithm: str) -> None:
    """34 parameters at 4.5 s.e. of 20,000 independent chains: false alarm 2 in 10,000 runs of each."""
    rbm = random_rbm(algorithm=algorithm, num_chains=20_000, num_temperatures=4)
    data = some_data(rbm)
    for _ in range(30):
        loss = rbm.losses(data)["loss"]
    p, v = probabilities(rbm).detach(), all_states(6)
    h = rbm.encode(v).detach()
    each = torch.cat([(v[:, :, None] * h[:, None, :]).flatten(1), v, h], dim=1)
    std = (p @ (each - p @ each).square()).sqrt()
    exact = flat(gradients(rbm, rbm.free_energy_difference(data, v, p)))
    assert exact.norm() > 0.5
    assert ((flat(gradients(rbm, loss)) - exact).abs() < 4.5 * std / math.sqrt(20_000)).all()


@pytest.mark.parametrize("algorithm", MOVING)
def test_two_ranks_with_half_the_chains_give_the_gradient_of_one(algorithm: str) -> None:
    """Fields of some thousand leave nothing to chance, so that the same chains move alike on every rank; replicas at
    β = 0 get theirs from base rates that are certain.
    """
    whole = random_rbm(algorithm=algorithm, num_chains=8, scale=1000, num_temperatures=3, centered=True)
    whole.base_field.copy_(1000 * torch.randn(6))
    centering = whole.centering
    assert centering is not None
    centering.visible_offset.uniform_()
    centering.hidden_offset.uniform_()
    data, chains = some_data(whole, 6), whole.rank_state()["chains"]
    means = []
    for rank in range(2):
        part = random_rbm(algorithm=algorithm, num_chains=8, num_temperatures=3, centered=True)
        part.load_state_dict(whole.state_dict())
        part.load_rank_state({"chains": chains[4 * rank : 4 * rank + 4]})
        means.append(flat(gradients(part, part.losses(data[3 * rank : 3 * rank + 3])["loss"])))
        assert len(part.rank_state()["chains"]) == 4
    one = flat(gradients(whole, whole.losses(data)["loss"]))
    assert one.norm() > 0.1
    torch.testing.assert_close((means[0] + means[1]) / 2, one)


@pytest.mark.parametrize("algorithm", MOVING)
def test_chains_move_in_training_only(algorithm: str) -> None:
    rbm = random_rbm(algorithm=algorithm, num_chains=50)
    before = rbm.rank_state()["chains"].clone()
    rbm.eval().losses(some_data(rbm))
    assert torch.equal(rbm.rank_state()["chains"], before)
    rbm.train().losses(some_data(rbm))
    assert not torch.equal(rbm.rank_state()["chains"], before)
    assert "chains" not in " ".join(rbm.state_dict())


def test_replicas_of_another_number_are_refused() -> None:
    rbm = random_rbm(algorithm="parallel_tempering", num_temperatures=4)
    with pytest.raises(ValueError, match=r"'chains' of shape \(any, 4, 6\)"):
        rbm.load_rank_state({"chains": torch.zeros(100, 3, 6)})


# ------------------------------------------------------------------------------------------------ fast weights


def test_fast_weights_follow_the_gradient_and_fade() -> None:
    """After t steps: −rate Σ_s (19/20)^(t−s) · gradient of step s; the learned weights know nothing of it."""
    rbm = random_rbm(algorithm="fast_pcd", num_chains=10, fast_learning_rate=0.3)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
    expected = torch.zeros(34, dtype=torch.float64)
    for _ in range(4):
        optimizer.zero_grad()
        rbm.losses(some_data(rbm))["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in (rbm.weights, rbm.visible_bias, rbm.hidden_bias)])  # type: ignore[union-attr]
        expected = 19 / 20 * expected - 0.3 * gradient
        optimizer.step()
        rbm.after_step()
    fast = rbm.negative_phase
    assert isinstance(fast, FastPersistentChains)
    torch.testing.assert_close(flat((fast.weights, fast.visible_bias, fast.hidden_bias)), expected)


def test_chains_are_those_of_the_learned_plus_the_fast_weights() -> None:
    fast, plain = (random_rbm(algorithm=name, num_chains=1000) for name in ("fast_pcd", "pcd"))
    phase = fast.negative_phase
    assert isinstance(phase, FastPersistentChains)
    phase.follow([torch.randn(6, 4), torch.randn(6), torch.randn(4)])
    with torch.no_grad():
        plain.weights.copy_(fast.weights + phase.weights)
        plain.visible_bias.copy_(fast.visible_bias + phase.visible_bias)
        plain.hidden_bias.copy_(fast.hidden_bias + phase.hidden_bias)
    plain.load_rank_state(fast.rank_state())
    data = some_data(fast)
    for rbm in (fast, plain):
        torch.manual_seed(1)
        rbm.losses(data)
    assert torch.equal(fast.rank_state()["chains"], plain.rank_state()["chains"])


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_lowers_the_exact_loss(algorithm: str) -> None:
    """Four patterns of 64: from 6 log 2 = 4.16 nats to below 2.5; the best is log 4 = 1.39."""
    data = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).double()
    rbm = random_rbm(scale=0.1, algorithm=algorithm, num_temperatures=4)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.2)
    for _ in range(800):
        optimizer.zero_grad()
        rbm.losses(data)["loss"].backward()
        optimizer.step()
        rbm.after_step()
    assert -rbm.log_prob(data, effort=Effort()).nats.mean() < 2.5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_works_in_mixed_precision(algorithm: str) -> None:
    """Parameters, averages and chains keep their float32; the gradient is that of float32 within a few per cent."""
    data = (torch.rand(200, 6) < 0.3).float()
    found = {}
    for mixed in (False, True):
        torch.manual_seed(1)
        rbm = RBM(num_visible=6, num_hidden=4, algorithm=algorithm, centered=True, sparsity_target=0.1, num_chains=2000)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = rbm.losses(data)["loss"]
        loss.backward()
        rbm.after_step()
        assert loss.isfinite() and {value.dtype for value in rbm.state_dict().values()} == {torch.float32}
        found[mixed] = torch.cat([p.grad.flatten() for p in rbm.parameters() if p.grad is not None])
    assert (found[True] - found[False]).norm() < 0.1 * found[False].norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "CD"}, "algorithm must be one of cd, pcd, fast_pcd, parallel_tempering, exact, not 'CD'"),
        ({"num_temperatures": 1}, "num_temperatures must be at least 2, not 1"),
        ({"fast_learning_rate": 0.0}, "fast_learning_rate must be positive, not 0"),
        ({"sparsity_target": 0.1, "sparsity_cost": math.nan}, "sparsity_cost must be positive, not nan"),
        ({"sparsity_target": 1.0}, "sparsity_target must lie between 0 and 1, not 1"),
        ({"sparsity_target": 0.1, "hidden": "gaussian"}, "activity of bernoulli hidden units"),
        ({"algorithm": "exact", "hidden": "relu"}, "exact compares probabilities, but relu units have no density"),
        ({"algorithm": "parallel_tempering", "visible": "relu"}, "relu units have no density"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBM(**{"num_visible": 6, "num_hidden": 4, **arguments})  # type: ignore[arg-type]
