"""What is known of a restricted Boltzmann machine by summing over all states of its smaller layer: log Z, its gradient.

    Z = Σ_h exp(c·h + A_v(b + W h)) = Σ_v exp(−F(v)),        ∂ log Z = −E_model[∂E]

Of documents of D words (`Units.replicas`), c is D c.
A layer can be enumerated where its units are binary; 2^20 states are the limit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_modules.bipartite import Bipartite
from lightning_modules.interfaces import Losses
from lightning_modules.likelihood import LogPartition, binary_states, enumerated_log_partition
from lightning_modules.negative_phase import NegativePhase
from lightning_modules.units import Bernoulli


def enumerable_units(machine: Bipartite) -> float:
    """How many units the smaller layer of binary units has; infinity where there is none."""
    return min(_binary_units(machine))


def _binary_units(machine: Bipartite) -> tuple[float, float]:
    """(visible, hidden): how many units, infinity where they are not binary."""
    return (
        len(machine.visible_bias) if isinstance(machine.visible_units, Bernoulli) else math.inf,
        len(machine.hidden_bias) if isinstance(machine.hidden_units, Bernoulli) else math.inf,
    )


@torch.no_grad()
def exact_log_partition(machine: Bipartite, replicas: int | None = None) -> LogPartition:
    """log Z; replicas: the number of words, of documents. ValueError where `enumerable_units` are more than 20."""
    if _over_visible(machine):
        return enumerated_log_partition(
            lambda v: -machine.free_energy(v, machine.hidden_field(v)), len(machine.visible_bias), like=machine.weights
        )
    copies = None if replicas is None else machine.weights.new_full((1,), replicas)
    hidden_bias = machine.hidden_bias if replicas is None else replicas * machine.hidden_bias
    return enumerated_log_partition(
        lambda h: h @ hidden_bias + machine.visible_units.log_partition(machine.visible_field(h), copies),
        len(hidden_bias),
        like=machine.weights,
    )


def differentiable_log_partition(machine: Bipartite) -> Tensor:
    """log Z, a scalar that gradients reach the weights and biases through; errors: as `exact_log_partition`.

    It depends on no parameter of the visible units themselves, whose density given h is normalized. Costs two passes
    over the states, and the memory of a few thousand of them.
    """
    log_z: Tensor = _LogPartition.apply(machine.weights, machine.visible_bias, machine.hidden_bias, machine)
    return log_z


class Enumeration(NegativePhase):
    """All states instead of a few: the loss is −log p(data), a mean over the batch."""

    def losses(self, machine: Bipartite, data: Tensor) -> tuple[Losses, Tensor]:
        with torch.no_grad():
            field = machine.hidden_field(data)
        share = data.new_full((len(data),), 1 / len(data))
        loss = machine.weighted_free_energy(data, field, share) + differentiable_log_partition(machine)
        return {"loss": loss}, field

    def rank_state(self) -> dict[str, Tensor]:
        return {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        pass


def _over_visible(machine: Bipartite) -> bool:
    num_visible, num_hidden = _binary_units(machine)
    return num_visible < num_hidden


class _LogPartition(torch.autograd.Function):
    """log Z with the gradient E[T(v) T(h)ᵀ], E[T(v)], E[T(h)] under the model."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, weights: Tensor, visible_bias: Tensor, hidden_bias: Tensor, machine: Bipartite
    ) -> Tensor:
        ctx.machine, ctx.log_z = machine, exact_log_partition(machine).nats
        return weights.new_tensor(ctx.log_z)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        machine = ctx.machine
        number = len(machine.visible_bias if _over_visible(machine) else machine.hidden_bias)
        of_weights, of_visible, of_hidden = (
            torch.zeros_like(parameter) for parameter in (machine.weights, machine.visible_bias, machine.hidden_bias)
        )
        for states in binary_states(number, like=machine.weights):
            if _over_visible(machine):
                field = machine.hidden_field(states)
                log_weight = -machine.free_energy(states, field)
                visible, hidden = states, machine.hidden_units.statistic(machine.hidden_units.mean(field))
            else:
                field = machine.visible_field(states)
                log_weight = states @ machine.hidden_bias + machine.visible_units.log_partition(field)
                visible, hidden = machine.visible_units.statistic(machine.visible_units.mean(field)), states
            probability = grad * (log_weight - ctx.log_z).exp()
            shared = probability[:, None] * hidden
            of_weights.addmm_(visible.t(), shared)
            of_visible.addmv_(visible.t(), probability)
            of_hidden.add_(shared.sum(0))
        return of_weights, of_visible, of_hidden, None
