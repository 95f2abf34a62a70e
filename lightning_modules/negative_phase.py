"""The negative phase of learning: where the states come from that stand for the model in the likelihood's gradient.

    −∂ log p(data) = mean ∂F(data) − E_model[∂F]

The expectation is replaced by a mean over chains of Gibbs sweeps; algorithms differ in where these start and in how
they move. They get the machine at every call and learn nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_modules.bipartite import Bipartite


class NegativePhase(nn.Module, ABC):
    """Draws states of the visible units from chains, all under `torch.no_grad`."""

    @abstractmethod
    def draw(self, machine: Bipartite, data: Tensor, data_field: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """→ (states (any, num_visible), monitors); data (batch, num_visible), data_field their `hidden_field`.

        Chains that outlive a step move on in training mode only.
        """

    @abstractmethod
    def rank_state(self) -> dict[str, Tensor]:
        """See `interfaces.RankState`."""

    @abstractmethod
    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """See `interfaces.RankState`."""


class ContrastiveDivergence(NegativePhase):
    """Chains that start at the batch (Hinton 2002, Neural Comput. 14).

    The monitor "reconstruction_error" is squared, summed over units, after the first half sweep, a mean over the batch.

    Every draw is binary. The often used shortcut of reconstructing with probabilities (Hinton 2010, "A practical guide
    to training RBMs", §3) ended 4 nats lower in exact log p(v): a 784-14 machine on MNIST after 6 epochs, CD-1 and
    CD-5, two seeds.
    """

    def __init__(self, gibbs_steps: int) -> None:
        super().__init__()
        self.gibbs_steps = gibbs_steps

    def draw(self, machine: Bipartite, data: Tensor, data_field: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        replicas = machine.visible_units.replicas(data)
        states, field = machine.sweeps(data_field, self.gibbs_steps, replicas)
        reconstruction = machine.visible_units.mean(field, replicas)
        return states, {"reconstruction_error": (data - reconstruction).square_().sum() / len(data)}

    def rank_state(self) -> dict[str, Tensor]:
        return {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        pass


class PersistentChains(NegativePhase):
    """Chains that start where they stopped in the step before (Younes 1989; Tieleman 2008, ICML).

    chains: (num_chains, num_visible), where they start in the first.
    """

    def __init__(self, gibbs_steps: int, chains: Tensor) -> None:
        super().__init__()
        self.gibbs_steps = gibbs_steps
        self._chains = chains  # no buffer: DistributedDataParallel would overwrite it with rank 0's

    def draw(self, machine: Bipartite, data: Tensor, data_field: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        states, _ = machine.sweeps(machine.hidden_field(self._chains.to(data)), self.gibbs_steps)
        if self.training:
            self._chains = states
        return states, {}

    def rank_state(self) -> dict[str, Tensor]:
        return {"chains": self._chains}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._chains = checked_chains(state, self._chains.shape[1:])


def checked_chains(state: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """A copy of the chains in a rank's state, of this shape each. ValueError if they are missing or of another."""
    if "chains" not in state or state["chains"].shape[1:] != shape:
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        raise ValueError(
            f"persistent chains must be 'chains' of shape (any, {', '.join(map(str, shape))}), not {found}"
        )
    return state["chains"].clone()
