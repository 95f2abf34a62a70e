"""Layers of binary units coupled to their neighbours and to nothing else: the mathematics of a deep Boltzmann machine
(Salakhutdinov & Hinton 2009, AISTATS).

Symbols: x_0 … x_L the layers, b_k their biases, W_k the weights between x_{k−1} and x_k.

    E(x) = −Σ_k b_k·x_k − Σ_k x_{k−1}ᵀ W_k x_k,          p(x) = exp(−E(x)) / Z

Given the even layers the odd ones are independent, and the other way round: Gibbs sweeps, sums over states and
annealing go by these halves. Not here: parameters that learn, data, inference (`deep_boltzmann`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.likelihood import Annealing
from lightning_modules.units import Bernoulli

BINARY = Bernoulli()


@dataclass(frozen=True)
class Layered:
    """biases: b_0 … b_L, (num_units_k,) or (batch, num_units_k); weights: W_1 … W_L, (num_units_{k−1}, num_units_k).

    `states` are one tensor a layer, (batch, num_units_k); those that a method does not read may be anything.
    """

    biases: Sequence[Tensor]
    weights: Sequence[Tensor]

    def parity(self, *, odd: bool) -> range:
        """The numbers of the odd or of the even layers."""
        return range(int(odd), len(self.biases), 2)

    def num_units(self, layers: range) -> int:
        """How many units these layers have together."""
        return sum(self.biases[k].shape[-1] for k in layers)

    @property
    def smaller_half(self) -> range:
        """The odd or the even layers, whichever have fewer units."""
        return min(self.parity(odd=True), self.parity(odd=False), key=self.num_units)

    def input(self, k: int, states: Sequence[Tensor]) -> Tensor:
        """What layer k gets from its neighbours, without its bias: (batch, num_units_k)."""
        parts = [states[k - 1] @ self.weights[k - 1]] if k > 0 else []
        parts += [states[k + 1] @ self.weights[k].t()] if k < len(self.weights) else []
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def field(self, k: int, states: Sequence[Tensor]) -> Tensor:
        """b_k + W_kᵀ x_{k−1} + W_{k+1} x_{k+1}, (batch, num_units_k)."""
        return self.biases[k] + self.input(k, states)

    def mean(self, k: int, states: Sequence[Tensor]) -> Tensor:
        """E[x_k | its neighbours], (batch, num_units_k)."""
        return BINARY.mean(self.field(k, states))

    def draw(self, layers: range, states: list[Tensor]) -> None:
        """Replaces these layers, all of one parity, by draws given their neighbours."""
        for k in layers:
            states[k] = BINARY.sample(self.field(k, states))

    def sweep(self, states: list[Tensor]) -> None:
        """One Gibbs sweep in place, the odd layers first: only the even ones are read."""
        self.draw(self.parity(odd=True), states)
        self.draw(self.parity(odd=False), states)

    def uncoupled_draws(self, number: int) -> list[Tensor]:
        """(number, num_units_k) per layer, as if there were no weights."""
        return [BINARY.sample(bias.expand(number, -1)) for bias in self.biases]

    def energy(self, states: Sequence[Tensor]) -> Tensor:
        """E(x), (batch,), nats. Linear in every layer, so of means of independent units it is the mean energy."""
        total = states[0] @ self.biases[0]
        for k, weights in enumerate(self.weights, start=1):
            total = total + ((states[k - 1] @ weights + self.biases[k]) * states[k]).sum(-1)
        return -total

    def free_energy(self, states: Sequence[Tensor], layers: range) -> Tensor:
        """−log Σ exp(−E) over all states of the half that is not `layers`, those of one parity: (batch,), nats."""
        terms = [
            states[k] @ bias if k in layers else BINARY.log_partition(self.field(k, states))
            for k, bias in enumerate(self.biases)
        ]
        return -torch.stack(terms).sum(0)


class LayeredAnnealing(Annealing):
    """Chains of a machine whose parameters grow from independent units (β = 0) to their own values (β = 1):

    p_β(s) ∝ exp(Σ_k s_k·((1−β) a_k + β b_k)) Π_j (1 + exp((1−β) a_j + β (b_j + Σ_i W_ij s_i)))

    where s is the half with fewer units and j counts the units of the other half, which are summed over. The fields a_k
    at the start are zero (Salakhutdinov & Hinton 2009, §3.2), but for those of the lowest layer: `base_field`.

    start: states of all layers, where chains that go back from β = 1 begin; else they are drawn at β = 0.
    A step is a sweep over both halves, which seen from s alone satisfies detailed balance.
    """

    def __init__(
        self, machine: Layered, num_chains: int, base_field: Tensor, start: Sequence[Tensor] | None = None
    ) -> None:
        self._machine = machine
        self._base = [base_field.to(machine.biases[0]), *(torch.zeros_like(bias) for bias in machine.biases[1:])]
        self._kept = machine.smaller_half
        self._summed = machine.parity(odd=0 in self._kept)
        self.log_partition_at_start = sum(float(BINARY.log_partition(base)) for base in self._base)
        at_rest = Layered(self._base, machine.weights)
        self._states = at_rest.uncoupled_draws(num_chains) if start is None else list(start)
        self._look()

    def _look(self) -> None:
        """What the next ratio and the next step need of where the chains stand."""
        gains = [self._states[k] @ (self._machine.biases[k] - self._base[k]) for k in self._kept]
        self._gain = torch.stack(gains).sum(0)
        self._fields = {k: self._machine.field(k, self._states) for k in self._summed}

    def log_ratio(self, beta: float, next_beta: float) -> Tensor:
        """log p*_next(s) − log p*_β(s) of each chain, (num_chains,)."""
        total = (next_beta - beta) * self._gain
        for k, field in self._fields.items():
            after, before = (torch.lerp(self._base[k], field, b) for b in (next_beta, beta))
            total = total + functional.softplus(after).sub_(functional.softplus(before)).sum(-1)
        return total

    def step(self, beta: float) -> None:
        """One Gibbs sweep that leaves p_β as it is."""
        for k, field in self._fields.items():
            self._states[k] = BINARY.sample(torch.lerp(self._base[k], field, beta))
        for k in self._kept:
            field = self._machine.field(k, self._states)
            self._states[k] = BINARY.sample(torch.lerp(self._base[k], field, beta))
        self._look()
