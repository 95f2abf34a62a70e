"""The Boltzmann machine: binary visible and hidden units, each coupled to all others (Ackley, Hinton & Sejnowski 1985,
Cognitive Science 9).

Symbols: x = (v, h) all units, visible ones first, a `biases`, S the couplings, symmetric and zero on the diagonal.

    E(x) = −a·x − ½ xᵀ S x = −Σ_i a_i x_i − Σ_{i<j} S_ij x_i x_j,          p(x) = exp(−E(x)) / Z

Nothing is independent of anything, so that units are drawn, and means improved, one after the other: a sweep takes as
many steps as there are units. Machines with hundreds of units are what this is for; where couplings within a layer can
be spared, `boltzmann` and `deep_boltzmann` are faster by orders of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_modules.interfaces import (
    Batch,
    Effort,
    HasLogProb,
    Layer,
    LogLikelihood,
    Losses,
    Model,
    RankState,
    Samples,
    StartsFromData,
)
from lightning_modules.likelihood import (
    MAX_ENUMERATED_UNITS,
    Annealing,
    LogPartition,
    annealed_importance_sampling,
    bounded,
    enumerated_log_partition,
)
from lightning_modules.mean_field import settled
from lightning_modules.units import Bernoulli

BINARY = Bernoulli()


@dataclass(frozen=True)
class Coupled:
    """biases: (num_units,). couplings: S in full, (num_units, num_units). States x are (batch, num_units)."""

    biases: Tensor
    couplings: Tensor

    def energy(self, x: Tensor) -> Tensor:
        """E(x), (batch,), nats. Linear in every unit, so of means of independent units it is the mean energy."""
        return -(x @ self.biases + (x @ self.couplings * x).sum(-1) / 2)

    def field(self, x: Tensor, units: slice | int) -> Tensor:
        """a_i + Σ_j S_ij x_j of these units, (batch, number of units) or, of one, (batch,)."""
        return self.biases[units] + x @ self.couplings[units].t()

    def sweep(self, x: Tensor, units: slice, *, draw: bool) -> Tensor:
        """x with these units replaced in turn by draws given all others (Gibbs) or, differentiably, by their means."""
        if draw:
            x = x.clone()
        for i in range(*units.indices(x.shape[1])):
            new = BINARY.mean(self.field(x, slice(i, i + 1)))
            if draw:
                x[:, i : i + 1] = BINARY.draw(new)
            else:
                x = torch.cat([x[:, :i], new, x[:, i + 1 :]], dim=1)
        return x


class BoltzmannMachine(Model, Layer, HasLogProb, Samples, StartsFromData, RankState):
    """A general Boltzmann machine, and a layer: its code is the mean-field mean of the hidden units.

    num_visible, num_hidden: at least 1.
    gibbs_steps: sweeps over all units of the persistent chains a step, at least 1.
    num_chains: persistent chains, shared by all ranks.
    mean_field_steps: cap of the sweeps of mean-field inference, at least 1.
    mean_field_tolerance: inference of a sample ends when a sweep moves none of its means by more, ≥ 0.
    weight_std: of the initial couplings, ≥ 0.
    """

    revision: ClassVar[int] = 2

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        gibbs_steps: int = 1,
        num_chains: int = 100,
        mean_field_steps: int = 25,
        mean_field_tolerance: float = 1e-3,
        weight_std: float = 0.01,
    ) -> None:
        super().__init__()
        counts = {"num_visible": num_visible, "num_hidden": num_hidden, "gibbs_steps": gibbs_steps}
        for name, count in (counts | {"num_chains": num_chains, "mean_field_steps": mean_field_steps}).items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        for name, number in (("mean_field_tolerance", mean_field_tolerance), ("weight_std", weight_std)):
            if not number >= 0:
                raise ValueError(f"{name} must not be negative, as {number} is")
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.gibbs_steps, self.num_chains, self.weight_std = gibbs_steps, num_chains, weight_std
        self.mean_field_steps, self.mean_field_tolerance = mean_field_steps, mean_field_tolerance
        self.num_units = num_visible + num_hidden
        self._visible, self._hidden = slice(0, num_visible), slice(num_visible, self.num_units)
        self.biases = nn.Parameter(torch.zeros(self.num_units))
        self.upper_couplings = nn.Parameter((weight_std * torch.randn(self.num_units, self.num_units)).triu(1))
        self._chains = BINARY.sample(torch.zeros(num_chains, self.num_units))

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """That of binary units: (0, 1)."""
        return BINARY.value_range

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        """That of binary units: (0, 1)."""
        return BINARY.value_range

    @property
    def num_unused(self) -> int:
        """Couplings on the diagonal and below it."""
        return self.num_units * (self.num_units + 1) // 2

    def machine(self) -> Coupled:
        """The energy, with S in full: of `upper_couplings` only what is above the diagonal counts."""
        upper = self.upper_couplings.triu(1)
        return Coupled(self.biases, upper + upper.t())

    # ---- inference

    def mean_field(self, x: Tensor, units: slice) -> Tensor:
        """x with the means of these units at a fixed point given the others, (batch, num_units).

        From means that do not know of each other; then every unit in turn gets the best mean there is given the
        rest, so that the bound never falls and nothing has to be damped. Differentiable.
        """
        machine = self.machine()

        def joined(means: Tensor) -> Tensor:
            return torch.cat([x[:, : units.start], means, x[:, units.stop :]], dim=1)

        alone = joined(torch.zeros_like(x[:, units]))
        [means] = settled(
            [BINARY.mean(machine.field(alone, units))],
            lambda means: [machine.sweep(joined(means[0]), units, draw=False)[:, units]],
            steps=self.mean_field_steps,
            tolerance=self.mean_field_tolerance,
        )
        return joined(means)

    def infer(self, v: Tensor) -> Tensor:
        """(v, q): the data and the means of a q(h | v) of independent units, (batch, num_units)."""
        return self.mean_field(torch.cat([v, v.new_zeros(len(v), self.num_hidden)], dim=1), self._hidden)

    def bound(self, means: Tensor) -> Tensor:
        """E_q[−E(v, h)] + H(q) ≤ log p(v) + log Z, (batch,), nats; it falls short by KL(q(h | v) ‖ p(h | v)).

        means: (v, q), (batch, num_units).
        """
        q = means[:, self._hidden]
        entropy = (torch.special.entr(q) + torch.special.entr(1 - q)).sum(-1)
        return entropy - self.machine().energy(means)

    def encode(self, v: Tensor) -> Tensor:
        """q, (batch, num_visible) → (batch, num_hidden)."""
        return self.infer(v)[:, self._hidden]

    def decode(self, h: Tensor) -> Tensor:
        """Mean-field means of the visible units given the hidden ones, (batch, num_hidden) → (batch, num_visible)."""
        x = torch.cat([h.new_zeros(len(h), self.num_visible), h], dim=1)
        return self.mean_field(x, self._visible)[:, self._visible]

    def filters(self) -> Tensor:
        """The couplings of each hidden unit to the visible ones, (num_hidden, num_visible)."""
        return self.upper_couplings.detach()[self._visible, self._hidden].t()

    # ---- training

    def start_from_data(self, x: Tensor) -> None:
        self.start_from_data_mean(x.mean(dim=0))

    @torch.no_grad()
    def start_from_data_mean(self, mean: Tensor) -> None:
        """Sets the visible biases to the base rates of the data; for use before the first step.

        mean: (num_visible,), of the training data.
        """
        self.biases[self._visible] = BINARY.field_of_mean(mean.to(self.biases))

    def losses(self, batch: Batch) -> Losses:
        """{"loss": −mean bound(data) − mean E(model samples)} in nats, and a monitor; batch: (batch, num_visible).

        Mean-field means of the data against persistent chains (Peterson & Anderson 1987, Complex Systems 1; Younes
        1989; Salakhutdinov & Hinton 2009). With chains in equilibrium the loss has the gradient of log Z − bound; its
        value does not measure progress. "reconstruction_error" is that of each visible unit's mean given all other
        units, squared, summed, a mean over the batch. In training mode the chains move on.
        """
        assert isinstance(batch, Tensor)
        with torch.no_grad():
            machine, means = self.machine(), self.infer(batch)
            error = (batch - BINARY.mean(machine.field(means, self._visible))).square().sum() / len(batch)
            chains = self._chains.to(batch)
            for _ in range(self.gibbs_steps):
                chains = machine.sweep(chains, slice(None), draw=True)
            if self.training:
                self._chains = chains
        return {"loss": self.bound_difference(means, chains), "reconstruction_error": error}

    def bound_difference(self, means: Tensor, model: Tensor, model_weights: Tensor | None = None) -> Tensor:
        """−mean bound(means) − mean E(model), a scalar in nats whose gradient reaches the parameters alone.

        means: (v, q) of the data; model: states of all units. model_weights: (number of states,), take the place of
        the plain mean: all states, each weighted by its probability, make it the exact gradient of log Z − bound.
        """
        with torch.no_grad():
            if model_weights is None:
                model_weights = model.new_full((len(model),), 1 / len(model))
            value = -self.bound(means).mean() - model_weights @ self.machine().energy(model)
            share = torch.cat([model_weights.new_full((len(means),), 1 / len(means)), -model_weights])
        both = torch.cat([means, model]).detach()
        loss: Tensor = _WeightedEnergy.apply(value, share, both, self.upper_couplings, self.biases)
        return loss

    def rank_state(self) -> dict[str, Tensor]:
        """{"chains": (num_chains, num_units)}."""
        return {"chains": self._chains}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Takes over persistent chains, any number of them. ValueError if they are missing or of another width."""
        if "chains" not in state or state["chains"].shape[1:] != (self.num_units,):
            found = {name: tuple(tensor.shape) for name, tensor in state.items()}
            raise ValueError(f"persistent chains must be 'chains' of shape (any, {self.num_units}), not {found}")
        self._chains = state["chains"].clone()

    # ---- density and samples

    @torch.no_grad()
    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """E[v_i | all others] after `effort.num_temperatures` Gibbs sweeps, one chain a sample, from the biases."""
        machine = self.machine()
        x = BINARY.sample(self.biases.expand(num_samples, -1))
        for _ in range(effort.num_temperatures):
            x = machine.sweep(x, slice(None), draw=True)
        return BINARY.mean(machine.field(x, self._visible))

    @torch.no_grad()
    def annealing(self, num_chains: int) -> Annealing:
        """Chains for annealed importance sampling, drawn at β = 0."""
        return _CoupledAnnealing(self.machine(), num_chains)

    @torch.no_grad()
    def log_partition(self, *, effort: Effort) -> LogPartition:
        """log Z, exact where there are at most 20 units, else estimated by AIS."""
        if self.num_units > MAX_ENUMERATED_UNITS:
            return annealed_importance_sampling(self.annealing(effort.num_chains), effort)
        machine = self.machine()
        return enumerated_log_partition(lambda x: -machine.energy(x), self.num_units, like=self.biases)

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """bound(x) − log Z ≤ log p(x), (batch,) nats.

        Where log Z is an estimate by AIS, which is low in expectation, the bound holds only up to its error, and the
        answer is called an estimate; standard error and effective sample size are those of log Z.
        """
        partition = self.log_partition(effort=effort)
        return bounded(self.bound(self.infer(x)), partition, effort, name="mean-field bound")

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Six visible and four hidden units, and two binary samples."""
        return cls(num_visible=6, num_hidden=4), torch.tensor([[1.0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 0, 1]])


class _WeightedEnergy(torch.autograd.Function):
    """Σ_n share_n E(x_n) of independent units of means x, with its gradient in closed form, both phases in one product:

    ∂/∂S_ij = −Σ_n share_n x_ni x_nj for i < j,   ∂/∂a = −Σ_n share_n x_n
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: Tensor, share: Tensor, x: Tensor, upper_couplings: Tensor, biases: Tensor
    ) -> Tensor:
        ctx.save_for_backward(share, x)
        return value.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        share, x = ctx.saved_tensors
        shared = (-grad * share)[:, None] * x
        return None, None, None, (x.t() @ shared).triu_(1), shared.sum(0)


class _CoupledAnnealing(Annealing):
    """Chains of a machine whose couplings grow from none (β = 0) to their own (β = 1), under the same biases:

    p_β(x) ∝ exp(a·x + β ½ xᵀ S x)
    """

    def __init__(self, machine: Coupled, num_chains: int) -> None:
        self._machine = machine
        self.log_partition_at_start = float(BINARY.log_partition(machine.biases))
        self._x = BINARY.sample(machine.biases.expand(num_chains, -1))

    def log_ratio(self, beta: float, next_beta: float) -> Tensor:
        """log p*_next(x) − log p*_β(x) of each chain, (num_chains,)."""
        return (next_beta - beta) * (self._x @ self._machine.couplings * self._x).sum(-1) / 2

    def step(self, beta: float) -> None:
        """One Gibbs sweep that leaves p_β as it is."""
        warmer = Coupled(self._machine.biases, beta * self._machine.couplings)
        self._x = warmer.sweep(self._x, slice(None), draw=True)
