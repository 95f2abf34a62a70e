"""Families of units against sums over their states and quadrature on a grid, in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_modules.categorical import ReplicatedSoftmax, Softmax
from lightning_modules.draws import _on, bernoulli
from lightning_modules.gaussian import Gaussian
from lightning_modules.rectified import NoisyRectified
from lightning_modules.units import Bernoulli, Units

FIELD = torch.tensor([[-3.0, -0.2, 0.0, 1.5, 4.0, 0.7]], dtype=torch.float64)  # (1, 6)
SPACING = 0.01
NUM_WORDS, SEQUENCES = 3, torch.tensor(list(itertools.product(range(3), repeat=4)))  # four words of a vocabulary of 3


def gaussian(*, learned: bool = False) -> Gaussian:
    """Six units of different locations and scales."""
    units = Gaussian(6, learned=learned).double().requires_grad_(False)
    units.location.copy_(torch.tensor([0.0, 1, -2, 0.5, 0, 3]))
    units.rescale(torch.tensor([1.0, 0.5, 2, 0.1, 1, 1.5]))
    return units


FAMILIES = {
    "bernoulli": Bernoulli(),
    "gaussian": gaussian(),
    "learned_gaussian": gaussian(learned=True),
    "softmax": Softmax(6, 3),
    "relu": NoisyRectified(),
}
EXPONENTIAL = [name for name, units in FAMILIES.items() if units.has_density]


def density(units: Units, field: Tensor) -> tuple[Tensor, Tensor]:
    """All values of a layer of two Gaussian units on a grid, or all states of six others: (x, exp(log_base + η·T))."""
    if isinstance(units, Gaussian):
        raise TypeError
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64)
    if isinstance(units, Softmax):
        states = states[(states.view(-1, 2, 3).sum(-1) == 1).all(1)]
    return states, units.log_base(states) + (field * units.statistic(states)).sum(-1)


@pytest.mark.parametrize("name", ["bernoulli", "softmax"])
def test_log_partition_is_the_log_of_the_sum_over_all_states(name: str) -> None:
    states, log_weights = density(FAMILIES[name], FIELD)
    assert len(states) == {"bernoulli": 64, "softmax": 9}[name]
    torch.testing.assert_close(FAMILIES[name].log_partition(FIELD), log_weights.logsumexp(0, keepdim=True))
    torch.testing.assert_close(FAMILIES[name].log_prob(states, FIELD.expand(len(states), -1)).exp().sum().item(), 1.0)


@pytest.mark.parametrize("learned", [False, True])
def test_log_partition_of_gaussian_units_is_that_of_quadrature(learned: bool) -> None:
    units = gaussian(learned=learned)
    for unit, field in enumerate(FIELD[0]):
        one = Gaussian(1).double()
        one.location.copy_(units.location[unit])
        one.rescale(units.log_std[unit : unit + 1].exp())
        x = torch.arange(-40, 40, SPACING / 2, dtype=torch.float64)[:, None]
        total = (one.log_base(x) + field * one.statistic(x)[:, 0]).logsumexp(0) + math.log(SPACING / 2)
        torch.testing.assert_close(one.log_partition(field[None]), total, atol=1e-8, rtol=0)
        assert one.log_prob(x, field.expand(len(x), 1)).exp().sum().item() * SPACING / 2 == pytest.approx(1, abs=1e-8)


def test_replicated_softmax_is_a_density_of_sequences_of_words() -> None:
    """Of all 3⁴ sequences of four words; 15 different documents stand for them."""
    units, field = ReplicatedSoftmax(), FIELD[:, :NUM_WORDS]
    documents = torch.nn.functional.one_hot(SEQUENCES, NUM_WORDS).sum(1).double()
    assert torch.equal(units.replicas(documents), torch.full((81, 1), 4.0).double())
    expected = field[0][SEQUENCES].sum(1).logsumexp(0)
    found = units.log_partition(field, torch.tensor([[4.0]]).double())
    torch.testing.assert_close(found[0], expected)
    assert units.log_prob(documents, field.expand(81, -1)).exp().sum().item() == pytest.approx(1, abs=1e-10)
    share = field.softmax(1)
    torch.testing.assert_close(units.mean(field, torch.tensor([[4.0]])), 4 * share)
    torch.testing.assert_close(units.mean(field), share)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_statistic_of_the_mean_is_the_derivative_of_log_partition(name: str) -> None:
    units, field = FAMILIES[name], FIELD.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(units.log_partition(field).sum(), field)
    torch.testing.assert_close(units.statistic(units.mean(FIELD)), derivative)


def test_mean_of_rectified_units_is_that_of_quadrature() -> None:
    noise = torch.arange(-12, 12, SPACING / 4, dtype=torch.float64)[:, None]
    weight = torch.exp(-noise.square() / 2) / math.sqrt(2 * math.pi) * SPACING / 4
    values = (FIELD + torch.sigmoid(FIELD).sqrt() * noise).clamp(min=0)
    torch.testing.assert_close(NoisyRectified().mean(FIELD)[0], (weight * values).sum(0), atol=1e-6, rtol=0)


def test_rectified_units_come_close_to_sums_of_binary_ones_that_step_down() -> None:
    """Σ_i σ(η − i + ½) is what they stand for; around 0 they are up to 0.4 lower, of large fields 0.02."""
    steps = torch.arange(1, 200, dtype=torch.float64)[:, None] - 0.5
    below = torch.sigmoid(FIELD - steps).sum(0) - NoisyRectified().mean(FIELD)[0]
    assert (below > 0).all() and below.max() < 0.42 and below[4] < 0.03


@pytest.mark.parametrize("name", FAMILIES)
def test_field_of_mean_is_the_inverse_of_mean(name: str) -> None:
    units = FAMILIES[name]
    mean = units.mean(FIELD)
    torch.testing.assert_close(units.mean(units.field_of_mean(mean)), mean, atol=2e-3, rtol=0)
    if name != "softmax":  # whose fields have a constant to spare
        torch.testing.assert_close(units.field_of_mean(mean)[:, 1:], FIELD[:, 1:])


def test_fields_stay_finite_at_the_ends_of_the_range() -> None:
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(
        Bernoulli().field_of_mean(ends), torch.tensor([-math.log(999), math.log(999)]), atol=1e-3, rtol=0
    )
    for units in (Softmax(2, 2), ReplicatedSoftmax(), NoisyRectified()):
        assert units.field_of_mean(ends).isfinite().all()


def test_mean_counts_keep_the_number_of_words_in_their_field() -> None:
    mean = torch.tensor([3.0, 0.5, 1.5])
    torch.testing.assert_close(ReplicatedSoftmax().field_of_mean(mean).exp(), mean)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("by", ["sample", "draw"])
def test_draws_have_the_mean_and_variance_of_the_field(name: str, by: str) -> None:
    """Twelve comparisons at 4.5 s.e. each time: false alarm 8 in 100,000 runs of each."""
    torch.manual_seed(0)
    units, number = FAMILIES[name], 40_000
    fields = FIELD.expand(number, -1)
    draws = units.sample(fields) if by == "sample" else units.draw(units.mean(fields))
    mean = units.mean(FIELD)[0]
    variance = mean * (1 - mean)
    if isinstance(units, Gaussian):
        variance = units.log_std.mul(2).exp()
    if isinstance(units, NoisyRectified):  # E[x²] = (η² + s²) Φ(η/s) + η s φ(η/s)
        std = torch.sigmoid(FIELD[0]).sqrt()
        normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        below, slope = normal.cdf(FIELD[0] / std), normal.log_prob(FIELD[0] / std).exp()
        variance = (FIELD[0] ** 2 + std**2) * below + FIELD[0] * std * slope - mean**2
        variance = variance.clamp(min=0)
    squares = (draws - mean).square()
    slack = 1e-3 if by == "draw" and isinstance(units, NoisyRectified) else 1e-12  # a mean below 0.001 counts as that
    assert ((draws.mean(0) - mean).abs() < 4.5 * (variance / number).sqrt() + slack).all()
    assert ((squares.mean(0) - variance).abs() < 4.5 * squares.std(0) / math.sqrt(number) + slack).all()


def test_documents_have_their_own_numbers_of_words_and_multinomial_counts() -> None:
    """Nine means at 4.5 s.e.: false alarm 6 in 100,000 runs; words that never occur do not."""
    torch.manual_seed(0)
    units, number = ReplicatedSoftmax(), 20_000
    share = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.0, 0.1, 0.0, 0.9], [0.25, 0.25, 0.25, 0.25]]).double()
    words = torch.tensor([[7.0], [1.0], [30.0]]).double()
    fields, replicas = share.log().repeat(number, 1), words.repeat(number, 1)
    for draws in (units.sample(fields, replicas), units.draw(replicas * share.repeat(number, 1))):
        assert torch.equal(draws.sum(1, keepdim=True), replicas) and torch.equal(draws, draws.round())
        found = draws.view(number, 3, 4)
        slack = 4.5 * (words * share * (1 - share) / number).sqrt()
        assert ((found.mean(0) - words * share).abs() <= slack).all()
        assert ((found.var(0) - words * share * (1 - share)).abs() <= 0.05 * words).all()


@pytest.mark.parametrize("units", [Bernoulli(), Softmax(2, 2)])
def test_certain_draws_are_certain(units: Units) -> None:
    torch.manual_seed(0)
    for number in (1000, 1_000_000):
        ends = torch.tensor([[0.0, 1.0]]).repeat(number, 1)
        assert torch.equal(units.draw(ends), ends)
    assert set(units.draw(torch.full((100, 2), 0.5)).flatten().tolist()) == {0.0, 1.0}


def test_shared_bits_leave_each_unit_the_law_of_24_bits_of_its_own() -> None:
    """Over all 2^16 values of a unit's bits and all 2^8 of those that are shared."""
    means = [0.0, 1.0, 0.5, 1 / 3, 0.9, 0.123456, 2**-10, 3 * 2**-17, 1 - 2**-20]
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for mean in means:
        on = sum(_on(bits, torch.tensor(float(finer)), torch.full((2**16,), mean)).sum().item() for finer in range(256))
        assert on / 2**24 == pytest.approx(mean, abs=2**-24, rel=0)


@pytest.mark.parametrize("shape", [(10, 101), (199, 101)])
def test_units_are_drawn_one_by_one_with_their_own_means(shape: tuple[int, int]) -> None:
    """2,000 draws of each: frequencies, and products of neighbours. The sum of n squared scores is n ± 5 √(2n), about a
    false alarm in a million seeds; few and many units go different ways.
    """
    torch.manual_seed(0)
    mean, number = 0.1 + 0.8 * torch.rand(shape, dtype=torch.float64), 2000
    draws = [bernoulli(mean) for _ in range(number)]
    left, right = mean[:, :-1], mean[:, 1:]
    pairs = sum((x[:, :-1] - left) * (x[:, 1:] - right) for x in draws)
    for total, variance in (
        (sum(draws) - number * mean, mean * (1 - mean)),
        (pairs, left * (1 - left) * right * (1 - right)),
    ):
        scores = (total.square() / (number * variance)).sum().item()
        assert abs(scores - total.numel()) < 5 * (2 * total.numel()) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rare_draws_are_as_rare_as_they_should_be(dtype: torch.dtype) -> None:
    """A mean of 2^−10 of 4 million draws within 4.5 s.e.: false alarm 7 in a million runs of each."""
    torch.manual_seed(0)
    share, number = 2**-10, 4_000_000
    found = Bernoulli().draw(torch.full((number,), share, dtype=dtype)).double().mean().item()
    assert abs(found - share) < 4.5 * (share * (1 - share) / number) ** 0.5


def test_the_deviation_of_a_gaussian_unit_has_a_floor_and_a_ceiling() -> None:
    """A hundredth of the largest deviation, and the data's own; a learned one is held between them."""
    units = Gaussian(3, learned=True)
    units.rescale(torch.tensor([0.5, 0.0, 0.2]))
    torch.testing.assert_close(units.log_std.detach().exp(), torch.tensor([0.5, 0.005, 0.2]))
    torch.nn.init.constant_(units.log_std, -20)
    units.keep_in_range()
    torch.testing.assert_close(units.log_std.detach().exp(), torch.full((3,), 0.005))
    torch.nn.init.constant_(units.log_std, 20)
    units.keep_in_range()
    torch.testing.assert_close(units.log_std.detach().exp(), torch.tensor([0.5, 0.005, 0.2]))


def test_rectified_units_have_no_density() -> None:
    with pytest.raises(ValueError, match="no closed free energy"):
        NoisyRectified().log_partition(FIELD)


@pytest.mark.parametrize(
    ("num_units", "num_states", "message"),
    [(6, 1, "num_states must be at least 2, not 1"), (6, 4, "groups of num_states: 6 is no multiple of 4")],
)
def test_groups_of_states_must_fit(num_units: int, num_states: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Softmax(num_units, num_states)


def test_ranges() -> None:
    assert Bernoulli.value_range == Softmax.value_range == (0, 1)
    assert Gaussian.value_range is None
    assert NoisyRectified.value_range == ReplicatedSoftmax.value_range == (0, math.inf)
