"""The optimizer a recipe's `train` block asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from conf import Train


def optimizer_for(parameters: Sequence[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """Weight decay on weights, not on biases (Hinton 2012, A Practical Guide to Training RBMs, §10)."""
    decaying = [p for p in parameters if p.ndim >= 2 and train.weight_decay]
    others = [p for p in parameters if p.ndim < 2 or not train.weight_decay]
    groups: list[dict[str, Any]] = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decaying, train.weight_decay), (others, 0.0))
        if group
    ]
    if train.optimizer == "adam":
        betas = (0.9 if train.momentum is None else train.momentum, 0.999)
        return torch.optim.Adam(groups, lr=train.learning_rate, betas=betas, fused=True)
    return torch.optim.SGD(groups, lr=train.learning_rate, momentum=train.momentum or 0.0, fused=True)
