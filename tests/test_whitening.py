"""Standardization, PCA and whitening: exact on planted data, the known numbers on MNIST, and their place in a stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import conf
import lightning_modules as registry
from conf import Evaluate, Recipe, Split, Train
from conf.errors import InputError
from conf.protocol import Description, EvaluateJob, Inputs, Plan, PlanJob
from conf.reading import parse
from data.durable import read_json
from data.shards import Reader, ingest
from data.sources import open_source
from lightning_modules import passes, whitening
from lightning_modules.boltzmann import RBM
from lightning_modules.evaluation import evaluate
from lightning_modules.interfaces import StreamingModel
from lightning_modules.learning import learn
from lightning_modules.planning import plan
from lightning_modules.stack import Stack
from lightning_modules.whitening import PCA, Standardize, Whitening
from tests.raw_folders import real
from tests.shard_folders import Given
from tests.stage_kills import Stages, outcome, placed, stages, standing_on, train_job

EVERYTHING = Split(test=0, validation=0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def fitted(model: Any, x: Tensor, pieces: int = 3) -> Any:
    for chunk in x.chunk(pieces):
        model.update(chunk)
    model.facts = model.finish()
    return model


def mixed(samples: int, width: int, condition: float = 30.0) -> Tensor:
    """Samples of a planted Gaussian with a mean, float32: standard deviations from `condition` down to 1."""
    generator = torch.Generator().manual_seed(width)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(0, np.log10(condition), width, dtype=torch.float64)
    draws = torch.randn(samples, width, dtype=torch.float64)
    return (draws * scales @ basis + 5).float()


# ------------------------------------------------------------------------------------------------ on planted data


def test_standardized_values_have_mean_0_and_deviation_1() -> None:
    x = mixed(1000, 6).double()
    x[:, 2] = 0.1  # never changes
    x[:, 3] = 1.6e9 + x[:, 3]  # a time in seconds; float32 would have steps of 128
    model = fitted(Standardize(num_visible=6), x)
    h = model.encode(x)
    changing = [0, 1, 3, 4, 5]
    assert h[:, changing].mean(0).abs().max() < 1e-7 and (h[:, changing].std(0) - 1).abs().max() < 1e-7
    assert model.std[2] == 1 and h[:, 2].abs().max() < 1e-15 and model.facts["constant_values"] == 1
    assert (model.decode(h) - x).abs().max() < 1e-6
    assert model.encode(x.float()).dtype == torch.float32


def test_pca_codes_are_the_best_linear_ones() -> None:
    x = mixed(500, 8)
    model = fitted(PCA(num_visible=8, num_hidden=3), x)
    singular = torch.linalg.svdvals(x.double() - x.double().mean(0))
    error = (model.decode(model.encode(x)) - x).double().square().sum()
    assert float(error) == pytest.approx(float(singular[3:].square().sum()), rel=1e-5)
    explained = 1 - float(singular[3:].square().sum() / singular.square().sum())
    assert model.facts["explained_variance"] == pytest.approx(explained, rel=1e-9)
    assert model.measure(x)["explained_variance"] == pytest.approx(explained, rel=1e-5)
    covariance = torch.cov(model.encode(x).T)
    torch.testing.assert_close(covariance.diagonal().double(), model.variances, rtol=1e-5, atol=0)
    torch.testing.assert_close(model.filters() @ (x - x.mean(0)).T, model.encode(x).T, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["pca", "zca"])
def test_the_whitened_held_out_covariance_is_the_identity(method: Any) -> None:
    """100,000 held out, 50 dimensions. An entry's standard error is √2/√100,000 = 0.0045, and as much from the fit:
    0.05 is 8 of them, beyond chance."""
    model = fitted(Whitening(num_visible=50, method=method), mixed(100_000, 50), pieces=11)
    assert model.measure(mixed(100_000, 50))["covariance_error"] < 0.05
    assert model.facts["explained_variance"] == pytest.approx(1)


def test_zca_comes_back_and_stays_near_the_data() -> None:
    """Full rank, no epsilon, standard deviations over three decades: both ways in float32 within 1e-4."""
    x = mixed(5000, 40, condition=1000.0)
    model = fitted(Whitening(num_visible=40, method="zca"), x)
    codes = model.encode(x)
    assert codes.dtype == torch.float32
    assert (model.decode(codes) - x).abs().max() / x.abs().max() < 1e-6
    unit = mixed(5000, 40, condition=3.0)
    model = fitted(Whitening(num_visible=40, method="zca"), unit)
    assert (model.decode(model.encode(unit)) - unit).abs().max() < 1e-4
    torch.testing.assert_close(model.encoder, model.encoder.T, rtol=0, atol=1e-12)  # symmetric: nearest to the data
    assert torch.linalg.eigvalsh(model.encoder).min() > 0


def test_epsilon_is_added_to_every_variance() -> None:
    x = mixed(2000, 5)
    for method in ("pca", "zca"):
        model = fitted(Whitening(num_visible=5, method=method, epsilon=2.0), x)
        shrunk = torch.linalg.eigvalsh(torch.cov(model.encode(x).double().T))
        expected = (model.variances / (model.variances + 2)).sort().values
        torch.testing.assert_close(shrunk, expected, rtol=1e-4, atol=0)
        assert (model.decode(model.encode(x)) - x).abs().max() < 1e-4


def test_a_singular_covariance_is_refused_with_its_rank() -> None:
    x = mixed(100, 6)
    x[:, 1], x[:, 4] = 3.0, x[:, 0] - x[:, 2]
    line = r"6 values \(1 of them constant, 100 samples\) has rank 4, too small to whiten 6; choose num_hidden: 4"
    with pytest.raises(ValueError, match=line):
        fitted(Whitening(num_visible=6), x)
    model = fitted(Whitening(num_visible=6, num_hidden=4), x)
    assert model.measure(x)["covariance_error"] < 1e-4 and (model.decode(model.encode(x)) - x).abs().max() < 1e-4
    assert fitted(Whitening(num_visible=6, method="zca", epsilon=1e-3), x).facts["rank"] == 4


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: PCA(num_visible=5, num_hidden=6), "num_hidden must be in 1 … num_visible = 5, not 6"),
        (lambda: Whitening(num_visible=5, num_hidden=3, method="zca"), "zca keeps all 5 values"),
        (lambda: Whitening(num_visible=5, epsilon=-1.0), "epsilon"),
        (lambda: Whitening(num_visible=5000), "num_hidden must be at most 512 for 5000 values"),
        (lambda: Standardize(num_visible=0), "num_visible"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make: Any, line: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=line):
        make()


def test_wide_data_are_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that vary in 20 directions only: the sketch forgets nothing of them, the codes are PCA's."""
    monkeypatch.setattr(whitening, "WIDEST", 299)
    x = (torch.randn(700, 20) * torch.linspace(5, 1, 20)) @ torch.linalg.qr(torch.randn(300, 20))[0].T + 1
    model = fitted(PCA(num_visible=300, num_hidden=10), x)
    singular = torch.linalg.svdvals(x.double() - x.double().mean(0))
    torch.testing.assert_close(model.variances, singular[:10].square() / 699, rtol=1e-6, atol=0)
    assert model.facts["sketch_error"] < 1e-6 and "rank" not in model.facts


# ------------------------------------------------------------------------------------------------ in a stack


def test_a_twin_keeps_the_statistics() -> None:
    white = fitted(Whitening(num_visible=6, num_hidden=4), mixed(100, 6))
    stack = Stack(layers=[white, RBM(num_visible=4, num_hidden=3, visible="gaussian")])
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    stack.randomize()
    for name, value in stack.state_dict().items():
        assert torch.equal(value, before[name]) == (name != "layers.1.weights"), name


def test_filters_go_down_through_whitening_and_scales() -> None:
    x = mixed(200, 6)
    scale = fitted(Standardize(num_visible=6), x)
    white = fitted(Whitening(num_visible=6, num_hidden=4), scale.encode(x))
    rbm = RBM(num_visible=4, num_hidden=3, visible="gaussian", weight_std=1.0)
    stack = Stack(layers=[scale, white, rbm])
    seen, mine = stack.filters()
    field = rbm.hidden_field(stack[1].encode(stack[0].encode(x))) - rbm.hidden_field(torch.zeros(1, 4))
    torch.testing.assert_close((x - x.mean(0)) @ mine.T, field, rtol=0, atol=1e-3)
    torch.testing.assert_close((x - x.mean(0)) @ seen.T, stack[1].encode(stack[0].encode(x)), rtol=0, atol=1e-3)


# ------------------------------------------------------------------------------------------------ shards → a pass


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "VALUES_AT_A_TIME", 300)


def read(folder: Path, source: Any, split: Split) -> Inputs:
    manifest = ingest(source, folder, shard_size=10_000)
    return Inputs(shards=str(folder), samples_digest=manifest.samples_digest,
                  labels_digest=manifest.labels_digest, split=split)  # fmt: skip


@pytest.fixture
def planted(tmp_path: Path) -> Inputs:
    values = mixed(1001, 8).numpy()
    source = Given({"train": values[:901], "test": values[901:]}, {"train": [0] * 901, "test": [0] * 100})
    return read(tmp_path / "shards", source, Split(validation=0))


def stored(inputs: Inputs, samples: int) -> np.ndarray:
    return Reader(Path(inputs.shards)).values(np.arange(samples))


def learned(job: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    told: list[dict[str, Any]] = []
    answer = learn(job.model_copy(update={"folder": str(folder)}), told.append, save=True)
    return registry.load(folder / "model"), answer | {"told": told}


def measured(folder: Path, inputs: Inputs, num_examples: int = 10_000) -> dict[str, float]:
    job = EvaluateJob(
        stage="some", folder=str(folder), model=standing_on(folder), inputs=inputs,
        evaluate=Evaluate(num_examples=num_examples), train=Train(threads=1), seed=0,
    )  # fmt: skip
    return evaluate(job, lambda said: None)[1]


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
    found = measured(tmp_path / "above", planted)
    assert found["test/explained_variance"] == pytest.approx(answer["metrics"]["train/explained_variance"], abs=0.1)


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


WHITE = "  white: {model: {kind: whitening, num_hidden: 30}, train: {epochs: 7}}\n"


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
        ("  white: {model: {kind: whitening, method: cholesky}}", "method must be one of 'pca', 'zca', not 'cholesky'"),
    ],
)  # fmt: skip
def test_a_plan_refuses_in_one_line(declared: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        planned(declared)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ processes


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with stages(tmp_path_factory.mktemp("template")) as started:
        yield started


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
    assert template.do(placed(job, tmp_path / "whole")) == 0, template.log
    whole = outcome(tmp_path / "whole")
    for moment in ("before rename", "after rename"):
        number = 1
        while True:
            folder = tmp_path / f"{moment}-{number}"
            if template.do(placed(job, folder), (moment, number)) == 0:
                break
            assert template.do(placed(job, folder)) == 0, template.log
            assert outcome(folder) == whole, f"killed {moment} {number}"
            number += 1
        assert number >= 4  # weights, model, result


# ------------------------------------------------------------------------------------------------ MNIST


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    source = open_source(conf.IdxSource(kind="idx", path=str(real("mnist"))))
    return read(tmp_path_factory.mktemp("mnist"), source, Split(validation=1 / 6))


def test_pca_of_30_components_on_mnist(mnist: Inputs, tmp_path: Path) -> None:
    """13.87 as measured by Hinton & Salakhutdinov 2006, Fig. 2B."""
    whole = mnist.model_copy(update={"split": Split(validation=0)})
    learned(train_job(whole, "pca", {}, num_visible=784, num_hidden=30), tmp_path)
    found = measured(tmp_path, whole)
    assert f"{found['test/squared_error']:.2f}" == "13.87"
    assert read_json(tmp_path / "model" / "model.json")["kind"] == "stack"
    with np.load(tmp_path / "figures" / "filters.npz", allow_pickle=False) as figure:
        assert figure["images"].shape == (30, 28, 28)


def test_whitening_of_30_components_on_mnist(mnist: Inputs, tmp_path: Path) -> None:
    """Held out at random, the covariance is the identity within 0.05; the official test set comes from elsewhere."""
    learned(train_job(mnist, "whitening", {}, num_visible=784, num_hidden=30), tmp_path)
    found = measured(tmp_path, mnist)
    print(f"largest entry of |C − I|: {found['validation/covariance_error']:.4f} of a random sixth of train, "
          f"{found['test/covariance_error']:.4f} of the official test set")  # fmt: skip
    assert found["validation/covariance_error"] < 0.05
    assert found["test/covariance_error"] < 0.08


def test_every_kind_of_pass_is_registered() -> None:
    assert {kind for kind, cls in registry.MODELS.items() if issubclass(cls, StreamingModel)} == {
        "standardize", "pca", "whitening",
    }  # fmt: skip
