"""MATLAB .mat files as arrays, as they should be and as they come."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from scipy.io import loadmat, savemat

import conf
from conf.errors import InputError
from data.sources import RawSource, matlab, open_source
from tests.raw_folders import RANDOM, everything, real, refused


def mat(path: Path, **fields: Any) -> RawSource:
    return open_source(conf.ArraysSource(kind="arrays", path=str(path), **fields))


def saved(path: Path, *, compressed: bool = True, **variables: Any) -> Path:
    savemat(path, variables, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [True, False])
def test_usual_names_and_labels_lying_down(tmp_path: Path, compressed: bool) -> None:
    x, y = RANDOM.random((12, 5)), np.arange(12) % 4
    source = mat(
        saved(tmp_path / "a.mat", compressed=compressed, X=x, Y=y[None], X_test=x[:3], Y_test=y[:3, None], n=7)
    )
    description = source.describe()
    assert (description.sets, description.labeled) == ({"train": 12, "test": 3}, {"train": 12, "test": 3})
    assert (description.shape, description.dtype, description.scale) == ((5,), "float64", 1.0)
    keys, values, labels = everything(source)
    assert np.array_equal(values, x) and labels == y.tolist()


def test_samples_in_the_last_dimension(tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (3, 4, 7), np.uint8)
    source = mat(saved(tmp_path / "a.mat", images=x), columns=True)
    assert (source.describe().shape, source.describe().scale) == ((3, 4), 255.0)
    assert np.array_equal(everything(source)[1], np.moveaxis(x, -1, 0))
    flat = x.reshape(12, 7, order="F")  # as MATLAB reshapes
    source = mat(
        saved(tmp_path / "a.mat", faces=flat), columns=True, image_shape=[3, 4], image_order="columns", scale=5
    )
    assert source.describe().scale == 5.0
    assert np.array_equal(everything(source)[1], np.moveaxis(x, -1, 0))
    np.save(tmp_path / "a.npy", flat)
    assert np.array_equal(everything(mat(tmp_path / "a.npy", columns=True))[1], flat.T)


def test_a_double_that_fits_bytes_is_no_picture(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.mat", compressed=False, X=np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert mat(path).describe().scale == 255.0
    content = bytearray(path.read_bytes())
    assert content[144] == 9  # mxUINT8_CLASS
    content[144] = 6  # mxDOUBLE_CLASS, whose values MATLAB stores as bytes where they fit
    path.write_bytes(content)
    description = mat(path).describe()
    assert (description.dtype, description.scale, description.high) == ("uint8", 1.0, 5.0)
    other = saved(tmp_path / "b.mat", X=np.array([[1, 2, 300]], np.uint16))
    wide = mat(path, test_data=str(other))
    assert wide.describe().dtype == "uint16" and wide.describe().sets == {"train": 2, "test": 1}


def test_elements_of_cells(tmp_path: Path) -> None:
    x, z = RANDOM.random((6, 3)), RANDOM.integers(0, 9, (6, 2))
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = x, z
    names = np.array(["dog", "cat", "dog", "", "cat", "dog"], object)[:, None]
    path = saved(tmp_path / "a.mat", X=cells, who=names, deep={"a": x}, word="hello")
    source = mat(path, data="X[0]", labels="who")
    assert source.describe().classes == ("cat", "dog") and source.labels("train").tolist() == [1, 0, 1, -1, 0, 1]
    assert np.array_equal(everything(source)[1], x)
    assert np.array_equal(everything(mat(path, data="X[1]"))[1], z)
    for name, complaint in (
        ("X[2]", "has 2 elements"),
        ("X", "of class cell; expected numbers (an element of it is called X[0])"),
        ("deep", "of class struct; expected numbers"),
        ("word", "of class char; expected numbers"),
        ("who[0]", "is no array of numbers"),
        ("nobody", "has no array 'nobody'; its arrays are"),
        ("deep[0]", "of class struct"),
    ):
        assert complaint in refused(mat(path, data=name))
    assert "none of its arrays" in refused(mat(path))
    assert "strings alone" in refused(mat(path, data="X[0]", labels="X"))


def test_sparse_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = scipy.sparse.random(20, 30, 0.1, random_state=0, format="csc")
    path = saved(tmp_path / "a.mat", X=x)
    assert np.array_equal(everything(mat(path))[1], x.toarray())
    monkeypatch.setattr(matlab, "MAX_DENSE", 100)
    assert "expected at most 100" in refused(mat(path))


def test_newer_and_older_files_are_told_apart(tmp_path: Path) -> None:
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124, b" ") + b"\x00\x02IM"
    (tmp_path / "a.mat").write_bytes(head + bytes(384) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "save(…, '-v7')" in refused(mat(tmp_path / "a.mat"))
    (tmp_path / "a.mat").write_bytes(head[:124] + b"\x00\x03IM" + bytes(100))
    assert "expected versions 5 to 7" in refused(mat(tmp_path / "a.mat"))
    savemat(tmp_path / "a.mat", {"X": np.ones((2, 2))}, format="4")
    assert "MATLAB .mat of versions 5 to 7" in refused(mat(tmp_path / "a.mat"))


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content


def lying(shape: tuple[int, int], content: bytes) -> bytes:
    """An array whose dimensions say more than its content holds."""
    flags = element(6, struct.pack("<II", 9, 0))
    dimensions, name = element(5, struct.pack("<ii", *shape)), element(1, b"X" + bytes(7)[:7])
    name = struct.pack("<HH", 1, 1) + b"X\0\0\0"  # the short form
    return element(14, flags + dimensions + name + element(2, content))


HEAD = b"MATLAB 5.0 MAT-file".ljust(124, b" ") + b"\x00\x01IM"


def test_arrays_that_lie_about_their_size(tmp_path: Path) -> None:
    good = HEAD + lying((4, 2), bytes(range(8)))
    (tmp_path / "a.mat").write_bytes(good)
    assert mat(tmp_path / "a.mat").describe().sets == {"train": 4}
    (tmp_path / "a.mat").write_bytes(HEAD + lying((100, 2), bytes(range(8))))
    assert "do not fit" in refused(mat(tmp_path / "a.mat"))
    (tmp_path / "a.mat").write_bytes(HEAD + lying((-1, 2), bytes(8)))
    assert "a.mat" in refused(mat(tmp_path / "a.mat"))


def test_an_array_larger_than_memory_is_refused_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((1000, 100))
    x[0] = 1
    path = saved(tmp_path / "a.mat", X=x)
    np.savez_compressed(tmp_path / "a.npz", x=x)
    assert mat(path).describe().sets == mat(tmp_path / "a.npz").describe().sets == {"train": 1000}
    monkeypatch.setattr(matlab.os, "sysconf", lambda name: 700 if name == "SC_PHYS_PAGES" else 1000)
    assert "needs 800" in refused(mat(path)) and "needs 800" in refused(mat(tmp_path / "a.npz"))


@pytest.mark.parametrize("compressed", [True, False])
def test_cut_and_flipped_files(tmp_path: Path, compressed: bool) -> None:
    x = RANDOM.integers(0, 256, (9, 8), np.uint8)
    path = saved(tmp_path / "a.mat", compressed=compressed, X=x, Y=np.arange(9)[None])
    whole = path.read_bytes()
    first = 128 + 8 + struct.unpack("<I", whole[132:136])[0]
    for length in {*range(0, len(whole), 7), len(whole) - 1} - {128, first}:  # cut between arrays, a file is whole
        path.write_bytes(whole[:length])
        assert "a.mat" in refused(mat(path))
    if not compressed:
        return  # such a file has no checksums
    content, silent = mat(saved(path, X=x, Y=np.arange(9)[None])).describe().content, 0
    for place in range(128, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            silent += mat(path).describe().content != content
    assert silent == 0


# --- real files ---


def test_real_binarized_mnist() -> None:
    folder = real("binarized_mnist")
    names = {name: str(folder / f"binarized_mnist_{name}.mat") for name in ("train", "valid", "test")}
    source = mat(Path(names["train"]), validation_data=names["valid"], test_data=names["test"], image_shape=[28, 28])
    description = source.describe()
    assert description.sets == {"train": 50_000, "validation": 10_000, "test": 10_000}
    assert (description.shape, description.dtype, description.scale, description.high) == ((28, 28), "uint8", 1.0, 1.0)


def test_real_silhouettes_faces_and_features() -> None:
    source = mat(
        real("caltech101_silhouettes", "caltech101_silhouettes_28.mat"), image_shape=[28, 28], image_order="columns"
    )
    description = source.describe()
    assert description.sets == {"train": 8671} and len(description.classes) == 101 and description.high == 1.0

    path = real("olivetti", "olivettifaces.mat")
    source = mat(path, columns=True, image_shape=[64, 64], image_order="columns", scale=255.0)
    description = source.describe()
    assert (description.sets, description.shape, description.dtype) == ({"train": 400}, (64, 64), "uint8")
    face = next(source.samples("train", [17]))[1]
    assert np.array_equal(face, loadmat(path)["faces"][:, 17].reshape(64, 64, order="F"))

    path = real("mfeat_multiview", "handwritten.mat")
    for place, (width, scale) in enumerate(((240, 1.0), (76, 1.0), (216, 1.0))):
        description = mat(path, data=f"X[{place}]", labels="Y").describe()
        assert (description.sets, description.shape, description.scale) == ({"train": 2000}, (width,), scale)
        assert description.classes == tuple(map(str, range(1, 11)))
    path = real("wikipedia_crossmodal", "raw_features.mat")
    assert mat(path, data="I_tr", test_data="I_te").describe().sets == {"train": 2173, "test": 693}
