"""A million codes of 128 bits, looked up beside faiss called directly: printed by `make bench`, one thread.

Codes are the signs of MNIST's digits, moved by up to two pixels, on a random rotation of their first 128 principal
components; queries are test digits, which the index has not seen. Everything that is compared runs in turns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import pytest

from data.codes import Codes, opened_for_writing, packed
from data.sources.idx import read_idx
from lightning_modules import hamming
from tests.benchmarks.turns import in_turns, ratio, told

pytestmark = pytest.mark.slow

BITS, MILLION, K = 128, 1_000_000, 10
SHIFTS = sorted(product(range(-2, 3), repeat=2), key=lambda by: (abs(by[0]) + abs(by[1]), by))


class Digits:
    """Training digits in all their places, and codes of any of them."""

    def __init__(self, folder: Path) -> None:
        self.train, self.test = (
            read_idx(folder / f"{name}-images-idx3-ubyte.gz").reshape(-1, 28, 28) for name in ("train", "t10k")
        )
        flat = self.train[:20_000].reshape(-1, 784) / np.float32(255)
        self.mean = flat.mean(axis=0)
        components = np.linalg.eigh(np.cov((flat - self.mean).T))[1][:, -BITS:]
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(BITS, BITS)))[0]
        self.projection = (components @ rotation).astype(np.float32)

    def codes(self, digits: np.ndarray) -> np.ndarray:
        return (digits.reshape(-1, 784) / np.float32(255) - self.mean) @ self.projection > 0

    def pieces(self, number: int) -> Iterator[np.ndarray]:
        for start in range(0, number, len(self.train)):
            moved = np.roll(self.train, SHIFTS[start // len(self.train)], axis=(1, 2))
            yield self.codes(moved[: number - start])


@pytest.fixture(scope="module")
def digits() -> Digits:
    folder = Path(os.environ.get("STRATA_DATA", "")) / "mnist"
    if "STRATA_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("STRATA_DATA names no folder with mnist/ in it")
    hamming.set_threads(1)
    return Digits(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("codes")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def some(digits: Digits, place: Path) -> Callable[[int], Codes]:
    def made(number: int) -> Codes:
        if not (place / f"{number}").exists():
            with opened_for_writing(place / f"{number}", BITS, bits=True) as writer:
                writer.write("train", number, digits.pieces(number))
                writer.commit(model="", shards="", lay={})
        return Codes.load(place / f"{number}")

    return made


@pytest.fixture(scope="module")
def queries(digits: Digits) -> np.ndarray:
    return packed(digits.codes(digits.test))


@pytest.fixture(scope="module")
def index(some: Callable[[int], Codes], place: Path) -> Callable[[int, hamming.Kind], hamming.Index]:
    """Saved once, and read again."""

    def made(number: int, kind: hamming.Kind) -> hamming.Index:
        out = place / f"{number}-{kind}"
        if not out.exists():
            hamming.build(some(number), out, kind, recall=0.99)
        return hamming.load(out)

    return made


Indexes = Callable[[int, hamming.Kind], hamming.Index]


@pytest.mark.parametrize("kind", ["flat", "tables"])
def test_a_million_codes_are_found_as_by_brute_force(
    kind: hamming.Kind, some: Callable[[int], Codes], index: Indexes, queries: np.ndarray
) -> None:
    """Numbers and distances of 100 queries, ties by number, and all within the radius of the tenth and within 3."""
    words, found = np.ascontiguousarray(some(MILLION).rows("train.bits.npy")).view("<u8"), index(MILLION, kind)
    distances, numbers = found.nearest(queries[:100], K)
    for query, near, who in zip(queries[:100], distances, numbers, strict=True):
        apart = np.bitwise_count(words ^ query.view("<u8")).sum(axis=1, dtype=np.int64)
        order = np.lexsort((np.arange(MILLION), apart))
        assert np.array_equal(order[:K], who) and np.array_equal(apart[order[:K]], near)
        for radius in (int(near[-1]), 3):
            ((all_near, everyone),) = found.within(query[None], radius)
            expected = order[: int((apart <= radius).sum())]
            assert np.array_equal(everyone, expected) and np.array_equal(all_near, apart[expected])


def test_buckets_answer_within_a_millisecond(some: Callable[[int], Codes], index: Indexes, queries: np.ndarray) -> None:
    """In batch, at recall ≥ 0.95 of the ten nearest (as near as the true tenth), beside faiss's own indexes."""
    found, flat = index(MILLION, "buckets"), index(MILLION, "flat")
    assert isinstance(found, hamming.Buckets)
    rows = np.ascontiguousarray(some(MILLION).rows("train.bits.npy"))
    bare_flat = faiss.IndexBinaryFlat(BITS)
    bare_flat.add(rows)
    bare = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(BITS), BITS, found.about.centers)
    bare.cp.niter, bare.nprobe = hamming.ROUNDS, found.about.probed
    chosen = np.random.default_rng(1).choice(MILLION, hamming.PER_CENTER * found.about.centers, replace=False)
    bare.train(rows[np.sort(chosen)])
    bare.add(rows)
    truth = flat.nearest(queries[:1000], K)[0][:, -1:]

    def asked(nearest: Callable[[np.ndarray], object], number: int) -> Callable[[], int]:
        def work() -> int:
            nearest(queries[:number])
            return number

        return work

    rates = in_turns(
        {
            "buckets": asked(lambda some: found.nearest(some, K), 5000),
            "faiss's IndexBinaryIVF": asked(lambda some: bare.search(some, K), 5000),
            "flat": asked(lambda some: flat.nearest(some, K), 200),
            "faiss's IndexBinaryFlat": asked(lambda some: bare_flat.search(some, K), 200),
        }
    )
    told(f"a million codes of {BITS} bits, the {K} nearest, in batch", rates, "queries/s")
    answers = found.nearest(queries[:1000], K)[0], bare.search(queries[:1000], K)[0]
    reached, theirs = (np.mean(distances <= truth) for distances in answers)
    print(f"  {found.about.probed} of {found.about.centers} buckets: recall of unseen queries {reached:.4f}, faiss's "
          f"{theirs:.4f}; of indexed ones, measured as it was built, {found.about.recall:.4f}")  # fmt: skip
    assert reached >= 0.95 and 1000 / median(rates["buckets"]) < 1
    assert ratio(rates, "buckets", "faiss's IndexBinaryIVF") > 0.7
    assert ratio(rates, "flat", "faiss's IndexBinaryFlat") > 0.7


def test_latency_by_the_number_of_codes(index: Indexes, queries: np.ndarray) -> None:
    """With ten times the codes a flat index takes ten times as long, √N buckets √10, and tables, asked for what lies
    within 3 bits, hardly any longer."""
    rivals: dict[str, Callable[[], int]] = {}
    for number in (MILLION // 10, MILLION):

        def ask(kind: hamming.Kind, many: int, radius: int | None, number: int = number) -> Callable[[], int]:
            found = index(number, kind)

            def work() -> int:
                found.nearest(queries[:many], K) if radius is None else found.within(queries[:many], radius)
                return many

            return work

        rivals |= {
            f"flat {number:,}": ask("flat", 300, None),
            f"buckets {number:,}": ask("buckets", 5000, None),
            f"flat within 3 {number:,}": ask("flat", 300, 3),
            f"tables within 3 {number:,}": ask("tables", 10_000, 3),
        }
    rates = in_turns(rivals)
    told(f"the {K} nearest and all within 3, by number of codes", rates, "queries/s")
    kinds = ("flat", "buckets", "flat within 3", "tables within 3")
    slower = {kind: ratio(rates, f"{kind} {MILLION // 10:,}", f"{kind} {MILLION:,}") for kind in kinds}
    print("  ten times the codes: " + ", ".join(f"{kind} {times:.1f} times as long" for kind, times in slower.items()))
    assert slower["buckets"] < 5 and slower["tables within 3"] < 3
    assert ratio(rates, f"tables within 3 {MILLION:,}", f"flat within 3 {MILLION:,}") > 30


def test_memory(some: Callable[[int], Codes], place: Path) -> None:
    """Of a process that builds, saves, loads and asks an index of a million codes, beyond one of a thousand."""
    peaks = {}
    for number in (1000, MILLION):
        command = [sys.executable, "-m", "tests.benchmarks.peak_memory", "index", str(some(number).folder)]
        ended = subprocess.run([*command, str(place / f"{number}-memory")], capture_output=True, text=True, check=True)
        peaks[number] = int(ended.stdout) / 1024
    codes = MILLION * BITS / 8 / 2**20
    more = peaks[MILLION] - peaks[1000]
    print(f"\nan index of a million codes: {more:,.0f} MiB more than of a thousand ({codes:.0f} MiB of codes)")
    assert more < 12 * codes
