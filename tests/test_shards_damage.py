"""Shards damaged after they were written: none of it goes undetected."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from conf.errors import Damaged, InputError
from data import durable, tar
from data.shards import Manifest, Reader, check, ingest, verify
from tests.shard_folders import digits, flip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in five shards; never changed by a test."""
    return ingest(digits(), tmp_path_factory.mktemp("whole") / "shards", shard_size=400).folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def read_all(folder: Path) -> np.ndarray | None:
    """All samples through a fresh reader; None where it refuses."""
    try:
        reader = Reader(folder)
        return reader.read(np.arange(len(reader)))
    except Damaged:
        return None


def test_no_flipped_bit_goes_undetected(copy: Path) -> None:
    manifest = Manifest.load(copy)
    random = np.random.default_rng(0)
    expected, layout = read_all(copy), manifest.layout
    assert expected is not None
    unseen = wrong = refused = 0
    for _ in range(400):
        shard = manifest.shards[random.integers(5)]
        place, bit = int(random.integers(layout.shard_size(shard.count))), int(random.integers(8))
        flip(copy / shard.name, place, bit)
        findings = verify(copy)
        unseen += [(finding.file, finding.problem) for finding in findings] != [(shard.name, "altered")]
        row, inside = divmod(place, layout.stride)
        hit = row < shard.count and tar.BLOCK <= inside < tar.BLOCK + layout.length
        assert findings[0].samples == ((shard.first + row,) if hit else ())
        found = read_all(copy)
        refused += found is None
        assert (found is None) == hit
        wrong += found is not None and not np.array_equal(found, expected)
        flip(copy / shard.name, place, bit)
    assert (unseen, wrong) == (0, 0) and refused > 30
    assert verify(copy) == []


def test_no_cut_goes_undetected(copy: Path) -> None:
    manifest = Manifest.load(copy)
    random = np.random.default_rng(1)
    shard, layout = manifest.shards[2], manifest.layout
    content = (copy / shard.name).read_bytes()
    cuts = [0, 1, 512, layout.stride, len(content) - 1024, len(content) - 1, *random.integers(0, len(content), 60)]
    for cut in cuts:
        (copy / shard.name).write_bytes(content[:cut])
        (finding,) = verify(copy)
        whole_samples = max(0, -(-(cut - tar.BLOCK - layout.length + 1) // layout.stride))
        assert finding.problem == "truncated"
        assert finding.samples == tuple(range(shard.first + whole_samples, shard.first + shard.count)), cut
        with pytest.raises(Damaged, match=r"train-00002\.tar"):
            Reader(copy).read(np.arange(1797))
        with pytest.raises(Damaged, match=r"train-00002\.tar"):
            check(copy)
        Reader(copy).read(np.arange(800))  # other shards can still be read


def test_flips_beside_the_shards(copy: Path) -> None:
    random = np.random.default_rng(2)
    for name in ("train-00001.index.npy", "train-labels.npy", "train-mean.npy", "ingest.json"):
        for _ in range(20):
            place, bit = int(random.integers((copy / name).stat().st_size)), int(random.integers(8))
            flip(copy / name, place, bit)
            assert [finding.file for finding in verify(copy)] == [name]
            flip(copy / name, place, bit)
    manifest = (copy / "manifest.json").read_bytes()
    mean = manifest.index(b'"mean"')  # 17 digits: the last may change and leave the double as it is
    places = [(place, bit) for place in range(mean, manifest.index(b",", mean)) for bit in range(8)]
    places += [(int(random.integers(len(manifest))), int(random.integers(8))) for _ in range(100)]
    for place, bit in places:
        flip(copy / "manifest.json", place, bit)
        with pytest.raises(Damaged, match=r"manifest\.json"):
            Manifest.load(copy)
        flip(copy / "manifest.json", place, bit)
    flip(copy / "train-labels.npy", 500, 0)
    with pytest.raises(Damaged, match=r"train-labels\.npy"):
        Reader(copy).labels("train")
    flip(copy / "train-00001.index.npy", 500, 0)
    with pytest.raises(Damaged, match=r"train-00001\.index\.npy"):
        Reader(copy).read(np.array([500]))


def test_missing_swapped_longer_and_extra_files(copy: Path) -> None:
    swap = (copy / "train-00000.tar").read_bytes()
    (copy / "train-00000.tar").write_bytes((copy / "train-00001.tar").read_bytes())
    (copy / "train-00001.tar").write_bytes(swap)
    (copy / "train-00002.tar").unlink()
    (copy / "train-00003.tar").unlink()
    (copy / "train-00003.tar").symlink_to("nowhere")
    with (copy / "train-00004.tar").open("ab") as file:
        file.write(b"x")
    (copy / "train-00099.tar").write_bytes(b"")
    findings = {finding.file: finding for finding in verify(copy)}
    assert {name: finding.problem for name, finding in findings.items()} == {
        "train-00000.tar": "swapped",
        "train-00001.tar": "swapped",
        "train-00002.tar": "missing",
        "train-00003.tar": "missing",
        "train-00004.tar": "longer",
        "train-00099.tar": "extra",
    }
    assert findings["train-00002.tar"].samples == tuple(range(800, 1200))
    assert "400 samples affected: 800–1199" in str(findings["train-00002.tar"])
    assert "holds the content of train-00001.tar" in str(findings["train-00000.tar"])
    assert findings["train-00004.tar"].samples == () and findings["train-00099.tar"].harmless
    with pytest.raises(Damaged) as caught:
        check(copy)
    line = str(caught.value)
    assert "5 damaged files" in line and "\n" not in line and all(f"train-0000{n}.tar" in line for n in range(5))


def test_checking_is_remembered_but_not_trusted_by_verify(copy: Path, tmp_path: Path) -> None:
    memory, shard = tmp_path / "checked.json", copy / "train-00001.tar"
    old = time.time_ns() - 10**10
    for path in copy.iterdir():
        os.utime(path, ns=(old, old))
    assert check(copy, memory) == check(copy, memory) == check(copy)
    flip(shard, 5000, 1)
    with pytest.raises(Damaged):
        check(copy, memory)  # its time stamp changed
    os.utime(shard, ns=(old, old))
    flip(copy / "train-00003.tar", 5000, 1)
    with pytest.raises(Damaged, match="2 damaged files"):
        check(copy, memory)
    flip(copy / "train-00003.tar", 5000, 1)
    flip(shard, 5000, 1)
    os.utime(shard, ns=(old, old))
    check(copy, memory)
    flip(shard, 5000, 1)
    os.utime(shard, ns=(old, old))
    check(copy, memory)  # rot that leaves size, time and inode alone: this is what remembering means
    assert [finding.file for finding in verify(copy)] == [shard.name]
    memory.write_bytes(b"{broken")
    with pytest.raises(Damaged):
        check(copy, memory)


def test_a_file_written_just_now_is_not_remembered(copy: Path, tmp_path: Path) -> None:
    for path in copy.iterdir():
        os.utime(path)
    check(copy, tmp_path / "checked.json")
    recorded = json.loads((tmp_path / "checked.json").read_bytes()) if (tmp_path / "checked.json").exists() else {}
    assert not any(recorded.values())


def test_no_manifest_and_wrong_ones(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder of finished shards"):
        Manifest.load(tmp_path / "nowhere")
    value = json.loads((copy / "manifest.json").read_bytes())

    def written(change: dict[str, object]) -> str:
        content = {key: item for key, item in (value | change).items() if key != "digest"}
        durable.write_json(copy / "manifest.json", content | {"digest": durable.digest_value(content)})
        with pytest.raises(Damaged) as caught:
            Reader(copy)
        return str(caught.value)

    assert "expected format 2, found 1" in written({"format": 1})
    assert "wrong fields" in written({"sets": 3})
    assert "wrong fields" in written({"unknown": 3})
    (copy / "manifest.json").write_bytes(b"[]")
    with pytest.raises(Damaged, match="expected format 2"):
        Manifest.load(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="unfinished ingest; run it again"):
        Manifest.load(copy)
