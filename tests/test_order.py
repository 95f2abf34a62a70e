"""The block shuffle: a permutation, pure, entered anywhere, well mixed, in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from data.order import BLOCK, WINDOW, Order
from data.selection import CHUNK, Selection
from data.splits import draw_first, draw_order

SMALL = {"block": 8, "window": 4}  # windows of 32
EXPECTED = [
    *(32, 8, 0, 34, 36, 2, 33, 38, 39, 11, 6, 13, 26, 9, 27, 37, 30, 10, 12, 31, 3, 25, 29, 7, 4, 14, 24, 15, 35, 5),
    *(28, 1, 17, 22, 18, 19, 20, 21, 16, 23),
]
FIRST, LAST = [83315, 45725, 103507, 97226, 113048], [24314, 19968, 17009, 19091, 23486]


def positions(count: int) -> Selection:
    return Selection.all(range(count))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 31, 32, 33, 40, 63, 64, 65, 100, 127, 128, 129, 1000])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_position_once_and_the_same_from_anywhere(count: int, epoch: int) -> None:
    whole = Order(positions(count), 3, epoch, **SMALL)[:]
    assert sorted(whole.tolist()) == list(range(count))
    assert np.array_equal(Order(positions(count), 3, epoch, **SMALL)[:], whole)
    for length in (1, 5, 32, 50):
        for start in range(0, count, 3):
            fresh = Order(positions(count), 3, epoch, **SMALL)
            assert np.array_equal(fresh[start : start + length], whole[start : start + length])
        one = Order(positions(count), 3, epoch, **SMALL)
        parts = [one[start : start + length] for start in range(0, count, length)]
        assert np.array_equal(np.concatenate([whole[:0], *parts]), whole)


def test_windows_are_made_of_whole_blocks() -> None:
    order = Order(positions(103), 0, 0, **SMALL)
    found = order[:]
    sizes = np.diff(order._starts).tolist()
    assert sum(sizes) == 103 and sorted(sizes) in ([8, 31, 32, 32], [7, 32, 32, 32])
    seen: set[int] = set()
    for start, size in zip(order._starts[:-1].tolist(), sizes, strict=True):
        window = found[start : start + size]
        blocks = set((window // 8).tolist())
        assert len(blocks) <= 4 and not blocks & seen
        seen |= blocks
        assert not np.array_equal(window, np.sort(window))
    assert seen == set(range(13))


def test_one_window_is_the_full_permutation_of_old() -> None:
    """What was learned before there were windows keeps its bytes."""
    for count in (100, 32, 60_000, BLOCK * WINDOW):
        for seed, epoch in ((0, 0), (5, 2)):
            assert np.array_equal(Order(positions(count), seed, epoch)[:], draw_order(count, "epoch", seed, epoch))


def test_beyond_one_window_the_order_is_fixed_for_ever() -> None:
    assert Order(positions(40), 1, 0, **SMALL)[:].tolist() == EXPECTED
    found = Order(positions(BLOCK * WINDOW + 1), 0, 0)
    assert found[:5].tolist() == FIRST and found[-5:].tolist() == LAST


def test_seeds_epochs_and_samples_give_orders_of_their_own() -> None:
    orders = {tuple(Order(positions(100), seed, epoch, **SMALL)[:]) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    odd = Selection.of(np.arange(1, 201, 2))
    assert np.array_equal(Order(odd, 2, 3, **SMALL)[:], 2 * Order(positions(100), 2, 3, **SMALL)[:] + 1)


def test_input_and_output_order_hardly_correlate() -> None:
    """A million samples, eight windows. Places are ranks, so Pearson's coefficient is Spearman's.

    123 blocks lie in a random order: their coefficient has the standard deviation 1/√122 = 0.09, and 20 epochs' mean
    one of 0.02. The bounds are five of these: a false alarm in 1.7 million. A full shuffle moves a sample by N/3 in
    the mean, with a standard deviation over blocks of about 0.24 N / √123 = 0.02 N, and over 20 epochs 0.005 N.
    """
    count, epochs = 1_000_000, 20
    place = np.arange(count)
    found, moved, neighbours = [], [], []
    for epoch in range(epochs):
        order = Order(positions(count), 0, epoch)[:]
        found.append(float(np.corrcoef(place, order)[0, 1]))
        moved.append(float(np.abs(order - place).mean()) / count)
        neighbours.append(float(np.corrcoef(order[:-1], order[1:])[0, 1]))
    print(f"correlation: mean {np.mean(found):+.3f}, largest {max(map(abs, found)):.3f}")
    print(f"mean displacement / N: {np.mean(moved):.4f} (full shuffle 0.3333)")
    print(f"correlation of neighbours: mean {np.mean(neighbours):+.4f}")
    assert max(map(abs, found)) < 5 / np.sqrt(122)
    assert abs(np.mean(found)) < 5 / np.sqrt(122 * epochs)
    assert abs(np.mean(moved) - 1 / 3) < 5 * 0.02 / np.sqrt(epochs)
    # Neighbours share a window, that is 16 random blocks of 123: their correlation is the variance between windows,
    # (1 − 16/123) / 16 = 0.054 in the mean, times about χ²(7) / 7 in one epoch, χ²(140) / 140 over 20; 1 in 10⁶ is
    # beyond 5.8 times and 1.65 times that.
    assert max(neighbours) < 0.054 * 5.8 and np.mean(neighbours) < 0.054 * 1.65


@pytest.mark.parametrize("count", [131_072, 131_073, 3_000_000])
def test_memory_does_not_grow_with_the_samples(count: int) -> None:
    chosen = Selection(0, np.random.default_rng(0).random(count + count // 4) < 0.8)
    tracemalloc.start()
    order, seen = Order(chosen, 0, 0), 0
    for start in range(0, len(order), 1000):
        seen += len(order[start : start + 1000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{count:,} samples: peak {peak / 2**20:.1f} MiB")
    assert seen == len(chosen) and peak < 8 << 20


def test_a_start_anywhere_computes_one_window() -> None:
    counted = 0

    class Counting(Selection):
        def __getitem__(self, part: slice) -> np.ndarray:
            nonlocal counted
            found = super().__getitem__(part)
            counted += len(found)
            return found

    order = Order(Counting(0, np.ones(3_000_000, bool)), 0, 4)
    order[2_000_000:2_000_100]
    assert counted <= BLOCK * WINDOW


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.3, 1])
@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 300_000])
def test_a_selection_is_its_numbers(count: int, share: float) -> None:
    chosen = np.random.default_rng(1).random(count) < share
    expected = np.flatnonzero(chosen) + 11
    for found in (Selection(11, chosen), Selection.of(expected), Selection.of(expected[::-1])):
        assert len(found) == len(expected)
        assert np.array_equal(found[:], expected) and np.array_equal(np.asarray(found), expected)
        for start in (0, 1, len(expected) // 2, len(expected) - 1, len(expected), len(expected) + 5):
            for length in (0, 1, CHUNK, 10**6):
                assert np.array_equal(found[max(start, 0) :][:length], expected[max(start, 0) :][:length])
                assert np.array_equal(found[max(start, 0) : start + length], expected[max(start, 0) : start + length])
        places = np.arange(0, len(expected), 7)
        assert np.array_equal(found.take(places), expected[places])
        assert found[:].dtype == np.int64 and list(found)[:50] == expected[:50].tolist()


def test_a_selection_is_small() -> None:
    chosen = np.random.default_rng(0).random(3_000_000) < 0.7
    tracemalloc.start()
    kept = Selection(0, chosen)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(kept) > 2_000_000 and held < 400_000


@pytest.mark.parametrize("count, number", [(0, 0), (5, 3), (5, 9), (300_000, 1000), (300_000, 140_000)])
def test_the_first_of_an_order_without_the_rest(count: int, number: int) -> None:
    assert np.array_equal(draw_first(count, number, "validation"), draw_order(count, "validation")[:number])
