"""`strata data`: what is counted is right, what is shown is safe and fits, and damage is one line."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conf import IdxSource
from conf.errors import Damaged, InputError, OutputError
from data.shards import ingest
from data.sources import Description, open_source
from flows import contents as measured
from flows import data_lines, data_page
from flows.contents import Contents
from tests.conftest import Command
from tests.raw_folders import real
from tests.shard_folders import Given, digits, flip

EVIL = "\x1b]0;owned\x07\r\x9b31m\u202e<script>alert(1)</script>&"


class Shaped(Given):
    """Arrays or texts at hand with the names and the range they have."""

    def __init__(self, sets: dict[str, list], classes: tuple[str, ...] = (), features: tuple[str, ...] = (), **known):  # type: ignore[no-untyped-def, type-arg]
        labels = known.pop("labels", {name: [-1] * len(samples) for name, samples in sets.items()})
        super().__init__(sets, labels, known.pop("keys", "row {}"))  # type: ignore[arg-type]
        self.classes, self.features, self.known = classes, features, known

    def _describe(self) -> Description:
        found = super()._describe()
        labeled = {name: int((self.labels(name) >= 0).sum()) for name in self.tables}
        every = np.concatenate([np.asarray(sample).reshape(-1) for part in self.tables.values() for sample in part])
        found = replace(found, labeled=labeled, classes=self.classes, features=self.features, scale=1.0)
        bounds = {"low": float(every.min(initial=0)), "high": float(every.max(initial=0))}
        return replace(found, **bounds | self.known)


def texts_of(sets: dict[str, list[str]], labels: dict[str, list[int]], classes: tuple[str, ...]) -> Given:
    raw = {name: [np.frombuffer(text.encode(), np.uint8) for text in texts] for name, texts in sets.items()}
    lengths = [len(text) for texts in raw.values() for text in texts]
    bounds = {"low": float(min(lengths)), "high": float(max(lengths))}
    return Shaped(raw, classes, labels=labels, keys=f"{EVIL} {{}}", shape=(), dtype="text", **bounds)


def columns(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line if not unicodedata.combining(c))


def lines(folder: Path) -> list[str]:
    """All lines after the folder's own; whatever is in the shards, they fit and cannot steer a terminal."""
    found = list(data_lines.lines(Contents(folder)))
    for line in found[1:]:
        assert line.isprintable() and columns(line) <= 100, line
    return found[1:]


class Page(HTMLParser):
    """What a browser would see of a page: its texts and pictures, and whether every element is closed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[Image.Image] = []
        self.elements: list[str] = []
        path = folder.parent / "page.html"
        data_page.write(Contents(folder), path)
        self.source = path.read_text()
        self.feed(self.source)
        assert not self.open, self.open
        assert "script" not in self.elements and not [c for c in self.source if not c.isprintable() and c != "\n"]
        assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import", self.source)  # it loads nothing

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag == "img":
            content = str(dict(attributes)["src"]).removeprefix("data:image/png;base64,")
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(content))))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "shards"
    ingest(digits(), folder, shard_size=500)
    return folder


def test_digits_are_counted_as_they_are(shards: Path) -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    found = Contents(shards).to_json()
    assert found["samples"] == 1797 == found["samples_read"] and found["shape"] == [8, 8]
    assert found["sets"]["train"]["classes"] == np.bincount(raw.target).tolist()
    assert found["sets"]["train"]["shards"] == 4
    assert found["sets"]["train"]["mean"] == pytest.approx(raw.data.mean() / 16)
    assert found["bytes"] == sum(path.stat().st_size for path in shards.iterdir() if path.name[0] != ".") - (
        (shards / "manifest.json").stat().st_size
    )
    assert found["values"]["counts"] == np.bincount(raw.data.astype(int).reshape(-1)).tolist()
    assert found["values"]["values"] == [level / 16 for level in range(17)]
    assert Contents(shards).num_constant == int((raw.data == raw.data[:1]).all(axis=0).sum()) > 0
    json.dumps(found)


def test_digits_as_lines(shards: Path) -> None:
    found = lines(shards)
    assert found[0].startswith("1,797 samples of 8×8, uint8 / 16, from a source of kind digits, in 4 shards")
    assert any(line.split()[:3] == ["train", "1,797", "1,797"] for line in found)
    assert "3             183  ████████████████████████████████████████" in found
    assert "No two samples have the same content." in found
    assert next(line for line in found if line.startswith("     0  █")).endswith("48.9%")
    pictures = found.index("train 0            train 3            train 8            train 3")
    assert found[pictures - 8] == "    ░░▓▓▒▒             ░░██▒▒               ▓▓████░░         ▒▒██████"


def test_digits_as_a_page(shards: Path) -> None:
    page = Page(shards)
    assert len(page.pictures) == 2 + 10  # a grid, the mean, a strip for each class
    grid = np.asarray(page.pictures[0])
    assert grid.shape[2] == 4 and len(set(grid[..., 0].reshape(-1).tolist())) > 10
    assert page.elements.count("rect") == 17 and "10 classes" in page.texts
    assert "No two samples have the same content." in page.text


def test_samples_are_drawn_evenly_and_no_more_than_allowed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MAX_SAMPLES", 100)
    found = Contents(shards)
    assert found.drawn.tolist() == [number * 1797 // 100 for number in range(100)]
    assert found.histogram.counts.sum() == 100 * 64
    assert any(line.startswith("Values of 100 of 1,797 samples, drawn evenly:") for line in lines(shards))
    monkeypatch.setattr(measured, "MAX_BYTES", 64 * 10)
    assert len(Contents(shards).stored) == 10
    monkeypatch.setattr(measured, "MAX_BYTES", 1)
    assert len(Contents(shards).drawn) == 1 and lines(shards)


def test_colour_pictures_of_any_range(tmp_path: Path) -> None:
    ramp = np.linspace(-3, 5, 3 * 2 * 40, dtype=np.float32).reshape(3, 2, 40)
    ingest(Shaped({"train": [ramp, -ramp / 2], "test": [ramp / 2]}), tmp_path / "shards", shard_size=1)
    found = Contents(tmp_path / "shards")
    pictures = found.pictures(np.arange(3))
    assert pictures.shape == (3, 2, 40, 3) and pictures.min() == 0 and pictures.max() == 1
    assert pictures[0, 1, 7, 2] == pytest.approx((ramp[2, 1, 7] + 3) / 8, abs=1e-6)
    assert found.histogram.edges[[0, -1]].tolist() == [-3, 5]
    assert "from a source of kind given, in 3 shards" in lines(tmp_path / "shards")[0]
    assert len(Page(tmp_path / "shards").pictures) == 3
    ingest(Shaped({"train": [np.stack([ramp[0], ramp[1]])] * 2}), tmp_path / "two", shard_size=9)
    assert len(Page(tmp_path / "two").pictures) == 2 and lines(tmp_path / "two")


# --- texts -----------------------------------------------------------------------------------------------------------


def test_texts(tmp_path: Path) -> None:
    sets = {
        "train": ["", "a\n\n  b\tc", EVIL, "漢字" * 100, "same"] + ["x" * 150] * 2,
        "test": ["same", "é" * 5000, "\x00\x01 zero"],
    }
    labels = {"train": [0, 0, 1, 1, 0, 0, 1], "test": [1, 1, -1]}
    folder = tmp_path / "shards"
    ingest(texts_of(sets, labels, ("sci.<b>", EVIL)), folder, shard_size=3)
    found = Contents(folder)
    lengths = [len(text.encode()) for texts in sets.values() for text in texts]
    edges, counts = found.histogram.edges, found.histogram.counts
    assert edges[0] == 0 and edges[-1] == max(lengths) + 1 and 100 in edges and 200 in edges
    assert counts.tolist() == np.histogram(lengths, edges)[0].tolist() and counts.sum() == 10
    assert found.copies == {("train", "train"): 1, ("test", "train"): 1}
    assert found.num_crossing == 1 and found.num_relabeled == 2

    said = lines(folder)
    assert said[0].startswith("10 texts, from a source of kind given, in 4 shards")
    assert any("2 samples are copies of earlier ones, 1 of them across sets, 2 with another" in line for line in said)
    assert "Lengths in bytes of all 10 texts." in said
    assert any(line.endswith("a b c") for line in said)
    assert any(line.startswith("sci.<b>") for line in said)

    page = Page(folder)
    assert "sci.<b>" in page.texts and "copies bear another label" in page.text
    assert not page.pictures


def test_a_text_alone(tmp_path: Path) -> None:
    ingest(texts_of({"train": ["one"]}, {"train": [-1]}, ()), tmp_path / "shards", shard_size=3)
    assert Contents(tmp_path / "shards").histogram.edges.tolist() == [2, 4]
    assert lines(tmp_path / "shards")[0].startswith("1 text, ")
    assert "classes" not in Page(tmp_path / "shards").text


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_unlabeled_vectors(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal([0, 100, -5], [1, 10, 0], (50, 3))
    names = ("weight, kg", EVIL, "flat")
    ingest(Shaped({"train": list(values)}, features=names), tmp_path / "shards", shard_size=20)
    found = Contents(tmp_path / "shards")
    assert [each.name for each in found.features] == list(names)
    for each, own in zip(found.features, values.T, strict=True):
        assert (each.mean, each.std) == (pytest.approx(own.mean()), pytest.approx(own.std()))
        assert (each.low, each.high) == (own.min(), own.max()) and each.histogram.counts.sum() == 50
    assert found.num_constant == 1 and found.histogram.counts.sum() == 150
    said = lines(tmp_path / "shards")
    assert said[0].startswith("50 samples of 3 values, float64, from")
    assert any(line.startswith("weight, kg ") for line in said) and any(line.startswith("flat ") for line in said)
    assert any(line.startswith("train row 0 ") and f"{values[0, 1]:.3g}" in line for line in said)
    page = Page(tmp_path / "shards")
    assert len(page.pictures) == 1 and page.elements.count("rect") == 20 * 4 and "classes" not in page.text
    assert page.pictures[0].size[1] == 640 == 16 * 40  # rows of samples


def test_of_many_values_those_that_vary_most_and_zeros_stand_apart(tmp_path: Path) -> None:
    values = np.zeros((40, 2000), np.float32)
    values[np.arange(40), 50 * np.arange(40)] = 1 + np.arange(40)
    ingest(Shaped({"train": list(values)}), tmp_path / "shards", shard_size=20)
    found = Contents(tmp_path / "shards")
    assert [each.name for each in found.features] == [f"value {50 * n}" for n in range(16, 40)]
    assert found.num_constant == 1960 and found.zeros_apart
    assert found.histogram.counts.sum() == 80_000 and found.shown_histogram.counts.sum() == 40
    assert any(
        "99.9% are 0 (not in this histogram)" in line or "100.0% are 0" in line for line in lines(tmp_path / "shards")
    )
    assert "The 24 of 2,000 values that vary most" in Page(tmp_path / "shards").text


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_where_its_page_went(shards: Path, strata: Command, tmp_path: Path) -> None:
    ended = strata("data", shards)
    assert ended.status == 0 and ended.err == "" and ended.out.startswith(f"{shards}\n1,797 samples")
    assert not list(tmp_path.iterdir())
    ended = strata("data", shards, "--page", "new/a b%#.html", "--json")
    assert ended.status == 0 and ended.out.count("\n") == 1
    assert ended.answer["page"] == "new/a b%#.html" and ended.answer["samples"] == 1797
    assert (tmp_path / "new" / "a b%#.html").stat().st_size > 10_000
    assert strata("data", shards, "--page", "p.html").out.endswith("\npage      p.html\n")


def test_damage_and_wrong_places_are_one_line(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder of finished shards"):
        Contents(tmp_path)
    for path in ("manifest.json", "train-00000.tar", "ingest.json"):
        before = (shards / path).read_bytes()
        with pytest.raises(OutputError, match="a file of the shards themselves"):
            data_page.write(Contents(shards), shards / path)
        assert (shards / path).read_bytes() == before
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "page.html", Path("/proc/page.html"), Path("")):
        with pytest.raises(OutputError, match="--page .*; choose "):
            data_page.write(Contents(shards), place)
    copy = tmp_path / "shards"
    ingest(digits(), copy, shard_size=500)
    flip(copy / "train-00001.tar", 700, 0)
    with pytest.raises(Damaged, match="train-00001.tar: sample 00000500 differs"):
        lines(copy)
    (copy / "train-00002.tar").unlink()
    (copy / "train-00001.tar").write_bytes((shards / "train-00001.tar").read_bytes())
    with pytest.raises(Damaged, match="train-00002.tar: no such file"):
        lines(copy)


def test_mnist_takes_less_than_three_seconds(tmp_path: Path) -> None:
    source = open_source(IdxSource(kind="idx", path=str(real("mnist"))))
    ingest(source, tmp_path / "mnist", shard_size=10_000)
    began = time.process_time()  # of the processor: other work on the machine is not counted
    assert lines(tmp_path / "mnist") and Page(tmp_path / "mnist").pictures
    assert time.process_time() - began < 3
