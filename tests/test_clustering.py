"""Agreement of clusters and classes against all matchings, maps against scikit-learn, and what the report shows."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as Rival

import lightning_modules as registry
from conf import Evaluate, Train
from conf.errors import InputError
from conf.protocol import EvaluateJob, Inputs, Result
from flows import figures, report_clusters
from flows.results import Run, Stage
from lightning_modules import clustering, maps
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.evaluation import evaluate
from lightning_modules.kmeans import KMeans
from lightning_modules.stack import Stack
from tests.pass_jobs import learned
from tests.stage_kills import standing_on, train_job


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (3, 5), (5, 3)])
def test_accuracy_is_that_of_the_best_of_all_matchings(clusters: int, classes: int) -> None:
    random = np.random.default_rng(clusters)
    found, labels = random.integers(0, clusters, 60), random.integers(0, classes, 60)
    side = max(clusters, classes)
    best = max(
        sum(way[cluster] == label for cluster, label in zip(found, labels, strict=True))
        for way in itertools.permutations(range(side), clusters)
    )
    assert clustering.agreement(found, labels)["cluster_accuracy"] == pytest.approx(100 * best / 60)


def test_agreement_is_one_of_the_same_groups_and_none_of_others() -> None:
    labels = np.arange(4000) % 4
    same = clustering.agreement((labels + 1) % 4, labels)
    assert same == pytest.approx({"cluster_accuracy": 100, "nmi": 1, "ari": 1})
    other = clustering.agreement(np.arange(4000) // 1000, labels)
    assert other["nmi"] < 1e-3 and abs(other["ari"]) < 1e-3 and other["cluster_accuracy"] == pytest.approx(25)


def test_clusters_stand_in_the_order_of_their_classes() -> None:
    counts = np.array([[0, 9, 1], [1, 0, 2], [0, 1, 8], [7, 0, 0]])
    assert clustering.order(counts) == [3, 0, 2, 1]


def test_the_top_of_a_stack_clusters_codes_and_other_models_cluster_nothing() -> None:
    below, top = Autoencoder(num_visible=6, num_hidden=4), KMeans(num_visible=4, num_hidden=3, code="triangle")
    x = torch.rand(50, 6)
    top.centres.copy_(below.encode(x[:3]))
    stack = Stack(layers=[below, top])
    found = clustering.groups(stack, x, np.arange(50) % 2, ["a", "b"], "pca")
    assert found.details["clusters"]["sizes"] == torch.bincount(top.assign(below.encode(x)), minlength=3).tolist()
    assert np.array(found.details["clusters"]["confusion"]).sum() == 50
    codes = below.encode(x).detach().double()
    assert torch.pdist(found.map["places"]).max() <= torch.pdist(codes).max() + 1e-6  # a view of the codes below
    plain = clustering.groups(Stack(layers=[below]), x, np.full(50, -1), [], "none")
    assert not plain.metrics and not plain.details and not plain.pictures and not plain.map


def test_without_labels_there_are_sizes_and_no_agreement() -> None:
    model = KMeans.example()[0]
    found = clustering.groups(model, torch.randn(30, 6), np.full(30, -1), [], "pca")
    assert set(found.metrics) == {"empty_clusters", "largest_cluster"}
    assert found.details["clusters"].keys() == {"num_clusters", "sizes"}
    assert len(found.pictures["images"]) % 10 == 0


def test_the_plane_is_the_principal_one() -> None:
    """More values than samples too."""
    for width in (7, 90):
        x = torch.randn(40, width) * torch.linspace(0.1, 3, width) + 5
        places, kept = maps.plane(x, "pca")
        rival = Rival(2, svd_solver="full").fit(x.double().numpy())
        expected = torch.from_numpy(rival.transform(x.double().numpy()))
        assert places is not None
        torch.testing.assert_close(places.abs(), expected.abs(), rtol=1e-6, atol=1e-6)
        assert kept == pytest.approx(float(rival.explained_variance_ratio_.sum()))
    assert maps.plane(torch.ones(40, 5), "pca") == maps.plane(x[:, :1], "pca") == (None, None)


def test_a_map_that_cannot_be_drawn_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"evaluate.map: umap needs .* pip install 'strata\[map\]'") as caught:
        maps.require("umap")
    assert "\n" not in str(caught.value)
    maps.require("pca")


def test_umap_lays_out_groups_apart_where_it_is_installed() -> None:
    pytest.importorskip("umap")
    x = torch.cat([torch.randn(40, 5), torch.randn(40, 5) + 30])
    places, _ = maps.plane(x, "umap")
    again, _ = maps.plane(x, "umap")
    assert places is not None and again is not None and torch.equal(places, again)
    spread = places[:40].std(0).max(), places[40:].std(0).max()
    assert (places[:40].mean(0) - places[40:].mean(0)).norm() > 3 * max(spread)


def evaluated(folder: Path, inputs: Inputs) -> tuple[dict[str, float], dict[str, Any]]:
    job = EvaluateJob(stage="groups", folder=str(folder), model=standing_on(folder), inputs=inputs,
                      evaluate=Evaluate(), train=Train(threads=1), seed=0)  # fmt: skip
    return evaluate(job, lambda said: None)[1:]


def test_a_stage_that_clusters_is_measured_by_labels_and_shown(digits: Inputs, tmp_path: Path) -> None:
    """Digits by k-means: about 80 % (scikit-learn's finds 79); the report shows numbers, a map, pictures and counts."""
    learned(train_job(digits, "kmeans", {}, num_visible=64, num_hidden=10), tmp_path)
    metrics, details = evaluated(tmp_path, digits)
    assert metrics["test/cluster_accuracy"] > 70 and metrics["test/nmi"] > 0.65 and metrics["test/ari"] > 0.5
    assert sum(details["clusters"]["sizes"]) == details["num_examples"]
    ordered = np.array(details["clusters"]["confusion"])[details["clusters"]["order"]]
    matched = 100 * np.diag(ordered).sum() / ordered.sum()
    assert matched == pytest.approx(metrics["test/cluster_accuracy"])

    result = Result(stage="groups", key="k", do="evaluate", kind="kmeans", digest="d", metrics=metrics,
                    details=json.loads(json.dumps(details)), seconds=1)  # fmt: skip
    row = {"flow": "evaluate", "name": "groups", "evaluates": "groups", "kind": "kmeans", "status": "finished"}
    run = Run({}, [Stage(row, tmp_path, result)])
    page, drawn = report_clusters.clusters(run), report_clusters.maps(run)
    assert f"{metrics['test/cluster_accuracy']:.1f}" in page and "data:image/png" in page
    assert page.count("<tr") == 2 + 11  # headings, the stage, ten clusters
    assert drawn.count("<path") == 10 and all(f">{digit}</text>" in drawn for digit in range(10))
    assert "of the variance" in drawn
    assert f"groups {metrics['test/cluster_accuracy']:.1f} %" in report_clusters.in_words(run)
    names = {path.name for path in figures.write(tmp_path / "figures", _made(tmp_path / "drawn"))}
    assert {"clusters.png", "map.svg"} <= names


def test_the_key_of_an_evaluation_names_the_labels(digits: Inputs, tmp_path: Path) -> None:
    registry.save(KMeans.example()[0], tmp_path / "model", {})
    job = EvaluateJob(stage="s", model=standing_on(tmp_path), inputs=digits, evaluate=Evaluate(), train=Train(), seed=0)
    other = job.model_copy(update={"inputs": digits.model_copy(update={"labels_digest": "other"})})
    assert job.identity() != other.identity()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
