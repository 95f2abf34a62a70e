"""What bits find, measured as a stage: beside other searches, in numbers, in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer

import lightning_modules as registry
from conf import Evaluate, Retrieval, Split, TextSource, Train
from conf.protocol import EvaluateJob, Inputs, Result
from data.shards import Reader
from data.sources import open_source
from flows import figures, report_retrieval
from flows.results import Run, Stage
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.evaluation import evaluate
from lightning_modules.finetuning import finetune
from lightning_modules.interfaces import Fitted, StreamingModel
from lightning_modules.itq import ITQ
from lightning_modules.ranking import Ranking
from lightning_modules.retrieval import RECALLS, SHORTLIST, shortlisted
from lightning_modules.semantic_hashing import SemanticHashing
from lightning_modules.stack import Stack
from lightning_modules.tfidf import TfIdf
from lightning_modules.whitening import PCA, Standardize
from tests.pass_jobs import learned, measured, read
from tests.stage_kills import finetune_job, standing_on, train_job

KINDS = {"cars": "engine wheel road driver brakes", "space": "orbit moon rocket launch planet"}

BOTH = ["the", "of", "and", "people", "time", "think"]


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Posts of two groups, five words of their own and some of both; one test post has no words."""
    folder, random = tmp_path_factory.mktemp("posts"), np.random.default_rng(0)
    for number in range(90):
        group = ("cars", "space")[number % 2]
        place = folder / "raw" / ("test" if number % 3 == 0 else "train") / group
        place.mkdir(parents=True, exist_ok=True)
        words = [
            *random.choice(KINDS[group].split(), 6),
            *random.choice(["the", "of", "and", "people", "time", "think"], 4),
        ]
        (place / str(number)).write_text("? !" if number == 3 else " ".join(words))
    source = open_source(TextSource(kind="text", path=str(folder / "raw"), vocabulary=14))
    return read(folder / "shards", source, Split(validation=0))


def evaluated(model: Fitted, folder: Path, read: Inputs, **settings: int) -> tuple[dict[str, float], dict[str, Any]]:
    registry.save(model, folder / "model", {"shape": []})
    job = EvaluateJob(stage="bits", folder=str(folder), model=standing_on(folder), inputs=read, seed=0,
                      evaluate=Evaluate(retrieval=Retrieval(**settings)), train=Train(threads=1))  # fmt: skip
    return evaluate(job, lambda said: None)[1:]


def fitted(model: Any, x: torch.Tensor) -> Any:
    assert isinstance(model, StreamingModel)
    model.update(x)
    model.finish()
    return model


def training_digits(read: Inputs) -> torch.Tensor:
    reader = Reader(Path(read.shards))
    return torch.from_numpy(reader.values(np.array(reader.manifest.numbers("train"))))


def test_bits_of_pictures_beside_raw_search_and_other_codes(digits: Inputs, tmp_path: Path) -> None:
    """The signs of standardised digits: numbers, a chart, a table and a sentence."""
    x = training_digits(digits)
    model = Stack(layers=[fitted(Standardize(num_visible=64), x), SemanticHashing.example()[0]][:1])
    assert not any("precision" in name for name in evaluated(model, tmp_path / "none", digits)[0])  # gives no bits

    torch.manual_seed(0)
    layers = [Autoencoder(num_visible=64, num_hidden=32)]
    model = Stack(layers=[SemanticHashing(stack=Stack(layers=layers))])
    metrics, details = evaluated(model, tmp_path, digits)
    said = details["retrieval"]
    assert set(said["searches"]) == {"code", "raw", "shortlist", "pca", "itq"} and said["num_bits"] == 32
    assert said["searches"]["code"]["bytes"] == 4 and said["searches"]["raw"]["bytes"] == 64
    assert 0.9 < metrics["test/precision@10/raw"] <= 1 and metrics["test/precision@10/itq"] > 0.8
    for measure in ("precision@10", "mean_average_precision"):
        assert 0.1 < metrics[f"test/{measure}"] < metrics[f"test/{measure}/raw"]
    assert 0 <= metrics["test/bits_on_lowest"] <= metrics["test/bits_on_highest"] <= 1
    drawn = figures.read(tmp_path / "figures" / "retrieval.npz")
    assert set(drawn) == {"recall", "code", "raw", "shortlist", "pca", "itq"} and np.allclose(drawn["recall"], RECALLS)

    result = Result(stage="bits", key="k", do="evaluate", kind="semantic_hashing", digest="d", metrics=metrics,
                    details=json.loads(json.dumps(details)), seconds=1)  # fmt: skip
    row = {"flow": "evaluate", "name": "bits", "evaluates": "bits", "kind": "semantic_hashing", "status": "finished"}
    run = Run({}, [Stage(row, tmp_path, result)])
    page = report_retrieval.retrieval(run)
    assert page.count("<polyline") == 5 and page.count("<tr") == 6 and "0.1 %" in page and "PCA, signs" in page
    assert f"{metrics['test/precision@10']:.0%}" in report_retrieval.in_words(run)
    (tmp_path / "drawn").mkdir()
    assert "precision.svg" in {path.name for path in figures.write(tmp_path / "figures", tmp_path / "drawn")}


def test_what_is_found_is_what_brute_force_finds(digits: Inputs, tmp_path: Path) -> None:
    """Bits of a stack whose top hashes codes of the layer below; 50 queries among 400 items drawn."""
    x = training_digits(digits)
    pca = fitted(PCA(num_visible=64, num_hidden=20), x)
    itq = fitted(ITQ(num_visible=20, num_hidden=12, iterations=10), pca.encode(x))
    model = Stack(layers=[pca, itq])
    metrics, details = evaluated(model, tmp_path, digits, num_queries=10_000)
    assert set(details["retrieval"]["searches"]) == {"code", "raw", "shortlist"}  # itq itself is measured
    reader = Reader(Path(digits.shards))
    from data.splits import divide

    labels, parts = torch.from_numpy(reader.labels()), divide(reader, digits.split)
    bits, classes = {}, {}
    for name in ("train", "test"):
        samples = parts[name][:]
        bits[name] = itq.bits(pca.encode(torch.from_numpy(reader.values(samples))))
        classes[name] = labels[torch.from_numpy(samples)]
    distances = (bits["test"][:, None] != bits["train"]).sum(2)
    expected = Ranking.by_bits(distances, classes["test"][:, None] == classes["train"], 12)
    assert metrics["test/precision@10"] == pytest.approx(expected.precision_at(10).mean().item())
    assert metrics["test/mean_average_precision"] == pytest.approx(expected.average_precision().mean().item())
    some, about = evaluated(model, tmp_path / "some", digits, num_queries=50, num_items=400)
    assert (about["retrieval"]["num_queries"], about["retrieval"]["num_items"]) == (50, 400)
    assert some["test/precision@10"] != metrics["test/precision@10"]
    assert not evaluated(model, tmp_path / "off", digits, num_queries=0)[1].get("retrieval")


def test_a_shortlist_is_ordered_by_the_data_and_the_rest_by_its_bits() -> None:
    """300 items at distances 0 to 19, so that several tie with the hundredth; data of either sign."""
    random = torch.Generator().manual_seed(0)
    bits, data = torch.randint(20, (7, 300), generator=random), torch.randn(7, 300, generator=random)
    found = shortlisted(lambda part: bits[part], lambda part: data[part])(slice(2, 5))
    for row, near, exact in zip(found, bits[2:5], data[2:5], strict=True):
        radius = sorted(near.tolist())[SHORTLIST - 1]
        listed = [item for item in range(300) if near[item] <= radius]
        assert SHORTLIST < len(listed) < 130
        assert row.argsort()[: len(listed)].tolist() == sorted(listed, key=lambda item: float(exact[item]))
        assert torch.equal(row[near > radius], near[near > radius].double())
    few = shortlisted(lambda part: bits[part, :50], lambda part: data[part, :50])(slice(0, 7))
    assert torch.equal(few.argsort(1), data[:, :50].argsort(1))


def test_stages_of_documents_end_in_bits(posts: Inputs, tmp_path: Path) -> None:
    """Weights by a pass, layers of no epochs, semantic hashing made of both: trained, saved, measured by its bits."""
    below = None
    for kind, epochs, arguments in (
        ("tfidf", 1, {"num_visible": 14}),
        ("autoencoder", 0, {"num_visible": 14, "num_hidden": 12, "activation": "relu", "loss": "squared_error"}),
        ("autoencoder", 0, {"num_visible": 12, "num_hidden": 8}),
        ("semantic_hashing", 40, {"loss": "softmax", "start": "random", "noise": "masking", "noise_level": 0.3}),
    ):
        settings = {"epochs": epochs, "batch_size": 20, "optimizer": "adam", "learning_rate": 0.01}
        job = train_job(posts, kind, settings, below=below, **arguments)
        model, answer = learned(job.model_copy(update={"hand_up": "mean"}), below := tmp_path / f"{kind}{epochs}")
    assert len(model) == 1 and [type(layer) for layer in model[0].stack] == [TfIdf, Autoencoder, Autoencoder]
    assert answer["metrics"]["train/loss"] > 0 and model[0].middle.abs().max() > 0
    metrics = measured(below, posts)
    assert metrics["test/precision@10"] > 0.7
    few = finetune_job(posts, below)
    assert finetune(few.model_copy(update={"folder": str(tmp_path / "few")}), lambda said: None)


def test_documents_are_compared_by_their_words(posts: Inputs, tmp_path: Path) -> None:
    """Groups that share few words: the cosine and LSA find nearly only the group, chance would find half."""
    x = training_digits(posts)
    torch.manual_seed(0)
    layers = [fitted(TfIdf(num_visible=14), x), Autoencoder(num_visible=14, num_hidden=2, loss="squared_error")]
    model = Stack(layers=[SemanticHashing(stack=Stack(layers=layers), loss="softmax")])
    metrics, details = evaluated(model, tmp_path, posts)
    searches = details["retrieval"]["searches"]
    assert set(searches) == {"code", "raw", "shortlist", "lsa"} and searches["raw"]["what"] == "tf-idf, cosine"
    assert searches["shortlist"]["what"] == "100 by these bits, then tf-idf, cosine"
    assert 8 < searches["raw"]["bytes"] < 8 * 10
    assert metrics["test/precision@10/raw"] > 0.9 and metrics["test/precision@10/lsa"] > 0.7
    assert "test/squared_error" not in metrics  # shares of words are no counts

    reader = Reader(Path(posts.shards))
    samples = {name: np.array(reader.manifest.numbers(name)) for name in ("train", "test")}
    transform = TfidfTransformer().fit(reader.values(samples["train"]))
    weights = {name: transform.transform(reader.values(rows)).toarray() for name, rows in samples.items()}
    axes = np.linalg.svd(weights["train"], full_matrices=False)[2][:2].T
    middle = np.median(weights["train"] @ axes, axis=0)
    bits = {name: torch.from_numpy(values @ axes > middle) for name, values in weights.items()}
    labels = {name: torch.from_numpy(reader.labels()[rows]) for name, rows in samples.items()}
    distances = (bits["test"][:, None] != bits["train"]).sum(2)
    lsa = Ranking.by_bits(distances, labels["test"][:, None] == labels["train"], 2)
    assert metrics["test/precision@10/lsa"] == pytest.approx(lsa.precision_at(10).mean().item(), rel=1e-6)
