"""RBMs of every family of units against energies written out and summed over all states, in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_modules.boltzmann import RBM
from lightning_modules.categorical import ReplicatedSoftmax
from lightning_modules.gaussian import Gaussian
from lightning_modules.interfaces import Effort

VISIBLE = ("bernoulli", "gaussian", "learned_gaussian", "relu", "softmax", "replicated_softmax")
PAIRS = [(visible, "bernoulli") for visible in VISIBLE] + [
    (visible, "gaussian") for visible in ("bernoulli", "softmax", "replicated_softmax")
]
PAIRS_WITHOUT_DENSITY = [(visible, "relu") for visible in VISIBLE]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def machine(visible: str, hidden: str = "bernoulli", num_visible: int = 6, num_hidden: int = 4, **more: object) -> RBM:
    """Random parameters; Gaussian units of different locations and scales."""
    num_states = 3 if visible == "softmax" else None
    rbm = RBM(
        num_visible=num_visible,
        num_hidden=num_hidden,
        visible=visible,
        hidden=hidden,
        num_states=num_states,
        centered=False,
        **more,
    ).double()  # type: ignore[arg-type]
    for parameter in rbm.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    if isinstance(rbm.visible_units, Gaussian):
        rbm.visible_units.location.normal_()
        torch.nn.init.normal_(rbm.visible_units.log_std, std=0.5)
    return rbm


def binary_states(num_units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_units)), dtype=torch.float64)


def data_for(rbm: RBM, batch: int = 5) -> Tensor:
    noise = torch.randn(batch, rbm.num_visible, dtype=torch.float64)
    if rbm.visible == "softmax":
        return torch.nn.functional.one_hot(noise.view(batch, -1, 3).argmax(-1), 3).double().flatten(1)
    if rbm.visible == "replicated_softmax":
        return noise.mul(2).abs().ceil()
    return {"bernoulli": (noise > 0).double(), "relu": noise.clamp(min=0)}.get(rbm.visible, noise)


def energy(rbm: RBM, v: Tensor, h: Tensor) -> Tensor:
    """E(v, h), written out for one pair without the units' help."""
    u, base, words = v, torch.zeros((), dtype=torch.float64), 1.0
    if isinstance(units := rbm.visible_units, Gaussian):
        std = units.log_std.exp()
        u = (v - units.location) / std
        base = base + (u**2 / 2 + std.log() + math.log(2 * math.pi) / 2).sum()
    if rbm.visible == "replicated_softmax":
        words = float(v.sum())
    if rbm.hidden == "gaussian":
        base = base + (h**2 / 2 + math.log(2 * math.pi) / 2).sum()
    return base - rbm.visible_bias @ u - words * (rbm.hidden_bias @ h) - u @ rbm.weights @ h


def gradients(rbm: RBM, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rbm.parameters()))])


# ------------------------------------------------------------------------------------------------ free energies


@pytest.mark.parametrize("visible", VISIBLE)
def test_free_energy_is_minus_log_of_the_sum_over_hidden_states(visible: str) -> None:
    rbm = machine(visible)
    data = data_for(rbm)
    expected = [-torch.stack([-energy(rbm, v, h) for h in binary_states(4)]).logsumexp(0) for v in data]
    torch.testing.assert_close(rbm.free_energy(data), torch.stack(expected), atol=1e-10, rtol=0)


@pytest.mark.parametrize("visible", ["bernoulli", "softmax", "replicated_softmax"])
def test_free_energy_over_gaussian_hidden_units_is_that_of_quadrature(visible: str) -> None:
    rbm = machine(visible, "gaussian", num_hidden=1)
    rbm.weights.data.mul_(0.3)
    line = torch.arange(-25, 25, 0.02, dtype=torch.float64)[:, None]
    for v in data_for(rbm):
        expected = -torch.stack([-energy(rbm, v, h) for h in line]).logsumexp(0) - math.log(0.02)
        torch.testing.assert_close(rbm.free_energy(v[None])[0], expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("visible", ["gaussian", "learned_gaussian"])
def test_gaussian_density_integrates_to_one(visible: str) -> None:
    rbm = machine(visible, num_visible=2, num_hidden=3)
    lines = [
        units_line(rbm, unit) for unit in range(2)
    ]  # 15 standard deviations to both sides, beyond which nothing is
    grid = torch.cartesian_prod(*lines)
    answer = rbm.log_prob(grid, effort=Effort())
    assert answer.kind == "exact"
    cell = math.prod((line[1] - line[0]).item() for line in lines)
    assert answer.nats.exp().sum().item() * cell == pytest.approx(1, abs=1e-6)


def units_line(rbm: RBM, unit: int) -> Tensor:
    assert isinstance(units := rbm.visible_units, Gaussian)
    reach = torch.arange(-15, 15, 0.05, dtype=torch.float64)
    return (units.location[unit] + units.log_std[unit].exp() * reach).detach()


def test_softmax_probabilities_of_all_states_sum_to_one() -> None:
    states = binary_states(6)
    states = states[(states.view(-1, 2, 3).sum(-1) == 1).all(1)]
    answer = machine("softmax").log_prob(states, effort=Effort())
    assert len(states) == 9 and answer.kind == "exact"
    assert answer.nats.exp().sum().item() == pytest.approx(1, abs=1e-10)


# ------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize(("visible", "hidden"), PAIRS)
@pytest.mark.parametrize("weighted", [False, True])
def test_closed_form_gradient_is_that_of_autograd(visible: str, hidden: str, weighted: bool) -> None:
    """Of all parameters, learned variances among them."""
    rbm = machine(visible, hidden)
    data, model = data_for(rbm, 5), data_for(rbm, 3)
    weights = torch.tensor([2.0, 3.0, 5.0] if weighted else [1.0, 1.0, 1.0], dtype=torch.float64)
    weights /= weights.sum()
    by_autograd = rbm.free_energy(data).mean() - weights @ rbm.free_energy(model)
    closed_form = rbm.free_energy_difference(data, model, weights if weighted else None)
    torch.testing.assert_close(closed_form, by_autograd)
    torch.testing.assert_close(gradients(rbm, 3 * closed_form), gradients(rbm, 3 * by_autograd))


@pytest.mark.parametrize(("visible", "hidden"), PAIRS_WITHOUT_DENSITY)
def test_rectified_units_learn_by_energies_at_their_means(visible: str, hidden: str) -> None:
    rbm = machine(visible, hidden)
    data, model = data_for(rbm, 5), data_for(rbm, 3)
    means = rbm.encode(torch.cat([data, model])).detach()
    energies = torch.stack([energy(rbm, v, h) for v, h in zip(torch.cat([data, model]), means, strict=True)])
    expected = energies[:5].mean() - energies[5:].mean()
    found = rbm.free_energy_difference(data, model)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(rbm, found), gradients(rbm, expected))


@pytest.mark.parametrize(("visible", "hidden"), PAIRS + PAIRS_WITHOUT_DENSITY)
@pytest.mark.parametrize("gibbs_steps", [1, 3])
def test_loss_is_the_difference_to_chains_that_start_at_the_data(visible: str, hidden: str, gibbs_steps: int) -> None:
    """Drawn again from the same seed; documents keep their numbers of words."""
    rbm = machine(visible, hidden, gibbs_steps=gibbs_steps)
    rbm.weights.data.mul_(0.3)
    data = chains = data_for(rbm)
    replicas = rbm.visible_units.replicas(data)
    torch.manual_seed(1)
    losses = rbm.losses(data)
    torch.manual_seed(1)
    for _ in range(gibbs_steps):
        chains = rbm.visible_units.sample(rbm.visible_field(rbm.sample_hidden(chains)), replicas).detach()
    expected = rbm.free_energy_difference(data, chains)
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(gradients(rbm, losses["loss"]), gradients(rbm, expected))
    assert rbm.monitors(data)["reconstruction_error"].isfinite()
    if replicas is not None:
        assert torch.equal(chains.sum(1, keepdim=True), replicas)


@pytest.mark.parametrize("visible", VISIBLE)
def test_starts_from_the_base_rates_of_the_data(visible: str) -> None:
    rbm = machine(visible)
    rbm.weights.data.zero_()
    mean = torch.tensor([0.1, 0.2, 0.7, 0.5, 0.3, 0.2]).double()
    rbm.start_from_data_mean(mean)
    number = mean.sum() if visible == "replicated_softmax" else 1
    torch.testing.assert_close(rbm.decode(torch.zeros(1, 4).double())[0].detach() * number, mean)


def test_gaussian_units_standardise_raw_data() -> None:
    """The same machine on data of mean 0 and variance 1, but for the density of the change of variables."""
    raw = machine("gaussian")
    standard = machine("gaussian")
    location, std = torch.tensor([5.0, -3, 0, 100, 1, 0.1]).double(), torch.tensor([2.0, 1, 9, 30, 0.5, 1]).double()
    raw.start_from_data_std(std)
    raw.start_from_data_mean(location)
    standard.start_from_data_std(torch.ones(6).double())
    standard.start_from_data_mean(torch.zeros(6).double())
    standard.weights.data.copy_(raw.weights)
    standard.hidden_bias.data.copy_(raw.hidden_bias)
    u = data_for(standard)
    expected = standard.free_energy(u) + std.log().sum()
    torch.testing.assert_close(raw.free_energy(location + std * u), expected)
    torch.testing.assert_close(raw.encode(location + std * u), standard.encode(u))


def trained(rbm: RBM, data: Tensor, *, steps: int, learning_rate: float, momentum: float = 0.0) -> RBM:
    """By contrastive divergence on batches of 400, the learning rate falling to 0."""
    optimizer = torch.optim.SGD(rbm.parameters(), lr=learning_rate, momentum=momentum)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        rbm.losses(data[torch.randint(len(data), (400,))])["loss"].backward()
        optimizer.step()
        rbm.after_step()
    return rbm


@pytest.mark.parametrize("visible", ["gaussian", "learned_gaussian"])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_planted_mixture_is_recovered(visible: str, scale: float) -> None:
    """Both means of a mixture within 0.1 standard deviations of the noise, which is given or learned to 3 %."""
    planted = torch.tensor([[-2.0, -1.0], [2.0, 1.5]])
    data = scale * (planted[torch.randint(2, (8000,))] + torch.randn(8000, 2))
    rbm = RBM(num_visible=2, num_hidden=1, visible=visible, gibbs_steps=3, weight_std=0.1)
    rbm.start_from_data_std(torch.full((2,), scale) if visible == "gaussian" else data.std(0))
    rbm.start_from_data_mean(data.mean(0))
    trained(rbm, data, steps=800, learning_rate=0.5)
    found = rbm.decode(binary_states(1).float()).detach() / scale
    assert torch.cdist(planted, found).min(1).values.max() < 0.1
    assert isinstance(rbm.visible_units, Gaussian)
    torch.testing.assert_close(rbm.visible_units.log_std.detach().exp() / scale, torch.ones(2), atol=0.03, rtol=0)


@pytest.mark.parametrize("visible", ["gaussian", "learned_gaussian"])
@pytest.mark.parametrize(
    ("hidden", "learning_rate"), [("bernoulli", 1e-3), ("bernoulli", 0.05), ("relu", 1e-3)]
)  # rectified units at 0.05 do diverge
def test_unwhitened_data_do_not_diverge(visible: str, hidden: str, learning_rate: float) -> None:
    """Strongly correlated values far from 0, of scales from 0.1 to 10, one of them constant: most of their variance, 59
    standardised, is explained.
    """
    factors = torch.randn(2000, 5) @ torch.randn(5, 60)
    data = 200 + (factors + 0.3 * torch.randn(2000, 60)) * torch.logspace(-1, 1, 60)
    data[:, 7] = 3.0
    rbm = RBM(num_visible=60, num_hidden=30, visible=visible, hidden=hidden)
    rbm.start_from_data_std(std := data.std(0, correction=0))
    rbm.start_from_data_mean(data.mean(0))
    trained(rbm, data, steps=500, learning_rate=learning_rate, momentum=0.9)
    error = (rbm.decode(rbm.encode(data)) - data) / std.clamp(min=0.1)
    assert error.square().sum(1).mean() < 30


# ------------------------------------------------------------------------------------------------ documents


def documents(num_words: int, length: int) -> Tensor:
    """All sequences of words as counts, (num_words^length, num_words)."""
    sequences = torch.tensor(list(itertools.product(range(num_words), repeat=length)))
    return torch.nn.functional.one_hot(sequences, num_words).sum(1).double()


@pytest.mark.parametrize(
    ("visible", "fits", "wrong"),
    [
        ("softmax", [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, 1, 1]),
        ("softmax", [0.0, 0, 1, 1, 0, 0], [0.5, 0.5, 0, 1, 0, 0]),
        ("replicated_softmax", [2.0, 0, 1, 0, 0, 0], [0.2, 0, 1, 0, 0, 0]),
    ],
)
def test_data_that_are_no_states_or_no_counts_are_refused(visible: str, fits: list[float], wrong: list[float]) -> None:
    rbm = machine(visible)
    rbm.start_from_data(torch.tensor([fits]).double())
    with pytest.raises(ValueError, match=f"{visible} units are"):
        rbm.start_from_data(torch.tensor([fits, wrong]).double())


def test_hidden_bias_scales_with_the_number_of_words() -> None:
    rbm = machine("replicated_softmax", num_visible=3)
    rbm.weights.data.zero_()
    v = torch.tensor([[1.0, 0, 0], [2.0, 3, 1]]).double()
    torch.testing.assert_close(rbm.hidden_field(v), torch.stack([rbm.hidden_bias, 6 * rbm.hidden_bias]))


def test_log_z_of_three_words_of_a_vocabulary_of_three() -> None:
    """Exactly, over hidden states and over all 27 sequences, and by annealing within 0.1."""
    rbm = machine("replicated_softmax", num_visible=3, num_hidden=4)
    v = documents(3, 3)
    expected = (-rbm.free_energy(v)).logsumexp(0).item()
    assert rbm.log_partition(effort=Effort(), replicas=3).nats == pytest.approx(expected, abs=1e-10)
    more_hidden = machine("replicated_softmax", num_visible=3, num_hidden=25)
    expected = (-more_hidden.free_energy(v)).logsumexp(0).item()
    found = more_hidden.log_partition(effort=Effort(num_chains=200, num_temperatures=500), replicas=3)
    assert found.kind == "estimate" and abs(found.nats - expected) < 0.1


@pytest.mark.parametrize("num_hidden", [4, 21])
def test_documents_of_each_length_have_their_own_log_z(num_hidden: int) -> None:
    """Those of one, two and three words in one batch: the probabilities of each length sum to 1."""
    rbm = machine("replicated_softmax", num_visible=3, num_hidden=num_hidden)
    rbm.weights.data.mul_(0.3)
    parts = [documents(3, length) for length in (2, 1, 3)]
    answer = rbm.log_prob(torch.cat(parts), effort=Effort(num_chains=500, num_temperatures=200))
    assert answer.kind == ("exact" if num_hidden == 4 else "estimate")
    assert answer.estimator.endswith("for each of 3 numbers of words")
    sums = [nats.exp().sum().item() for nats in answer.nats.split([9, 3, 27])]
    assert sums == pytest.approx([1, 1, 1], abs=1e-9 if num_hidden == 4 else 0.05)
    if num_hidden > 20:
        assert answer.reverse is not None and answer.reverse.estimator.endswith("for each of 3 numbers of words")
        torch.testing.assert_close(answer.reverse.nats, answer.nats, atol=0.1, rtol=0)


def test_annealing_a_document_starts_from_independent_words() -> None:
    rbm = machine("replicated_softmax", num_visible=3)
    base_field = torch.randn(3).double()
    expected = 5 * base_field.logsumexp(0) + 4 * math.log(2)
    found = rbm.annealing(7, base_field, replicas=5).log_partition_at_start
    assert found == pytest.approx(expected.item(), abs=1e-10)


def test_samples_are_documents_of_the_average_length() -> None:
    rbm = machine("replicated_softmax")
    rbm.start_from_data_mean(torch.tensor([3.0, 0.4, 2.5, 0.1, 0.0, 1.0]))
    drawn = rbm.sample(5, effort=Effort(num_temperatures=3))
    torch.testing.assert_close(drawn.sum(1), torch.full((5,), 7.0).double())
    assert isinstance(rbm.visible_units, ReplicatedSoftmax)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(("visible", "hidden"), [*PAIRS_WITHOUT_DENSITY, ("relu", "bernoulli")])
def test_rectified_machines_claim_no_log_prob(visible: str, hidden: str) -> None:
    rbm = machine(visible, hidden)
    assert not rbm.has_log_prob
    with pytest.raises(ValueError, match="an rbm with relu units claims no log_prob"):
        rbm.log_prob(data_for(rbm), effort=Effort())
    assert rbm.sample(3, effort=Effort(num_temperatures=2)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": "softmax"}, "hidden must be one of bernoulli, gaussian, relu, not 'softmax'"),
        (
            {"visible": "gaussian", "hidden": "gaussian"},
            "gaussian hidden units over gaussian ones have no least energy",
        ),
        ({"visible": "softmax"}, "softmax units need num_states"),
        ({"num_states": 3}, "num_states is for softmax units, bernoulli ones have none"),
        ({"visible": "softmax", "num_states": 4}, "6 is no multiple of 4"),
        ({"visible": "replicated_softmax", "algorithm": "pcd"}, "replicated_softmax learns by algorithm: cd"),
        ({"hidden": "relu", "doubled": "hidden"}, "only bernoulli units can be doubled, not relu ones"),
    ],
)
def test_arguments_without_meaning_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBM(**{"num_visible": 6, "num_hidden": 4, **arguments})  # type: ignore[arg-type]


def test_log_z_needs_a_number_of_words_for_documents_alone() -> None:
    with pytest.raises(ValueError, match="one for a number of words"):
        machine("replicated_softmax").log_partition(effort=Effort())
    with pytest.raises(ValueError, match="one for a number of words"):
        machine("bernoulli").log_partition(effort=Effort(), replicas=3)
