"""Word counts in lines of id:count, as they should be and as they come."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conf
from conf.errors import InputError
from data.ingest import ingest
from data.shards import Reader
from data.sources import RawSource, open_source
from data.sources.counts import Counts
from tests.raw_folders import colleague, everything, real, refused


def counts(path: Path, **fields: Any) -> RawSource:
    return open_source(conf.CountsSource(kind="counts", path=str(path), **fields))


def written(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_file_without_anything_before_the_counts(tmp_path: Path) -> None:
    source = counts(written(tmp_path / "a.txt", "1:2 4:1\n\n3:7\r\n2:1\t1:1 \n4:0"))
    description = source.describe()
    assert (description.shape, description.dtype, description.sets) == ((4,), "uint16", {"train": 4})
    assert (description.low, description.high, description.scale, description.classes) == (0.0, 7.0, 1.0, ())
    keys, values, labels = everything(source)
    assert (keys, labels) == (["1", "3", "4", "5"], [-1] * 4)
    assert values.tolist() == [[2, 0, 0, 1], [0, 0, 7, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert isinstance(source, Counts) and source.empty_rows == {"train": 1}
    packed = counts(written(tmp_path / "a.gz", gzip.compress((tmp_path / "a.txt").read_bytes())), vocabulary=6)
    assert everything(packed)[1].shape == (4, 6)


def test_libsvm_with_labels_and_a_vocabulary(tmp_path: Path) -> None:
    written(tmp_path / "d" / "docs.train.svm", "+1 0:1 2:70000\n-1 1:1\n-1\n+1 0:3\n")
    written(tmp_path / "d" / "docs.test.svm", "-1 1:1\n3 0:1\n")
    written(tmp_path / "d" / "vocab.new", "the 0\nähm 0\nof 0\n")
    written(tmp_path / "d" / "notes", "one\n")
    source = counts(tmp_path / "d", leading="label", first_id=0)
    description = source.describe()
    assert (description.sets, description.labeled) == ({"train": 3, "test": 2}, {"train": 3, "test": 2})
    assert (description.classes, description.features) == (("-1", "1", "3"), ("the", "ähm", "of"))
    assert description.dtype == "uint32"
    keys, values, labels = everything(source)
    assert (keys, labels) == (["1", "2", "4"], [1, 0, 1])
    assert values.tolist() == [[1, 0, 70000], [0, 1, 0], [3, 0, 0]]
    assert everything(source, "test")[2] == [0, 2]
    other = colleague(source)
    assert other.labels("test").tolist() == [0, 2] and list(other.keys("train")) == keys
    assert [value.tolist() for _, value in colleague(source).samples("train", [2])] == [[3, 0, 0]]
    manifest = ingest(source, tmp_path / "shards", shard_size=2)
    assert np.array_equal(Reader(manifest.folder).read(np.arange(3)), values)
    written(tmp_path / "d" / "other", "a\nb\nc\n")
    assert counts(tmp_path / "d", leading="label", first_id=0).describe().features == ()  # which one?


def test_lda_c_tells_how_many_ids_follow(tmp_path: Path) -> None:
    source = counts(written(tmp_path / "a.ldac", "2 0:1 3:2\n0\n1 1:1\n"), leading="number", first_id=0)
    assert everything(source)[1].tolist() == [[1, 0, 0, 2], [0, 1, 0, 0]]
    path = written(tmp_path / "a.ldac", "2 0:1 3:2\n3 1:1 2:1\n")
    assert "a.ldac:2: says it has 3 ids, found 2" in refused(counts(path, leading="number", first_id=0))


@pytest.mark.parametrize(
    ("line", "fields", "complaint"),
    [
        ("0:1", {}, "the id 0; expected 1 to"),
        ("3:1", {"vocabulary": 2}, "the id 3; expected 1 to 2, as source.first_id and source.vocabulary say"),
        ("2:1", {"vocabulary": 2, "first_id": 0}, "the id 2; expected 0 to 1"),
        ("4000000000:1", {}, "the id 4000000000; expected"),
        ("2:1 2:3", {}, "the id 2 is there twice"),
        ("2:-1", {}, "found '2:-1', expected id:count"),
        ("-2:1", {}, "found '-2:1', expected id:count"),
        ("2:0.5", {}, "found '2:0.5', expected id:count"),
        ("2:", {}, "found '2:', expected id:count"),
        (":2", {}, "found ':2', expected id:count"),
        ("1:1 2", {}, "found '2', expected id:count"),
        ("1:1:1", {}, "found '1:1:1', expected id:count"),
        ("1:1 # fine", {}, "found '#', expected id:count"),
        ("1: 1", {}, "found '1:', expected id:count"),
        ("1:4294967296", {}, "the count 4294967296"),
        ("1:99999999999999999999", {}, "found '1:99999999999999999999'"),
        ("5 1:1", {}, "source.leading"),
        ("hello", {}, "found 'hello'"),
        ("1:1", {"leading": "label"}, "begins with '1:1'; expected what source.leading says, a label"),
        ("x 1:1", {"leading": "number"}, "says it has x ids"),
        ("1:1 \x1b[2J", {}, "x1b[2J"),
        ("1:1 " + "9" * 5000 + ":1", {}, "…"),
        (b"1:1 \xff:1", {}, "xff:1"),
        ("qid:3 1:1", {}, "found 'qid:3'"),
    ],
)
def test_malformed_lines(tmp_path: Path, line: str | bytes, fields: dict[str, Any], complaint: str) -> None:
    good = "1 1:1 2:1\n" if fields.get("leading") == "label" else "2 1:1 2:1\n" if "leading" in fields else "1:1 2:1\n"
    if fields.get("first_id") == 0:
        good = "0:1\n"
    bad = line.encode() if isinstance(line, str) else line
    message = refused(counts(written(tmp_path / "a.txt", good.encode() * 2 + bad + b"\n"), **fields))
    assert complaint in message and "a.txt:3:" in message


def test_folders_that_leave_a_choice_or_none(tmp_path: Path) -> None:
    written(tmp_path / "d" / "train.data", "1:1\n")
    written(tmp_path / "d" / "train.label", "1\n")
    assert "both train.data and train.label could be the train set" in refused(counts(tmp_path / "d"))
    (tmp_path / "e").mkdir()
    assert "found nothing" in refused(counts(tmp_path / "e"))
    written(tmp_path / "e" / "docs", "1:1\n")
    assert "found docs" in refused(counts(tmp_path / "e"))
    assert "no such file" in refused(counts(tmp_path / "missing"))
    assert "no text in it" in refused(counts(written(tmp_path / "empty", "")))
    assert "nothing to learn" in refused(counts(written(tmp_path / "zeros", "1:0\n2:0\n")))


def test_a_file_that_changes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "1:1 2:1\n2:5\n")
    source = counts(path)
    source.describe()
    written(path, "1:1 2:1\n2:5\n2:6\n")
    with pytest.raises(InputError, match="changed while"):
        list(source.samples("train", [0]))


def test_real_newsgroups() -> None:
    source = counts(real("20newsgroups", "bow2000"), leading="ignored")
    description = source.describe()
    assert description.sets == {"train": 11_258, "test": 7_487} and description.labeled == {"train": 0, "test": 0}
    assert isinstance(source, Counts) and source.empty_rows == {"train": 1, "test": 1}
    assert (description.shape, description.dtype, description.high) == ((1995,), "uint16", 549.0)
    assert description.features[:3] == ("_eos_", "write", "one")
    total = sum(int(value.sum()) for _, value in source.samples("train", range(0, 11_258, 10)))
    assert total == sum(int(value.sum()) for _, value in colleague(source).samples("train", range(0, 11_258, 10)))
