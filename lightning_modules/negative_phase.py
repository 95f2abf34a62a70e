"""The negative phase of learning: where the states come from that stand for the model in the likelihood's gradient.

    −∂ log p(data) = mean ∂F(data) − E_model[∂F]

Mostly the expectation is replaced by a mean over chains of Gibbs sweeps; algorithms differ in where these start and in
how they move. They get the machine at every call. Not here: chains at several temperatures (`tempering`), all states at
once (`enumeration`), the names of them all (`algorithms`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_modules.bipartite import Bipartite
from lightning_modules.interfaces import Losses


class NegativePhase(nn.Module, ABC):
    """Sets data against what stands for the model."""

    @abstractmethod
    def losses(self, machine: Bipartite, data: Tensor) -> tuple[Losses, Tensor]:
        """{"loss": with the gradient of −log p(data), as nearly as the algorithm knows it, …} and the data's field.

        data: (batch, num_visible). Chains that outlive a step move in training only.
        """

    def follow(self, gradients: Sequence[Tensor]) -> None:
        """Takes note of the gradient that the machine's weights and biases went along, all ranks' mean; most do not."""

    @abstractmethod
    def rank_state(self) -> dict[str, Tensor]:
        """See `interfaces.RankState`."""

    @abstractmethod
    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """See `interfaces.RankState`."""


class ContrastiveDivergence(NegativePhase):
    """Chains that start at the batch (Hinton 2002, Neural Comput. 14).

    Every draw is binary. The often used shortcut of reconstructing with probabilities (Hinton 2010, "A practical guide
    to training RBMs", §3) ended 4 nats lower in exact log p(v): a 784-14 machine on MNIST after 6 epochs, CD-1 and
    CD-5, two seeds.
    """

    def __init__(self, gibbs_steps: int) -> None:
        super().__init__()
        self.gibbs_steps = gibbs_steps

    def losses(self, machine: Bipartite, data: Tensor) -> tuple[Losses, Tensor]:
        with torch.no_grad():
            field = machine.hidden_field(data)
            states = machine.sweeps(field, self.gibbs_steps, machine.visible_units.replicas(data))
        return {"loss": against(machine, data, field, states)}, field

    def rank_state(self) -> dict[str, Tensor]:
        return {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        pass


class PersistentChains(NegativePhase):
    """Chains that start where they stopped in the step before (Younes 1989; Tieleman 2008, ICML).

    A step ends with a draw of the hidden units, while the weights are still those of the gradient: the field of the
    states serves both, one product of six less than a draw at the beginning of the next step. And it comes from one
    product with that of the data.

    chains: (num_chains, num_visible), where they start in the first.
    """

    def __init__(self, gibbs_steps: int, chains: Tensor) -> None:
        super().__init__()
        self.gibbs_steps = gibbs_steps
        self._chains = chains  # no buffer: DistributedDataParallel would overwrite it with rank 0's
        self._hidden: Tensor | None = None  # drawn given the chains, (num_chains, num_hidden)

    def losses(self, machine: Bipartite, data: Tensor) -> tuple[Losses, Tensor]:
        both, fields = self.draw(machine, beside=data)
        return {"loss": machine.free_energy_difference(both, fields, len(data))}, fields[: len(data)]

    @torch.no_grad()
    def draw(self, machine: Bipartite, *, beside: Tensor) -> tuple[Tensor, Tensor]:
        """→ the data, and below them where the chains are after the sweeps of a step; their `hidden_field`s.

        beside: data, (any, num_visible).
        """
        hidden = self._hidden
        if hidden is None:
            hidden = machine.hidden_units.sample(machine.hidden_field(self._chains.to(beside)))
        for remaining in reversed(range(self.gibbs_steps)):
            states = machine.visible_units.sample(machine.visible_field(hidden.to(beside)))
            both = states if remaining else torch.cat([beside, states])
            fields = machine.hidden_field(both)
            hidden = machine.hidden_units.sample(fields[-len(states) :])
        if self.training:
            self._chains, self._hidden = states, hidden
        return both, fields

    def rank_state(self) -> dict[str, Tensor]:
        return {"chains": self._chains} | ({} if self._hidden is None else {"hidden": self._hidden})

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._chains = checked_chains(state, self._chains.shape[1:])
        self._hidden = state["hidden"].clone() if "hidden" in state else None


class FastPersistentChains(NegativePhase):
    """Persistent chains of a machine whose weights and biases are the learned ones plus fast ones (Tieleman & Hinton
    2009, ICML): these learn from the same gradient at a rate of their own, and of them 19/20 remain after each step,

        θ_fast ← 19/20 θ_fast − learning_rate · ∂ loss

    so that chains are driven from where they have just been, and mix faster than those of the learned machine.

    learning_rate: of the fast weights, > 0. They are buffers, equal on all ranks, since the gradients are.
    """

    decay: ClassVar[float] = 19 / 20
    weights: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    def __init__(self, gibbs_steps: int, chains: Tensor, *, num_hidden: int, learning_rate: float) -> None:
        super().__init__()
        num_visible = chains.shape[1]
        self.chains = PersistentChains(gibbs_steps, chains)
        self.learning_rate = learning_rate
        self.register_buffer("weights", torch.zeros(num_visible, num_hidden))
        self.register_buffer("visible_bias", torch.zeros(num_visible))
        self.register_buffer("hidden_bias", torch.zeros(num_hidden))

    def losses(self, machine: Bipartite, data: Tensor) -> tuple[Losses, Tensor]:
        faster = replace(
            machine,
            weights=machine.weights + self.weights,
            visible_bias=machine.visible_bias + self.visible_bias,
            hidden_bias=machine.hidden_bias + self.hidden_bias,
        )
        states, _ = self.chains.draw(faster, beside=data[:0])
        with torch.no_grad():
            field = machine.hidden_field(data)
        return {"loss": against(machine, data, field, states)}, field

    def follow(self, gradients: Sequence[Tensor]) -> None:
        for fast, gradient in zip((self.weights, self.visible_bias, self.hidden_bias), gradients, strict=True):
            fast.mul_(self.decay).sub_(gradient, alpha=self.learning_rate)

    def rank_state(self) -> dict[str, Tensor]:
        return self.chains.rank_state()

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self.chains.load_rank_state(state)


def against(machine: Bipartite, data: Tensor, data_field: Tensor, states: Tensor) -> Tensor:
    """mean F(data) − mean F(states), nats; data_field: the `hidden_field` of the data."""
    with torch.no_grad():
        both, fields = torch.cat([data, states]), torch.cat([data_field, machine.hidden_field(states)])
    return machine.free_energy_difference(both, fields, len(data))


def checked_chains(state: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """A copy of the chains in a rank's state, of this shape each. ValueError if they are missing or of another."""
    if "chains" not in state or state["chains"].shape[1:] != shape:
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        raise ValueError(
            f"persistent chains must be 'chains' of shape (any, {', '.join(map(str, shape))}), not {found}"
        )
    return state["chains"].clone()
