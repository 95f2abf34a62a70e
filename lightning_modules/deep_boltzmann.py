"""Deep Boltzmann machines made from a stack of RBMs (Salakhutdinov & Hinton 2009, AISTATS; 2012, Neural Comput. 24).

Symbols: x_0 = v the data, x_k = h_k the binary hidden units of layer k, L ≥ 2 hidden layers, W_k `weights[k−1]` between
x_{k−1} and x_k, b_k `biases[k]`, μ_k `offsets[k]` (zero unless `centered`), q_k the means of q(h_k | v).

    E(v, h) = −Σ_k b_k·(x_k − μ_k) − Σ_k (x_{k−1} − μ_{k−1})ᵀ W_k (x_k − μ_k),          p(v, h) = exp(−E(v, h)) / Z

up to a constant that Z shares. All layers are undirected.
Not here: the energy without offsets, sums over states, chains (`layered`); how the stack was trained (`boltzmann`, with
the units of `doubled`); annealing's arithmetic (`likelihood`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_modules.boltzmann import RBM
from lightning_modules.doubled import DoubledBernoulli
from lightning_modules.interfaces import (
    Batch,
    Effort,
    HasChains,
    HasFreeEnergy,
    HasHiddenLayers,
    HasLogProb,
    Layer,
    LogLikelihood,
    Losses,
    Model,
    RankState,
    Samples,
    StartsFromData,
)
from lightning_modules.layered import BINARY, Layered, LayeredAnnealing
from lightning_modules.likelihood import (
    MAX_ENUMERATED_UNITS,
    Annealing,
    LogPartition,
    annealed_importance_sampling,
    bounded,
    enumerated_log_partition,
    reverse_starts,
)
from lightning_modules.mean_field import settled
from lightning_modules.stack import Stack
from lightning_modules.units import Bernoulli


class DBM(Model, Layer, HasLogProb, HasFreeEnergy, Samples, HasChains, HasHiddenLayers, StartsFromData, RankState):
    """A deep Boltzmann machine, and a layer: its code is the mean-field mean of the top units.

    stack: at least two RBMs of binary units, else ValueError. The weights, the visible bias and that of the top units
        are copied from it; a layer between two RBMs gets the mean of its two biases. With doubled units (`visible` in
        the lowest RBM, `hidden` in the top one, `both` between) the RBMs fit together: in each, the side it could not
        see was replaced by a second copy of the one it could. For L = 2 the machine's p(h₁) is then the normalised
        geometric mean of the two the RBMs hold. A stack whose layers had no epochs is a start from scratch.
    gibbs_steps: sweeps of the persistent chains a step, at least 1.
    num_chains: persistent chains, shared by all ranks.
    mean_field_steps: cap of the sweeps of mean-field inference, at least 1.
    mean_field_tolerance: inference of a sample ends when a sweep moves none of its means by more, ≥ 0.
    centered: whether offsets are set to mean activities before the first step, and kept: so even a machine that no
        stack prepared trains (Montavon & Müller 2012, in "Neural Networks: Tricks of the Trade"). Offsets change how
        machines are parametrised, not which there are.
    """

    revision: ClassVar[int] = 3
    stack: Stack

    def __init__(
        self,
        *,
        stack: Stack,
        gibbs_steps: int = 5,
        num_chains: int = 100,
        mean_field_steps: int = 25,
        mean_field_tolerance: float = 1e-3,
        centered: bool = False,
    ) -> None:
        super().__init__()
        counts = {"gibbs_steps": gibbs_steps, "num_chains": num_chains, "mean_field_steps": mean_field_steps}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        if not mean_field_tolerance >= 0:
            raise ValueError(f"mean_field_tolerance must not be negative, as {mean_field_tolerance} is")
        rbms = _binary_rbms(stack)
        self.__dict__["stack"] = stack  # what this was made of; it learns nothing more, so it is no submodule
        self.gibbs_steps, self.num_chains, self.centered = gibbs_steps, num_chains, centered
        self.mean_field_steps, self.mean_field_tolerance = mean_field_steps, mean_field_tolerance
        self.num_visible, self.num_hidden = stack.num_visible, stack.num_hidden
        between = [(below.hidden_bias + above.visible_bias) / 2 for below, above in pairwise(rbms)]
        biases = [rbms[0].visible_bias, *between, rbms[-1].hidden_bias]
        self.weights = nn.ParameterList([nn.Parameter(rbm.weights.detach().clone()) for rbm in rbms])
        self.biases = nn.ParameterList([nn.Parameter(bias.detach().clone()) for bias in biases])
        for k, bias in enumerate(self.biases):
            self.register_buffer(f"offset{k}", torch.zeros_like(bias))
        with torch.no_grad():
            self._chains = self.machine().uncoupled_draws(num_chains)[::2]  # the odd layers follow from the even ones

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """That of binary units: (0, 1)."""
        return BINARY.value_range

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        """That of binary units: (0, 1)."""
        return BINARY.value_range

    @property
    def offsets(self) -> list[Tensor]:
        """μ_0 … μ_L, (num_units_k,) each."""
        return [self.get_buffer(f"offset{k}") for k in range(len(self.biases))]

    def machine(self) -> Layered:
        """The same distribution written without offsets: its biases are b_k − W_kᵀ μ_{k−1} − W_{k+1} μ_{k+1}."""
        layered = Layered(list(self.biases), list(self.weights))
        if not self.centered:
            return layered
        offsets = self.offsets
        return Layered([bias - layered.input(k, offsets) for k, bias in enumerate(self.biases)], layered.weights)

    # ---- inference

    def mean_field(self, v: Tensor) -> list[Tensor]:
        """v, q_1, …, q_L, (batch, num_units_k) each, at a fixed point q_k = E[h_k | q_{k−1}, q_{k+1}]: the independent
        units that come nearest to p(h | v), as far as can be seen from the start.

        That is a pass upwards in which the input from below counts twice where the one from above is missing. Then odd
        and even layers take turns: each half is the best possible given the other, so that the bound never falls and
        nothing has to be damped. A sample ends by itself, whatever the others in the batch do. Differentiable.
        """
        states, machine = [v], self.machine()
        for k, weights in enumerate(self.weights, start=1):
            copies = 1 if k == len(self.weights) else 2
            states.append(BINARY.mean(self.biases[k] + copies * ((states[-1] - self.offsets[k - 1]) @ weights)))
        from_data = machine.biases[1] + v @ self.weights[0]
        hidden = Layered([from_data, *machine.biases[2:]], machine.weights[1:])  # v does not change: counted once

        def sweep(means: list[Tensor]) -> list[Tensor]:
            means = list(means)
            for k in (*hidden.parity(odd=False), *hidden.parity(odd=True)):
                means[k] = hidden.mean(k, means)
            return means

        means = settled(states[1:], sweep, steps=self.mean_field_steps, tolerance=self.mean_field_tolerance)
        return [v, *means]

    def bound(self, means: Sequence[Tensor]) -> Tensor:
        """E_q[−E(v, h)] + H(q) ≤ log p(v) + log Z for independent units of these means, (batch,), nats.

        It falls short by KL(q(h | v) ‖ p(h | v)). means: v, q_1, …, q_L.
        """
        entropies = [(torch.special.entr(q) + torch.special.entr(1 - q)).sum(-1) for q in means[1:]]
        return torch.stack([-self.machine().energy(means), *entropies]).sum(0)

    def free_energy(self, v: Tensor) -> Tensor:
        """−bound at the mean-field means, above F(v) by KL(q(h | v) ‖ p(h | v)): (batch,), nats."""
        return -self.bound(self.mean_field(v))

    def encode(self, v: Tensor) -> Tensor:
        """q_L, (batch, num_visible) → (batch, num_hidden)."""
        return self.mean_field(v)[-1]

    def decode(self, h: Tensor) -> Tensor:
        """Means from the top units down, (batch, num_hidden) → (batch, num_visible).

        As on the way up, the input from one side counts twice in layers whose other side is missing.
        """
        for k in reversed(range(len(self.weights))):
            copies = 1 if k == 0 else 2
            h = BINARY.mean(self.biases[k] + copies * ((h - self.offsets[k + 1]) @ self.weights[k].t()))
        return h

    def filters(self) -> Tensor:
        """The weights into each top unit as seen from the data, Π_k W_k: (num_hidden, num_visible)."""
        return self.receptive_fields()[len(self.weights)]

    def hidden_means(self, v: Tensor) -> dict[int, Tensor]:
        """q_1 … q_L, (batch, num_units_k) each."""
        return dict(enumerate(self.mean_field(v)[1:], start=1))

    def incoming_weights(self) -> dict[int, Tensor]:
        """W_kᵀ, (num_units_k, num_units_{k−1}) each."""
        return {k: weights.detach().t() for k, weights in enumerate(self.weights, start=1)}

    def receptive_fields(self) -> dict[int, Tensor]:
        """W_kᵀ ⋯ W_1ᵀ, (num_units_k, num_visible) each."""
        fields = list(accumulate((weights.detach().t() for weights in self.weights), lambda below, w: w @ below))
        return dict(enumerate(fields, start=1))

    # ---- training

    @torch.no_grad()
    def start_from_data(self, x: Tensor) -> None:
        """Moves the offsets, then the persistent chains to some of x and hidden states of q(h | x).

        Chains that begin elsewhere are far from what a stack has learned: their first steps undo it.
        """
        self.start_from_data_mean(x.mean(dim=0))
        begin = x[torch.randint(len(x), (len(self._chains[0]),))]
        self._chains = [BINARY.draw(means) for means in self.mean_field(begin)[::2]]

    @torch.no_grad()
    def start_from_data_mean(self, mean: Tensor) -> None:
        """Moves the offsets of a centered machine to mean activities and leaves its distribution as it is.

        mean: (num_visible,), of the training data. The hidden offsets are the mean-field means given it, 1/2 where
        weights are small and biases zero.
        """
        if not self.centered:
            return
        machine = self.machine()
        offsets = [means[0] for means in self.mean_field(mean.to(self.biases[0])[None])]
        for k, offset in enumerate(self.offsets):
            offset.copy_(offsets[k])
            self.biases[k].copy_(machine.field(k, offsets))

    def losses(self, batch: Batch) -> Losses:
        """{"loss": −mean bound(data) − mean F(model samples)} in nats, and a monitor; batch: (batch, num_visible).

        Stochastic approximation (Salakhutdinov & Hinton 2009, §3): mean-field means of the data against persistent
        chains. With chains in equilibrium the loss has the gradient of log Z − bound, q held fixed as at an optimum of
        the bound it may be; its value does not measure progress. "reconstruction_error" is that of E[v | q_1], squared,
        summed over units, a mean over the batch. In training mode the chains move on.
        """
        assert isinstance(batch, Tensor)
        with torch.no_grad():
            machine, means = self.machine(), self.mean_field(batch)
            error = (batch - machine.mean(0, means)).square().sum() / len(batch)
            even = machine.parity(odd=False)
            states = [batch] * len(self.biases)
            for k, chains in zip(even, self._chains, strict=True):
                states[k] = chains.to(batch)
            for _ in range(self.gibbs_steps):
                machine.sweep(states)
            if self.training:
                self._chains = [states[k] for k in even]
        return {"loss": self.bound_difference(means, states), "reconstruction_error": error}

    def bound_difference(
        self, means: Sequence[Tensor], model: Sequence[Tensor], model_weights: Tensor | None = None
    ) -> Tensor:
        """−mean bound(means) − mean F(model), a scalar in nats whose gradient reaches the parameters alone.

        means: v, q_1, …, q_L of the data. model: states of all layers; the even ones count, the odd ones are summed
        over in F and may be anything. model_weights: (number of states,), take the place of the plain mean: all even
        states, each weighted by its probability, make it the exact gradient of log Z − bound.
        """
        with torch.no_grad():
            machine = self.machine()
            odd, even = machine.parity(odd=True), machine.parity(odd=False)
            if model_weights is None:
                model_weights = model[0].new_full((len(model[0]),), 1 / len(model[0]))
            value = -self.bound(means).mean() - model_weights @ machine.free_energy(model, even)
            expected = [machine.mean(k, model) if k in odd else model[k] for k in range(len(model))]
            both = [
                torch.cat([data, states]) - offset
                for data, states, offset in zip(means, expected, self.offsets, strict=True)
            ]
            share = torch.cat([model_weights.new_full((len(means[0]),), 1 / len(means[0])), -model_weights])
        loss: Tensor = _WeightedEnergy.apply(value, share, *both, *self.weights, *self.biases)
        return loss

    def rank_state(self) -> dict[str, Tensor]:
        """{"layer0": (num_chains, num_visible), "layer2": …}: the even layers of the persistent chains."""
        return {f"layer{2 * half}": chains for half, chains in enumerate(self._chains)}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Takes over persistent chains, any number of them. ValueError if they are missing or of another width."""
        widths = {name: chains.shape[1] for name, chains in self.rank_state().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        number = next(iter(found.values()), (0,))[0]
        if found != {name: (number, width) for name, width in widths.items()}:
            raise ValueError(f"persistent chains must be equally many in each of {widths}, not {found}")
        self._chains = [state[name].clone() for name in widths]

    # ---- density and samples

    @torch.no_grad()
    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """E[v | h_1] after `effort.num_temperatures` Gibbs sweeps, one independent chain a sample, from the biases."""
        machine = self.machine()
        states = machine.uncoupled_draws(num_samples)
        for _ in range(effort.num_temperatures):
            machine.sweep(states)
        machine.draw(machine.parity(odd=True), states)
        return machine.mean(0, states)

    @torch.no_grad()
    def chains(self, v: Tensor) -> Iterator[Tensor]:
        """E[v | h_1] in each Gibbs sweep, from h ~ q(h | v): (batch, num_visible), without end."""
        machine = self.machine()
        states = [v, *(BINARY.draw(means) for means in self.mean_field(v)[1:])]
        while True:
            machine.draw(machine.parity(odd=True), states)
            yield machine.mean(0, states)
            machine.draw(machine.parity(odd=False), states)

    @torch.no_grad()
    def annealing(
        self, num_chains: int, base_field: Tensor | None = None, *, start: Sequence[Tensor] | None = None
    ) -> Annealing:
        """Chains for annealed importance sampling, drawn at β = 0, or for its reverse, standing at `start`.

        base_field: (num_visible,), the field of the independent visible units at β = 0, by default the visible bias.
        start: states of all layers, (num_chains, num_units_k).
        """
        machine = self.machine()
        return LayeredAnnealing(machine, num_chains, machine.biases[0] if base_field is None else base_field, start)

    @torch.no_grad()
    def log_partition(
        self, *, effort: Effort, base_field: Tensor | None = None, examples: Tensor | None = None
    ) -> LogPartition:
        """log Z, exact where the odd or the even layers have at most 20 units together, else estimated by AIS.

        examples: (any, num_visible), data near which the model should put its mass; an estimate then also has one from
        the other side, `reverse`, of chains that begin where `effort.num_temperatures` Gibbs sweeps lead from some of
        them.
        """
        machine = self.machine()
        layers = machine.smaller_half
        if machine.num_units(layers) > MAX_ENUMERATED_UNITS:
            back = None if examples is None else self._annealing_back(examples, effort, base_field)
            return annealed_importance_sampling(self.annealing(effort.num_chains, base_field), effort, back=back)
        widths = [len(bias) if k in layers else 0 for k, bias in enumerate(machine.biases)]
        return enumerated_log_partition(
            lambda units: -machine.free_energy(units.split(widths, dim=1), layers), sum(widths), like=self.weights[0]
        )

    def _annealing_back(self, examples: Tensor, effort: Effort, base_field: Tensor | None) -> Annealing:
        num_starts, chains_per_start = reverse_starts(effort)
        machine = self.machine()
        v = examples[torch.randint(len(examples), (num_starts,), device=examples.device)]
        states = [v, *(BINARY.draw(means) for means in self.mean_field(v)[1:])]
        for _ in range(effort.num_temperatures):
            machine.sweep(states)
        start = [state.repeat_interleave(chains_per_start, dim=0) for state in states]
        return self.annealing(len(start[0]), base_field, start=start)

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """bound(x) − log Z ≤ log p(x), (batch,) nats (Salakhutdinov & Hinton 2009, §3.2).

        Where log Z is an estimate by AIS, which is low in expectation, the bound holds only up to its error, and the
        answer is called an estimate; standard error and effective sample size are those of log Z.
        """
        partition = self.log_partition(effort=effort, examples=x)
        return bounded(-self.free_energy(x), partition, effort, name="mean-field bound")

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Six visible, four and three hidden units, and two binary samples."""
        stack, batch = Stack.example()
        return cls(stack=stack), batch


def _binary_rbms(stack: Stack) -> list[RBM]:
    if len(stack) < 2:
        raise ValueError("a DBM needs at least two layers of hidden units; a stack of one layer is an rbm already")
    rbms = []
    for number, layer in enumerate(stack, start=1):
        if not isinstance(layer, RBM):
            raise ValueError(f"every layer of a DBM is an RBM, but layer {number} is {type(layer).__name__}")
        for units in (layer.visible_units, layer.hidden_units):
            if not isinstance(units, (Bernoulli, DoubledBernoulli)):
                raise ValueError(f"all units of a DBM are binary, but layer {number} has {type(units).__name__} ones")
        fits = "visible" if number == 1 else "hidden" if number == len(stack) else "both"
        if layer.doubled not in ("none", fits):
            raise ValueError(f"layer {number} of {len(stack)} of a DBM is doubled: {fits} or none, not {layer.doubled}")
        rbms.append(layer)
    return rbms


class _WeightedEnergy(torch.autograd.Function):
    """Σ_n share_n E_n, the shares summing to 0, with its gradient in closed form, both phases in one product:

    ∂/∂W_k = −(x_{k−1} − μ_{k−1})ᵀ diag(share) (x_k − μ_k),   ∂/∂b_k = −Σ_n share_n (x_{k,n} − μ_k)
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, share: Tensor, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        """tensors: x_k − μ_k of L + 1 layers, the L weights, the L + 1 biases."""
        num_layers = (len(tensors) + 1) // 3
        ctx.save_for_backward(share, *tensors[:num_layers])
        return value.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        share, *states = ctx.saved_tensors
        share = -grad * share
        shared = [share[:, None] * x for x in states]
        weights = [below.t() @ above for below, above in zip(states, shared[1:], strict=False)]
        return None, None, *[None] * len(states), *weights, *[x.sum(0) for x in shared]
