"""A recipe that is deployed here runs in any other folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf import Recipe
from flows.scheduling import _anywhere


def anywhere(**data: Any) -> dict[str, Any]:
    """The data of a recipe as a worker gets it, without what is not set."""
    tree = {"name": "some", "data": data, "stages": {"layer": {"model": {"kind": "rbm"}}}}
    found = _anywhere(Recipe.model_validate(tree)).model_dump(mode="json", exclude_unset=True)["data"]
    assert isinstance(found, dict)
    return found


def test_every_file_a_source_names_has_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"data": "x.npy", "labels": "sub/y.mat", "validation_data": "/v.npy", "test_data": "t.npy"}
    found = anywhere(source={"kind": "arrays", "path": "raw.npz", **named})["source"]
    assert found == {
        "kind": "arrays", "path": f"{tmp_path}/raw.npz", "data": f"{tmp_path}/x.npy", "labels": f"{tmp_path}/sub/y.mat",
        "validation_data": "/v.npy", "test_data": f"{tmp_path}/t.npy",
    }  # fmt: skip


def test_names_that_are_no_paths_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of arrays and columns, though files called so lie here."""
    monkeypatch.chdir(tmp_path)
    for name in ("x", "y"):
        (tmp_path / name).touch()
    arrays = {"kind": "arrays", "path": "s3://bucket/raw.npz", "data": "x", "labels": "y"}
    assert anywhere(source=arrays)["source"] == arrays
    table = {"kind": "table", "path": "file:///raw.csv", "text": "x", "label": "y"}
    assert anywhere(source=table)["source"] == table | {"path": "/raw.csv"}


@pytest.mark.parametrize(
    ("shards", "expected"),
    [("a/b", "{here}/a/b"), ("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("s3://bucket/b", "s3://bucket/b")],
)
def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert anywhere(shards=shards)["shards"] == expected.format(here=tmp_path)
