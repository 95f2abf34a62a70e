"""What the report says in tables and words of what was measured: one place for a number, models beside each other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from flows import report, report_pictures
from flows.results import Run, Stage
from tests.finished_run import RUN, STAGES, record, stage
from tests.test_report import EVIL, Reader


def test_what_has_no_section_of_its_own_is_in_a_table_models_beside_each_other(tmp_path: Path) -> None:
    """Perplexities, errors, energies; and, of a run with nothing better to say, in its head."""
    found: dict[str, dict[str, float]] = {
        "layer1": {"test/perplexity": 1005.62, "test/unigram_perplexity": 1096.1, "test/squared_error": 13.8666},
        "vae": {"validation/squared_error": 3.5, "test/squared_error": 6.88, "test/nmi": 0.5, "test/log_prob": -9.0},
    }
    for name, metrics in found.items():
        stage(tmp_path, f"{name}-evaluate", "evaluate", "rbm", metrics=metrics, details={"set": "test"})
        stage(tmp_path, name, "train", "rbm", metrics={}, model=True)
    shown = [row for row in STAGES if row["name"] in found]
    record(tmp_path, shown)
    page = report.write(tmp_path, RUN).read_text()
    cells = [
        re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page.split("Measured</h2>")[1])
    ]
    assert cells[:18] == ["quantity", "model", "test", "validation",
                          "squared error", "layer1", "13.87", "–", "", "vae", "6.880", "3.500",
                          "perplexity", "layer1", "1,006", "–", "unigram perplexity", "layer1"]  # fmt: skip
    assert "Perplexity of a test sample: layer1 1,006." in Reader(page).words


def test_units_of_documents_are_lists_of_words_instead_of_pictures(tmp_path: Path) -> None:
    words = {"layer1": [[["moon", EVIL], ["goal"]], [["puck"], []]]}
    drawn = {"filters": {"layer1": np.random.default_rng(0).random((2, 20), np.float32)}}
    stage(
        tmp_path,
        "layer1-evaluate",
        "evaluate",
        "rbm",
        metrics={},
        figures=drawn,
        details={"set": "test", "words": words},
    )
    record(tmp_path, [row for row in STAGES if row["flow"] == "evaluate" and row["name"] == "layer1"])
    page = report.write(tmp_path, RUN).read_text()
    assert "Learned filters" not in page and EVIL not in page
    said = Reader(page).words
    assert (
        "layer1 · rbm, 2 units of layer 1" in said
        and f"moon, {EVIL}" in said
        and "raised bylowered by" in said.replace("\n", "")
    )


def test_stages_of_no_epochs_are_called_so(tmp_path: Path) -> None:
    for name in ("layer1", "vae"):
        stage(tmp_path, name, "train", "rbm", metrics={}, model=True)
    recipe = {"stages": {"layer1": {"train": {"epochs": 0}}, "vae": {"train": {"epochs": 10}}}}
    shown = [row for row in STAGES if row["name"] in ("layer1", "vae") and row["flow"] != "evaluate"]
    record(tmp_path, shown, recipe=recipe)
    said = Reader(report.write(tmp_path, RUN).read_text()).words
    assert "pretrained layer1 (rbm, no epochs) and trained vae (vae)" in said


@pytest.mark.parametrize(("shape", "where"), [((3, 4), "a row each"), ((3, 2, 2), "under each original")])
def test_reconstructions_say_where_they_stand(tmp_path: Path, shape: tuple[int, ...], where: str) -> None:
    (tmp_path / "figures").mkdir()
    np.savez(tmp_path / "figures" / "reconstructions.npz", originals=np.zeros(shape), reconstructions=np.ones(shape))
    row = {"flow": "evaluate", "name": "rbm", "evaluates": "rbm", "kind": "rbm", "status": "finished"}
    assert where in report_pictures.reconstructions(Run({}, [Stage(row, tmp_path, None)]))


def test_only_what_stands_on_a_layer_grew_layer_by_layer(tmp_path: Path) -> None:
    for name in ("layer1", "layer2"):
        stage(tmp_path, name, "train", "rbm", metrics={}, model=True)
    shown = [row for row in STAGES if row["name"] in ("layer1", "layer2") and row["flow"] == "pretrain"]
    for below, said in ({}, "layer2 (rbm)."), ({"on": "layer1"}, "layer2 (rbm) greedily, layer by layer."):
        record(tmp_path, shown, recipe={"stages": {"layer1": {}, "layer2": below}})
        words = Reader(report.write(tmp_path, RUN).read_text()).words
        assert f"pretrained layer1 (rbm) and {said}" in " ".join(words.split())


def test_stages_without_twins_stand_beside_each_other(tmp_path: Path) -> None:
    for name, errors in {"parts": (11.7, 4.72), "pixels": (31.7, 15.9)}.items():
        metrics = dict(zip(("test/error@100", "test/error@1000"), errors, strict=True))
        models = [{"labels": labels, "seed": 0, "pretrained": True, "path": "p", "error": error, "revealed": "r"}
                  for labels, error in zip((100, 1000), errors, strict=True)]  # fmt: skip
        stage(tmp_path, name, "finetune", "classifier", metrics=metrics, models=models)
    record(tmp_path, [{"name": name, "flow": "finetune", "kind": "classifier"} for name in ("parts", "pixels")])
    shown = report.write(tmp_path, RUN).read_text().split("Few labels</h2>")[1].split("</section>")[0]
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", shown)]
    assert cells == ["labels", "parts, % error", "pixels, % error", "100", "11.7", "31.7", "1000", "4.72", "15.9"]
    assert shown.count("<polyline") == 2 and "twin" not in shown
