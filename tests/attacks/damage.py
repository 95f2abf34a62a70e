"""Shards that strata wrote and something changed: refused with status 4, where the stock library reads on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data.quarantine import lost
from data.shards import Manifest, Reader, check
from tests.attacks import Halves, attack
from tests.attacks.files import VALUES, command, npy, shards, stock_samples
from tests.shard_folders import flip


def stock_values(folder: Path) -> list[list[int]]:
    """What webdataset reads of the shards, errors passed over as its own handler does."""
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    stream = webdataset.WebDataset(paths, shardshuffle=False, handler=webdataset.ignore_and_continue).decode()
    return [sample["npy"].tolist() for sample in stream]


ALL = VALUES.tolist()


@attack("check", "reader", "verify")
def a_flipped_bit_of_a_sample(folder: Path, patch: pytest.MonkeyPatch, who: str) -> Halves:
    path = shards(folder)
    flip(path / "train-00001.tar", 512 + 128 + 3, 4)
    if who == "check":
        yield "content differs", lambda: check(path)
    elif who == "reader":
        yield "sample 00000004 differs from its checksum", lambda: Reader(path).read(np.arange(12))
    else:
        yield "1 samples affected", lambda: command("verify", path)
    found = stock_values(path)
    yield len(found) == 12 and found != ALL


@attack()
def a_flipped_bit_of_a_name(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    flip(path / "train-00000.tar", 1024 + 7, 0)
    yield "content differs", lambda: check(path)
    yield len(stock_values(path)) == 9  # the rest of the shard is gone


@attack(0, 1024, 2048, 3072)
def a_shard_cut_at(folder: Path, patch: pytest.MonkeyPatch, size: int) -> Halves:
    path = shards(folder)
    os.truncate(path / "train-00001.tar", size)
    yield f"{size} bytes instead of 5120", lambda: check(path)
    with pytest.raises(Exception, match="expected 5120 bytes"):
        Reader(path).read(np.arange(12))
    yield 8 <= len(stock_values(path)) < 12


@attack("check", "reader")
def two_shards_that_changed_places(folder: Path, patch: pytest.MonkeyPatch, who: str) -> Halves:
    path = shards(folder)
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        (path / f"train-0000{old}.tar").rename(path / f"train-0000{new}.tar")
    if who == "check":
        yield "2 damaged files", lambda: check(path)
    else:
        yield "differs from its checksum", lambda: Reader(path).read(np.arange(12))
    found = stock_values(path)
    yield sorted(found) == ALL != found  # under the labels of others


@attack()
def a_shard_that_is_a_copy_of_another(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    shutil.copy(path / "train-00000.tar", path / "train-00001.tar")
    yield "train-00001.tar .content differs", lambda: check(path)
    found = stock_values(path)
    yield len(found) == 12 and found[:4] == found[4:8]


@attack()
def an_extra_shard(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    shutil.copy(path / "train-00000.tar", path / "train-00003.tar")
    yield "", lambda: Reader(path).read(np.arange(len(check(path).shards) * 4)).tolist() == ALL
    yield len(stock_values(path)) == 16


@attack("one", "all", "a link to nothing", "a folder")
def missing_shards(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    path = shards(folder)
    for name in sorted(path.glob("*.tar"))[1:] if what == "all" else [path / "train-00001.tar"]:
        name.unlink()
    if what == "a link to nothing":
        (path / "train-00001.tar").symlink_to("gone")
    if what == "a folder":
        (path / "train-00001.tar").mkdir()
    yield {"one": "1 damaged files", "all": "2 damaged files"}.get(what, "train-00001.tar "), lambda: check(path)
    yield len(stock_values(path)) in (4, 8)


@attack("of another shard", "of an earlier ingest", "flipped")
def an_index(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    path = shards(folder)
    name = path / "train-00001.index.npy"
    before = np.load(name)
    if what == "of another shard":
        shutil.copy(path / "train-00000.index.npy", name)
    elif what == "of an earlier ingest":
        rows = np.load(name)
        rows["offset"] += 512
        np.save(name, rows)
    else:
        flip(name, 200, 1)
    yield "train-00001.index.npy", lambda: Reader(path).read(np.arange(12))
    found = np.load(name)
    yield found.dtype == before.dtype and found.tobytes() != before.tobytes()  # read without a word


@attack("altered", "of other samples", "missing")
def labels_beside_the_shards(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    path = shards(folder)
    name = path / "train-labels.npy"
    before = np.load(name)
    if what == "altered":
        flip(name, 128, 0)
    elif what == "of other samples":
        name.write_bytes(npy(before[::-1].copy()))
    else:
        name.unlink()
    yield "train-labels.npy", lambda: Reader(path).labels()
    if what == "missing":
        yield "labels" not in "".join(stock_samples(path / "train-00000.tar")[0])
    yield np.load(name).shape == before.shape and np.load(name).tolist() != before.tolist()


@attack()
def a_manifest_with_another_number(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder) / "manifest.json"
    path.write_text(
        path.read_text().replace('"scale": 255.0', '"scale": 1.0', 1).replace('"scale": 1.0', '"scale": 2.0')
    )
    yield "does not match its own digest", lambda: Manifest.load(path.parent)
    yield json.loads(path.read_text())["scale"] == 2.0


@attack()
def shards_without_a_manifest(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    (path / "manifest.json").unlink()
    (path / "train-00002.tar").unlink()  # where the ingest was killed
    yield "an unfinished ingest", lambda: check(path)
    yield stock_values(path) == ALL[:8]


@attack()
def damage_beyond_what_a_recipe_allows(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    flip(path / "train-00002.tar", 512 + 128, 7)
    yield "more than the 0.1 of data.quarantine", lambda: lost(path, 0.1)
    os.truncate(path / "train-00002.tar", 0)
    yield len(stock_values(path)) == 8  # a third of the samples, and no word
