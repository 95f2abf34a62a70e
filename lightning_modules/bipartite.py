"""The distribution of a restricted Boltzmann machine: two layers of units, independent within a layer given the other.

Symbols: v visible and h hidden units, T their statistics (v and h themselves for Bernoulli and Gaussian units), A_h the
log-partition of the hidden units (softplus for binary ones), W `weights`, b `visible_bias`, c `hidden_bias`.

    E(v, h) = −log_base(v) − log_base(h) − b·T(v) − c·T(h) − T(v)ᵀ W T(h),          p(v, h) = exp(−E(v, h)) / Z
    F(v)    = −log Σ_h exp(−E(v, h)) = −log_base(v) − b·T(v) − Σ_j A_h(c + T(v)W)_j

Where v stands for D like units (`Units.replicas`), D c takes the place of c.

Parameters are given here, not learned: an `RBM` hands over its own, its negative phase may use others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lightning_modules.units import Units


@dataclass(frozen=True)
class Bipartite:
    """Fields, means, free energies and Gibbs sweeps for given parameters."""

    weights: Tensor  # (num_visible, num_hidden)
    visible_bias: Tensor  # (num_visible,)
    hidden_bias: Tensor  # (num_hidden,)
    base_field: Tensor  # (num_visible,), of the independent visible units from which tempered machines lead to this one
    visible_units: Units
    hidden_units: Units

    def hidden_field(self, v: Tensor) -> Tensor:
        """D c + T(v) W, D the `replicas` of v, else 1: (batch, num_visible) → (batch, num_hidden)."""
        replicas = self.visible_units.replicas(v)
        bias = self.hidden_bias if replicas is None else replicas * self.hidden_bias
        return torch.addmm(bias, self.visible_units.statistic(v), self.weights)

    def visible_field(self, h: Tensor) -> Tensor:
        """b + W T(h), (batch, num_hidden) → (batch, num_visible)."""
        return torch.addmm(self.visible_bias, self.hidden_units.statistic(h), self.weights.t())

    def hidden_mean(self, v: Tensor) -> Tensor:
        """E[h | v], (batch, num_visible) → (batch, num_hidden)."""
        return self.hidden_units.mean(self.hidden_field(v))

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v | h], (batch, num_hidden) → (batch, num_visible)."""
        return self.visible_units.mean(self.visible_field(h))

    def free_energy(self, v: Tensor, hidden_field: Tensor) -> Tensor:
        """F(v), nats: (batch, num_visible) and the `hidden_field` of v → (batch,)."""
        visible_term = self.visible_units.log_base(v) + self.visible_units.statistic(v) @ self.visible_bias
        return -visible_term - self.hidden_units.log_partition(hidden_field)

    def sweeps(self, hidden_field: Tensor, number: int, replicas: Tensor | None = None) -> Tensor:
        """A draw of v after Gibbs sweeps h, v from hidden units with these fields.

        replicas: those of every draw of v.
        """
        field = self.visible_field(self.hidden_units.sample(hidden_field))
        for _ in range(number - 1):
            v = self.visible_units.sample(field, replicas)
            field = self.visible_field(self.hidden_units.sample(self.hidden_field(v)))
        return self.visible_units.sample(field, replicas)

    def log_pseudolikelihood(self, v: Tensor, hidden_field: Tensor) -> Tensor:
        """Σ_i log p(v_i | all other visible units) of binary v, estimated from one random unit per example: (batch,).

        p(v_i | rest) = σ(F(v with unit i flipped) − F(v)) (Besag 1975; Marlin et al. 2010, AISTATS).
        """
        num_visible = len(self.visible_bias)
        unit = torch.randint(num_visible, (len(v),), device=v.device)
        flip = 1 - 2 * v.gather(1, unit[:, None])  # (batch, 1)
        flipped_field = torch.addcmul(hidden_field, flip, self.weights[unit])
        free_energy_rise = (
            self.hidden_units.log_partition(hidden_field)
            - self.hidden_units.log_partition(flipped_field)
            - flip[:, 0] * self.visible_bias[unit]
        )
        return num_visible * functional.logsigmoid(free_energy_rise)

    def free_energy_difference(
        self, v: Tensor, hidden_field: Tensor, num_data: int, model_weights: Tensor | None = None
    ) -> Tensor:
        """mean F(data) − mean F(model), a scalar in nats whose gradient reaches the parameters alone.

        v: the data, num_data of them, and below them states of the model, (batch, num_visible); hidden_field: theirs.
        model_weights: (number of states,), take the place of the plain mean.
        """
        share = v.new_full((len(v),), 1 / num_data)
        share[num_data:] = -1 / (len(v) - num_data) if model_weights is None else -model_weights
        return self.weighted_free_energy(v, hidden_field, share)

    def weighted_free_energy(self, v: Tensor, hidden_field: Tensor, share: Tensor) -> Tensor:
        """Σ_n share_n F(v_n), a scalar in nats whose gradient reaches the parameters alone.

        v, hidden_field, share: (batch, num_visible), (batch, num_hidden) and (batch,).
        Hidden units without a density have no F; E(v, E[h | v]), with E[h | v] held fixed, then takes its place
        (Nair & Hinton 2010). Its gradient has the same form.
        """
        with torch.no_grad():
            statistic = self.visible_units.statistic(v)
            hidden_mean = self.hidden_units.statistic(self.hidden_units.mean(hidden_field))
            if self.hidden_units.has_density:
                value = share @ self.free_energy(v, hidden_field)
            else:
                visible_term = self.visible_units.log_base(v) + statistic @ self.visible_bias
                value = -share @ (visible_term + (hidden_field * hidden_mean).sum(-1))
            replicas = self.visible_units.replicas(v)
        loss: Tensor = _WeightedFreeEnergy.apply(
            self.weights, self.visible_bias, self.hidden_bias, statistic, hidden_mean, replicas, share, value
        )
        if any(parameter.requires_grad for parameter in self.visible_units.parameters()):
            loss = loss + self._without_value(v, hidden_mean, share)
        return loss

    def _without_value(self, v: Tensor, hidden_mean: Tensor, share: Tensor) -> Tensor:
        """0, with the gradient of Σ_n share_n F(v_n) in the parameters of the visible units themselves:

        −∂ log_base(v) − (b + W ĥ)·∂T(v), the hidden means ĥ held fixed, where F is stationary.
        """
        with torch.no_grad():
            field = torch.addmm(self.visible_bias, hidden_mean, self.weights.t())
        energy = -share @ (self.visible_units.log_base(v) + (field * self.visible_units.statistic(v)).sum(-1))
        return energy - energy.detach()


class _WeightedFreeEnergy(torch.autograd.Function):
    """Σ_n share_n F(v_n) with its gradient in closed form, both phases in one product:

    ∂/∂W = −T(v)ᵀ diag(share) ĥ,   ∂/∂b = −Σ_n share_n T(v_n),   ∂/∂c = −Σ_n share_n D_n ĥ_n,   ĥ_n = E[T(h) | v_n],

    where D_n are the replicas v_n stands for, None for one each.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        weights: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        statistic: Tensor,
        hidden_mean: Tensor,
        replicas: Tensor | None,
        share: Tensor,
        value: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(statistic, hidden_mean, replicas, share)
        return value.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        statistic, hidden_mean, replicas, share = ctx.saved_tensors
        share = -grad * share
        shared_hidden = share[:, None] * hidden_mean
        hidden_bias = shared_hidden.sum(0) if replicas is None else replicas[:, 0] @ shared_hidden
        return statistic.t() @ shared_hidden, share @ statistic, hidden_bias, None, None, None, None, None
