"""Every kind of raw source, as it should be and as it comes."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import conf
from conf.errors import InputError
from data.ingest import ingest
from data.shards import Reader
from data.sources import Description, RawSource, open_source

TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
RANDOM = np.random.default_rng(0)


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, TYPES[values.dtype.str[1:]], values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def idx(folder: Path) -> RawSource:
    return open_source(conf.IdxSource(kind="idx", path=str(folder)))


def arrays(path: Path, **names: Any) -> RawSource:
    return open_source(conf.ArraysSource(kind="arrays", path=str(path), **names))


def images(folder: Path, **settings: Any) -> RawSource:
    return open_source(conf.ImagesSource(kind="images", path=str(folder), **settings))


def everything(source: RawSource, set_name: str = "train") -> tuple[list[str], np.ndarray, list[int]]:
    keys, values = zip(*source.samples(set_name), strict=True)
    assert list(source.keys(set_name)) == list(keys)
    return list(keys), np.stack(values), source.labels(set_name).tolist()


def refused(source: RawSource) -> str:
    """The one line a bad source is refused with."""
    with pytest.raises(InputError) as caught:
        source.describe()
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500
    return message


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
    assert [key for key, _ in source.samples("train", 5, 8)] == ["5", "6", "7"]


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


def test_idx_bomb(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + np.array([1 << 20, 32, 32], ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(1 << 20)))
    assert "times its compressed size" in refused(idx(tmp_path))


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


# --- arrays --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e39, "1e+39")])
def test_values_that_are_no_finite_numbers(tmp_path: Path, bad: float, shown: str) -> None:
    values = RANDOM.random((50, 4, 2))
    values[33, 1, 1] = bad
    np.save(tmp_path / "x.npy", values)
    assert f"value 3 of sample 33 is {shown}" in refused(arrays(tmp_path / "x.npy"))


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


class Marker:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickles_are_refused(tmp_path: Path, suffix: str) -> None:
    payload, marker = np.array([[Marker(tmp_path / "executed")]], object), tmp_path / "executed"
    file = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(file, payload)
    else:
        np.savez(file, x=payload)
    assert "Python objects" in refused(arrays(file)) and not marker.exists()
    np.load(file, allow_pickle=True)[()] if suffix == "npy" else np.load(file, allow_pickle=True)["x"]
    assert marker.exists(), "the payload was harmless, so the test shows nothing"


def test_a_bare_pickle_is_no_array(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(pickle.dumps(Marker(tmp_path / "executed")))
    assert "expected a .npy or .npz file" in refused(arrays(tmp_path / "x.npy"))
    assert not (tmp_path / "executed").exists()


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


def test_arrays_that_lie_about_their_size(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 8)}
    )
    (tmp_path / "x.npy").write_bytes(header.getvalue() + bytes(1000))
    assert "need 8796093022336 bytes" in refused(arrays(tmp_path / "x.npy"))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1000))
    assert "need 8796093022336 bytes" in refused(arrays(tmp_path / "x.npz"))


# --- images --------------------------------------------------------------------------------------------------------


def picture(path: Path, pixels: np.ndarray, **options: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def gray(height: int = 4, width: int = 6) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width), np.uint8)


def test_a_tree_of_images(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    pictures = {key: picture(root / key, gray()) for key in ("dog/ü.png", "cat/b.bmp", "cat/a.png", "cat/tabby/c.png")}
    picture(root / "loose.png", gray())
    picture(root / ".hidden" / "x.png", gray())
    (root / "README.md").write_text("notes")
    (root / "cat" / ".DS_Store").write_bytes(b"\0")
    source = images(root, size=[4, 6])
    description = source.describe()
    assert (description.sets, description.labeled) == ({"train": 5}, {"train": 4})
    assert (description.shape, description.scale, description.classes) == ((4, 6), 255.0, ("cat", "cat/tabby", "dog"))
    keys, values, labels = everything(source)
    assert keys == ["cat/a.png", "cat/b.bmp", "cat/tabby/c.png", "dog/ü.png", "loose.png"]
    assert labels == [0, 0, 1, 2, -1]
    for key, pixels in pictures.items():
        assert np.array_equal(values[keys.index(key)], pixels)
    assert [key for key, _ in source.samples("train", 1, 3)] == keys[1:3]


def test_sets_of_images(tmp_path: Path) -> None:
    for key in ("train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "val/cat/4.png"):
        picture(tmp_path / key, gray())
    source = images(tmp_path)
    assert source.describe().sets == {"train": 2, "validation": 1, "test": 1}
    assert everything(source, "test")[0] == ["test/dog/3.png"] and everything(source, "test")[2] == [1]
    picture(tmp_path / "extra" / "5.png", gray())
    assert "extra/5.png" in refused(images(tmp_path))


def test_train_may_be_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.png", gray())
    picture(tmp_path / "tram" / "1.png", gray())
    assert images(tmp_path).describe().classes == ("train", "tram")


def test_images_are_resized_turned_and_laid_on_white(tmp_path: Path) -> None:
    left_dark = np.repeat(np.array([[0] * 20 + [255] * 20], np.uint8), 40, axis=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    picture(tmp_path / "turned.png", left_dark, exif=exif)
    picture(tmp_path / "transparent.png", np.zeros((40, 40, 4), np.uint8))
    color = np.zeros((40, 40, 3), np.uint8)
    color[..., 0] = 200
    picture(tmp_path / "red.jpg", color, quality=95)
    keys, values, _ = everything(images(tmp_path, size=[8, 8], channels=1))
    turned = values[keys.index("turned.png")]
    assert turned[0].max() == 0 and turned[-1].min() == 255
    assert values[keys.index("transparent.png")].min() == 255
    keys, values, _ = everything(images(tmp_path, size=[8, 6], channels=3))
    red = values[keys.index("red.jpg")]
    assert values.shape == (3, 3, 8, 6) and red[0].mean() > 190 and red[1:].mean() < 10


def test_images_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in refused(images(tmp_path / "missing"))
    assert "no pictures" in refused(images(tmp_path))
    cases: dict[str, bytes] = {"text.png": b"hello", "empty.jpg": b"", "data.bin": bytes(100)}
    deep, frames = io.BytesIO(), io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 2**16, (4, 4), np.uint16)).save(deep, "PNG")
    first, second = (Image.fromarray(gray()) for _ in range(2))
    first.save(frames, "GIF", save_all=True, append_images=[second])
    tiff = io.BytesIO()
    first.save(tiff, "TIFF")
    cases |= {"deep.png": deep.getvalue(), "frames.gif": frames.getvalue(), "other.tif": tiff.getvalue()}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        assert name in refused(images(tmp_path))
        (tmp_path / name).unlink()


def test_an_image_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", gray())
    content = (tmp_path / "a.png").read_bytes()
    for width, height in ((10_000, 10_000), (60_000, 60_000)):
        chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
        bomb = content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]
        (tmp_path / "a.png").write_bytes(bomb)
        assert "Mi pixels" in refused(images(tmp_path))


def test_links_and_devices_in_a_tree(tmp_path: Path) -> None:
    root, outside = tmp_path / "tree", tmp_path / "secret.png"
    picture(root / "cat" / "a.png", gray())
    picture(outside, gray())
    (root / "cat" / "alias.png").symlink_to("a.png")
    assert images(root).describe().sets == {"train": 2}

    def refused_with(create: Any) -> str:
        create()
        message = refused(images(root))
        (root / "odd.png").unlink()
        return message

    assert "a link out of the tree" in refused_with(lambda: (root / "odd.png").symlink_to(outside))
    assert "or to a folder" in refused_with(lambda: (root / "odd.png").symlink_to(root / "cat"))
    assert "odd.png" in refused_with(lambda: (root / "odd.png").symlink_to("odd.png"))
    assert "no such file" in refused_with(lambda: (root / "odd.png").symlink_to("gone.png"))
    assert "neither a file nor a folder" in refused_with(lambda: os.mkfifo(root / "odd.png"))
    (root / "n\x1b]0;\nasty.png").write_bytes(b"no picture")
    assert "\\x1b" in refused(images(root))


def test_an_undecodable_image_ends_ingest_and_keeps_finished_shards(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for number in range(6):
        picture(root / f"{number}.png", gray(32, 32))
    whole = (root / "5.png").read_bytes()
    (root / "5.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="5.png: cannot be decoded"):
        ingest(images(root), tmp_path / "shards", shard_size=2)
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert {"train-00000.tar", "train-00001.tar"} <= names and "manifest.json" not in names
    (root / "5.png").write_bytes(whole)
    manifest = ingest(images(root), tmp_path / "shards", shard_size=2)
    assert list(manifest.keys("train")) == [f"{number}.png" for number in range(6)]


def test_an_image_that_changes_meanwhile(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for number in range(4):
        picture(root / f"{number}.png", gray())
    source = images(root)
    source.describe()
    picture(root / "2.png", gray())
    with pytest.raises(InputError, match="2.png: changed"):
        ingest(source, tmp_path / "shards", shard_size=2)


NAMES = ["space d", "ü", "u\u0308", "%d", "#?", "{a,b}", "[x]", "$HOME;", "'\"", "\\", "a\nb", "-v", "🙂", "x" * 255]


@pytest.mark.parametrize("name", NAMES)
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    picture(tmp_path / name / name / "a.png", gray())
    picture(tmp_path / name / name / "b.png", gray())
    source = images(tmp_path / name)
    manifest = ingest(source, tmp_path / name / ".shards", shard_size=1)
    assert list(manifest.keys("train")) == [f"{name}/a.png", f"{name}/b.png"] and manifest.classes == (name,)
    assert len(Reader(manifest.folder).read(np.arange(2))) == 2


# --- real files ----------------------------------------------------------------------------------------------------


def real(*parts: str) -> Path:
    folder = os.environ.get("STRATA_DATA")
    if folder is None:
        pytest.skip("STRATA_DATA does not name the folder with real data sets")
    path = Path(folder).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not in the folder that STRATA_DATA names")
    return path


def test_real_mnist() -> None:
    source = idx(real("mnist"))
    description = source.describe()
    assert (description.sets, description.shape, description.scale) == ({"train": 60000, "test": 10000}, (28, 28), 255)
    assert source.labels("train")[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_real_binary_npz() -> None:
    description = arrays(real("uci_binary", "mushrooms.npz")).describe()
    assert description.sets == {"train": 2000, "validation": 500, "test": 5624}
    assert (description.shape, description.low, description.high) == ((112,), 0.0, 1.0)
