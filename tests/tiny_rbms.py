"""RBMs whose states can be enumerated, in double precision."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from lightning_modules.boltzmann import RBM


def random_rbm(num_visible: int = 6, num_hidden: int = 4, *, scale: float = 1.0, **arguments: object) -> RBM:
    """Parameters drawn from N(0, scale²), double precision."""
    rbm = RBM(num_visible=num_visible, num_hidden=num_hidden, **arguments).double()  # type: ignore[arg-type]
    for parameter in rbm.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return rbm


def all_states(num_units: int) -> Tensor:
    """(2^num_units, num_units), by other means than the library's."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_units)), dtype=torch.float64)


def some_data(rbm: RBM, batch: int = 5) -> Tensor:
    noise = torch.randn(batch, rbm.num_visible, dtype=torch.float64)
    return noise if rbm.visible_range is None else (noise > 0).double()


def probabilities(rbm: RBM) -> Tensor:
    """p(v) of all 2^num_visible states; differentiable."""
    return torch.softmax(-rbm.free_energy(all_states(rbm.num_visible)), dim=0)


def gradients(rbm: RBM, loss: Tensor) -> tuple[Tensor, ...]:
    """Of W, b and c."""
    return torch.autograd.grad(loss, [rbm.weights, rbm.visible_bias, rbm.hidden_bias])


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
