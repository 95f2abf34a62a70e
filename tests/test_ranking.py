"""Rankings against all orders of what ties, and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lightning_modules.ranking import Ranking


def orders(distances: list[int], relevant: list[bool]) -> Iterator[list[bool]]:
    """What every order by distance finds, rank by rank."""
    for order in itertools.permutations(range(len(distances))):
        if all(distances[a] <= distances[b] for a, b in itertools.pairwise(order)):
            yield [relevant[item] for item in order]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def average_precision(hits: list[bool]) -> float:
    return mean([sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit])


def ranking(distances: list[int], relevant: list[bool]) -> Ranking:
    return Ranking.by_bits(torch.tensor([distances]), torch.tensor([relevant]), num_bits=4)


CASES = [
    ([1, 0, 1, 1, 2, 0], [True, False, True, False, True, True]),
    ([3, 3, 3, 3, 3], [True, False, False, True, False]),
    ([0, 1, 2, 3, 4], [False, True, True, False, True]),
    ([2, 0, 2, 0, 2, 4], [True, True, True, True, True, True]),
]


@pytest.mark.parametrize(("distances", "relevant"), CASES)
def test_measures_are_means_over_all_orders_of_ties(distances: list[int], relevant: list[bool]) -> None:
    every, found = list(orders(distances, relevant)), ranking(distances, relevant)
    assert found.average_precision().item() == pytest.approx(mean([average_precision(hits) for hits in every]))
    for rank in range(1, len(distances) + 3):
        expected = mean([sum(hits[:rank]) / rank for hits in every])
        assert found.precision_at(rank).item() == pytest.approx(expected)


def test_precision_at_recall_by_hand() -> None:
    """Two at distance 0, one of them right; three at 1, two right; one at 2, right. Four right ones in all.

    One hit, a quarter, is expected of 2 items; two of the first 3½, for two of three are right at distance 1.
    """
    found = ranking(*CASES[0]).precision_at_recall(torch.tensor([0.25, 0.375, 0.75, 1.0, 0.001]))
    torch.testing.assert_close(found, torch.tensor([[1 / 2, 2 / 3.5, 3 / 5, 4 / 6, 1 / 2]], dtype=torch.float64))


def test_bits_and_distances_rank_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    distances = torch.randint(0, 9, (5, 200), generator=generator)
    relevant = torch.rand(5, 200, generator=generator) < 0.2
    levels = torch.tensor([0.01, 0.3, 1.0])
    one, other = Ranking.by_bits(distances, relevant, 8), Ranking.by_distance(distances / 7.0, relevant)
    for measure in (Ranking.average_precision, lambda found: found.precision_at_recall(levels)):
        torch.testing.assert_close(measure(one), measure(other))
    assert torch.equal(one.precision_at(10), other.precision_at(10))
    by_chance = relevant.double().mean(1)
    torch.testing.assert_close(one.precision_at_recall(torch.tensor([1.0]))[:, 0] >= by_chance, torch.ones(5) > 0)


def test_one_group_is_chance() -> None:
    """Everything equally far: precision is the share of the right ones at every recall."""
    relevant = torch.tensor([[True] * 3 + [False] * 9])
    found = Ranking.by_distance(torch.zeros(1, 12), relevant)
    quarter: Tensor = torch.full((1, 3), 0.25, dtype=torch.float64)
    torch.testing.assert_close(found.precision_at_recall(torch.tensor([0.1, 0.5, 1.0])), quarter)
