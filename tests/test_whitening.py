"""Standardization, PCA and whitening: exact on planted data, the known numbers on MNIST, filters through a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import conf
import lightning_modules as registry
from conf import Split
from conf.protocol import Inputs
from data.durable import read_json
from data.sources import open_source
from lightning_modules import whitening
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import StreamingModel
from lightning_modules.stack import Stack
from lightning_modules.whitening import PCA, Standardize, Whitening
from tests.pass_jobs import learned, measured, mixed, read
from tests.raw_folders import real
from tests.stage_kills import train_job


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def fitted(model: Any, x: Tensor, pieces: int = 3) -> Any:
    for chunk in x.chunk(pieces):
        model.update(chunk)
    model.facts = model.finish()
    return model


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
        assert figure["layer1"].shape == (30, 28, 28)


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
        "standardize", "pca", "whitening", "lda", "kmeans", "gaussian_mixture", "patch_features", "tfidf", "itq",
        "deskew",
    }  # fmt: skip
