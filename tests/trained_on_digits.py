"""scikit-learn's digits, a short training on them, and what principal components leave of them."""

from __future__ import annotations

from typing import TypeVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from lightning_modules.interfaces import Layer, Model

Trained = TypeVar("Trained", bound=Model)


def small_digits() -> tuple[Tensor, Tensor]:
    """Train and, every fifth, held out: (1437, 64) and (360, 64), in [0, 1]."""
    x = torch.from_numpy(load_digits().data / 16).float()
    held_out = torch.arange(len(x)) % 5 == 0
    return x[~held_out], x[held_out]


def trained(model: Trained, x: Tensor, epochs: int, learning_rate: float = 3e-3, batch_size: int = 100) -> Trained:
    """By Adam with a linearly falling rate, as `training` does it."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for batch in x[torch.randperm(len(x))].split(batch_size):
            optimizer.zero_grad()
            model.losses(batch)["loss"].backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def error(model: Layer, x: Tensor, seen: Tensor | None = None) -> float:
    """‖x − what comes back of `seen`, by default of x itself‖² a sample."""
    return (model.decode(model.encode(x if seen is None else seen)) - x).square().sum(1).mean().item()


def principal(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The mean, and the axes (number, num_visible)."""
    mean = x.double().mean(0)
    around = x.double() - mean
    return mean, torch.linalg.eigh(around.T @ around).eigenvectors.flip(1)[:, :number].T


def pca_error(train: Tensor, held_out: Tensor, number: int) -> float:
    mean, axes = principal(train, number)
    around = held_out.double() - mean
    return (around - around @ axes.T @ axes).square().sum(1).mean().item()
