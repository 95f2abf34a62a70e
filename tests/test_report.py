"""The report: one file that loads nothing, believes no string, and shows what there is of any run."""

from __future__ import annotations

import base64
import io
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conf.protocol import Result
from data import durable
from flows import charts, figures, pictures, report, wording
from flows.results import Run, Stage
from tests.finished_run import RUN, STAGES, build, key, layer1, likelihood, record, stage

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("runs")
    build(out)
    return report.write(out, RUN).read_text()


class Reader(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data.replace("\u00a0", " ")


def test_every_section_with_its_reading_note(finished: str) -> None:
    page = Reader(finished)
    assert page.open == [], "a tag is left open"
    sections = ["What ran", "Training curves", "Free-energy gap", "Learned filters", "Hidden activity", "Weights",
                "Reconstructions", "Samples beside real data", "Gibbs chains", "Measured", "Likelihoods", "Few labels",
                "Recipe", "Provenance"]  # fmt: skip
    assert re.findall(r"<h2>(.*?)</h2>", finished) == sections
    assert page.words.count("How to read this.") == len(sections) - 1


def test_it_loads_nothing(finished: str) -> None:
    for tag, attributes in Reader(finished).tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", finished)


def test_the_numbers_are_there(finished: str) -> None:
    words = Reader(finished).words
    for expected in (
        "64 → 200", "13,064", "1,294", "1 min 52 s",
        "≈ −21.42 ± 0.11", "flatters the model", "71.3", "−21.61 from the other side", "≈ −21.61 ± 0.20",
        "reverse AIS (25 × 4 chains, 1000 temperatures)", "55.0", "if its chains began at draws from the model",
        "layer 1 · of 48 units 1 never on and 1 always on", "90 test examples", "nats at the end",
        "columns: the example, then after 1, 5, 25 and 125 sweeps",
        "≥ −19.870 ± 0.030", "lower bound", "test, first 360",
        "≈ −20.90 (estimate)", "the true value may lie on either side", "twice the plain standard error",
        "Log-likelihood of a test sample in nats", "test samples, for comparison", "Originals are test samples",
        "34.03 ± 0.15", "43.08 ± 0.31", "9.05 ± 0.19", "a paired gain of 9.05 ± 0.19 points",
        "stages.layer1.train.epochs=20", "num_hidden: 200", "2.13.0", "5a" * 6, key("vae")[:12],
    ):  # fmt: skip
        assert expected in words, expected


def test_pictures_and_curves(finished: str) -> None:
    tags = Reader(finished).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    names = [attributes["alt"] for attributes in images]
    assert names.count("real data") == 1  # the same data beside every model are shown once
    assert [name for name in names if (name or "").startswith("filters")] == [
        "filters of layer1, layer1", "filters of layer2, layer2",  # and not layer 1 again
    ]  # fmt: skip
    assert {f"samples from {name}" for name in ("layer1", "layer2", "vae", "gan")} <= set(names)
    for attributes in images:
        content = base64.b64decode((attributes["src"] or "").partition("base64,")[2])
        assert min(Image.open(io.BytesIO(content)).size) > 100
    # Nine panels and the gap's; two of activity and two of weights for each of two layers; likelihoods, few labels.
    assert sum(tag == "svg" for tag, _ in tags) == 20
    assert "optimizer step" in finished and "reconstruction error" in finished and "learning rate of" not in finished


def test_strings_from_outside_are_escaped(tmp_path: Path) -> None:
    folder = layer1(tmp_path)
    durable.write_json(folder / "result.json", durable.read_json(folder / "result.json") | {"placement": {EVIL: EVIL}})
    rows = [{"name": EVIL, "flow": "pretrain", "kind": EVIL, "what": EVIL, "folder": f"stages/{key('layer1')}"}]
    shards = {EVIL: {"folder": EVIL, "samples_digest": EVIL, "labels_digest": None, "sizes": {EVIL: 1}, "shape": [8]}}
    record(tmp_path, rows, name=EVIL, error=EVIL, recipe_text=EVIL, overrides=[EVIL], shards=shards, status="failed")
    page = report.write(tmp_path, RUN).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") > 10


def test_passwords_are_left_out(tmp_path: Path) -> None:
    address = "https://me:hunter2@data.example/digits"
    record(tmp_path, [], recipe_text=f"path: {address}", overrides=[f"data.source.path={address}"], error=address)
    page = report.write(tmp_path, RUN).read_text()
    assert "hunter2" not in page and page.count("https://data.example/digits") == 3


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_that_did_not_finish_shows_what_there_is(tmp_path: Path, status: str) -> None:
    layer1(tmp_path, finished=False)
    stage(tmp_path, "layer2", "train", "rbm", metrics={}, finished=False)
    (tmp_path / "stages" / key("layer2") / "result.json").write_text("{")  # a torn one
    rows = [row | {"status": "waiting"} for row in STAGES]
    rows[1] |= {"status": status}
    record(tmp_path, rows, status=status, error="layer1: the loss became NaN at step 410", shards={}, seconds=None)
    page = report.write(tmp_path, RUN).read_text()
    words = Reader(page).words
    assert "layer1: the loss became NaN at step 410" in words and "0 of 5 stages were finished" in words
    shown = ["What ran", "Training curves", "Free-energy gap", "Recipe", "Provenance"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == shown


def test_data_without_pictures_and_colour_pictures(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors, colour = random.random((64, 20), np.float32), random.random((9, 5, 4, 3), np.float32)
    drawn = {
        "samples": {"images": vectors}, "data": {"images": vectors}, "filters": {"layer1": colour - np.float32(0.5)},
        "reconstructions": {"originals": vectors, "reconstructions": vectors},
    }  # fmt: skip
    stage(tmp_path, "layer1-evaluate", "evaluate", "rbm", metrics={}, figures=drawn)
    record(tmp_path, [row for row in STAGES if row["flow"] == "evaluate" and row["name"] == "layer1"])
    images = [tag for tag, _ in Reader(report.write(tmp_path, RUN).read_text()).tags if tag == "img"]
    assert len(images) == 4
    (tmp_path / "stages" / key("layer1-evaluate") / "figures" / "samples.npz").write_bytes(b"PK torn")
    assert len(Reader(report.write(tmp_path, RUN).read_text()).tags)


@pytest.mark.parametrize("name, words", [("train", "TRAINING"), ("validation", "validation"), ("test", "test")])
def test_the_set_that_was_measured_is_named(tmp_path: Path, name: str, words: str) -> None:
    images = np.random.default_rng(0).random((4, 8, 8), np.float32)
    drawn = {
        "samples": {"images": images}, "data": {"images": images},
        "reconstructions": {"originals": images, "reconstructions": images},
    }  # fmt: skip
    entry = likelihood(-21.0, "estimate", "AIS", set=name, split=f"{name}, first 4")
    stage(tmp_path, "vae-evaluate", "evaluate", "vae", metrics={}, figures=drawn,
          details={"set": name, "likelihoods": [entry]})  # fmt: skip
    record(tmp_path, [row for row in STAGES if row["flow"] == "evaluate" and row["name"] == "vae"])
    said = Reader(report.write(tmp_path, RUN).read_text()).words
    for expected in (f"Log-likelihood of a {words} sample", f"Mean log-probability of a {words} sample",
                     f"Originals are {words} samples", f"{words} samples, for comparison"):  # fmt: skip
        assert expected in said, expected
    assert "held" not in said.lower()
    # The lead, the table's cell and the notes of three sections.
    assert said.count("says nothing about new data") == (5 if name == "train" else 0)


def test_no_bound_rests_on_annealing() -> None:
    estimator = "variational bound (100 draws of q), log Z by AIS (100 chains, 1000 temperatures)"
    for kind in ("estimate", "lower_bound"):  # results from before still call it a bound
        sign, called, words = wording.promise({"kind": kind, "estimator": estimator})
        assert (sign, called) == ("≈\u00a0", "estimate")
        assert "at least this" not in words and "flatters" not in words
    sign, called, words = wording.promise({"kind": "estimate", "estimator": "AIS (100 chains, 1000 temperatures)"})
    assert (sign, called) == ("≈\u00a0", "estimate") and "flatters the model" in words
    for kind, sign in (("lower_bound", "≥\u00a0"), ("exact", "")):
        found = wording.promise({"kind": kind, "estimator": "variational bound (100 draws of q), log Z by enumeration"})
        assert found[0] == sign and "flatters" not in found[2]


@pytest.mark.parametrize(
    "gain, std_error, expected",
    [
        (-1.5, 0.5, "worse than its twin"),
        (-0.8, 0.5, "worse than its twin, if within two standard errors"),
        (-0.4, 0.5, "no clear difference"),
        (0.0, 0.0, "no clear difference"),
        (1.0, 0.5, "no clear difference"),
        (1.1, 0.5, "better than its twin"),
        (-0.1, None, "worse than its twin, with too few seeds to judge"),
        (float("nan"), 0.5, "not comparable with its twin"),
    ],
)
def test_verdicts_hide_no_bad_news(gain: float, std_error: float | None, expected: str) -> None:
    assert wording.verdict(gain, std_error) == expected


def test_the_lead_has_a_clause_for_each_number_of_labels() -> None:
    metrics = {}
    for labels, ours, twin, error in ((20, 30.0, 39.0, 1.0), (100, 9.3, 7.8, 0.4), ("all", 3.0, 3.1, 0.2)):
        metrics |= {f"test/error@{labels}": ours, f"test/error@{labels}/supervised": twin,
                    f"test/gain@{labels}": twin - ours, f"test/gain@{labels}/std_error": error}  # fmt: skip
    said = wording.errors_in_words("classify", metrics, ["20", "100", "all"]).replace("\u00a0", " ")
    assert said.count(";") == 2 and "9.0 ± 1.0 points" in said
    first, second, third = said.split(";")
    assert "with 20 labels" in first and "better than its twin" in first
    assert "with 100 labels" in second and "worse than its twin" in second and "−1.5 ± 0.4 points" in second
    assert "with all labels" in third and "no clear difference" in third


def test_it_is_quick(tmp_path: Path) -> None:
    build(tmp_path)
    began = time.process_time()
    path = report.write(tmp_path, RUN)
    assert time.process_time() - began < 4
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "value, std_error, expected",
    [
        (20.4321, 0.31, "20.43 ± 0.31"),
        (20.4321, 0.47, "20.4 ± 0.5"),
        (-87.3, 0.04, "−87.30 ± 0.04"),
        (1234.5, 25.0, "1,234 ± 25"),
        (3.1, None, "3.10"),
        (3.1, 0.0, "3.10"),
        (float("nan"), None, "nan"),
        (float("inf"), 1.0, "inf"),
        (999_999.0, None, "999,999"),
        (-1_234_567.0, None, "−1.23e6"),
        (3.0e25, None, "3.00e25"),
        (1_234_567.0, 25_000.0, "(1.235 ± 0.025)e6"),
        (3.576e-16, None, "3.58e−16"),
    ],
)
def test_numbers_with_their_errors(value: float, std_error: float | None, expected: str) -> None:
    assert wording.with_error(value, std_error).replace("\u00a0", " ") == expected


def test_one_line_of_a_likelihood_for_the_terminal() -> None:
    found = likelihood(
        -92.5, "estimate", "AIS (100 chains, 1000 temperatures)", std_error=0.25, effective_sample_size=7.1
    )
    line = "-92.500 ± 0.250 nats, estimate, AIS (100 chains, 1000 temperatures), effective sample size 7.10"
    assert wording.in_words(found) == line
    assert wording.in_words(likelihood(-1.0, "exact", "enumeration")) == "-1.000 nats, exact, enumeration"


def test_sides_that_errors_do_not_reconcile_are_called_apart(tmp_path: Path) -> None:
    """Apart by more than a nat and three of both errors together; with nothing from the other side there is nothing."""
    assert wording.apart(likelihood(-93.0, "estimate", "AIS")) == ""
    for back, errors, apart in ((-94.0, (None, None), False), (-95.9, (0.6, 0.3), False), (-95.9, (0.2, 0.2), True)):
        reverse = {"nats": back, "kind": "estimate", "estimator": "reverse AIS", "std_error": errors[1]}
        found = likelihood(-93.0, "estimate", "AIS", std_error=errors[0], reverse=reverse)
        assert wording.apart(found) == ("The two sides are 2.90 nats apart: trust neither." if apart else "")
    stage(
        tmp_path,
        "vae-evaluate",
        "evaluate",
        "vae",
        metrics={},
        figures={},
        details={"set": "test", "likelihoods": [found]},
    )
    record(tmp_path, [row for row in STAGES if row["flow"] == "evaluate" and row["name"] == "vae"])
    page = Reader(report.write(tmp_path, RUN).read_text()).words
    assert page.count("trust neither") == 3  # the lead and both rows


# ---- charts and pictures


def test_a_histogram_has_a_column_a_bin_as_high_as_its_count() -> None:
    svg = charts.histogram([0, 3, 1], [-1.0, 0.0, 1.0, 2.0], "title", "x", "units")
    heights = [float(height) for height in re.findall(r'class="bar" .*?height="([\d.]+)"', svg)]
    assert heights[0] == 0 and heights[1] == pytest.approx(3 * heights[2], abs=0.2) and heights[2] > 10
    assert "<title>0 to 1: 3</title>" in svg
    assert (
        charts.histogram([0, 0], [0.0, 1.0, 2.0], "", "", "").count("rect") == 4
    )  # nothing to count divides by nothing


def test_a_line_keeps_its_colour_where_others_are_missing() -> None:
    svg = charts.curves({"train": [], "validation": [(1, 0.5), (2, 0.4)]}, "title", "step", "error")
    assert "stroke:var(--second)" in svg and "stroke:var(--first)" not in svg
    assert charts.curves({"train": [(1, float("nan"))], "validation": []}, "title", "step", "loss") == ""


def test_likelihoods_that_may_be_compared_share_a_chart() -> None:
    svg = charts.intervals({"a": [(-100.0, 1.0), (-101.0, 0.0)], "b": [(-90.0, 2.0)]}, "title", "nats")
    where = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert where[1] < where[0] < where[2]
    assert (where[2] - where[0]) == pytest.approx(10 * (where[0] - where[1]), abs=0.5)
    assert "var(--first)" in svg and 'xmlns="http://www.w3.org/2000/svg"' in charts.alone(svg)


def test_a_strip_is_the_states_of_the_chains() -> None:
    """Two chains of single pixels, at 0, 1, 2 … 25 and 125 sweeps: a row a chain, a column for 0, 1, 5, 25, 125."""
    sweeps = [*range(26), 125]
    frames = np.stack([np.full((2, 3, 3), sweep / 125) for sweep in sweeps])
    frames[:, 1] = 1 - frames[:, 1]
    content = {"frames": frames, "sweeps": np.array(sweeps)}
    drawn = figures.strip(content)
    assert drawn is not None and drawn[0] == [0, 1, 5, 25, 125]
    pixels = np.asarray(Image.open(io.BytesIO(drawn[1])))[..., 0]
    unit = len(pixels) // 7  # two pictures of three pixels and a gap
    seen = pixels[unit :: 4 * unit, unit :: 4 * unit]
    shade = [round(255 * sweep / 125) for sweep in (0, 1, 5, 25, 125)]
    assert np.abs(seen.astype(int) - [shade, [255 - value for value in shade]]).max() <= 1
    assert figures.strip({}) is None


def test_chains_move_sweep_by_sweep_as_long_as_every_sweep_is_there() -> None:
    frames = np.random.default_rng(0).random((27, 2, 3, 3))
    film = figures.animation({"frames": frames, "sweeps": np.array([*range(26), 125])})
    assert film is not None
    moving = Image.open(io.BytesIO(film))
    assert moving.n_frames == 26  # type: ignore[attr-defined]
    moving.seek(20)
    assert moving.convert("L").getpixel((0, 0)) == round(255 * frames[20, 0, 0, 0]) // 16 * 17
    assert figures.animation({"frames": np.zeros((2, 2, 9)), "sweeps": np.arange(2)}) is None


def test_activity_counts_units_and_examples() -> None:
    content = {
        "layer2_units": np.array([0.02, 0.02, 0.97, 0.5]), "layer2_examples": np.array([0.32, 0.31, 0.9]),
        "layer2_lowest": np.array([0.0, 0.0, 0.96, 0.1]), "layer2_highest": np.array([0.04, 0.06, 1.0, 1.0]),
    }  # fmt: skip
    found = figures.activity(content)["layer2"]
    assert (found.num_units, found.num_examples, found.never_on, found.always_on) == (4, 3, 1, 1)
    assert found.mean == pytest.approx(0.3775)
    assert "<title>0 to 0.05: 2</title>" in found.by_unit and "<title>0.95 to 1: 1</title>" in found.by_unit
    assert "<title>0.3 to 0.35: 2</title>" in found.by_example
    assert figures.activity({}) == {} and figures.weights({}) == {}


def test_activity_of_rectified_units_is_no_probability() -> None:
    content = {
        "layer1_units": np.array([0.01, 2.0, 4.0]), "layer1_examples": np.array([1.0, 3.0]),
        "layer1_lowest": np.array([0.0, 1.5, 0.0]), "layer1_highest": np.array([0.04, 2.5, 8.0]),
        "layer1_rectified": np.array(1),
    }  # fmt: skip
    found = figures.activity(content)["layer1"]
    assert found.rectified and (found.never_on, found.always_on) == (1, 0)
    assert "<title>3.8 to 4: 1</title>" in found.by_unit and "<title>3 to 3.2: 1</title>" in found.by_example
    assert "mean over units" in found.by_example and "share" not in found.by_example


@pytest.mark.parametrize(("dead", "said"), [(2, False), (3, True)])
def test_a_layer_of_mostly_idle_units_is_said_at_the_head(tmp_path: Path, dead: int, said: bool) -> None:
    (tmp_path / "figures").mkdir()
    level = np.where(np.arange(4) < dead, 0.0, 0.5)
    arrays = {"units": level, "examples": level[:2], "lowest": level, "highest": level}
    np.savez(tmp_path / "figures" / "activity.npz", **{f"layer2_{name}": values for name, values in arrays.items()})
    row = {"flow": "evaluate", "name": "bits", "evaluates": "top", "kind": "rbm", "status": "finished"}
    result = Result(stage="top", key="k", do="evaluate", kind="rbm", digest="d", metrics={}, seconds=1)
    words = report.summary(Run({}, [Stage(row, tmp_path, result)]))
    assert ("Most hidden units tell nothing" in words) == said
    assert ("in layer 2 of top (3 of 4 never on, 0 always on)" in words) == said


def test_the_legend_of_a_map_has_room_for_its_names() -> None:
    longest = "comp.sys.ibm.pc.hardware"
    narrow, wide = (charts.scatter({"0": [(0, 0), (1, 1)], name: [(0, 1)]}, "map") for name in ("1", longest))
    width, wider = (int(re.findall(r'viewBox="0 0 (\d+)', svg)[0]) for svg in (narrow, wide))
    assert f">{longest}<" in wide and wider - width > 90


def test_ticks_are_round() -> None:
    assert charts.ticks(0, 400) == [0, 100, 200, 300, 400]
    assert charts.ticks(-0.31, 0.29) == [-0.2, 0, 0.2]
    assert [charts.label(value) for value in (1500, 1.9e6, -0.25, 0)] == ["1.5k", "1.9M", "−0.25", "0"]


def test_colours_of_filters_are_symmetric() -> None:
    ramp = np.linspace(-1, 1, 11).reshape(1, 1, 11)
    red, green, blue = pictures.diverging(ramp)[0, 0].astype(int).T
    assert blue[0] > red[0] and red[-1] > blue[-1] and red[5] == green[5] == blue[5] == 247


def test_a_reconstruction_stands_under_its_original() -> None:
    white, black = np.ones((2, 8, 8)), np.zeros((2, 8, 8))
    pixels = np.asarray(Image.open(io.BytesIO(pictures.columns([white, black], 8))))
    rows = pixels[:: len(pixels) // 17, 0]  # 8 of the original, a gap, 8 of the reconstruction
    assert [tuple(row) for row in (rows[0], rows[8], rows[9])] == [(255, 255, 255, 255), (0, 0, 0, 0), (0, 0, 0, 255)]


def test_a_corrupted_copy_stands_between_its_original_and_its_reconstruction(tmp_path: Path) -> None:
    shades = {"originals": 1.0, "corrupted": 0.0, "reconstructions": 0.4}
    drawn = {"reconstructions": {name: np.full((2, 8, 8), shade, np.float32) for name, shade in shades.items()}}
    pixels = np.asarray(Image.open(io.BytesIO(figures.reconstructions(drawn["reconstructions"]) or b"")))
    rows = pixels[:: len(pixels) // 26, 0, 0]
    assert [rows[place] for place in (0, 9, 18)] == [255, 0, 102]
    stage(tmp_path, "layer1-evaluate", "evaluate", "autoencoder", metrics={}, figures=drawn)
    record(tmp_path, [row for row in STAGES if row["flow"] == "evaluate" and row["name"] == "layer1"])
    assert "between them the corrupted copy" in Reader(report.write(tmp_path, RUN).read_text()).words
