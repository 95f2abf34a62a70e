"""CSV and Parquet tables, as they should be and as they come."""

from __future__ import annotations

import gzip
import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import conf
from conf.errors import InputError
from data.ingest import ingest
from data.shards import Reader
from data.sources import RawSource, delimited, open_source
from data.sources import columns as columns_module
from tests.raw_folders import RANDOM, colleague, everything, refused


def table(path: Path | str, **fields: Any) -> RawSource:
    return open_source(conf.TableSource(kind="table", path=str(path), **fields))


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def parquet_of(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=7)
    return path


def saved(folder: Path, kind: str, columns: dict[str, list[Any]]) -> Path:
    """The same table in every form it can have."""
    if kind == "parquet":
        return parquet_of(folder / "t.parquet", **columns)
    mark = {"csv": ",", "tsv": "\t", "semicolon": ";", "gz": ",", "crlf": ","}[kind]
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    end = "\r\n" if kind == "crlf" else "\n"
    text = "".join(mark.join("" if value is None else str(value) for value in row) + end for row in rows)
    if kind == "gz":
        return written(folder / "t.csv.gz", gzip.compress(text.encode()))
    return written(folder / ("t.tsv" if kind == "tsv" else "t.csv"), text)


KINDS = ("csv", "tsv", "semicolon", "gz", "crlf", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_labels_and_sets(tmp_path: Path, kind: str) -> None:
    columns: dict[str, list[Any]] = {
        "height": [1.5, -2.0, 0.1, 3e-3, 7, 8],
        "who": ["dog", "cat", None, "ä cat", "dog", "dog"],
        "part": ["train", "test", "train", "val", "Train", "test"],
        "width": [0, 1, 2, 3, 4, 5],
    }
    source = table(saved(tmp_path, kind, columns), label="who", set="part", scale=2.0)
    description = source.describe()
    assert (description.shape, description.dtype, description.features) == ((2,), "float32", ("height", "width"))
    assert (description.sets, description.classes) == (
        {"train": 3, "validation": 1, "test": 2},
        ("cat", "dog", "ä cat"),
    )
    assert description.labeled == {"train": 2, "validation": 1, "test": 2}
    assert (description.scale, description.low, description.high) == (2.0, -1.0, 4.0)
    keys, values, labels = everything(source)
    assert (keys, labels) == (["0", "2", "4"], [1, -1, 1])
    assert np.array_equal(values, np.array([[1.5, 0], [0.1, 2], [7, 4]], np.float32))
    assert everything(source, "test")[0] == ["1", "5"]
    other = colleague(source)
    assert [key for key, _ in other.samples("test", [1])] == ["5"] and other.labels("test").tolist() == [0, 1]
    assert list(other.keys("validation")) == ["3"]
    manifest = ingest(source, tmp_path / "shards", shard_size=2)
    assert np.array_equal(Reader(manifest.folder).read(np.arange(3)), values)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_any_rows_in_ascending_order(tmp_path: Path, kind: str) -> None:
    values = RANDOM.normal(size=(100, 3)).astype(np.float32)
    source = table(saved(tmp_path, kind, {name: values[:, place].tolist() for place, name in enumerate("abc")}))
    assert np.array_equal(everything(source)[1], values)
    other = colleague(source)
    for rows in ([3, 4, 9], range(20, 60), [99], [0], range(50, 100, 7), []):
        keys = [str(row) for row in rows]
        found = list(other.samples("train", rows))
        assert [key for key, _ in found] == keys
        assert all(np.array_equal(value, values[int(key)]) for key, value in found)


def test_shards_in_ascending_order_are_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = table(saved(tmp_path, "csv", {"a": list(range(1000)), "b": [0] * 1000}))
    source.describe()
    opened: list[int] = []
    real = delimited.Csv.batches
    monkeypatch.setattr(delimited.Csv, "batches", lambda *given: (opened.append(1), real(*given))[1])
    for first in range(0, 1000, 100):
        assert len(list(source.samples("train", range(first, first + 100)))) == 100
    assert len(opened) == 1


def test_a_parquet_file_is_entered_at_its_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = table(parquet_of(tmp_path / "t.parquet", a=list(range(700))))
    source.describe()
    monkeypatch.setattr(columns_module, "NUMBER_BYTES", 8 * 7)  # a batch is a row group
    firsts: list[int] = []
    columns: Any = source.columns  # type: ignore[attr-defined]
    real = columns.batches

    def watched(names: list[str], start: int = 0) -> Any:
        for first, batch in real(names, start):
            firsts.append(first)
            yield first, batch

    monkeypatch.setattr(columns, "batches", watched)
    assert [key for key, _ in source.samples("train", [500, 501, 690])] == ["500", "501", "690"]
    assert firsts == [497, 686]


def test_whole_numbers_that_32_bits_do_not_hold(tmp_path: Path) -> None:
    for kind in ("csv", "parquet"):
        assert table(saved(tmp_path, kind, {"a": [0, 2**24]})).describe().dtype == "float32"
        source = table(saved(tmp_path, kind, {"a": [0, 2**24 + 1, 2**53]}))
        assert source.describe().dtype == "float64"
        assert everything(source)[1][:, 0].tolist() == [0, 2**24 + 1, 2**53]
        message = refused(table(saved(tmp_path, kind, {"a": [0, 1, 2**53 + 1]})))
        assert "row 2, column 'a'" in message and "9007199254740993" in message


def test_true_and_false_are_one_and_zero(tmp_path: Path) -> None:
    source = table(saved(tmp_path, "csv", {"a": ["true", "False", "TRUE"], "b": [1, 2, 3]}))
    assert everything(source)[1].tolist() == [[1, 1], [0, 2], [1, 3]]
    source = table(parquet_of(tmp_path / "t.parquet", a=[True, False, True]))
    assert everything(source)[1].tolist() == [[1], [0], [1]]


def test_parquet_types(tmp_path: Path) -> None:
    whole = pa.array([1, 2, 3], pa.int8())
    path = parquet_of(tmp_path / "t.parquet", a=whole, b=pa.array([0.5, 1, 2], pa.float16()), c=whole.cast(pa.uint64()))
    assert everything(table(path))[1].tolist() == [[1, 0.5, 1], [2, 1, 2], [3, 2, 3]]
    for name, odd in (
        ("date", pa.array([1, 2, 3], pa.timestamp("s"))),
        ("list", pa.array([[1], [2], [3]])),
        ("text", pa.array(["1", "2", "3"])),
        ("raw", pa.array([b"1", b"2", b"x"])),
    ):
        message = refused(table(parquet_of(tmp_path / "t.parquet", a=whole, **{name: odd})))
        assert f"column '{name}'" in message and "source.columns" in message
        assert table(tmp_path / "t.parquet", columns=["a"]).describe().shape == (1,)
    assert "row 1, column 'a'" in refused(table(parquet_of(tmp_path / "t.parquet", a=[1.0, None, 2.0])))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n3\n4,5\n", "row 1 has 1 values, but there are 2 columns"),
        ("a,b\n1,2\n\n3,4,5\n", "row 1 has 3 values"),
        ("a,b\n1,2\n3,\n", "row 1, column 'b': expected a number, found nothing"),
        ("a,b\n1,2\n3,NA\n", "row 1, column 'b': expected a number, found 'NA'"),
        ("a,b\n1,2\n3,nan\n", "row 1, column 'b': expected a finite 32-bit number, found nan"),
        ("a,b\n1,2\n3,-Inf\n", "row 1, column 'b': expected a finite 32-bit number, found -inf"),
        ("a,b\n1,2\n3,1e39\n", "row 1, column 'b': expected a finite 32-bit number, found 1e+39"),
        ("a,b\n1,2\n3,true\n", "row 1, column 'b': expected a number, found 'true'"),
        ("a,name\n1,Ann\n3,Bob\n", "column 'name': expected a number, found 'Ann' (source.columns lists"),
        ("a,b\n1,2\n3,0x10\n", "found '0x10'"),
        ("a;b\n1;2\n3;1,5\n", "found '1,5'"),
        ("a,b,a\n1,2,3\n", "two columns are called 'a'"),
        ("a,b\n", "no rows"),
        ("", "found an empty line"),
        ("a\n1\n\n2\n", "row 1, column 'a': expected a number, found nothing"),
        ("a,b\n1,1\n1,1\n", "nothing to learn"),
        (b"a,b\n1,2\n3,\xff\n", "row 1, column 'b'"),
        (b"a,\xe4\n1,2\n", "header is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "header is not UTF-8"),
        ("a,b\n1,2\n3,\x1b[2J\n", r"found '\x1b[2J'"),
        ("a\x1b]0;x\x07,b\n1,2\nx,3\n", r"\x1b"),
        ("a" * 300 + ",b\n1,2\nx,3\n", "…"),
    ],
)
def test_malformed_tables(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    message = refused(table(written(tmp_path / "t.csv", text)))
    assert complaint in message and "t.csv" in message


QUOTES = [
    ('a,b\n1,"2\n3,4\n5,6\n', "still open at the file's end"),
    ('a,b\n1,"2\n3,"4\n5,6\n', "line 3: a quote is followed by text"),
    ('a,b\n1,2"\n3,4\n', "line 2: a quote opens inside a value"),
    ('a,b\n1, "2"\n3,4\n', "line 2: a quote opens inside a value"),
    ('a,b\n1,"2" \n3,4\n', "line 2: a quote is followed by text"),
]


@pytest.mark.parametrize(("text", "complaint"), QUOTES)
def test_a_stray_quote_swallows_no_rows(tmp_path: Path, text: str, complaint: str) -> None:
    assert complaint in refused(table(written(tmp_path / "t.csv", text), text="b"))
    for size in (1, 2, 3, 5):  # wherever the file is cut into blocks
        checked = delimited._Quotes(io.BytesIO(text.encode()), ",", "t.csv")
        with pytest.raises(OSError, match="refused"):
            for _ in range(len(text) + 1):
                checked.read(size)
        assert complaint.split(";")[0] in str(checked.problem)


def test_quoted_values(tmp_path: Path) -> None:
    text = '\ufeff"a","b"\n1,"x,\n""y"" ü"\n2,"""a"""\n3,""""\n4,plain\n"5","end"'
    source = table(written(tmp_path / "t.csv", text), text="b")
    assert source.describe().sets == {"train": 5}
    found = [bytes(value).decode() for _, value in source.samples("train", range(5))]
    assert found == ['x,\n"y" ü', '"a"', '"', "plain", "end"]
    for size in (1, 2, 3, 5):
        checked = delimited._Quotes(io.BytesIO(text[1:].encode()), ",", "t.csv")
        assert b"".join(iter(lambda: checked.read(size), b"")).decode() == text[1:]  # noqa: B023


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b\n1,2\n2,3\n")
    for field, value in (("columns", ["a", "c"]), ("label", "c"), ("set", "c"), ("text", "c"), ("image", "c")):
        message = refused(table(path, **{field: value}))
        assert f"no column 'c', which source.{field} names; its columns are a, b" in message
    assert "expected train, validation or test, found '2'" in refused(table(path, set="b"))
    path = written(tmp_path / "t.csv", "a,b\n1,train\n")
    assert "no columns beside source.label" in refused(table(path, set="b", label="a"))
    with pytest.raises(ValueError, match="takes one of"):
        table(path, text="a", image="b")


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        (["10", "9", "", "9"], [1, 0, -1, 0], ("9", "10")),
        (["1.0", "", "-1", "0.0"], [1, -1, -1, 0], ("0", "1")),
        (["01234", "1234", "01234", "x"], [0, 1, 0, 2], ("01234", "1234", "x")),
        (["", "", "", ""], [-1] * 4, ()),
    ],
)
def test_labels(tmp_path: Path, labels: list[str], numbers: list[int], classes: tuple[str, ...]) -> None:
    source = table(saved(tmp_path, "csv", {"a": [1, 2, 3, 4], "y": labels}), label="y")
    assert (source.labels("train").tolist(), source.describe().classes) == (
        numbers,
        classes,
    ) or source.describe() is None
    assert source.describe().classes == classes


def test_labels_that_are_none(tmp_path: Path) -> None:
    for labels, complaint in ((["1", "0.5"], "0.5"), (["0", "-100"], "-100")):
        assert complaint in refused(table(saved(tmp_path, "csv", {"a": [1, 2], "y": labels}), label="y"))
    path = parquet_of(tmp_path / "t.parquet", a=[1, 2, 3], y=[1.0, float("nan"), 0.0], z=[0.5, 1, 2])
    assert table(path, label="y", columns=["a"]).describe().labeled == {"train": 2}
    assert "0.5" in refused(table(path, label="z", columns=["a"]))
    path = parquet_of(tmp_path / "t.parquet", a=[1, 2, 3], y=pa.array(["b", None, "a"]).dictionary_encode())
    assert table(path, label="y").labels("train").tolist() == [1, -1, 0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_texts_and_word_counts(tmp_path: Path, kind: str) -> None:
    columns = {
        "body": ["the cat sat", "dog ünder dog", "and", "the end dog cat"],
        "part": ["train", "train", "train", "test"],
    }
    path = saved(tmp_path, kind, columns)
    source = table(path, text="body", set="part")
    description = source.describe()
    assert (description.dtype, description.shape, description.low, description.high) == ("text", (), 3.0, 15.0)
    assert [bytes(value).decode() for _, value in source.samples("train", range(3))] == columns["body"][:3]
    words = table(path, text="body", set="part", vocabulary=3, stop_words="english")
    assert (words.describe().features, words.describe().dtype) == (("dog", "cat", "sat"), "uint16")
    assert (words.describe().low, words.describe().high) == (0.0, 2.0)
    assert [value.tolist() for _, value in words.samples("train", range(3))] == [[0, 1, 1], [2, 0, 0], [0, 0, 0]]
    assert [value.tolist() for _, value in colleague(words).samples("test", [0])] == [[1, 1, 0]]
    assert words.fingerprint() != source.fingerprint() and words.describe().content != source.describe().content


def test_texts_that_are_none(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", b"a,b\n1,fine\n2,\xfftext\n")
    assert "row 1, column 'b': expected UTF-8" in refused(table(path, text="b"))
    path = written(tmp_path / "t.csv", 'a,b\n1,fine\n2,""\n')
    assert "row 1, column 'b': expected a text, found nothing" in refused(table(path, text="b"))
    path = parquet_of(tmp_path / "t.parquet", b=["x", None])
    assert "row 1, column 'b': expected a text, found nothing" in refused(table(path, text="b"))
    path = parquet_of(tmp_path / "t.parquet", b=[1, 2])
    assert "expected texts" in refused(table(path, text="b"))
    path = written(tmp_path / "t.csv", "a,b\n1,-\n2,-\n")
    assert "no words in its train set" in refused(table(path, text="b", vocabulary=5))


# --- pictures ---


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    (folder / "in").mkdir(parents=True)
    for name, shade in (("one.png", 10), ("in/two.png", 200), ("three.png", 90)):
        Image.new("L", (6, 4), shade).save(folder / name)
    Image.new("L", (6, 4), 1).save(tmp_path / "secret.png")
    return folder


def test_pictures(album: Path) -> None:
    path = written(album / "t.csv", "file,y\none.png,a\nin/two.png,b\nthree.png,a\n")
    source = table(path, image="file", label="y", size=[4, 6])
    assert (source.describe().shape, source.describe().dtype, source.describe().scale) == ((4, 6), "uint8", 255.0)
    keys, values, labels = everything(source)
    assert (keys, values[:, 0, 0].tolist(), labels) == (["0", "1", "2"], [10, 200, 90], [0, 1, 0])
    assert everything(table(f"file://{path}", image="file", label="y", size=[4, 6]))[2] == labels
    other = colleague(source)
    assert [int(value[0, 0]) for _, value in other.samples("train", [1, 2])] == [200, 90]
    seen = source.fingerprint()
    Image.new("L", (6, 4), 11).save(album / "one.png")
    assert source.fingerprint() != seen
    with pytest.raises(InputError, match="one.png: changed while it was read"):
        list(other.samples("train", [0]))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing.png", "no such file"),
        ("in", "not a regular file"),
        ("pipe", "not a regular file"),
        ("t.csv", "no picture"),
        ("", "found nothing"),
        ("a\x1b[2J.png", "is not a path below"),
    ],
)
def test_picture_paths_that_lead_astray(album: Path, name: str, complaint: str) -> None:
    (album / "link.png").symlink_to("../secret.png")
    (album / "folder").symlink_to("..")
    os.mkfifo(album / "pipe")
    name = name.format(root=album.parent)
    message = refused(table(written(album / "t.csv", f"file,y\none.png,a\n{name},b\n"), image="file", size=[4, 6]))
    assert complaint in message


# --- files ---


@pytest.mark.parametrize("kind", ["gz", "parquet"])
def test_cut_and_flipped_files(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, kind, {"a": RANDOM.normal(size=400).tolist(), "b": list(range(400))})
    whole, content = path.read_bytes(), table(path).describe().content
    for length in (1, 3, 4, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert path.name in refused(table(path))
    silent = 0
    values = None
    for place in RANDOM.integers(0, len(whole), 200).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            source = table(path)
            found = everything(source)[1]
        except InputError:
            continue
        values = found if values is None else values
        silent += not (kind == "parquet" or np.array_equal(found, values))
        assert source.describe().content != content or whole == path.read_bytes()
    assert silent == 0


def test_rows_that_are_too_long(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", b"a,b\n1," + b"0" * (17 << 20))
    assert "longer than 8 MiB" in refused(table(path))
    path = written(tmp_path / "t.csv", b"a" * (9 << 20))
    assert "header" in refused(table(path))


def test_a_table_that_changes(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b\n1,2\n3,4\n")
    source = table(path)
    source.describe()
    written(path, "a,b\n1,2\n3,5\n9,9\n")
    with pytest.raises(InputError, match="changed while it was read"):
        list(source.samples("train", [0]))
    assert "no such file" in refused(table(tmp_path / "missing.csv"))
    assert "not a regular file" in refused(table(tmp_path))


def test_memory_stays_flat(tmp_path: Path) -> None:
    peaks = []
    for rows in (50_000, 300_000):
        path = written(tmp_path / "t.csv", b"a,b,y\n" + b"1.25,3,cat\n2.5,4,dog\n" * (rows // 2))
        pool = pa.default_memory_pool()
        before = pool.bytes_allocated()
        tracemalloc.start()
        source = table(path, label="y")
        for first in range(0, rows, 10_000):
            assert sum(1 for _ in source.samples("train", range(first, first + 10_000))) == 10_000
        peaks.append(tracemalloc.get_traced_memory()[1] - 20 * rows)  # labels, 4 bytes a row and then 8; rows, 8
        tracemalloc.stop()
        assert pool.bytes_allocated() - before < 64 << 20
    assert peaks[1] < 1.5 * peaks[0] + (8 << 20)
