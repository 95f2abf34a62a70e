"""The classifier on a stack: what it starts from, what it computes, where noise may be. Nothing fails by chance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.autoencoders import Autoencoder
from lightning_modules.classifier import Classifier
from lightning_modules.stack import Stack


def two_layers() -> Stack:
    return Stack(layers=[Autoencoder(num_visible=8, num_hidden=6), Autoencoder(num_visible=6, num_hidden=5)])


def labeled(num_samples: int = 40) -> dict[str, Tensor]:
    x = torch.rand(num_samples, 8).round()
    return {"x": x, "label": x[:, :3].argmax(1)}


def test_it_starts_undecided_and_its_first_step_leaves_the_stack_alone() -> None:
    torch.manual_seed(0)
    model, batch = Classifier(stack=two_layers(), num_classes=3), labeled()
    before = {name: value.clone() for name, value in model.stack.state_dict().items()}
    loss = model.losses(batch)["loss"]
    assert math.isclose(loss.item(), math.log(3), rel_tol=1e-6)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in model.stack.state_dict().items())
    assert model.output.weight.count_nonzero() > 0
    model.zero_grad()
    model.losses(batch)["loss"].backward()
    for layer in model.stack.layers:
        assert isinstance(layer, Autoencoder) and layer.weights.grad is not None
        assert layer.weights.grad.count_nonzero() > 0


def test_loss_and_error_are_those_of_the_logits() -> None:
    torch.manual_seed(0)
    model, batch = Classifier(stack=two_layers(), num_classes=3, dropout=0.5, input_noise=1.0).eval(), labeled()
    torch.nn.init.normal_(model.output.weight)
    logits = model.output(model.stack.encode(batch["x"]))
    assert torch.equal(model.logits(batch["x"]), logits)
    losses = model.losses(batch)
    picked = logits.log_softmax(1).gather(1, batch["label"][:, None])
    torch.testing.assert_close(losses["loss"], -picked.mean())
    assert losses["error"] == (logits.argmax(1) != batch["label"]).float().mean()


def test_it_learns_what_a_line_can_tell() -> None:
    torch.manual_seed(0)
    model, batch = Classifier(stack=two_layers(), num_classes=3), labeled()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        model.losses(batch)["loss"].backward()
        optimizer.step()
    assert model.losses(batch)["error"] == 0


@pytest.mark.parametrize("noise", [{"dropout": 0.5}, {"input_noise": 0.5}])
def test_noise_is_in_training_losses_and_nowhere_else(noise: dict[str, float]) -> None:
    torch.manual_seed(0)
    model, batch = Classifier(stack=two_layers(), num_classes=3, **noise), labeled()
    torch.nn.init.normal_(model.output.weight)
    assert model.losses(batch)["loss"] != model.losses(batch)["loss"]
    assert torch.equal(model.encode(batch["x"]), model.encode(batch["x"]))
    assert torch.equal(model.logits(batch["x"]), model.logits(batch["x"]))
    model.eval()
    assert model.losses(batch)["loss"] == model.losses(batch)["loss"]


def test_dropout_falls_on_the_outputs_of_every_layer() -> None:
    torch.manual_seed(0)
    model, batch = Classifier(stack=two_layers(), num_classes=3, dropout=0.25), labeled()
    torch.manual_seed(1)
    code = model._noisy_code(batch["x"])
    torch.manual_seed(1)
    lower = F.dropout(model.stack[0].encode(batch["x"]), 0.25)
    assert torch.equal(code, F.dropout(model.stack[1].encode(lower), 0.25))


def test_it_stands_for_its_stack() -> None:
    model = Classifier(stack=two_layers(), num_classes=3)
    assert (model.num_visible, model.num_hidden) == (8, 5)
    assert (model.visible_range, model.hidden_range) == ((0, 1), (0, 1))


@pytest.mark.parametrize("wrong", [{"num_classes": 1}, {"dropout": 1.0}, {"dropout": -0.1}, {"input_noise": -1.0}])
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"stack": two_layers(), "num_classes": 3} | wrong
    with pytest.raises(ValueError):
        Classifier(**arguments)
