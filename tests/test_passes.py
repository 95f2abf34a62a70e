"""A stage of one pass: what it reads, what its plan says, its ranks and its deaths, and what stands on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightning_modules as registry
from conf import Recipe, Split
from conf.errors import InputError
from conf.protocol import Description, Inputs, Plan, PlanJob
from conf.reading import parse
from lightning_modules import passes
from lightning_modules.planning import plan
from lightning_modules.whitening import Whitening
from tests.pass_jobs import EVERYTHING, learned, measured, mixed, read, stored
from tests.shard_folders import Given
from tests.stage_kills import Stages, finetune_job, outcome, placed, train_job


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------ what is read


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "VALUES_AT_A_TIME", 300)


@pytest.fixture
def planted(tmp_path: Path) -> Inputs:
    values = mixed(1001, 8).numpy()
    source = Given({"train": values[:901], "test": values[901:]}, {"train": [0] * 901, "test": [0] * 100})
    return read(tmp_path / "shards", source, Split(validation=0))


def test_one_pass_sees_every_training_sample_once(planted: Inputs, tmp_path: Path, small_batches: None) -> None:
    job = train_job(planted, "standardize", {"batch_size": 7, "epochs": 9}, num_visible=8)
    model, answer = learned(job, tmp_path / "one")
    x = torch.from_numpy(stored(planted, 901)).double()
    torch.testing.assert_close(model[0].mean, x.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model[0].std, x.std(0), rtol=1e-9, atol=0)
    assert answer["steps"] == 25 and [said["progress"]["done"] for said in answer["told"]] == list(range(1, 26))
    assert answer["metrics"] == {"train/samples": 901.0, "train/constant_values": 0.0}
    assert model[0].mean.dtype == torch.float64


def test_a_killed_pass_begins_anew_with_the_same_bytes(
    planted: Inputs, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = train_job(planted, "whitening", {}, num_visible=8)
    _, whole = learned(job, tmp_path / "whole")
    with monkeypatch.context() as broken:
        updates = iter(range(12))
        update = Whitening.update
        broken.setattr(Whitening, "update", lambda self, x: (next(updates), update(self, x)))
        with pytest.raises(StopIteration):
            learned(job, tmp_path / "killed")
    _, again = learned(job, tmp_path / "killed")
    assert again["digest"] == whole["digest"]


def test_a_pass_goes_through_the_stack_below(planted: Inputs, tmp_path: Path, small_batches: None) -> None:
    scale, _ = learned(train_job(planted, "standardize", {}, num_visible=8), tmp_path / "below")
    job = train_job(planted, "pca", {}, below=tmp_path / "below", num_visible=8, num_hidden=2)
    job = job.model_copy(update={"hand_up": "mean"})
    both, answer = learned(job, tmp_path / "above")
    x = torch.from_numpy(stored(planted, 901))
    correlations = torch.linalg.eigvalsh(torch.corrcoef(x.double().T)).flip(0)
    torch.testing.assert_close(both[1].variances, correlations[:2], rtol=1e-6, atol=0)
    assert torch.equal(both[0].mean, scale[0].mean)
    expected = both[1].measure(both[0].encode(torch.from_numpy(stored(planted, 1001)[901:])))
    found = measured(tmp_path / "above", planted)
    assert found["test/explained_variance"] == pytest.approx(expected["explained_variance"], rel=1e-6)
    assert answer["metrics"]["train/explained_variance"] == pytest.approx(float(correlations[:2].sum() / 8))


def test_a_fit_that_cannot_be_names_the_stage(tmp_path: Path) -> None:
    values = mixed(50, 4).numpy()
    values[:, 1] = 0.5
    inputs = read(tmp_path / "shards", Given({"train": values}, {"train": [0] * 50}), EVERYTHING)
    with pytest.raises(InputError, match=r"stage some: the covariance .* has rank 3, .* choose num_hidden: 3 or less"):
        learned(train_job(inputs, "whitening", {}, num_visible=4), tmp_path / "model")


def test_binarized_data_are_drawn_as_in_training(tmp_path: Path) -> None:
    values = np.tile(np.array([0.5, 1.0], np.float32), (4000, 1))  # half of it after scaling
    inputs = read(tmp_path / "shards", Given({"train": values}, {"train": [0] * 4000}), EVERYTHING)
    job = train_job(inputs, "standardize", {"binarize": "sample"}, num_visible=2)
    model, answer = learned(job, tmp_path / "model")
    assert answer["metrics"]["train/constant_values"] == 0
    assert (model[0].mean - torch.tensor([0.25, 0.5])).abs().max() < 0.035  # 4 standard errors
    torch.manual_seed(5)
    assert learned(job, tmp_path / "again")[1]["digest"] == answer["digest"]
    other = learned(job.model_copy(update={"seed": 2}), tmp_path / "other")[1]
    assert other["digest"] != answer["digest"]


def test_a_stage_of_one_pass_has_a_key_of_what_matters(planted: Inputs) -> None:
    def key(train: dict[str, Any] | None = None, **changed: Any) -> Any:
        job = train_job(planted, "pca", train or {}, num_visible=8, num_hidden=2)
        return job.model_copy(update={"one_pass": True} | changed).identity()

    assert key({"epochs": 99, "learning_rate": 0.7, "batch_size": 3}, seed=5) == key()
    assert key({"binarize": "sample"}) != key()
    assert key({"binarize": "sample"}, seed=5) != key({"binarize": "sample"})
    assert key(one_pass=False) != key()


HEAD = "name: white\ndata: {source: {kind: digits}}\nstages:\n"


def planned(declared: str, train: int = 500, width: int = 784) -> Plan:
    recipe = Recipe.model_validate(parse(HEAD + declared, "recipe"))
    description = Description(
        shape=[width], low=0.0, high=1.0, sizes={"train": train, "validation": 0, "test": 100},
        labeled=train, labeled_test=100, num_classes=10,
    )  # fmt: skip
    return plan(PlanJob(recipe=recipe, descriptions={"data": description}))


WHITE = "  white: {model: {kind: whitening, num_hidden: 30}}\n"


def test_a_plan_shows_one_pass_and_what_may_stand_on_it() -> None:
    found = planned(
        WHITE + "  layer1: {on: white, model: {kind: rbm, visible: gaussian, num_hidden: 9}}\n"
        "  code: {on: white, model: {kind: autoencoder, loss: squared_error, num_hidden: 9}}\n"
        "  again: {on: layer1, model: {kind: standardize}}\n"
        "  few: {on: layer1, finetune: {labels: [10]}}\n",
        train=25_000,
    )
    white, layer1, code, again, few = found.stages
    assert (white.flow, white.shape, white.steps, white.one_pass) == ("pretrain", "784 → 30", 3, True)
    assert (layer1.shape, layer1.one_pass, code.shape) == ("30 → 9", False, "30 → 9")
    assert again.steps == 3 and few.shape == "784 → 30 → 9 → 10 classes"
    whole, explicit = (planned(f"  white: {{model: {{kind: whitening{width}}}}}\n", 1000).stages[0].spec
                       for width in ("", ", num_hidden: 784"))  # fmt: skip
    assert whole == explicit


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        (WHITE + "  up: {on: white, model: {kind: rbm, num_hidden: 9}}",
         r"stage up: this rbm needs values in \[0, 1\], but the codes of white lie in no known bounds; .*gaussian"),
        (WHITE + "  up: {on: white, model: {kind: dbn}}", "every layer of a DBN is an RBM, but layer 1 is Whitening"),
        (WHITE + "  up: {on: white, model: {kind: vae, num_latent: 2}}", "a vae cannot stand on white"),
        (WHITE + "  up: {on: white, hand_up: sample, model: {kind: rbm, visible: gaussian, num_hidden: 9}}",
         "no stochastic hidden units; use mean"),
        (WHITE + "  up: {on: white, model: {kind: pca, num_hidden: 31}}", "num_hidden must be in 1 … num_visible = 30"),
        ("  white: {model: {kind: pca, num_hidden: 500}}", "this pca needs 501 training samples or more, found 500"),
        ("  white: {model: {kind: whitening}}", "this whitening needs 785 training samples or more, found 500"),
        ("  mix: {model: {kind: gaussian_mixture, num_components: 501}}", "found 500; lower num_components"),
        (WHITE + "  code: {on: white, model: {kind: autoencoder, loss: squared_error, num_hidden: 9}}\n"
         "  dec: {on: code, model: {kind: dec, num_clusters: 501}}", "501 clusters need .*; lower num_clusters"),
        (WHITE + "  code: {on: white, model: {kind: autoencoder, loss: squared_error, num_hidden: 9}}\n"
         "  dec: {on: code, model: {kind: dec, num_clusters: 1}}", "stage dec: .*num_clusters must be at least 2"),
        ("  one: {model: {kind: patch_features, image_shape: [28, 28], num_centres: 1}}", "must be at least 2, not 1"),
        (WHITE + "  up: {on: white, model: {kind: patch_features}}",
         r"a patch_features takes pictures, but white below it has 30 hidden units; .* image_shape: \[height, width\]"),
        ("  white: {model: {kind: whitening, method: cholesky}}", "method must be one of 'pca', 'zca', not 'cholesky'"),
    ],
)  # fmt: skip
def test_a_plan_refuses_in_one_line(declared: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        planned(declared)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ processes


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """12,000 samples of 784 values: two batches of a pass."""
    random = np.random.default_rng(0)
    basis = random.normal(size=(20, 784))
    values = (random.normal(size=(12_000, 20)) @ basis).clip(-100, 100).astype(np.int8)
    return read(tmp_path_factory.mktemp("wide"), Given({"train": values}, {"train": [0] * 12_000}), EVERYTHING)


def test_ranks_merge_what_they_have_seen(template: Stages, wide: Inputs, tmp_path: Path) -> None:
    """Three ranks for two batches, so that one sees nothing."""
    job = train_job(wide, "pca", {}, num_visible=784, num_hidden=15)
    assert template.do(placed(job, tmp_path / "one")) == 0, template.log
    assert template.do_on_ranks(placed(job, tmp_path / "three"), 3) == [0, 0, 0], template.log
    alone, shared = (outcome(tmp_path / name)["result"] for name in ("one", "three"))
    assert (
        shared["metrics"] == pytest.approx(alone["metrics"], rel=1e-9) and shared["metrics"]["train/samples"] == 12_000
    )
    one, three = (registry.load(tmp_path / name / "model").state_dict() for name in ("one", "three"))
    for name in one:
        torch.testing.assert_close(three[name], one[name], rtol=1e-7, atol=1e-9)


def test_two_ranks_learn_on_whitened_codes_and_the_twin_keeps_them(
    template: Stages, digits: Inputs, tmp_path: Path
) -> None:
    white = train_job(digits, "whitening", {}, num_visible=64, num_hidden=20)
    assert template.do(placed(white, tmp_path / "white")) == 0, template.log
    job = train_job(digits, "autoencoder", {}, tmp_path / "white", num_visible=20, num_hidden=9, loss="squared_error")
    job = job.model_copy(update={"hand_up": "mean"})
    assert template.do(placed(job, tmp_path / "one")) == 0, template.log
    assert template.do_on_ranks(placed(job, tmp_path / "two"), 2) == [0, 0], template.log
    one, two = (registry.load(tmp_path / name / "model").state_dict() for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)

    few = finetune_job(digits, tmp_path / "one")
    assert template.do(placed(few, tmp_path / "few")) == 0, template.log
    for side in ("pretrained", "supervised"):
        own = registry.load(tmp_path / "few" / "runs" / f"20-1-{side}" / "model").state_dict()
        for name in ("mean", "encoder", "decoder", "variances"):
            assert torch.equal(own[f"stack.layers.0.{name}"], one[f"layers.0.{name}"]), (side, name)


def test_a_rank_that_cannot_finish_ends_all(template: Stages, wide: Inputs, tmp_path: Path) -> None:
    job = train_job(wide, "whitening", {}, num_visible=784)
    few = np.zeros((2000, 784), np.int8)
    few[:, :3] = np.random.default_rng(0).integers(-9, 9, (2000, 3))
    inputs = read(tmp_path / "few", Given({"train": few}, {"train": [0] * 2000}), EVERYTHING)
    job = job.model_copy(update={"inputs": inputs})
    first, second = template.do_on_ranks(placed(job, tmp_path / "two"), 2)
    assert first == 2 and second != 0
    assert "rank 3, too small to whiten 784" in template.error["message"]


def test_killed_between_any_two_files_the_model_is_the_same(template: Stages, wide: Inputs, tmp_path: Path) -> None:
    job = train_job(wide, "standardize", {}, num_visible=784)
    assert template.kill_around_renames(job, tmp_path) == 2 * 3  # weights, model, result
