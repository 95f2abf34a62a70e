"""Features of patches against loops over them, and as the bottom of stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_modules as registry
from conf.protocol import Inputs
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.kmeans import KMeans
from lightning_modules.patch_features import PatchFeatures
from lightning_modules.stack import Stack
from lightning_modules.unrolled import DeepAutoencoder
from tests.pass_jobs import learned, measured, stored
from tests.stage_kills import train_job


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_codes_are_triangles_of_patches_pooled_over_regions() -> None:
    """Two channels, 6×6; 25 patches of 2×2; regions overlap in the middle row, as adaptive pooling's do."""
    model = PatchFeatures(image_shape=[2, 6, 6], num_centres=3, patch_size=2, stride=1, regions=2, contrast=0.3)
    model.start(torch.rand(50, 72))
    x = torch.rand(1, 72)
    active = torch.zeros(3, 5, 5)
    for row in range(5):
        for column in range(5):
            p = x.reshape(2, 6, 6)[:, row : row + 2, column : column + 2].reshape(-1)
            p = (p - p.mean()) / (p.var(correction=0) + 0.3).sqrt()
            z = (model.whitening @ (p - model.mean) - model.clusters.centres).norm(dim=1)
            active[:, row, column] = (z.mean() - z).clamp(min=0)
    halves = [slice(0, 3), slice(2, 5)]
    pooled = [active[:, rows, columns].mean((1, 2)) for rows in halves for columns in halves]
    torch.testing.assert_close(model.encode(x)[0], torch.stack(pooled, 1).flatten(), rtol=1e-4, atol=1e-5)
    assert model.num_hidden == 12 and model.decode(model.encode(x)).shape == (1, 72)


def test_patches_are_whitened() -> None:
    """Variances λ become λ / (λ + ε); one direction, the patch's mean, is gone."""
    model = PatchFeatures(image_shape=[9, 9], num_centres=2, patch_size=3, stride=1, regions=1, epsilon=0.1)
    x = torch.rand(400, 81).cumsum(1) / 9
    model.start(x)
    raw, white = model._normalised(x, model._apart), model._patches(x, model._apart)
    before, after = (torch.linalg.eigvalsh(torch.cov(p.T.double(), correction=0)) for p in (raw, white))
    torch.testing.assert_close(after, before / (before + 0.1), rtol=1e-3, atol=1e-4)
    assert white.mean(0).abs().max() < 1e-4 and before[0] < 1e-6


def test_few_pictures_hold_many_patches() -> None:
    """8×8 pixels hold 6×6 patches of 3×3, one pixel apart: two pictures are enough for 70 centres, one is not."""
    model = PatchFeatures(image_shape=[8, 8], num_centres=70, patch_size=3)
    assert model.least_samples == 2
    model.start(torch.rand(2, 64))
    with pytest.raises(ValueError, match="70 centres need as many samples or more, found 36"):
        model.start(torch.rand(1, 64))


def test_a_stage_of_it_learns_features_that_cluster_better(digits: Inputs, tmp_path: Path) -> None:
    """k-means on whitened features, on the codes of a deep autoencoder of them, and on pixels: as scikit-learn's 8×8
    digits go, 79 % on pixels.
    """
    settings = {"image_shape": [8, 8], "num_centres": 30, "patch_size": 3, "stride": 1, "regions": 3}
    _, answer = learned(train_job(digits, "patch_features", {}, **settings), tmp_path / "features")
    assert answer["metrics"]["train/patches"] > 30_000 and answer["metrics"]["train/inertia"] > 0
    again = learned(train_job(digits, "patch_features", {}, **settings), tmp_path / "again")[1]
    assert again["digest"] == answer["digest"]
    white = train_job(digits, "whitening", {}, tmp_path / "features", num_visible=270, num_hidden=20)
    learned(white.model_copy(update={"hand_up": "mean"}), tmp_path / "white")
    top = train_job(digits, "kmeans", {}, tmp_path / "white", num_visible=20, num_hidden=10)
    stack, _ = learned(top.model_copy(update={"hand_up": "mean"}), tmp_path / "clusters")
    assert [type(layer).__name__ for layer in stack] == ["PatchFeatures", "Whitening", "KMeans"]
    found = measured(tmp_path / "clusters", digits)["test/cluster_accuracy"]
    print(f"accuracy on features {found:.1f} %")
    assert found > 82

    epochs = {"epochs": 4, "optimizer": "adam", "learning_rate": 2e-3}
    arguments = {"num_visible": 20, "num_hidden": 6, "activation": "linear", "loss": "squared_error"}
    layer = train_job(digits, "autoencoder", epochs, tmp_path / "white", **arguments)
    learned(layer.model_copy(update={"hand_up": "mean"}), tmp_path / "code")
    deep = train_job(digits, "deep_autoencoder", epochs, tmp_path / "code", loss="squared_error")
    (net,), _ = learned(deep.model_copy(update={"hand_up": "mean"}), tmp_path / "deep")
    before = registry.load(tmp_path / "white" / "model").state_dict()
    kept = net.stack.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.items())
    x = torch.from_numpy(stored(digits, 50))
    assert net.decode(net.encode(x)).shape == (50, 64)


def test_a_deep_autoencoder_on_fitted_layers_learns_their_codes() -> None:
    centres = KMeans(num_visible=5, num_hidden=4, code="distance")
    centres.centres.copy_(torch.randn(4, 5))
    layers = [Autoencoder(num_visible=4, num_hidden=3, loss="squared_error")]
    model = DeepAutoencoder(stack=Stack(layers=[centres, *layers]), loss="squared_error", start="random")
    x = torch.randn(20, 5)
    v = centres.encode(x)
    seen = model.output_mean(model.output_field(layers[0].encode(v)))
    assert model.losses(x)["reconstruction_error"].item() == pytest.approx(float((v - seen).square().sum(1).mean()))
    torch.testing.assert_close(model.decode(model.encode(x)), centres.decode(seen))
    before = centres.centres.clone()
    model.randomize()
    assert torch.equal(centres.centres, before)
    with pytest.raises(ValueError, match="but the stack has none"):
        DeepAutoencoder(stack=Stack(layers=[centres]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": [8]}, r"image_shape must be \[height, width\]"),
        ({"regions": 9}, "9 regions a side need as many patches, but 8×8 pixels hold 3×3 of 4 pixels at stride 2"),
        ({"patch_size": 9}, "hold 0×0 of 9 pixels at stride 2; lower patch_size, stride or regions"),
        ({"epsilon": -0.1}, "epsilon must be 0 or more"),
        ({"stride": 0}, "stride must be at least 1, not 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchFeatures(**{"image_shape": [8, 8], "patch_size": 4, **arguments})
