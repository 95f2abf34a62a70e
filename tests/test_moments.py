"""Statistics in one pass: what merging, rounding to JSON and the order in which shards are finished do to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.moments import Moments
from data.shard_writer import ShardWriter
from data.shards import ingest
from tests.shard_folders import contents, digits

RANDOM = np.random.default_rng(0)


def same(one: Moments, other: Moments) -> bool:
    """To the last bit."""
    return one.to_json() == other.to_json()


@pytest.mark.parametrize("num_values", [1, 2, 31, 33, 784, 5000])
def test_working_in_pieces_changes_no_bit(num_values: int) -> None:
    """The sum of all rows at once, as numpy takes it, is the definition: shards' statistics depend on it."""
    stored = RANDOM.integers(0, 256, (4096, num_values)).astype(np.uint8)
    values = stored.astype(np.float64) / 255
    mean = values.mean(axis=0)
    whole = Moments(4096, mean, ((values - mean) ** 2).sum(axis=0), float(values.min()), float(values.max()))
    assert same(Moments.of(stored, 255.0), whole)


def test_merged_parts_are_the_whole() -> None:
    values = RANDOM.normal(3, 50, (10_000, 20))
    merged = Moments.empty(20)
    for part in np.split(values, [1, 2, 500, 6000]):
        merged.merge(Moments.of(part))
    merged.merge(Moments.empty(20))
    assert merged.count == 10_000 and (merged.low, merged.high) == (values.min(), values.max())
    assert np.allclose(merged.mean, values.mean(axis=0), rtol=1e-13)
    assert np.allclose(merged.squares / 10_000, values.var(axis=0), rtol=1e-12)
    assert merged.overall == pytest.approx((values.mean(), values.std()), rel=1e-12)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    values = RANDOM.normal(0, 1, (100_000, 1)) + 1e8
    merged = Moments.empty(1)
    for part in np.split(values, 10):
        merged.merge(Moments.of(part))
    assert merged.squares[0] / 100_000 == pytest.approx(np.var(values - 1e8), rel=1e-7)  # Σx² − n·x̄² would lose all


def test_json_and_back_changes_no_bit() -> None:
    found = Moments.of(RANDOM.normal(0, 1e-7, (100, 50)) * 10.0 ** RANDOM.integers(-140, 140, 50))
    assert same(Moments.from_json(json.loads(json.dumps(found.to_json()))), found)


def test_shards_finished_in_any_order_give_equal_bytes(tmp_path: Path) -> None:
    expected = contents(ingest(digits(), tmp_path / "in order", shard_size=100).folder)

    def shuffled(
        request: dict[str, Any], shards: Sequence[int], count: Callable[[int], None]
    ) -> Iterator[dict[str, Any]]:
        writer = ShardWriter.from_request(json.loads(json.dumps(request)))
        for number in RANDOM.permutation(shards).tolist():
            yield json.loads(json.dumps(writer.make(number, count)))

    for attempt in range(3):
        folder = ingest(digits(), tmp_path / str(attempt), shard_size=100, makers=shuffled).folder
        assert contents(folder) == expected
