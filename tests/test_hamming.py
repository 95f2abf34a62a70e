"""Lookups of packed codes equal brute force exactly, ties included; an index is whole, the codes' own, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conf.errors import Damaged, InputError
from data import durable
from data.codes import Codes, opened_for_writing
from lightning_modules import hamming
from tests.shard_folders import flip

BITS, TRAIN, TEST = 19, 700, 301
KINDS = pytest.mark.parametrize("kind", ["flat", "tables", "buckets"])


def clustered(number: int, seed: int) -> np.ndarray:
    """(n, BITS) bool around 12 centers: many codes are equal, and most distances occur more than once."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(0).random((12, BITS)) < 0.5
    return centers[random.integers(12, size=number)] ^ (random.random((number, BITS)) < 0.1)


def folder_of(place: Path, seed: int = 1) -> Codes:
    def written(number: int, seed: int) -> Iterator[np.ndarray]:
        yield clustered(number, seed)

    with opened_for_writing(place, BITS, bits=True) as writer:
        writer.write("train", TRAIN, written(TRAIN, seed))
        writer.write("test", TEST, written(TEST, seed + 1))
        return writer.commit(model="m", shards="s", lay={"model": "/m", "shards": "/s"})


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Codes:
    return folder_of(tmp_path_factory.mktemp("hamming") / "codes")


@pytest.fixture(scope="module")
def bits(codes: Codes) -> np.ndarray:
    packed = np.concatenate([codes.rows(name) for name in codes.files])
    return np.unpackbits(packed, axis=1, count=BITS, bitorder="little").astype(bool)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(40, 5)


@pytest.fixture(params=["memory", "flat", "tables", "many look-ups", "buckets"], scope="module")
def index(request: Any, codes: Codes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hamming.Index]:
    """In memory, or saved and read again; tables as they are for so few codes, and as for many."""
    if request.param == "memory":
        yield hamming.of_codes(codes)
        return
    out = tmp_path_factory.mktemp("hamming") / "index"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many look-ups":
            patch.setattr(hamming, "PER_LOOKUP", 1)
        hamming.build(codes, out, "tables" if request.param == "many look-ups" else request.param, recall=0.9)
        yield hamming.load(out)


def brute(bits: np.ndarray, queries: np.ndarray) -> list[list[tuple[int, int]]]:
    """Of each query all (distance, number), nearest first, equal ones by number."""
    return [sorted((int((query != code).sum()), number) for number, code in enumerate(bits)) for query in queries]


def packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, axis=1, bitorder="little")


@pytest.mark.parametrize("k", [1, 10, 101, TRAIN + TEST, 5000])
def test_the_nearest_are_those_of_brute_force(
    index: hamming.Index, bits: np.ndarray, queries: np.ndarray, k: int
) -> None:
    distances, numbers = index.nearest(packed(queries), k, exact=True)
    found = [list(zip(*row, strict=True)) for row in zip(distances.tolist(), numbers.tolist(), strict=True)]
    assert found == [row[:k] for row in brute(bits, queries)]


@pytest.mark.parametrize("radius", [0, 1, 3, 8, BITS, 1000])
def test_all_within_a_radius_are_those_of_brute_force(
    index: hamming.Index, bits: np.ndarray, queries: np.ndarray, radius: int
) -> None:
    found = index.within(packed(queries), radius, exact=True)
    told = [list(zip(near.tolist(), who.tolist(), strict=True)) for near, who in found]
    expected = [[pair for pair in row if pair[0] <= radius] for row in brute(bits, queries)]
    assert told == expected and sum(map(len, expected))


def test_ties_do_occur(bits: np.ndarray, queries: np.ndarray) -> None:
    rows = brute(bits, queries)
    assert np.mean([row[9][0] == row[10][0] for row in rows]) > 0.5


def test_buckets_find_what_they_promise(codes: Codes, bits: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    """Fewer buckets than all; of unseen codes at least the share that was asked for, of the ten nearest, less 0.1."""
    built = hamming.build(codes, tmp_path / "index", "buckets", recall=0.9)
    about = built.about
    assert 0.9 <= about.recall <= 1 and 1 <= about.probed < about.centers == (TRAIN + TEST) // hamming.PER_CENTER
    distances, numbers = built.nearest(packed(queries), 10)
    truth = np.array([[pair[0] for pair in row[:10]] for row in brute(bits, queries)])
    assert np.mean(distances <= truth[:, -1:]) > 0.8
    for row, query in zip(range(len(queries)), queries, strict=True):
        kept = numbers[row] >= 0
        assert np.array_equal((bits[numbers[row][kept]] != query).sum(axis=1), distances[row][kept])
        assert len(set(numbers[row][kept].tolist())) == kept.sum()


def test_a_code_comes_back_by_its_number(index: hamming.Index, bits: np.ndarray) -> None:
    for number in (0, TRAIN - 1, TRAIN, TRAIN + TEST - 1):
        assert np.array_equal(index.code(number), packed(bits[number : number + 1])[0])


# --- saved indexes ---


@KINDS
def test_damaged_and_foreign_indexes_are_refused(codes: Codes, tmp_path: Path, kind: hamming.Kind) -> None:
    out, other = tmp_path / "index", tmp_path / "other"
    hamming.build(codes, out, kind, recall=0.9)
    hamming.build(folder_of(tmp_path / "codes", seed=3), other, kind, recall=0.9)
    content = (out / "index.faiss").read_bytes()
    flip(out / "index.faiss", len(content) // 2, 1)
    with pytest.raises(Damaged, match="index.faiss: differs from the digest"):
        hamming.load(out)
    (out / "index.faiss").write_bytes((other / "index.faiss").read_bytes())
    with pytest.raises(Damaged, match="index.faiss: differs from the digest"):
        hamming.load(out)
    (out / "index.faiss").unlink()
    with pytest.raises(Damaged, match="no such file"):
        hamming.load(out)
    (out / "index.faiss").write_bytes(content)
    hamming.load(out)
    about = durable.read_json(out / "index.json")
    durable.write_json(out / "index.json", about | {"num_codes": 5})
    with pytest.raises(Damaged, match="does not match its own digest"):
        hamming.load(out)


@pytest.mark.parametrize(
    "change",
    [
        {"num_codes": 5},
        {"num_bits": 99},
        {"kind": "buckets"},
        {"kind": "trees"},
        {"kind": ["flat"]},
        {"tables": 4},
        {"num_codes": "5"},
        {"lay": "/"},
        {"model": None},
        {"more": 1},
    ],
)
def test_an_index_that_contradicts_its_record_is_refused(codes: Codes, tmp_path: Path, change: dict[str, Any]) -> None:
    hamming.build(codes, tmp_path / "index", "flat", recall=0.9)
    record = durable.read_json(tmp_path / "index" / "index.json") | change
    del record["checksum"]
    durable.write_json(tmp_path / "index" / "index.json", record | {"checksum": durable.digest_value(record)})
    with pytest.raises(Damaged, match="right digest, but"):
        hamming.load(tmp_path / "index")


def test_what_faiss_cannot_read_is_refused(codes: Codes, tmp_path: Path) -> None:
    hamming.build(codes, tmp_path / "index", "flat", recall=0.9)
    file = tmp_path / "index" / "index.faiss"
    file.write_bytes(file.read_bytes()[:100])
    record = durable.read_json(tmp_path / "index" / "index.json") | {"file": durable.digest_file(file)}
    del record["checksum"]
    durable.write_json(tmp_path / "index" / "index.json", record | {"checksum": durable.digest_value(record)})
    with pytest.raises(Damaged, match="right digest, but faiss cannot read it"):
        hamming.load(tmp_path / "index")


def test_damaged_codes_make_no_index(tmp_path: Path) -> None:
    codes = folder_of(tmp_path / "codes")
    flip(tmp_path / "codes" / "test.bits.npy", 200, 0)
    with pytest.raises(Damaged, match=r"test\.bits\.npy"):
        hamming.build(codes, tmp_path / "index", "flat", recall=0.9)
    with pytest.raises(InputError, match="expected an index"):
        hamming.load(tmp_path / "index")


def test_numbers_are_no_bits(tmp_path: Path) -> None:
    with opened_for_writing(tmp_path / "codes", 3, bits=False) as writer:
        writer.write("train", 2, iter([np.zeros((2, 3), np.float32)]))
        codes = writer.commit(model="m", shards="s", lay={})
    with pytest.raises(InputError, match="holds codes of numbers; strata encode --bits"):
        hamming.of_codes(codes)


def test_faiss_and_torch_run_side_by_side_on_several_threads(codes: Codes, queries: np.ndarray) -> None:
    """Each has an OpenMP of its own; two that know nothing of each other have crashed or hung elsewhere."""
    index, x = hamming.of_codes(codes), torch.rand(300, 300)
    expected = index.nearest(packed(queries), 10)[1]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        hamming.set_threads(2)
        for _ in range(20):
            assert torch.isfinite(x @ x).all() and np.array_equal(index.nearest(packed(queries), 10)[1], expected)
    finally:
        torch.set_num_threads(threads)
        hamming.set_threads(threads)
