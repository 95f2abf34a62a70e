"""What a recipe's `train` says to torch's optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conf import Train
from lightning_modules.optimizer import optimizer_for


@pytest.mark.parametrize("momentum, beta", [({}, 0.9), ({"momentum": 0}, 0.0), ({"momentum": 0.5}, 0.5)])
def test_momentum_is_what_was_said(momentum: dict[str, float], beta: float) -> None:
    """None at all by default for sgd, torch's 0.9 for adam; 0 means 0 for both."""
    parameters = [nn.Parameter(torch.zeros(2, 2))]
    adam = optimizer_for(parameters, Train(optimizer="adam", **momentum))
    assert adam.param_groups[0]["betas"] == (beta, 0.999)
    sgd = optimizer_for(parameters, Train(**momentum))
    assert sgd.param_groups[0]["momentum"] == momentum.get("momentum", 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_biases_do_not_decay(optimizer: str) -> None:
    weights, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    groups = optimizer_for([weights, bias], Train(optimizer=optimizer, weight_decay=0.1)).param_groups
    assert [(group["params"], group["weight_decay"]) for group in groups] == [([weights], 0.1), ([bias], 0.0)]
