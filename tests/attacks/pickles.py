"""Pickles and other code in the clothes of data."""

from __future__ import annotations

import contextlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.io import loadmat, savemat

from conf.reading import read
from data.sources import fields
from tests.attacks import Halves, attack
from tests.attacks.files import (
    npy,
    npy_of_header,
    objects,
    pickled,
    replace,
    samples,
    shard,
    shards,
    stock_decode,
    stock_samples,
)  # fmt: skip


@attack("pkl", "pickle", "pyd", "pth", "PKL", "pkl.gz", "seg.pkl")
def a_pickle_in_a_foreign_shard(folder: Path, patch: pytest.MonkeyPatch, extension: str) -> Halves:
    marker = folder / "executed"
    path = shard(folder / "a.tar", ("a.npy", npy([1, 2])), (f"a.{extension}", pickled(marker, extension)))
    yield "could be a pickle", lambda: samples("webdataset", path, field="npy")
    stock_decode(path)
    yield marker.exists()


@attack("field", "label")
def a_pickle_that_the_recipe_asks_for(folder: Path, patch: pytest.MonkeyPatch, role: str) -> Halves:
    marker = folder / "executed"
    path = shard(folder / "a.tar", ("a.npy", npy([1, 2])), ("a.pyd", pickled(marker, "pyd")))
    yield "could be a pickle", lambda: samples("webdataset", path, **{role: "pyd"})
    (sample,) = stock_samples(path)
    pickle.loads(sample["pyd"])  # noqa: S301
    yield marker.exists()


@attack()
def an_array_of_objects_in_a_foreign_shard(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    marker = folder / "executed"
    path = shard(folder / "a.tar", ("a.npy", npy(objects(marker), allow_pickle=True)))
    yield "Python objects", lambda: samples("webdataset", path)
    real = np.load
    patch.setattr(fields, "check_npy", lambda *_: None)
    with pytest.raises(ValueError, match="allow_pickle"):  # the second guard
        samples("webdataset", path)
    assert not marker.exists()
    patch.setattr(fields.np, "load", lambda file, allow_pickle: real(file, allow_pickle=True))
    with contextlib.suppress(Exception):
        samples("webdataset", path)
    yield marker.exists()


@attack("npy", "npz", "bare")
def an_array_of_objects(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    marker, path = folder / "executed", folder / ("a.npz" if kind == "npz" else "a.npy")
    if kind == "npz":
        np.savez(path, x=objects(marker))
    else:
        path.write_bytes(pickled(marker, "pkl") if kind == "bare" else npy(objects(marker), allow_pickle=True))
    yield "Python objects|expected a .npy", lambda: samples("arrays", path)
    loaded = np.load(path, allow_pickle=True)
    if kind == "npz":
        loaded["x"]
    yield marker.exists()


@attack("npz", "npy beside it")
def labels_that_are_objects(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    marker, path, beside = folder / "executed", folder / "a.npz", folder / "y.npy"
    np.savez(path, x=np.eye(1, 3), y=objects(marker)[0])
    np.save(beside, objects(marker)[0])
    yield "Python objects", lambda: samples("arrays", path, data="x", labels="y" if kind == "npz" else str(beside))
    np.load(path, allow_pickle=True)["y"] if kind == "npz" else np.load(beside, allow_pickle=True)
    yield marker.exists()


@attack()
def objects_in_a_matlab_file(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = folder / "a.mat"
    savemat(path, {"X": np.array([[1.0, "two"], [None.__class__.__name__, 4.0]], object)})
    yield "of class cell", lambda: samples("arrays", path, data="X")
    yield loadmat(path)["X"].dtype == object


@attack("npy", "foreign shard")
def a_header_that_is_an_expression(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    marker = folder / "executed"
    code = f"{{'descr': '|u1', 'fortran_order': False, 'shape': (__import__('os').mkdir({str(marker)!r}) or 2, 2)}}"
    whole = npy_of_header(code, bytes(4))
    path = folder / "a.npy"
    path.write_bytes(whole)
    packed = shard(folder / "a.tar", ("a.npy", whole))
    yield "a broken header", lambda: samples("arrays", path) if kind == "npy" else samples("webdataset", packed)
    patch.setattr("ast.literal_eval", eval)  # as numpy did until 2008
    patch.setattr("numpy.lib._format_impl.safe_eval", eval, raising=False)
    file = io.BytesIO(whole)
    file.seek(10)
    eval(file.read().split(b"\n")[0].decode())  # noqa: S307
    yield marker.is_dir()


@attack("labels", "index", "mean")
def an_array_of_objects_among_our_shards(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    """With all digests made right again."""
    from data.shards import Reader

    marker, path = folder / "executed", shards(folder)
    name = {"labels": "train-labels.npy", "index": "train-00000.index.npy", "mean": "train-mean.npy"}[what]
    replace(path, name, npy(objects(marker), allow_pickle=True))

    def use() -> None:
        reader = Reader(path)
        reader.read(np.arange(12))
        reader.labels()
        reader.manifest.feature_mean("train")

    yield "is no array of|size of train-00000.index.npy", use
    np.load(path / name, allow_pickle=True)
    yield marker.exists()


@attack("!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [{}]")
def yaml_that_makes_objects(folder: Path, patch: pytest.MonkeyPatch, tag: str) -> Halves:
    marker, path = folder / "executed", folder / "recipe.yaml"
    path.write_text(f"name: {tag.format(marker)}\n")
    yield "could not determine a constructor", lambda: read(path, [])
    with contextlib.suppress(Exception):
        yaml.unsafe_load(path.read_text())
    yield marker.exists()
