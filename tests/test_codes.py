"""Codes as `strata encode` leaves them: what the model says, packed bit by bit, whole or not there at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightning_modules as registry
from conf import DigitsSource
from conf.errors import Busy, Damaged, InputError
from conf.protocol import EncodeJob
from data import durable
from data.codes import Codes, opened_for_writing, packed
from data.shards import Reader, ingest
from data.sources import open_source
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.boltzmann import RBM
from lightning_modules.encoding import encode
from lightning_modules.hashing import hasher
from lightning_modules.interfaces import Fitted
from lightning_modules.stack import Stack
from tests.shard_folders import contents, digits, flip

WIDTH = 19  # bits: two bytes and three bits


def silent(line: dict[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes") / "shards"
    ingest(digits(), folder, shard_size=500)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes") / "model"
    torch.manual_seed(0)
    registry.save(Stack(layers=[RBM(num_visible=64, num_hidden=WIDTH, weight_std=0.5)]), folder, {"shape": [8, 8]})
    return folder


def job(model: Path, shards: Path, out: Path, **more: Any) -> EncodeJob:
    return EncodeJob(model=str(model), shards=str(shards), out=str(out), **more)


def all_rows(codes: Codes) -> np.ndarray:
    return np.concatenate([codes.rows(name) for name in codes.files])


def test_numbers_and_bits_are_the_models_own_in_shard_order(model: Path, shards: Path, tmp_path: Path) -> None:
    encode(job(model, shards, tmp_path / "numbers", batch_size=700), silent)
    answer = encode(job(model, shards, tmp_path / "bits", bits=True, batch_size=700), silent)
    assert [Path(path).name for path in answer["written"]] == ["train.bits.npy", "codes.json"]
    reader = Reader(shards)
    with torch.no_grad():
        expected = registry.load(model).encode(torch.from_numpy(reader.values(np.arange(len(reader)))))  # type: ignore
    numbers, bits = (all_rows(Codes.load(tmp_path / name)) for name in ("numbers", "bits"))
    assert numbers.dtype == np.float32 and np.allclose(numbers, expected, atol=1e-6)
    assert bits.dtype == np.uint8 and bits.shape == (1797, 3)
    bit = [(bits[:, j // 8] >> (j % 8)) & 1 for j in range(24)]
    assert np.array_equal(np.stack(bit[:WIDTH], axis=1), (numbers > 0.5))
    assert not np.any(bit[WIDTH:]) and 0.2 < np.mean(bit[:WIDTH]) < 0.8
    assert np.array_equal(np.load(tmp_path / "bits" / "train.bits.npy"), bits)  # an ordinary .npy file


def test_packed_bits_come_back() -> None:
    drawn = np.random.default_rng(0).random((50, 37)) < 0.5
    again = np.unpackbits(packed(drawn), axis=1, count=37, bitorder="little")
    assert np.array_equal(again.astype(bool), drawn)


def test_codes_without_a_range_are_cut_at_zero() -> None:
    torch.manual_seed(0)
    layer = Autoencoder(num_visible=6, num_hidden=4, activation="linear")
    found = hasher(Stack(layers=[layer]))
    assert found is not None and found[0] == 4
    x = torch.rand(30, 6)
    assert torch.equal(found[1](x), layer.encode(x) > 0)


def test_finished_codes_are_left_and_others_refused(model: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    first = encode(job(model, shards, out, bits=True), silent)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert encode(job(model, shards, out, bits=True), silent) == first | {"cached": True} != first
    other, fewer = tmp_path / "other", tmp_path / "fewer"
    registry.save(Stack(layers=[RBM(num_visible=64, num_hidden=WIDTH)]), other, {})
    ingest(open_source(DigitsSource(kind="digits"), limit=10), fewer, shard_size=500)
    for asked, theirs in {
        job(model, shards, out): "bits",
        job(other, shards, out, bits=True): "another model",
        job(model, fewer, out, bits=True): "other samples",
    }.items():
        with pytest.raises(InputError, match=f"codes: holds finished codes of {theirs}; choose another folder or rem"):
            encode(asked, silent)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_killed_encode_leaves_nothing_that_passes_for_codes(model: Path, shards: Path, tmp_path: Path) -> None:
    """Killed at the third batch, by SIGKILL, in a process of its own."""
    out, whole = tmp_path / "codes", tmp_path / "whole"
    encode(job(model, shards, whole, bits=True), silent)
    encode(job(model, shards, out), silent)
    (out / "codes.json").unlink()  # another encode, of another kind, was killed here before
    child = os.fork()
    if child == 0:

        def die(line: dict[str, Any]) -> None:
            if line["progress"]["done"] >= 300:
                os.kill(os.getpid(), signal.SIGKILL)

        encode(job(model, shards, out, bits=True, batch_size=100), die)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert any(path.suffix == ".tmp" for path in out.iterdir())
    with pytest.raises(InputError, match=r"expected a folder of codes \(with codes.json\), found none"):
        Codes.load(out)
    encode(job(model, shards, out, bits=True), silent)
    assert contents(out) == contents(whole)


def test_damage_is_told_apart_from_absence(model: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    encode(job(model, shards, out, bits=True), silent)
    flip(out / "train.bits.npy", 200, 3)
    with pytest.raises(Damaged, match="train.bits.npy: differs from the digest"):
        all_rows(Codes.load(out))
    (out / "train.bits.npy").unlink()
    with pytest.raises(Damaged, match="train.bits.npy: no such file"):
        all_rows(Codes.load(out))
    content = durable.read_json(out / "codes.json")
    durable.write_json(out / "codes.json", content | {"width": WIDTH + 1})
    with pytest.raises(Damaged, match="does not match its own digest"):
        Codes.load(out)
    encode(job(model, shards, out, bits=True), silent)  # and is mended by the same command
    assert len(all_rows(Codes.load(out))) == 1797


def test_other_files_are_never_touched_and_two_writers_never_meet(model: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "train.npy").write_text("somebody's data")
    with pytest.raises(InputError, match="holds other files, such as train.npy"):
        encode(job(model, shards, tmp_path), silent)
    assert (tmp_path / "train.npy").read_text() == "somebody's data"
    before = sorted(path.name for path in shards.iterdir())
    with pytest.raises(InputError, match="holds other files, such as"):
        encode(job(model, shards, shards), silent)
    assert sorted(path.name for path in shards.iterdir()) == before and ".lock" in before
    with (
        opened_for_writing(tmp_path / "codes", 4, bits=True),
        pytest.raises(Busy, match="is writing into this folder"),
    ):
        encode(job(model, shards, tmp_path / "codes"), silent)


def test_models_that_do_not_fit_are_refused_in_one_line(shards: Path, tmp_path: Path) -> None:
    gan: Fitted = registry.build({"kind": "gan", "arguments": {"num_visible": 64, "num_latent": 2}})
    registry.save(gan, tmp_path / "gan", {})
    with pytest.raises(InputError, match="a gan has no codes"):
        encode(job(tmp_path / "gan", shards, tmp_path / "codes", bits=True), silent)
    registry.save(Stack(layers=[RBM(num_visible=9, num_hidden=4)]), tmp_path / "other", {})
    with pytest.raises(InputError, match="a sample has 64 values, but .* expects 9"):
        encode(job(tmp_path / "other", shards, tmp_path / "codes"), silent)
    assert not (tmp_path / "codes").exists()
