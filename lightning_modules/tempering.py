"""Parallel tempering: chains that can cross what a single temperature cannot (Desjardins et al. 2010, AISTATS; Cho,
Raiko & Ilin 2010, IJCNN).

Every chain has replicas at inverse temperatures 0 = β_1 < … < β_R = 1, equally spaced, of the machines

    p_β(v) ∝ exp(log_base(v) + T(v)·((1−β) b₀ + β b) + Σ_j A_h(β (c + T(v)W)_j))

between independent units of the data's base rates, b₀ = `base_field`, and the machine itself; annealed importance
sampling goes the same way. Only the replicas at β = 1 stand for the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.bipartite import Bipartite
from lightning_modules.interfaces import Losses
from lightning_modules.negative_phase import NegativePhase, against, checked_chains


class ParallelTempering(NegativePhase):
    """After the sweeps of a step, neighbours r, r+1 change places with probability

        min(1, p_β(v') p_β'(v) / (p_β(v) p_β'(v'))),            (v, β) of r, (v', β') of r+1

    first the pairs (1, 2), (3, 4) …, then (2, 3), (4, 5) …; "swap_acceptance" is the share that did.

    chains: (num_chains, num_temperatures, num_visible), where they start, replicas of rising β.
    """

    def __init__(self, gibbs_steps: int, chains: Tensor) -> None:
        super().__init__()
        self.gibbs_steps = gibbs_steps
        self._chains = chains  # no buffer, see `PersistentChains`

    def losses(self, machine: Bipartite, data: Tensor) -> tuple[Losses, Tensor]:
        states, acceptance = self.draw(machine, like=data)
        with torch.no_grad():
            field = machine.hidden_field(data)
        return {"loss": against(machine, data, field, states), "swap_acceptance": acceptance}, field

    @torch.no_grad()
    def draw(self, machine: Bipartite, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """→ (states at β = 1, (num_chains, num_visible), the share of swaps accepted)."""
        chains = self._chains.to(like)
        betas = torch.linspace(0, 1, chains.shape[1], dtype=like.dtype, device=like.device)[:, None]
        for _ in range(self.gibbs_steps):
            chains = self._sweep(machine, chains, betas)
        accepted = []
        with torch.autocast(chains.device.type, enabled=False):  # energies are differences of large sums
            for first in (0, 1):
                chains, acceptance = self._swap(machine, chains, betas, first)
                accepted.append(acceptance)
        if self.training:
            self._chains = chains
        return chains[:, -1], torch.cat(accepted, dim=1).mean()

    def _sweep(self, machine: Bipartite, chains: Tensor, betas: Tensor) -> Tensor:
        """One Gibbs sweep v → h → v of every replica at its own temperature."""
        h = machine.hidden_units.sample(betas * self._hidden_field(machine, chains))
        bias = torch.lerp(machine.base_field, machine.visible_bias, betas)
        return machine.visible_units.sample(bias + betas * (machine.hidden_units.statistic(h) @ machine.weights.t()))

    def _swap(self, machine: Bipartite, chains: Tensor, betas: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Every second pair of neighbours, from the one at `first` on → (chains, 1 where they changed places)."""
        number = (chains.shape[1] - first) // 2
        pairs = chains[:, first : first + 2 * number].unflatten(1, (number, 2))
        beta = betas[first : first + 2 * number].view(number, 2)
        field = self._hidden_field(machine, pairs)
        gain = machine.visible_units.statistic(pairs) @ (machine.visible_bias - machine.base_field)

        def log_weight(beta: Tensor) -> Tensor:  # log p*_β(v) up to what no β changes, (num_chains, pairs, 2)
            return beta * gain + machine.hidden_units.log_partition(beta[..., None] * field)

        log_ratio = (log_weight(beta.flip(1)) - log_weight(beta)).sum(-1)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        swapped = torch.where(accepted[..., None, None], pairs.flip(2), pairs).flatten(1, 2)
        ends = chains[:, :first], swapped, chains[:, first + 2 * number :]
        return torch.cat(ends, dim=1), accepted.to(log_ratio.dtype)

    def _hidden_field(self, machine: Bipartite, v: Tensor) -> Tensor:
        return machine.hidden_bias + machine.visible_units.statistic(v) @ machine.weights

    def rank_state(self) -> dict[str, Tensor]:
        return {"chains": self._chains}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._chains = checked_chains(state, self._chains.shape[1:])
