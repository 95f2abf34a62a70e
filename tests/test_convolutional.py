"""Convolutional autoencoders against sums by hand, finite differences and principal components; seeds are fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_modules as registry
from conf import Recipe
from conf.errors import InputError
from conf.protocol import Description, Inputs, Plan, PlanJob
from conf.reading import parse
from flows.figures import read as arrays
from lightning_modules import figures
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.classifier import Classifier
from lightning_modules.convolutional import ConvAutoencoder
from lightning_modules.finetuning import finetune
from lightning_modules.planning import plan
from lightning_modules.stack import Stack
from tests.pass_jobs import learned, measured
from tests.stage_kills import finetune_job, train_job
from tests.trained_on_digits import error, pca_error, small_digits, trained


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomized(**arguments: Any) -> ConvAutoencoder:
    model = ConvAutoencoder(**{"image_shape": (5, 6), "channels": (3, 2), "kernel_size": 3} | arguments).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


GEOMETRIES = [
    {"image_shape": (5, 6), "kernel_size": 3, "stride": 2},
    {"image_shape": (2, 7, 4), "kernel_size": 5, "stride": 3},
    {"image_shape": (3, 4, 4), "kernel_size": 1, "stride": 2},
    {"image_shape": (1, 3, 5), "kernel_size": 3, "stride": 1},
    {"image_shape": (4, 1), "kernel_size": 5, "stride": 2},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_linear_layer_is_a_sum_over_its_window_and_its_way_back_the_transpose(geometry: dict[str, Any]) -> None:
    """⟨K ∗ v, h⟩ = ⟨v, K ∗ᵀ h⟩ for all v and h: the two matrices, read off unit vectors, are each other's transpose."""
    model = randomized(channels=(2,), activation="linear", loss="squared_error", **geometry)
    for bias in [*model.hidden_biases, *model.visible_biases]:
        torch.nn.init.zeros_(bias)
    depth, height, width = model.visible_shape
    stride, reach, kernel = model.stride, model.kernel_size // 2, model.kernels[0]
    expected = torch.zeros(model.num_hidden, model.num_visible).double()
    _, rows, columns = model.hidden_shape
    for j in range(model.num_hidden):
        map_, row, column = j // (rows * columns), j // columns % rows, j % columns
        for i in range(model.num_visible):
            y, x = i // width % height - stride * row + reach, i % width - stride * column + reach
            if 0 <= y < model.kernel_size and 0 <= x < model.kernel_size:
                expected[j, i] = kernel[map_, i // (height * width), y, x]
    encoder = model.encode(torch.eye(model.num_visible).double()).T
    torch.testing.assert_close(encoder, expected)
    torch.testing.assert_close(model.decode(torch.eye(model.num_hidden).double()), expected)
    middle = [(map_ * rows + rows // 2) * columns + columns // 2 for map_ in range(2)]
    torch.testing.assert_close(model.filters(), expected[middle])


VARIANTS = [
    {},
    {"tied": False, "activation": "relu"},
    {"activation": "linear", "loss": "squared_error"},
    {"image_shape": (2, 5, 4), "channels": (2, 3, 1), "tied": False, "loss": "squared_error"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_gradient_is_the_slope_of_the_loss(variant: dict[str, Any]) -> None:
    """Central differences in double precision, away from the kinks of rectifiers."""
    model = randomized(**variant)
    v = torch.rand(3, model.num_visible).double()

    def loss(*parameters: Tensor) -> Tensor:
        """Gradcheck moves the parameters in place."""
        return model.losses(v)["loss"]

    assert torch.autograd.gradcheck(loss, list(model.parameters()), eps=1e-6, atol=1e-6)
    model.losses(v)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.count_nonzero() > 0, name


def test_deep_filters_are_what_a_unit_answers_to() -> None:
    """With all rectifiers open a unit's filter is its derivative by the data."""
    model = randomized(activation="linear", loss="squared_error")
    with torch.no_grad():
        for kernel in model.kernels:
            kernel.abs_()
        model.hidden_biases[0].fill_(1.0)
    slopes = torch.autograd.functional.jacobian(model.encode, torch.rand(1, 30).double())[0, :, 0]
    rows, columns = model.hidden_shape[1:]
    middle = [(map_ * rows + rows // 2) * columns + columns // 2 for map_ in range(2)]
    torch.testing.assert_close(model.filters(), slopes[middle])
    torch.testing.assert_close(model.projected(torch.eye(model.num_hidden).double()), slopes)


def test_a_stack_sees_through_it_and_shows_one_unit_a_map() -> None:
    low = ConvAutoencoder(image_shape=(6, 6), channels=(4,), kernel_size=3)
    middle = ConvAutoencoder(image_shape=low.hidden_shape, channels=(2,), kernel_size=3)
    top = Autoencoder(num_visible=middle.num_hidden, num_hidden=5)
    fields = Stack(layers=[low, middle, top]).filters()
    assert [tuple(field.shape) for field in fields] == [(4, 36), (2, 36), (5, 36)]
    expected = low.projected(middle.projected(top.filters()))
    torch.testing.assert_close(fields[2], expected)
    assert figures.filters(Stack(layers=[low, middle]))["layer2"].shape == (2, 36)
    assert figures.weights(Stack(layers=[low])) == {}
    assert figures.activity(Stack(layers=[low]), torch.rand(5, 36))["layer1_units"].shape == (4 * 9,)


def test_a_classifier_learns_through_it_and_its_twin_begins_as_it_did() -> None:
    low = ConvAutoencoder(image_shape=(6, 6), channels=(4, 3), kernel_size=3)
    stack = Stack(layers=[low, Autoencoder(num_visible=low.num_hidden, num_hidden=5)])
    classifier = Classifier(stack=stack, num_classes=3)
    torch.nn.init.normal_(classifier.output.weight)
    classifier.losses({"x": torch.rand(4, 36), "label": torch.tensor([0, 1, 2, 0])})["loss"].backward()
    assert all(kernel.grad is not None and kernel.grad.count_nonzero() > 0 for kernel in low.kernels)
    with torch.no_grad():
        low.hidden_biases[0].fill_(1.0)
    stack.randomize()
    assert low.hidden_biases[0].count_nonzero() == 0
    limits = [gain * (6 / (9 * (below + above))) ** 0.5 for gain, below, above in ((2**0.5, 1, 4), (4, 4, 3))]
    for kernel, limit in zip(low.kernels, limits, strict=True):
        assert 0.8 * limit < kernel.abs().max() <= limit


def planned(stages: str, shape: list[int]) -> Plan:
    recipe = Recipe.model_validate(parse("name: conv\ndata: {source: {kind: digits}}\nstages:\n" + stages, "recipe"))
    description = Description(
        shape=shape, low=0.0, high=1.0, sizes={"train": 500, "validation": 0, "test": 100},
        labeled=500, labeled_test=100, num_classes=10,
    )  # fmt: skip
    return plan(PlanJob(recipe=recipe, descriptions={"data": description}))


def test_a_plan_knows_the_shape_of_pictures_and_of_the_maps_below() -> None:
    stages = (
        "  low: {model: {kind: conv_autoencoder, channels: [4]}}\n"
        "  high: {on: low, model: {kind: conv_autoencoder, channels: [2]}}\n"
    )
    low, high = planned(stages, [3, 8, 8]).stages
    assert low.spec["arguments"]["image_shape"] == [3, 8, 8] and low.shape == "192 → 64"
    assert high.spec["arguments"]["image_shape"] == [4, 4, 4] and high.shape == "64 → 8"
    with pytest.raises(
        InputError, match="stage low: a conv_autoencoder takes pictures, but a sample has 64 values; say how"
    ):
        planned(stages, [64])


def test_jobs_train_it_stand_on_it_show_it_and_fine_tune_it(digits: Inputs, tmp_path: Path) -> None:
    low, top = tmp_path / "low", tmp_path / "top"
    arguments = {"image_shape": [8, 8], "channels": [4, 2], "noise": "masking", "noise_level": 0.25}
    learned(train_job(digits, "conv_autoencoder", {"epochs": 1}, **arguments), low)
    job = train_job(digits, "rbm", {"epochs": 1}, low, num_visible=8, num_hidden=5)
    stack, _ = learned(job.model_copy(update={"hand_up": "mean"}), top)
    assert [type(layer).__name__ for layer in stack] == ["ConvAutoencoder", "RBM"]
    assert all(
        torch.equal(stack.state_dict()[n], value) for n, value in registry.load(low / "model").state_dict().items()
    )
    assert measured(low, digits, 50)["test/squared_error"] > 0 and measured(top, digits, 50)["test/squared_error"] > 0
    shown = {name: arrays(low / "figures" / f"{name}.npz") for name in ("filters", "reconstructions")}
    assert shown["filters"]["layer1"].shape == (2, 8, 8) and shown["reconstructions"]["corrupted"].shape == (16, 8, 8)
    few = finetune_job(digits, top).model_copy(update={"folder": str(tmp_path / "few")})
    _, metrics, runs = finetune(few, lambda said: None)
    assert len(runs) == 8 and 0 < metrics["test/error@20"] <= 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_shape": [5]}, "image_shape must be"), ({"image_shape": [0, 5]}, "image_shape must be"),
        ({"channels": []}, "channels must be"), ({"channels": [3, 0]}, "channels must be"),
        ({"kernel_size": 4}, "kernel_size must be odd"), ({"kernel_size": -1}, "kernel_size must be odd"),
        ({"stride": 0}, "stride must be"), ({"noise": "masking"}, "contradict"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.build({"kind": "conv_autoencoder", "arguments": {"image_shape": [5, 6]} | wrong})


def test_the_loss_compares_what_comes_back_of_corrupted_data_with_clean_ones() -> None:
    model = randomized(noise="salt_and_pepper", noise_level=0.3, loss="squared_error")
    v = torch.rand(3, 30).double()
    torch.manual_seed(1)
    losses = model.losses(v)
    torch.manual_seed(1)
    seen = model.corruption(v)
    assert not torch.equal(seen, v)
    squared = (model.decode(model.encode(seen)) - v).square().sum(1).mean()
    torch.testing.assert_close(losses["reconstruction_error"], squared.detach())
    torch.testing.assert_close(losses["loss"], squared / 2)


def test_it_errs_less_than_pca_of_equal_code_size() -> None:
    """On held-out real digits, a code of 16 values."""
    train, held_out = small_digits()
    model = ConvAutoencoder(image_shape=(8, 8), channels=(16, 4), activation="linear", tied=False)
    assert model.num_hidden == 16
    trained(model, train, epochs=25, learning_rate=0.02)
    assert error(model, held_out) < 0.9 * pca_error(train, held_out, 16)
