"""Raw sources in general, the digits, and IDX files, as they should be and as they come."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conf
from conf.errors import InputError
from data.sources import Description, RawSource, open_source
from tests.raw_folders import RANDOM, everything, real, refused

TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, TYPES[values.dtype.str[1:]], values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def idx(folder: Path) -> RawSource:
    return open_source(conf.IdxSource(kind="idx", path=str(folder)))


def mnist_like(folder: Path, *, packed: bool, sets: tuple[str, ...] = ("train", "t10k")) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    written = {}
    for name in sets:
        pictures = RANDOM.integers(0, 256, (30, 5, 4), np.uint8)
        labels = RANDOM.permutation(np.arange(30) % 10).astype(np.uint8)
        for role, values in (("images-idx3", pictures), ("labels-idx1", labels)):
            content = idx_bytes(values)
            file = folder / f"{name}-{role}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
            written[f"{name}-{role[:6]}"] = values
    return written


# --- digits --------------------------------------------------------------------------------------------------------


def test_digits() -> None:
    source = open_source(conf.DigitsSource(kind="digits"))
    description = source.describe()
    assert (description.sets, description.labeled) == ({"train": 1797}, {"train": 1797})
    assert (description.shape, description.num_values, description.dtype) == ((8, 8), 64, "uint8")
    assert (description.scale, description.low, description.high) == (16.0, 0.0, 1.0)
    assert description.classes == tuple("0123456789")
    keys, values, labels = everything(source)
    assert keys[:3] == ["0", "1", "2"] and labels[:12] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert values[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert [key for key, _ in source.samples("train", range(5, 8))] == ["5", "6", "7"]


def test_a_description_survives_json() -> None:
    description = open_source(conf.DigitsSource(kind="digits")).describe()
    assert Description.from_json(description.to_json()) == description


def test_sources_load_lightly() -> None:
    code = (
        "import sys, conf, data.sources, data.shards, data.splits, data.ingest\n"
        "data.sources.open_source(conf.DigitsSource(kind='digits')).fingerprint()\n"
        "print(sorted({'torch', 'webdataset', 'sklearn', 'PIL', 'pytorch_lightning', 'prefect'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# --- idx -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    written = mnist_like(tmp_path / "mnist", packed=packed)
    source = idx(tmp_path / "mnist")
    description = source.describe()
    assert description.sets == {"train": 30, "test": 30} == description.labeled
    assert (description.shape, description.scale, description.dtype) == ((5, 4), 255.0, "uint8")
    assert description.classes == tuple("0123456789")
    for set_name, file in (("train", "train"), ("test", "t10k")):
        keys, values, labels = everything(source, set_name)
        assert keys == [str(number) for number in range(30)]
        assert np.array_equal(values, written[f"{file}-images"]) and labels == written[f"{file}-labels"].tolist()


def test_idx_content_does_not_depend_on_packing_or_place_but_the_fingerprint_does(tmp_path: Path) -> None:
    mnist_like(tmp_path / "plain", packed=False)
    (tmp_path / "packed").mkdir()
    for file in (tmp_path / "plain").iterdir():
        (tmp_path / "packed" / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    plain, packed = idx(tmp_path / "plain"), idx(tmp_path / "packed")
    assert plain.describe() == packed.describe()
    assert plain.fingerprint() != packed.fingerprint()
    before = plain.fingerprint()
    os.utime(tmp_path / "plain" / "train-labels-idx1-ubyte", ns=(1, 1))
    assert plain.fingerprint() != before


def test_idx_prefers_the_unpacked_file_as_torchvision_leaves_both(tmp_path: Path) -> None:
    mnist_like(tmp_path / "mnist", packed=True)
    plain = mnist_like(tmp_path / "mnist", packed=False)
    assert np.array_equal(everything(idx(tmp_path / "mnist"))[1], plain["train-images"])


@pytest.mark.parametrize("sets", [("train",), ("t10k",)])
def test_idx_with_one_set(tmp_path: Path, sets: tuple[str, ...]) -> None:
    mnist_like(tmp_path / "mnist", packed=True, sets=sets)
    assert idx(tmp_path / "mnist").describe().sets == {{"t10k": "test"}.get(sets[0], sets[0]): 30}


def test_idx_without_labels(tmp_path: Path) -> None:
    mnist_like(tmp_path / "mnist", packed=False, sets=("train",))
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").unlink()
    source = idx(tmp_path / "mnist")
    assert (source.describe().labeled, source.describe().classes) == ({"train": 0}, ())
    assert everything(source)[2] == [-1] * 30


@pytest.mark.parametrize("dtype", sorted(TYPES))
def test_idx_types_and_dimensions(tmp_path: Path, dtype: str) -> None:
    values = RANDOM.integers(0, 100, (7, 3, 2, 2)).astype(dtype)
    name = {"u1": "ubyte", "i1": "byte", "i2": "short", "i4": "int", "f4": "float", "f8": "double"}[dtype]
    (tmp_path / f"some-set-train.images-idx4-{name}").write_bytes(idx_bytes(values))
    source = idx(tmp_path)
    assert source.describe().scale == (255.0 if dtype == "u1" else 1.0)
    assert np.array_equal(everything(source)[1], values)


def test_idx_in_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    assert "no such file or directory" in refused(idx(tmp_path / "missing"))
    assert "it is empty" in refused(idx(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    assert "found notes.txt" in refused(idx(tmp_path))
    (tmp_path / "file").write_text("hello")
    assert "not a directory" in refused(idx(tmp_path / "file"))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    mnist_like(tmp_path, packed=False, sets=("train",))
    assert "no images file" in refused(idx(tmp_path))


def test_idx_with_a_choice(tmp_path: Path) -> None:
    for prefix in ("emnist-letters", "emnist-digits"):
        (tmp_path / f"{prefix}-train-images-idx3-ubyte").write_bytes(idx_bytes(np.eye(3, dtype=np.uint8)[:, :, None]))
    assert "emnist-letters-train" in refused(idx(tmp_path))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: b"\x89PNG" + content[4:], "expected IDX"),
        (lambda content: content[:2] + b"\x07" + content[3:], "expected IDX"),
        (lambda content: content[:3] + b"\x00" + content[4:], "expected IDX"),
        (lambda content: b"", "expected IDX"),
        (lambda content: content[:9], "cut short inside its header"),
        (lambda content: content[:-1], "fetch it again"),
        (lambda content: content + b"\0", "fetch it again"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "fetch it again"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_damaged(tmp_path: Path, change: Any, complaint: str, packed: bool) -> None:
    mnist_like(tmp_path / "mnist", packed=False)
    file = tmp_path / "mnist" / "train-images-idx3-ubyte"
    content = change(file.read_bytes())
    if packed:
        file.unlink()
        file = file.with_name(f"{file.name}.gz")
        content = gzip.compress(content)
    file.write_bytes(content)
    message = refused(idx(tmp_path / "mnist"))
    assert file.name in message
    assert complaint in message or (packed and ("bytes of values" in message or "cut short" in message))


def test_idx_with_a_broken_gzip(tmp_path: Path) -> None:
    mnist_like(tmp_path / "mnist", packed=True)
    file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    whole, content = file.read_bytes(), idx(tmp_path / "mnist").describe().content
    file.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused(idx(tmp_path / "mnist"))
    undetected = 0
    for place in range(10, len(whole)):  # the first ten bytes are time stamp, flags and system
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            undetected += idx(tmp_path / "mnist").describe().content != content  # equal: a bit that deflate ignores
        except InputError as error:
            assert file.name in str(error)  # noqa: PT017
    assert undetected == 0


def test_idx_labels_that_do_not_fit(tmp_path: Path) -> None:
    mnist_like(tmp_path / "mnist", packed=False)
    labels = tmp_path / "mnist" / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(29, np.uint8)))
    message = refused(idx(tmp_path / "mnist"))
    assert "29 labels" in message and "30 samples" in message and labels.name in message
    labels.write_bytes(idx_bytes(np.zeros((30, 10), np.uint8)))
    assert "one label per sample" in refused(idx(tmp_path / "mnist"))
    labels.write_bytes(idx_bytes(np.zeros(30, np.float32)))
    assert "whole numbers" in refused(idx(tmp_path / "mnist"))


def test_real_mnist() -> None:
    source = idx(real("mnist"))
    description = source.describe()
    assert (description.sets, description.shape, description.scale) == ({"train": 60000, "test": 10000}, (28, 28), 255)
    assert source.labels("train")[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
