"""Texts, one a file or one a line, as they are and as counts of words."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conf
import data.sources.lines
from conf.errors import InputError
from data.sources import RawSource, open_source
from data.sources.words import Tally, Vocabulary, count_dtype
from tests.raw_folders import real, refused
from tests.raw_trees import PACKED, packed


def texts(path: Path, **settings: Any) -> RawSource:
    return open_source(conf.TextSource(kind="text", path=str(path), **settings))


def all_of(source: RawSource, set_name: str = "train") -> dict[str, str]:
    pairs = list(source.samples(set_name, range(source.sets[set_name])))
    assert [key for key, _ in pairs] == list(source.keys(set_name))
    assert all(value.dtype == np.uint8 and value.ndim == 1 for _, value in pairs)
    return {key: bytes(value).decode() for key, value in pairs}


# --- a text a file -------------------------------------------------------------------------------------------------

POSTS = {
    "news-train/cars/1": b"The car, the CAR!",
    "news-train/cars/2": b"a wheel\x00\x1b[2J\r\n",
    "news-train/space/3": "Raumschiff größer".encode(),
    "news-test/space/4": b" ",
    "news-test/other/5": b"the end",
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_tree_of_texts(tmp_path: Path, kind: str) -> None:
    source = texts(packed(tmp_path, kind, POSTS))
    description = source.describe()
    assert (description.sets, description.labeled) == ({"train": 3, "test": 2}, {"train": 3, "test": 2})
    assert (description.kind, description.shape, description.dtype, description.scale) == ("text", (), "text", 1.0)
    assert (description.low, description.high) == (1.0, len(POSTS["news-train/space/3"]))
    assert description.classes == ("cars", "other", "space")
    found = all_of(source) | all_of(source, "test")
    assert {key: text.encode() for key, text in found.items()} == POSTS
    assert source.labels("train").tolist() == [0, 0, 2] and source.labels("test").tolist() == [1, 2]


def test_the_content_does_not_depend_on_the_packing(tmp_path: Path) -> None:
    descriptions = [texts(packed(tmp_path, kind, POSTS)).describe() for kind in PACKED]
    assert all(description == descriptions[0] for description in descriptions)
    assert len({texts(packed(tmp_path, kind, POSTS)).fingerprint() for kind in PACKED}) == len(PACKED)


def test_another_process_reads_without_describing(tmp_path: Path) -> None:
    path = packed(tmp_path, "tar.gz", POSTS)
    for settings in ({}, {"vocabulary": 3}):
        first, second = texts(path, **settings), texts(path, **settings)
        second.expect(first.describe(), first.seen)
        for (key, value), (other, same) in zip(
            first.samples("train", [0, 2]), second.samples("train", [0, 2]), strict=True
        ):
            assert key == other and np.array_equal(value, same) and value.dtype == same.dtype
        assert list(second.keys("test")) == list(first.keys("test"))
        assert second.labels("train").tolist() == first.labels("train").tolist()


def test_latin_1(tmp_path: Path) -> None:
    path = packed(tmp_path, "folder", {"a": "größer €".encode("cp1252")})
    message = refused(texts(path))
    assert "a: byte 2 (0xf6) is not UTF-8" in message and "encoding: latin-1" in message
    assert all_of(texts(path, encoding="latin-1")) == {"a": "größer \x80"}


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = packed(tmp_path, "folder", {"a": b"\xef\xbb\xbfx", "b": b"x\xef\xbb\xbf"})
    assert all_of(texts(path)) == {"a": "x", "b": "x\ufeff"}
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\xff")
    assert "line 2: byte 10 (0xff)" in refused(texts(tmp_path / "lines.txt"))
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo")
    assert all_of(texts(tmp_path / "lines.txt")) == {"1": "one", "2": "\ufefftwo"}
    (tmp_path / "utf16").mkdir()
    (tmp_path / "utf16" / "a").write_bytes("hello".encode("utf-16"))
    assert "byte 0 (0xff)" in refused(texts(tmp_path / "utf16"))


def test_trees_that_hold_no_texts(tmp_path: Path) -> None:
    assert "no such file" in refused(texts(tmp_path / "missing"))
    (tmp_path / "tree").mkdir()
    assert "no files in it" in refused(texts(tmp_path / "tree"))
    (tmp_path / "tree" / "a").write_bytes(b"")
    assert "tree/a: empty" in refused(texts(tmp_path / "tree"))
    with (tmp_path / "tree" / "a").open("wb") as file:
        file.truncate((64 << 20) + 1)
    assert "at most 64 MiB" in refused(texts(tmp_path / "tree"))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_text_that_changes_meanwhile(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path, kind, POSTS)
    source = texts(path)
    source.describe()
    packed(tmp_path, kind, POSTS | {"news-train/cars/1": b"The car, the BUS!"})
    with pytest.raises(InputError, match="changed while"):
        list(source.samples("train", [0]))
    with pytest.raises(InputError, match="changed while"):
        source.require_unchanged()


# --- a text a line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "no suffix"])
def test_a_file_of_lines(tmp_path: Path, name: str) -> None:
    content = "one\r\n\n \t\r\nzwei ü\r\n  three \x00\x0b\x85\u2028 \nlast".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = texts(tmp_path / name)
    description = source.describe()
    assert (description.sets, description.labeled, description.classes) == ({"train": 4}, {"train": 0}, ())
    assert (description.low, description.high) == (3.0, 16.0)
    assert all_of(source) == {"1": "one", "4": "zwei ü", "5": "  three \x00\x0b\x85\u2028 ", "6": "last"}
    assert source.labels("train").tolist() == [-1] * 4
    assert [bytes(text) for _, text in source.samples("train", [1, 3])] == ["zwei ü".encode(), b"last"]


def test_lines_do_not_depend_on_the_packing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x\ny\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x\ny\n"))
    assert texts(tmp_path / "a.txt").describe() == texts(tmp_path / "a.txt.gz").describe()
    (tmp_path / "a.txt").write_bytes(b"x\nz\n")
    assert texts(tmp_path / "a.txt").describe() != texts(tmp_path / "a.txt.gz").describe()


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 4 << 20])
def test_lines_are_cut_alike_whatever_the_blocks(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.sources.lines, "BLOCK_BYTES", block)
    monkeypatch.setattr(data.sources.lines, "BLOCK_ROWS", 3)
    random = np.random.default_rng(1)
    letters = np.frombuffer(b"\n\n\n\r\r ab\tc\x85", np.uint8)
    for _ in range(20):
        content = random.choice(letters, 60).tobytes() + b"x"
        (tmp_path / "a.txt").write_bytes(content)
        expected = {
            str(number): line.removesuffix(b"\r").decode("latin-1")
            for number, line in enumerate(content.split(b"\n"), 1)
            if line.strip(b" \t\r\n")
        }
        source = texts(tmp_path / "a.txt", encoding="latin-1")
        assert all_of(source) == expected
        rows = sorted(random.choice(len(expected), min(4, len(expected)), replace=False).tolist())
        assert [key for key, _ in source.samples("train", rows)] == [list(expected)[row] for row in rows]


def test_files_of_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert "no such file" in refused(texts(path))
    for content in (b"", b"\n \r\n\t\n"):
        path.write_bytes(content)
        assert "no text in it" in refused(texts(path))
    path.write_bytes(b"one\nt\xffo\n")
    assert "a.txt: line 2: byte 5 (0xff) is not UTF-8" in refused(texts(path))
    path.write_bytes(b"one\n" + b"x" * ((64 << 20) + 1))
    assert "line 2 has more than 64 MiB" in refused(texts(path))
    path.unlink()
    os.mkfifo(path)
    assert "no file" in refused(texts(path))


def test_damaged_gzip_files_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress(b"hello\n" * 1000)
    path.write_bytes(whole[:-9])
    assert "cut short" in refused(texts(path))
    path.write_bytes(whole[:-6] + b"\0" + whole[-5:])
    assert "damaged gzip" in refused(texts(path))


def test_lines_that_change_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n")
    source = texts(path)
    source.describe()
    with path.open("ab") as file:
        file.write(b"three\n")
    with pytest.raises(InputError, match="changed while"):
        list(source.samples("train", [0]))


# --- counts of words -----------------------------------------------------------------------------------------------


def test_counts_of_words(tmp_path: Path) -> None:
    source = texts(packed(tmp_path, "folder", POSTS), vocabulary=3)
    description = source.describe()
    assert description.features == ("car", "the", "2j")  # by count, then alphabet
    assert (description.shape, description.dtype, description.scale) == ((3,), "uint16", 1.0)
    assert (description.low, description.high) == (0.0, 2.0)
    values = [
        value.tolist() for name in ("train", "test") for _, value in source.samples(name, range(source.sets[name]))
    ]
    assert values == [[2, 2, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    everything = texts(packed(tmp_path, "folder", POSTS), vocabulary=100).describe().features
    assert len(everything) == 6 and "größer" in everything and "end" not in everything


def test_words_are_those_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    random = np.random.default_rng(0)
    letters = list("abcAB019_ '-ÄßİΣς\u0301\u200d中文\n\x00!")
    written = ["".join(random.choice(letters, 200)) for _ in range(100)] + ["the The a of cars"]
    for stop_words in ("none", "english"):
        vectorizer = CountVectorizer(stop_words=None if stop_words == "none" else "english")
        expected = vectorizer.fit_transform(written).toarray()
        names = vectorizer.get_feature_names_out()
        order = sorted(range(len(names)), key=lambda place: (-expected[:, place].sum(), names[place]))
        tally = Tally()
        for text in written:
            tally.add(text)
        vocabulary = Vocabulary(tally.frequent(10**6, stop_words))
        assert vocabulary.words == tuple(names[order])
        assert np.array_equal(np.stack([vocabulary.counts(text) for text in written]), expected[:, order])
        assert tally.frequent(5, stop_words) == tuple(names[order])[:5]


def test_counts_that_need_more_than_16_bits(tmp_path: Path) -> None:
    for count, dtype in ((65_535, "uint16"), (65_536, "uint32")):
        path = packed(tmp_path, "folder", {"a": b"word " * count, "b": b"other"})
        source = texts(path, vocabulary=2)
        assert (source.describe().dtype, source.describe().high) == (dtype, count)
        assert [value.tolist() for _, value in source.samples("train", [0, 1])] == [[count, 0], [0, 1]]
    assert (count_dtype(65_535), count_dtype(65_536)) == ("uint16", "uint32")


def test_no_words_to_count(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a b c\n! ?\n")
    assert "no words in its train set" in refused(texts(tmp_path / "a.txt", vocabulary=5))
    (tmp_path / "a.txt").write_bytes(b"the of and\n")
    assert "no words" in refused(texts(tmp_path / "a.txt", vocabulary=5, stop_words="english"))


def test_the_settings_are_part_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one two two\n")
    sources = [texts(tmp_path / "a.txt", **settings) for settings in ({}, {"vocabulary": 1}, {"vocabulary": 2})]
    assert len({source.describe().content for source in sources}) == 3 == len({source.seen for source in sources})


def test_headers_are_dropped_where_they_are_asked_to_be(tmp_path: Path) -> None:
    """Up to the first empty line, of a text that begins with `Name:`; its words are not counted."""
    posts = {
        "a": b"From: x@y\nNewsgroups: rec.autos\n\nThe car.\n\nIts wheel.",
        "b": b"Path: x\r\nNewsgroups: sci.space\r\n\t \r\nThe moon.",
        "c": b"No header.\n\nBut two parts.",
        "d": b"One: line",
    }
    source = texts(packed(tmp_path, "folder", posts), headers="drop")
    kept = ["The car.\n\nIts wheel.", "The moon.", "No header.\n\nBut two parts.", "One: line"]
    assert list(all_of(source).values()) == kept
    counted = texts(packed(tmp_path, "folder", posts), headers="drop", vocabulary=50).describe()
    assert "newsgroups" not in counted.features and "wheel" in counted.features
    assert "newsgroups" in texts(packed(tmp_path, "folder", posts), vocabulary=50).describe().features
    assert source.seen != texts(packed(tmp_path, "folder", posts)).seen
    (tmp_path / "lines.txt").write_bytes(b"one\ntwo\n")
    with pytest.raises(InputError, match="a text a line has no header"):
        texts(tmp_path / "lines.txt", headers="drop")


def test_real_newsgroups() -> None:
    source = texts(real("20newsgroups", "20news-bydate.tar.gz"), encoding="latin-1")
    description = source.describe()
    assert description.sets == {"train": 11_314, "test": 7_532} == description.labeled
    assert len(description.classes) == 20 and description.classes[0] == "alt.atheism"
    assert Counter(source.labels("test").tolist()).most_common()[-1] == (19, 251)
    key, value = next(iter(source.samples("train", [0])))
    assert key == "20news-bydate-train/alt.atheism/49960" and bytes(value).startswith(b"From: mathew")
