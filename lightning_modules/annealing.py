"""Chains of particular machines on the way from independent units (β = 0) to the machine itself (β = 1).

What they are for, annealed importance sampling and its reverse, is in `likelihood`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.bipartite import Bipartite
from lightning_modules.likelihood import Annealing
from lightning_modules.units import Bernoulli

_UNITS_AT_A_TIME = 512  # ratios of logistic functions are at least 1/2, so that a product of so many cannot underflow


class RBMAnnealing(Annealing):
    """Chains of a machine whose parameters grow from independent visible units to their own values:

    p_β(v) ∝ exp(log_base(v) + T(v)·((1−β) b₀ + β b)) Π_j (1 + exp β(D c + T(v)W)_j)
    (Salakhutdinov & Murray 2008, ICML, with hidden units of field zero at the start).

    base_field: b₀, (num_visible,), the field of the visible units at β = 0.
    start: (num_chains, num_visible), where chains that go back from β = 1 begin; else they are drawn at β = 0.
    replicas: D, how many like units v stands for (the words of a document), the same number in all chains.

    A step is a sweep v → h → v, which seen from v alone satisfies detailed balance.
    """

    def __init__(
        self,
        machine: Bipartite,
        num_chains: int,
        base_field: Tensor,
        start: Tensor | None = None,
        replicas: int | None = None,
    ) -> None:
        self._machine = machine
        self._base_field = base_field.to(machine.visible_bias)
        self._replicas = None if replicas is None else self._base_field.new_full((num_chains, 1), replicas)
        visible, no_field = machine.visible_units, torch.zeros_like(machine.hidden_bias)
        one = None if self._replicas is None else self._replicas[0]
        self.log_partition_at_start = float(
            visible.log_partition(self._base_field, one) + machine.hidden_units.log_partition(no_field)
        )
        base_fields = self._base_field.expand(num_chains, -1)
        self._set(visible.sample(base_fields, self._replicas) if start is None else start)

    def _set(self, v: Tensor) -> None:
        self._hidden_field = self._machine.hidden_field(v)
        bias_gain = self._machine.visible_bias - self._base_field
        self._visible_gain = (self._machine.visible_units.statistic(v) @ bias_gain).double()

    def log_ratio(self, beta: float, next_beta: float) -> Tensor:
        """log p*_next(v) − log p*_β(v) of each chain, (num_chains,), float64."""
        units, field = self._machine.hidden_units, self._hidden_field
        if isinstance(units, Bernoulli):
            hidden_gain = softplus_gain(field, beta, next_beta)
        else:
            hidden_gain = (units.log_partition(next_beta * field) - units.log_partition(beta * field)).double()
        return self._visible_gain.mul(next_beta - beta).add_(hidden_gain)

    def step(self, beta: float) -> None:
        """One Gibbs sweep that leaves p_β as it is."""
        machine = self._machine
        h = machine.hidden_units.sample(beta * self._hidden_field)
        bias = torch.lerp(self._base_field, machine.visible_bias, beta)
        field = torch.addmm(bias, machine.hidden_units.statistic(h), machine.weights.t(), alpha=beta)
        self._set(machine.visible_units.sample(field, self._replicas))


def softplus_gain(field: Tensor, beta: float, next_beta: float) -> Tensor:
    """Σ_j softplus(β' f_j) − softplus(β f_j), (num_chains, num_units) → (num_chains,), float64, for β, β' ≥ 0.

    As softplus(x) = max(x, 0) − log σ(|x|), it is (β' − β) Σ_j max(f_j, 0) + log Π_j σ(β|f_j|) / σ(β'|f_j|): one
    logarithm a chain, and no factor outside [1/2, 2]. Half the time of two softplus.
    """
    size = field.abs()
    ratio = torch.sigmoid(beta * size).div_(torch.sigmoid(size.mul_(next_beta)))
    positive = field.clamp(min=0).sum(-1, dtype=torch.float64)
    logs = [part.prod(-1, dtype=torch.float64).log_() for part in ratio.split(_UNITS_AT_A_TIME, dim=-1)]
    return positive.mul_(next_beta - beta).add_(torch.stack(logs).sum(0))
