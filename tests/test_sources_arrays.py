"""A .npy or .npz file, as it should be and as it comes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conf
from conf.errors import InputError
from data.ingest import ingest
from data.shards import Reader
from data.sources import RawSource, open_source
from tests.raw_folders import RANDOM, everything, real, refused


def arrays(path: Path, **names: Any) -> RawSource:
    return open_source(conf.ArraysSource(kind="arrays", path=str(path), **names))


def test_a_single_npy(tmp_path: Path) -> None:
    values = RANDOM.random((20, 6))
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "y.npy", np.arange(20) % 3)
    source = arrays(tmp_path / "x.npy")
    description = source.describe()
    assert (description.shape, description.dtype, description.scale) == ((6,), "float64", 1.0)
    assert (description.low, description.high) == (values.min(), values.max())
    assert np.array_equal(everything(source)[1], values)
    labeled = arrays(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"), image_shape=[2, 3])
    assert (labeled.describe().shape, labeled.describe().classes) == ((2, 3), ("0", "1", "2"))
    assert labeled.describe().content != description.content and labeled.fingerprint() != source.fingerprint()
    assert everything(labeled)[2] == (np.arange(20) % 3).tolist()


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),  # Keras
        ("train_data", "train_labels", "test_data", "test_labels"),
        ("X", "y", "X_test", "y_test"),
        ("train", "targets", "test", "test-target"),
        ("images", "labels", "val_images", "val_labels"),
    ],
)
def test_npz_with_usual_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    x, y = RANDOM.integers(0, 256, (12, 4), np.uint8), np.arange(12)
    named: dict[str, Any] = dict(zip(names, (x, y, x[:5], y[:5]), strict=True))
    np.savez_compressed(tmp_path / "a.npz", size=np.int32(4), **named)
    source = arrays(tmp_path / "a.npz")
    other = "validation" if "val_images" in names else "test"
    assert source.describe().sets == {"train": 12, other: 5} == source.describe().labeled
    assert everything(source, other)[2] == [0, 1, 2, 3, 4]
    assert source.describe().scale == 255.0


def test_npz_with_one_array_and_with_named_ones(tmp_path: Path) -> None:
    x = RANDOM.random((12, 4)).astype(np.float32)
    np.savez(tmp_path / "one.npz", x)
    assert arrays(tmp_path / "one.npz").describe().sets == {"train": 12}
    np.savez(tmp_path / "many.npz", faces=x, who=np.arange(12), more=x[:3], data=x[:2])
    source = arrays(tmp_path / "many.npz", data="faces", labels="who", test_data="more")
    assert (source.describe().sets, source.describe().labeled) == ({"train": 12, "test": 3}, {"train": 12, "test": 0})
    assert "has no array 'nobody'" in refused(arrays(tmp_path / "many.npz", data="nobody"))
    np.savez(tmp_path / "odd.npz", faces=x, who=np.arange(12))
    assert "source.data" in refused(arrays(tmp_path / "odd.npz"))
    np.savez(tmp_path / "twice.npz", x=x, images=x)
    assert "could be the train data" in refused(arrays(tmp_path / "twice.npz"))
    np.savez(tmp_path / "orphan.npz", x=x, y_test=np.arange(3))
    assert "no data" in refused(arrays(tmp_path / "orphan.npz"))


def test_array_labels(tmp_path: Path) -> None:
    x = RANDOM.random((6, 4))

    def with_labels(labels: np.ndarray) -> RawSource:
        np.savez(tmp_path / "a.npz", x=x, y=labels)
        return arrays(tmp_path / "a.npz")

    source = with_labels(np.array([[101], [7], [-1], [7], [101], [20]]))
    assert (source.labels("train").tolist(), source.describe().classes) == ([2, 0, -1, 0, 2, 1], ("7", "20", "101"))
    assert source.describe().labeled == {"train": 5}
    assert with_labels(np.array([1.0, 0, np.nan, 1, 1, 1])).labels("train").tolist() == [1, 0, -1, 1, 1, 1]
    source = with_labels(np.array(["cat", "dog", "", "ä", "cat", "cat"]))
    assert (source.labels("train").tolist(), source.describe().classes) == ([0, 1, -1, 2, 0, 0], ("cat", "dog", "ä"))
    assert with_labels(np.array([True, False, True, True, True, True])).describe().classes == ("0", "1")
    assert "label of sample 2 is -100" in refused(with_labels(np.array([0, 1, -100, 0, 0, 0])))
    assert "label of sample 1 is 0.5" in refused(with_labels(np.array([0, 0.5, 1, 0, 0, 0])))
    assert "5 labels, but 6 samples" in refused(with_labels(np.arange(5)))
    assert "dtype complex128" in refused(with_labels(np.arange(6) + 1j))


def test_binary_bytes_are_not_divided_by_255(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RANDOM.integers(0, 2, (9, 4), np.uint8))
    assert arrays(tmp_path / "x.npy").describe().scale == 1.0
    np.save(tmp_path / "x.npy", RANDOM.random((9, 4)) < 0.5)
    description = arrays(tmp_path / "x.npy").describe()
    assert (description.dtype, description.scale, description.high) == ("bool", 1.0, 1.0)


def test_byte_order_and_memory_order_do_not_change_the_content(tmp_path: Path) -> None:
    values = RANDOM.random((40, 6))
    contents = set()
    for name, variant in (("c", values), ("f", np.asfortranarray(values)), ("big", values.astype(">f8"))):
        np.save(tmp_path / f"{name}.npy", variant)
        source = arrays(tmp_path / f"{name}.npy")
        contents.add(source.describe().content)
        assert np.array_equal(everything(source)[1], values)
        manifest = ingest(source, tmp_path / name, shard_size=16)
        assert np.array_equal(Reader(manifest.folder).read(np.arange(40)), values)
    assert len(contents) == 1


def test_float16_and_denormals_are_fine(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[6e-8, 65504.0], [0.0, 1.0]], np.float16))
    assert arrays(tmp_path / "x.npy").describe().high == 65504.0


def test_arrays_that_are_no_samples(tmp_path: Path) -> None:
    for name, values, complaint in (
        ("flat", np.zeros(5), "samples × values"),
        ("empty", np.zeros((0, 5)), "no samples"),
        ("narrow", np.zeros((5, 0)), "no samples"),
        ("complex", np.zeros((5, 2), complex), "complex128"),
        ("text", np.full((5, 2), "x"), "<U1"),
        ("dates", np.zeros((5, 2), "M8[s]"), "datetime64"),
        ("constant", np.full((5, 2), 3.0), "nothing to learn"),
    ):
        np.save(tmp_path / f"{name}.npy", values)
        message = refused(arrays(tmp_path / f"{name}.npy"))
        assert complaint in message and f"{name}.npy" in message
    np.save(tmp_path / "x.npy", RANDOM.random((5, 6)))
    assert "image_shape" in refused(arrays(tmp_path / "x.npy", image_shape=[2, 4]))
    np.savez(tmp_path / "ragged.npz", x=np.ones((5, 6)), x_test=np.zeros((5, 7)))
    assert "one shape and dtype" in refused(arrays(tmp_path / "ragged.npz"))


def test_arrays_cut_or_changed(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 256, (30, 20), np.uint8)
    np.save(tmp_path / "x.npy", values)
    np.savez_compressed(tmp_path / "x.npz", x=values)
    assert "no such file" in refused(arrays(tmp_path / "missing.npy"))
    for suffix in ("npy", "npz"):
        whole = (tmp_path / f"x.{suffix}").read_bytes()
        file = tmp_path / f"cut.{suffix}"
        for length in (0, 3, 60, 127, 128, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:length])
            assert file.name in refused(arrays(file))
        file.write_bytes(whole + b"\0" if suffix == "npy" else whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        assert file.name in refused(arrays(file))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_in_an_npz_is_found(tmp_path: Path, save: Any) -> None:
    values = RANDOM.integers(0, 256, (10, 20), np.uint8)
    save(tmp_path / "x.npz", x=values)
    whole, content = (tmp_path / "x.npz").read_bytes(), arrays(tmp_path / "x.npz").describe().content
    undetected = 0
    for place in range(40, whole.index(b"PK\x01\x02")):  # the member, not the names and sizes around it
        (tmp_path / "x.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            undetected += arrays(tmp_path / "x.npz").describe().content != content  # equal: an unused bit
    assert undetected == 0


def test_real_binary_npz() -> None:
    description = arrays(real("uci_binary", "mushrooms.npz")).describe()
    assert description.sets == {"train": 2000, "validation": 500, "test": 5624}
    assert (description.shape, description.low, description.high) == ((112,), 0.0, 1.0)
