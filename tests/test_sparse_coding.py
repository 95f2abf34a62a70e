"""Sparse coding against planted dictionaries, finite differences and the algorithms written out.

Seeds are fixed; everything is deterministic given them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.lasso import solve
from lightning_modules.lasso_gradient import codes
from lightning_modules.sparse_coding import FORGETTING, REVIVAL_STEPS, SparseCoding
from tests.planted import planted, recovered


def learn(model: SparseCoding, x: Tensor, *, epochs: int, batch_size: int, rate: float = 0.0) -> None:
    model.start_from_data(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch_size):
            optimizer.zero_grad()
            model.losses(x[rows])["loss"].backward()
            optimizer.step()
            model.after_step()


def test_a_planted_dictionary_is_recovered() -> None:
    """At least 85 % of 50 atoms in 20 dimensions, 1,500 signals of 3 at 20 dB: the mean of 5 seeds, by the defaults."""
    shares = []
    for seed in range(5):
        atoms, x = planted(seed)
        torch.manual_seed(seed)
        model = SparseCoding(num_visible=20, num_hidden=50)
        learn(model, x, epochs=20, batch_size=250)
        shares.append(recovered(atoms, model.dictionary))
    assert sum(shares) / 5 >= 0.85


def test_a_planted_dictionary_is_recovered_by_gradient() -> None:
    """Slower: one seed, and at least half of the atoms."""
    atoms, x = planted(0, num_atoms=30)
    torch.manual_seed(0)
    model = SparseCoding(num_visible=20, num_hidden=30, update="gradient", tolerance=1e-3)
    learn(model, x, epochs=20, batch_size=100, rate=2.0)
    assert recovered(atoms, model.dictionary) >= 0.5


def test_scale_and_mean_of_the_data_do_not_matter() -> None:
    """λ follows the data's length and atoms do not carry the mean: the defaults find one dictionary in both."""
    atoms, x = planted(0, num_atoms=30)
    found = []
    for scale, offset in ((1.0, 0.0), (100.0, 3000.0)):
        torch.manual_seed(0)
        model, data = SparseCoding(num_visible=20, num_hidden=30).double(), scale * x.double() + offset
        learn(model, data, epochs=10, batch_size=250)
        left = (data - model.decode(model.encode(data))).square().sum() / (data - data.mean(0)).square().sum()
        assert recovered(atoms.double(), model.dictionary) >= 0.6 and left < 0.4
        found.append(model.dictionary.detach())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("update", ["online", "gradient"])
def test_atoms_stay_of_unit_length(update: Any) -> None:
    torch.manual_seed(0)
    model = SparseCoding(num_visible=20, num_hidden=50, update=update)
    learn(model, planted(0)[1], epochs=1, batch_size=100, rate=1.0)
    torch.testing.assert_close(model.dictionary.norm(dim=1), torch.ones(50))


def test_the_gradient_is_that_of_the_objective() -> None:
    """∇ F by finite differences through the minimum: codes that are optimal have no part in it."""
    torch.manual_seed(0)
    model = SparseCoding(num_visible=5, num_hidden=7, penalty=0.3, update="gradient", solver="feature_sign").double()
    v = torch.randn(6, 5, dtype=torch.double)
    loss = model.losses(v)["loss"]
    loss.backward()
    slopes = finite_differences(lambda: model.losses(v)["loss"], model.dictionary)
    torch.testing.assert_close(model.dictionary.grad, slopes, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_gradients_go_through_the_codes(nonnegative: bool) -> None:
    """By finite differences of a function of the codes, with respect to data and dictionary, of atoms of any length."""
    torch.manual_seed(0)
    v = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    dictionary = torch.randn(7, 5, dtype=torch.double, requires_grad=True)
    weights = torch.randn(6, 7, dtype=torch.double)

    def value() -> Tensor:
        found = codes(
            v, dictionary, 0.3, solver="feature_sign", nonnegative=nonnegative, tolerance=1e-9, max_steps=1000
        )
        assert 0 < found.count_nonzero() < found.numel()
        return (weights * found).sum() + (weights * found.square()).sum()

    value().backward()
    for given in (v, dictionary):
        assert given.grad is not None and given.grad.abs().max() > 0.1
        torch.testing.assert_close(given.grad, finite_differences(value, given), rtol=1e-3, atol=1e-4)


def finite_differences(value: Any, parameter: Tensor, step: float = 1e-6) -> Tensor:
    slopes = torch.zeros_like(parameter)
    with torch.no_grad():
        flat = parameter.view(-1)
        for position in range(len(flat)):
            flat[position] += step
            above = value()
            flat[position] -= 2 * step
            below = value()
            flat[position] += step
            slopes.view(-1)[position] = (above - below) / (2 * step)
    return slopes


def test_the_online_update_is_mairals() -> None:
    """Algorithms 1 and 2 written out: A and B as weighted means over all batches, then every atom in turn."""
    torch.manual_seed(0)
    model = SparseCoding(num_visible=6, num_hidden=40, penalty=0.3, solver="feature_sign").double()
    dictionary, batches = model.dictionary.detach().clone(), torch.randn(4, 30, 6, dtype=torch.double)
    moments, joint = torch.zeros(40, 40, dtype=torch.double), torch.zeros(40, 6, dtype=torch.double)
    for t, v in enumerate(batches, start=1):
        h = solve(v, dictionary, 0.3, solver="feature_sign").codes
        weight = (1 + FORGETTING) / (t + FORGETTING)
        moments = (1 - weight) * moments + weight * h.T @ h / 30
        joint = (1 - weight) * joint + weight * h.T @ v / 30
        for j in range(40):
            if moments[j, j] > 0:
                atom = (joint[j] - moments[j] @ dictionary) / moments[j, j] + dictionary[j]
                dictionary[j] = atom / atom.norm()
        losses = model.losses(v)
        losses["loss"].backward()
        assert model.dictionary.grad is None or not model.dictionary.grad.any()
        model.after_step()
        torch.testing.assert_close(model.dictionary.detach(), dictionary, rtol=0, atol=1e-6)


@pytest.mark.parametrize("update", ["online", "gradient"])
def test_mixed_precision_changes_nothing_but_what_comes_in(update: Any) -> None:
    """Statistics of many batches and codes to a tolerance would be worthless in bfloat16."""
    x = planted(0)[1][:100].bfloat16()
    found = []
    for mixed in (False, True):
        torch.manual_seed(0)
        model = SparseCoding(num_visible=20, num_hidden=50, update=update)
        for _ in range(REVIVAL_STEPS if update == "gradient" else 3):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                model.losses(x if mixed else x.float())["loss"].backward()
                model.after_step()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found.append([*model.state_dict().values(), model.encode(x if mixed else x.float()).detach()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_evaluation_moves_nothing() -> None:
    model, v = SparseCoding(num_visible=20, num_hidden=50).eval(), planted(0)[1][:50]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.losses(v)
    model.encode(v)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("update", ["online", "gradient"])
def test_atoms_that_do_nothing_begin_anew(update: Any) -> None:
    """One that never agrees with the data, and the second of two equal ones; their draws are the step's alone."""
    x = planted(0)[1]
    x[:, 0] = 0
    states = []
    for seed in (0, 1):
        torch.manual_seed(0)
        model = SparseCoding(num_visible=20, num_hidden=50, update=update, tolerance=1e-3)
        model.start_from_data(x)
        with torch.no_grad():
            model.dictionary[7] = torch.eye(20)[0]
            model.dictionary[9] = -model.dictionary[8]
        torch.manual_seed(seed)
        for step in range(REVIVAL_STEPS):
            model.losses(x[:50])
            if step == REVIVAL_STEPS - 1:
                assert model.usage[7] == 0 and torch.equal(model.dictionary[7], torch.eye(20)[0])
            model.after_step() if update == "gradient" or step == REVIVAL_STEPS - 1 else model.num_steps.add_(1)
        overlaps = (model.dictionary @ model.dictionary.T).abs()
        assert model.dictionary[7, 0].abs() < 0.2 and overlaps.fill_diagonal_(0).max() < 0.999
        assert not model.usage.any()
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_what_is_left_unexplained_is_what_atoms_are_drawn_from() -> None:
    """With two atoms for three directions, the dead one goes to the third."""
    torch.manual_seed(0)
    x = torch.randn(200, 3) * torch.tensor([1.0, 1.0, 5.0])
    model = SparseCoding(num_visible=3, num_hidden=3, penalty=0.1, update="gradient")
    model.dictionary.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    for _ in range(REVIVAL_STEPS):
        model.losses(x)
        model.after_step()
    assert model.dictionary[2, 2].abs() > 0.9 and torch.equal(model.dictionary[:2].detach(), torch.eye(3)[:2])


def test_measures_say_how_sparse_and_how_good_codes_are() -> None:
    atoms, x = planted(0)
    model = SparseCoding(num_visible=20, num_hidden=51, penalty=0.1)
    with torch.no_grad():
        model.dictionary.copy_(torch.cat([atoms, torch.zeros(1, 20)]))
    found, h = model.measure(x), model.encode(x).detach()
    objective = (0.5 * (x - h @ model.dictionary).square().sum(1) + 0.1 * h.abs().sum(1)).detach()
    assert found["objective"] == pytest.approx(float(objective.mean()), rel=1e-5)
    assert found["nonzeros"] == pytest.approx(float((h != 0).sum(1).double().mean()))
    assert found["unused_atoms"] == 1 and 0 < found["largest_gap"] < 0.1


def test_starts_from_examples_and_from_any_data_there_may_be() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 20) + 3
    model = SparseCoding(num_visible=20, num_hidden=12)
    model.start_from_data(x)
    around = F.normalize(x - x.mean(0), dim=1)
    assert (model.dictionary @ around.T).abs().amax(1).min() > 0.95  # examples, some of them twice and then apart
    assert (model.dictionary @ model.dictionary.T).fill_diagonal_(0).max() < 0.9999
    expected = 1.2 / 20**0.5 * (x - x.mean(0)).square().sum(1).mean().sqrt()
    torch.testing.assert_close(model.threshold, expected)
    for constant in (torch.ones(4, 20), torch.zeros(4, 20)):
        model.start_from_data(constant)
        torch.testing.assert_close(model.dictionary.norm(dim=1), torch.ones(12))
        assert (model.encode(constant) == 0).all() and torch.equal(model.decode(model.encode(constant)), constant)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_hidden": 0}, {"penalty": 0.0}, {"penalty": -1.0}, {"tolerance": 0.0}, {"max_steps": 0},
        {"solver": "omp", "nonnegative": True},
    ],
)  # fmt: skip
def test_contradictions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SparseCoding(**({"num_visible": 3, "num_hidden": 2} | wrong))
