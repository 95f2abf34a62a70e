"""What autoencoders learn from real digits: principal subspaces, better codes than those, sparse ones, clean digits.

Everything is seeded: nothing here can fail by chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_modules as registry
from conf import IdxSource, Recipe
from conf.reading import parse
from data.sources import open_source
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.stack import Stack
from tests.pass_jobs import learned, measured, read
from tests.real_digits import mnist_folder, mnist_intensities
from tests.stage_kills import inputs, train_job
from tests.trained_on_digits import error, pca_error, principal, small_digits, trained


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return small_digits()


def autoencoder(**arguments: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(**{"num_visible": 64, "num_hidden": 10} | arguments)


def smallest_cosine(model: Autoencoder, axes: Tensor) -> float:
    """Of the principal angles between what the decoder spans and the axes."""
    spanned = torch.linalg.qr(model.decode(torch.eye(len(axes))).double().T - model.visible_bias.double()[:, None]).Q
    return torch.linalg.svdvals(axes @ spanned).min().item()


# ------------------------------------------------------------------------------------------------ beside PCA


def test_a_linear_one_reaches_the_principal_subspace_of_real_digits(digits: tuple[Tensor, Tensor]) -> None:
    """Baldi & Hornik 1989, by minibatches of Adam: cosines above 0.99 of all ten angles, PCA's error within 1 %."""
    train, held_out = digits
    linear = autoencoder(activation="linear", loss="squared_error")
    trained(linear, train, epochs=120, learning_rate=0.02)
    assert smallest_cosine(linear, principal(train, 10)[1]) > 0.99
    assert error(linear, held_out) == pytest.approx(pca_error(train, held_out, 10), rel=0.01)


@pytest.mark.slow
def test_the_recipe_of_a_linear_one_reaches_the_principal_subspace_of_mnist(tmp_path: Path) -> None:
    """13.87 a test image, as PCA, and the smallest cosine of 30 principal angles above 0.99."""
    path = Path(__file__).parents[1] / "conf" / "mnist_linear_autoencoder.yaml"
    recipe = Recipe.model_validate(parse(path.read_text(), "recipe"))
    stage, train = recipe.stages["linear"], mnist_intensities()[0]
    assert recipe.data is not None and stage.model is not None
    shards = read(tmp_path / "shards", open_source(IdxSource(kind="idx", path=str(mnist_folder()))), recipe.data.split)
    job = train_job(shards, "autoencoder", {}, num_visible=784, **stage.model.arguments)
    settings = stage.train.model_copy(update={"threads": 1, "accelerator": "cpu"})
    stack, _ = learned(job.model_copy(update={"train": settings, "seed": recipe.seed}), tmp_path / "linear")
    cosine = smallest_cosine(stack[0], principal(train, 30)[1])
    found = measured(tmp_path / "linear", shards)["test/squared_error"]
    print(f"{found:.3f} a test image, smallest cosine {cosine:.4f}")
    assert found == pytest.approx(13.87, abs=0.02) and cosine > 0.99


def test_a_nonlinear_one_errs_less_than_pca_of_equal_code_size(digits: tuple[Tensor, Tensor]) -> None:
    """On held-out digits by a fifth; a sigmoid output is what it takes: under a linear one PCA is optimal."""
    train, held_out = digits
    nonlinear = autoencoder(num_hidden=20, activation="linear", tied=False)
    trained(nonlinear, train, epochs=100, learning_rate=0.03)
    assert error(nonlinear, held_out) < 0.8 * pca_error(train, held_out, 20)


# ------------------------------------------------------------------------------------------------ sparse, contractive


def test_a_sparsity_target_is_reached(digits: tuple[Tensor, Tensor]) -> None:
    """The held-out mean of every unit within 0.03 of 0.05, where without a target the mean of all is above 0.2."""
    train, held_out = digits
    free = trained(autoencoder(num_hidden=50), train, epochs=20)
    sparse = trained(autoencoder(num_hidden=50, sparsity_target=0.05, sparsity_cost=20.0), train, epochs=40)
    assert free.encode(held_out).mean() > 0.2
    assert (sparse.encode(held_out).mean(0) - 0.05).abs().max() < 0.03


def test_few_active_units_of_many_come_close_to_all(digits: tuple[Tensor, Tensor]) -> None:
    """10 of 100 units chosen by each digit err less than 10 that are the same for all digits, PCA's."""
    train, held_out = digits
    sparse = autoencoder(num_hidden=100, activation="linear", loss="squared_error", num_active=10)
    trained(sparse, train, epochs=60)
    assert ((sparse.encode(held_out) != 0).sum(1) == 10).all()
    assert error(sparse, held_out) < pca_error(train, held_out, 10)


def test_contraction_makes_codes_move_less(digits: tuple[Tensor, Tensor]) -> None:
    """Under noise on held-out digits by less than half as far."""
    train, held_out = digits
    moved = []
    for contraction in (0.0, 1.0):
        model = trained(autoencoder(num_hidden=50, contraction=contraction), train, epochs=30)
        torch.manual_seed(1)
        near = held_out + 0.1 * torch.randn_like(held_out)
        moved.append((model.encode(near) - model.encode(held_out)).norm(dim=1).mean())
    assert moved[1] < 0.5 * moved[0]


# ------------------------------------------------------------------------------------------------ denoising


@pytest.mark.parametrize(("noise", "level"), [("masking", 0.5), ("gaussian", 0.5), ("salt_and_pepper", 0.3)])
def test_denoising_brings_back_held_out_digits(noise: Any, level: float, digits: tuple[Tensor, Tensor]) -> None:
    """Nearer than the corrupted copy, and by a fifth than what never saw noise brings back."""
    train, held_out = digits
    found = {}
    for name in ("none", noise):
        model = autoencoder(num_hidden=100, noise=name, noise_level=level if name != "none" else 0.0)
        found[name] = trained(model, train, epochs=30)
    torch.manual_seed(1)
    seen = found[noise].corruption(held_out)
    assert error(found[noise], held_out, seen) < 0.8 * error(found["none"], held_out, seen)
    assert error(found[noise], held_out, seen) < (seen - held_out).square().sum(1).mean()


# ------------------------------------------------------------------------------------------------ stacked


def test_training_a_layer_leaves_the_layers_below_as_they_are_to_the_bit(tmp_path: Path) -> None:
    read, below, width = inputs(tmp_path / "shards"), None, 64
    layers: list[dict[str, Any]] = [
        {"num_hidden": 20, "sparsity_target": 0.1},
        {"num_hidden": 15, "noise": "masking", "noise_level": 0.25},
        {"num_hidden": 10, "contraction": 0.1, "activation": "linear"},
    ]
    kept: dict[str, Tensor] = {}
    for height, arguments in enumerate(layers):
        job = train_job(read, "autoencoder", {"epochs": 1}, below, num_visible=width, **arguments)
        below, width = tmp_path / str(height), arguments["num_hidden"]
        stack, answer = learned(job.model_copy(update={"hand_up": "mean"}), below)
        assert isinstance(stack, Stack) and len(stack) == height + 1 and answer["steps"] > 0
        found = stack.state_dict()
        assert all(torch.equal(found[name], value) for name, value in kept.items())
        untrained = registry.build(registry.spec_of(stack)).state_dict()
        assert not torch.equal(found[f"layers.{height}.weights"], untrained[f"layers.{height}.weights"])
        kept = found
    assert len(kept) == 3 * 3 + 1
