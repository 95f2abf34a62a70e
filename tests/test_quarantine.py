"""Damaged shards left out within a budget: what is lost is said, named in the key, and never read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import conf
from conf.errors import Damaged
from conf.protocol import Inputs
from data import durable
from data.loading import ShardData
from data.quarantine import lost, without_keys
from data.shards import Manifest, check, ingest
from data.splits import partition
from tests.conftest import DIGITS, Command
from tests.shard_folders import digits, flip, given


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 shards of the digits: 17 of 100 samples, one of 97."""
    return ingest(digits(), tmp_path_factory.mktemp("quarantine") / "shards", shard_size=100).folder


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "shards")


def test_what_is_whole_loses_nothing(shards: Path) -> None:
    assert (lost(shards, 0.5).shards, lost(shards, 0.0).samples) == ((), 0)


@pytest.mark.parametrize("damage", ["tar bit", "index bit", "tar gone", "index gone", "tar cut"])
def test_a_shard_is_lost_with_any_of_its_files(shards: Path, damage: str) -> None:
    kind, how = damage.split()
    path = shards / f"train-00003.{'tar' if kind == 'tar' else 'index.npy'}"
    if how == "bit":
        flip(path, 700, 2)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000])
    found = lost(shards, 0.06)
    assert (found.shards, found.samples, found.of) == (("train-00003.tar",), 100, 1797)
    assert str(found) == "1 damaged shard left out (train-00003.tar): 100 of 1,797 samples lost"
    check(shards, without=found.shards)
    with pytest.raises(Damaged, match=r"100 of 1,797 samples are in them, more than the 0\.05 of data\.quarantine"):
        lost(shards, 0.05)
    for too_little in ((), ("train-00004.tar",)):
        with pytest.raises(Damaged, match=r"train-00003\."):
            check(shards, without=too_little)


def test_the_budget_is_a_share_of_all_samples(shards: Path) -> None:
    (shards / "train-00017.tar").unlink()
    assert lost(shards, 97 / 1797).samples == 97
    with pytest.raises(Damaged):
        lost(shards, 96.9 / 1797)
    (shards / "train-00000.tar").unlink()
    assert lost(shards, 0.2).shards == ("train-00000.tar", "train-00017.tar")


def test_labels_and_manifest_have_no_quarantine(shards: Path) -> None:
    flip(shards / "train-labels.npy", 300, 1)
    with pytest.raises(Damaged, match=r"train-labels\.npy \(content differs\)"):
        lost(shards, 0.9)
    (shards / "manifest.json").write_bytes((shards / "manifest.json").read_bytes()[:-10])
    with pytest.raises(Damaged):
        lost(shards, 0.9)


def test_a_damaged_list_of_keys_loses_its_shard(tmp_path: Path) -> None:
    manifest = ingest(given(), tmp_path, shard_size=2)
    flip(tmp_path / "train-00001.keys.jsonl", 3, 1)
    assert without_keys(manifest) == {"train-00001.tar"}
    assert lost(tmp_path, 0.5).shards == ("train-00001.tar",)
    with pytest.raises(Damaged):
        partition(manifest, conf.Split(test=0.5, validation=0.5))
    parts = partition(manifest, conf.Split(validation=0.5), {"train-00001.tar"})
    assert sorted(np.concatenate(list(parts.values())).tolist()) == [0, 1, 4, 5, 6, 7, 8, 9, 10]


def test_lost_samples_are_never_read(shards: Path) -> None:
    for file in Manifest.load(shards).shards[5].files:
        (shards / file).unlink(missing_ok=True)
    parts = partition(Manifest.load(shards), conf.Split(), {"train-00005.tar"})
    data = ShardData(
        shards=shards, samples=parts["train"], batch_size=64, epochs=1, seed=0, without=["train-00005.tar"]
    )
    data.prepare_data()
    assert sum(len(step.x) for step in data.train_dataloader()) == len(parts["train"]) > 1000
    data = ShardData(shards=shards, samples=np.arange(1797), batch_size=64, epochs=1, seed=0)
    with pytest.raises(Damaged):
        data.prepare_data()


def test_the_loss_is_part_of_the_key() -> None:
    def identity(*without: str) -> str:
        inputs = Inputs(shards="a", samples_digest="b", labels_digest="c", split=conf.Split(), without=list(without))
        return durable.digest_value(inputs.identity())

    assert len({identity(), identity("a.tar"), identity("b.tar"), identity("a.tar", "b.tar")}) == 4
    assert identity("a.tar", "b.tar") == identity("b.tar", "a.tar")


def test_a_run_goes_on_without_them_and_says_so(
    shards: Path, strata: Command, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    stages = "  layer1: {model: {kind: rbm, num_hidden: 8}}\n"
    text = DIGITS.replace("{source: {kind: digits}}", f"{{shards: {shards}, quarantine: 0.06}}")
    path, out = recipe(stages, text), tmp_path / "out"
    flip(shards / "train-00003.tar", 700, 2)
    refused = strata("run", path, "--out", out, "data.quarantine=0.05")
    assert refused.status == 4 and "more than the 0.05 of data.quarantine" in refused.err
    assert refused.err.startswith("error: ") and refused.err.count("\n") == 1
    assert not list(out.glob("stages/*"))

    done = strata("run", path, "evaluate=null", "--out", out)
    assert done.status == 0, done.err
    assert "data: 1 damaged shard left out (train-00003.tar): 100 of 1,797 samples lost" in done.out
    (run,) = [folder for folder in out.glob("digits-*") if (folder / "report.html").exists()]
    lost_there = durable.read_json(run / "run.json")["shards"]["data"]["lost"]
    assert lost_there == {"shards": ["train-00003.tar"], "samples": 100, "of": 1797}
    assert "100 of 1,797 samples lost" in (run / "report.html").read_text()
    (model,) = out.glob("stages/*/model/model.json")
    assert durable.read_json(model)["without"] == ["train-00003.tar"]

    again = strata("run", path, "evaluate=null", "--out", out)
    assert again.status == 0 and "every stage is cached" in again.out
    flip(shards / "train-00003.tar", 700, 2)  # as it was: another key
    repaired = strata("run", path, "evaluate=null", "--out", out)
    assert repaired.status == 0 and "lost" not in repaired.out and "layer1" in repaired.out
    assert len(list(out.glob("stages/*/model/model.json"))) == 2
    flip(shards / "train-00003.tar", 700, 2)  # what was learned from whole shards stays learned
    found = strata("run", path, "evaluate=null", "--out", out)
    assert found.status == 0 and "every stage is cached" in found.out
