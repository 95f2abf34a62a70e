"""Deskewing: moments of what comes out, pictures skewed on purpose, and what stands on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from conf import Recipe
from conf.protocol import Description, PlanJob
from conf.reading import parse
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.deskew import Deskew
from lightning_modules.planning import plan
from lightning_modules.stack import Stack
from lightning_modules.unrolled import DeepAutoencoder

SHAPE = (40, 30)


def strokes(slants: list[float], middle: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Blurred bars along x = a y, one a slant, their middles some pixels right of and below the picture's."""
    y, x = torch.meshgrid(torch.arange(40.0) - 19.5 - middle[1], torch.arange(30.0) - 14.5 - middle[0], indexing="ij")
    slant = torch.tensor(slants)[:, None, None]
    return torch.exp(-((x - slant * y) ** 2) / 8 - y**2 / 60).flatten(1)


def moments(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x̄, ȳ and σ_xy / σ_yy by sums over all pixels, in double precision."""
    v = pictures.double().reshape(-1, *SHAPE)
    y, x = torch.meshgrid(torch.arange(40.0).double() - 19.5, torch.arange(30.0).double() - 14.5, indexing="ij")
    mean = [(v * w).sum((1, 2)) / v.sum((1, 2)) for w in (x, y)]
    dx, dy = x - mean[0][:, None, None], y - mean[1][:, None, None]
    return mean[0], mean[1], (v * dx * dy).sum((1, 2)) / (v * dy * dy).sum((1, 2))


def test_what_was_skewed_and_moved_comes_out_upright_in_the_middle() -> None:
    """All as the upright one, but for what linear interpolation blurs; one that lies turns by 45° at most."""
    model, upright = Deskew(image_shape=SHAPE), strokes([0.0])
    skewed = strokes([-0.4, 0.0, 0.25, 0.5], (2.3, -1.6))
    straight = model.encode(skewed)
    for found, bound in zip(moments(straight), (0.01, 0.01, 0.005), strict=True):
        assert found.abs().max() < bound
    assert (straight - upright).abs().max() < 0.05 < 0.5 < (skewed - upright).abs().amax(1).min()
    torch.testing.assert_close(moments(skewed)[2], torch.tensor([-0.4, 0.0, 0.25, 0.5]).double(), rtol=0, atol=0.01)
    lying = torch.zeros(1, *SHAPE)
    lying[0, 20, 5:25] = lying[0, 19, 15:25] = 1
    assert moments(lying)[2] == pytest.approx(-5) and moments(model.encode(lying.flatten(1)))[2] < -1


def test_upright_pictures_stay_and_empty_ones_are_no_trouble() -> None:
    model = Deskew(image_shape=SHAPE)
    torch.testing.assert_close(model.encode(strokes([0.0])), strokes([0.0]), rtol=0, atol=1e-5)
    assert not model.encode(torch.zeros(2, math.prod(SHAPE))).any()


def test_channels_move_as_one() -> None:
    colour = strokes([0.3])[:, None] * torch.tensor([1.0, 0.5, 0.25])[None, :, None]
    found = Deskew(image_shape=[3, *SHAPE]).encode(colour.flatten(1)).reshape(1, 3, -1)
    torch.testing.assert_close(found[:, 1], found[:, 0] / 2)
    torch.testing.assert_close(found[:, 0], Deskew(image_shape=SHAPE).encode(strokes([0.3])), rtol=0, atol=1e-5)


def test_the_pass_measures_slants() -> None:
    model = Deskew(image_shape=SHAPE)
    model.update(strokes([-0.4, 0.2]))
    model.update(strokes([0.3]))
    assert model.finish() == {"samples": 3.0, "mean_slant": pytest.approx(0.3, abs=0.01)}


def test_layers_above_are_told_the_shape_and_the_range() -> None:
    recipe = Recipe.model_validate(parse(
        "name: upright\ndata: {source: {kind: digits}}\nstages:\n"
        "  upright: {model: {kind: deskew}}\n"
        "  parts: {on: upright, model: {kind: patch_features, num_centres: 9, patch_size: 5}}\n"
        "  maps: {on: upright, model: {kind: conv_autoencoder}}\n"
        "  layer: {on: upright, model: {kind: rbm, num_hidden: 9}}\n", "recipe"))  # fmt: skip
    description = Description(
        shape=[40, 30], low=0.0, high=1.0, sizes={"train": 500, "validation": 0, "test": 100},
        labeled=500, labeled_test=100, num_classes=10,
    )  # fmt: skip
    upright, parts, maps, layer = plan(PlanJob(recipe=recipe, descriptions={"data": description})).stages
    assert (upright.shape, upright.one_pass, layer.shape) == ("1200 → 1200", True, "1200 → 9")
    assert parts.spec["arguments"]["image_shape"] == maps.spec["arguments"]["image_shape"] == [40, 30]


def test_what_layers_above_look_for_is_shown_upright() -> None:
    top = Autoencoder(num_visible=math.prod(SHAPE), num_hidden=2)
    stack = Stack(layers=[Deskew(image_shape=SHAPE), top])
    assert torch.equal(stack.filters()[-1], top.weights.T)
    assert Stack(layers=[Deskew(image_shape=SHAPE)]).receptive_fields() == {}
    net = DeepAutoencoder(stack=stack, loss="squared_error")
    assert Stack(layers=[net]).filters()[-1].shape == (2, math.prod(SHAPE))
