"""Restricted Boltzmann machines (Smolensky 1986; Hinton 2002, Neural Comput. 14) as models: trained, sampled, measured.

Symbols: v visible and h hidden units, T(v) the visible statistic (v itself for binary units), W `weights`, b
`visible_bias`, c `hidden_bias`. For binary hidden units

    E(v, h) = −log_base(v) − b·T(v) − c·h − T(v)ᵀ W h,          p(v, h) = exp(−E(v, h)) / Z
    F(v)    = −log Σ_h exp(−E(v, h)) = −log_base(v) − b·T(v) − Σ_j softplus(c + T(v)W)_j

A document of D words (`visible: replicated_softmax`) has D c for c, and a Z for each D.

Not here: the families of units (`units`), energies, sweeps and the gradient in closed form (`bipartite`), what the
gradient sets against data (`algorithms`), the density (`density`), anything deep (`stack`, `belief_nets`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from lightning_modules import density
from lightning_modules.algorithms import idle_arguments, negative_phase
from lightning_modules.bipartite import Bipartite
from lightning_modules.categorical import ReplicatedSoftmax, Softmax
from lightning_modules.centering import Centering
from lightning_modules.families import hidden_family, visible_family
from lightning_modules.gaussian import Gaussian
from lightning_modules.interfaces import (
    Batch,
    Effort,
    HasChains,
    HasFreeEnergy,
    HasLogProb,
    HasMonitors,
    Layer,
    LogLikelihood,
    Losses,
    Model,
    MovingAverages,
    RankState,
    Samples,
    SamplesHidden,
    StartsFromBelow,
    StartsFromData,
)
from lightning_modules.likelihood import Annealing, LogPartition
from lightning_modules.sparsity import Sparsity
from lightning_modules.tied import copy_upside_down
from lightning_modules.units import Bernoulli


class RBM(
    Model,
    Layer,
    SamplesHidden,
    StartsFromBelow,
    StartsFromData,
    HasLogProb,
    HasFreeEnergy,
    Samples,
    HasChains,
    HasMonitors,
    RankState,
    MovingAverages,
):
    """A restricted Boltzmann machine of any two families of units.

    num_visible, num_hidden: at least 1.
    visible: "bernoulli" for data in [0, 1]; "gaussian" for real data, noise of the data's own variance, and
        "learned_gaussian", a variance learned from there (`gaussian`); "relu" for values ≥ 0, as the codes of rectified
        units; "softmax" for groups of states of which one is on, "replicated_softmax" for word counts (`categorical`).
    hidden: "bernoulli"; "gaussian", of variance 1, a linear code; "relu", noisy rectified (`rectified`).
    algorithm: what stands for the model in the gradient. "cd", contrastive divergence: chains that start at the batch
        (Hinton 2002). "pcd", persistent: where they stopped in the step before (Tieleman 2008, ICML; Younes 1989).
        "fast_pcd": these, driven by fast weights. "parallel_tempering": these, exchanged with replicas at higher
        temperatures. "exact": all 2^min(num_visible, num_hidden) states, at most 2^20 of them; the loss is then
        −log p(data). What the one chosen has no use for of the next four, a recipe may not give.
    gibbs_steps: full sweeps h | v, v | h of the negative phase, at least 1.
    num_chains: persistent chains, shared by all ranks.
    fast_learning_rate: of the fast weights of "fast_pcd", > 0.
    num_temperatures: replicas of each chain of "parallel_tempering", at least 2.
    centered: whether to follow the centered gradient, see `centering`; none: for gaussian visible units alone, which
        diverge without it at a learning rate of 0.05 (200 hidden units on MNIST's or photographs' intensities).
    sparsity_target, sparsity_cost: activity in (0, 1) binary hidden units are drawn to, or none, and how strongly, > 0;
        see `sparsity`.
    weight_std: of the initial weights, ≥ 0 (Hinton 2010, "A practical guide to training RBMs", §8: 0.01).
    doubled: which binary units stand twice, as the layers of a deep Boltzmann machine want it while they are trained
        one by one (see `doubled`): "visible" its lowest layer's, "hidden" its top layer's, "both" those between.
    start: "random", or "tied" to the RBM below, which must mirror this one, see `start_from_below`.
    num_states: of each group of softmax units, whose number it divides; for no others.
    """

    revision: ClassVar[int] = 6

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        visible: str = "bernoulli",
        algorithm: str = "cd",
        gibbs_steps: int = 1,
        num_chains: int = 100,
        fast_learning_rate: float = 0.05,
        num_temperatures: int = 10,
        centered: bool | None = None,
        sparsity_target: float | None = None,
        sparsity_cost: float = 0.1,
        weight_std: float = 0.01,
        doubled: str = "none",
        start: Literal["random", "tied"] = "random",
        hidden: str = "bernoulli",
        num_states: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"num_visible": num_visible, "num_hidden": num_hidden}
        for name, count in (counts | {"gibbs_steps": gibbs_steps, "num_chains": num_chains}).items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        if start not in ("random", "tied"):
            raise ValueError(f"start must be random or tied, not {start!r}")
        if not weight_std >= 0:
            raise ValueError(f"weight_std must not be negative, as {weight_std} is")
        if doubled not in ("none", "visible", "hidden", "both"):
            raise ValueError(f"doubled must be none, visible, hidden or both, not {doubled!r}")
        if visible == "replicated_softmax" and algorithm != "cd":
            raise ValueError("persistent chains know no number of words; replicated_softmax learns by algorithm: cd")
        self.num_visible = num_visible
        self.num_hidden = num_hidden
        self.algorithm = algorithm
        self.gibbs_steps = gibbs_steps
        self.visible, self.num_chains, self.weight_std, self.doubled = visible, num_chains, weight_std, doubled
        self.start = start
        self.fast_learning_rate, self.num_temperatures, self.centered = fast_learning_rate, num_temperatures, centered
        self.sparsity_target, self.sparsity_cost = sparsity_target, sparsity_cost
        self.hidden, self.num_states = hidden, num_states
        twice = doubled in ("visible", "both"), doubled in ("hidden", "both")
        self.visible_units = visible_family(visible, num_visible, num_states, doubled=twice[0])
        self.hidden_units = hidden_family(hidden, num_hidden, above=visible, doubled=twice[1])
        self.weights = nn.Parameter(weight_std * torch.randn(num_visible, num_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.base_field: Tensor
        self.register_buffer("base_field", torch.zeros(num_visible))
        self.negative_phase = negative_phase(
            algorithm, self.machine(), gibbs_steps, num_chains, fast_learning_rate, num_temperatures
        )
        center = isinstance(self.visible_units, Gaussian) if centered is None else centered
        self.centering = Centering(num_visible, num_hidden) if center else None
        self.sparsity = None
        if sparsity_target is not None:
            if not isinstance(self.hidden_units, Bernoulli):
                raise ValueError("sparsity_target is an activity of bernoulli hidden units, doubled ones excepted")
            self.sparsity = Sparsity(num_hidden, target=sparsity_target, cost=sparsity_cost)

    def idle_arguments(self) -> dict[str, str]:
        """Chains, temperatures … where the algorithm has none, and what only a sparsity target or a start needs."""
        found = idle_arguments(self.algorithm)
        found |= {} if self.sparsity is not None else {"sparsity_cost": "a sparsity_target"}
        return found | ({"weight_std": "start: random"} if self.start == "tied" else {})

    def machine(self) -> Bipartite:
        """The distribution these parameters give."""
        return Bipartite(
            self.weights, self.visible_bias, self.hidden_bias, self.base_field, self.visible_units, self.hidden_units
        )

    def learned_machine(self) -> Bipartite:
        """The same distribution, with gradients centered on their way to the parameters where this RBM is."""
        if self.centering is None:
            return self.machine()
        weights, visible_bias, hidden_bias = self.centering(self.weights, self.visible_bias, self.hidden_bias)
        return replace(self.machine(), weights=weights, visible_bias=visible_bias, hidden_bias=hidden_bias)

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """That of the visible units: (0, 1) for Bernoulli units, None for Gaussian ones …"""
        return self.visible_units.value_range

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        """That of the hidden units: (0, 1) for Bernoulli units, None for Gaussian ones …"""
        return self.hidden_units.value_range

    def hidden_field(self, v: Tensor) -> Tensor:
        """D c + T(v) W, D the words of a document, else 1: (batch, num_visible) → (batch, num_hidden)."""
        return self.machine().hidden_field(v)

    def visible_field(self, h: Tensor) -> Tensor:
        """b + W T(h), (batch, num_hidden) → (batch, num_visible)."""
        return self.machine().visible_field(h)

    def encode(self, v: Tensor) -> Tensor:
        """E[h | v], (batch, num_visible) → (batch, num_hidden)."""
        return self.machine().hidden_mean(v)

    def decode(self, h: Tensor) -> Tensor:
        """E[v | h], (batch, num_hidden) → (batch, num_visible); of documents the distribution of one word."""
        return self.machine().visible_mean(h)

    @torch.no_grad()
    def sample_hidden(self, v: Tensor) -> Tensor:
        """h ~ p(h | v), (batch, num_visible) → (batch, num_hidden)."""
        return self.hidden_units.sample(self.hidden_field(v))

    @torch.no_grad()
    def sample_visible(self, h: Tensor) -> Tensor:
        """v ~ p(v | h), (batch, num_hidden) → (batch, num_visible)."""
        return self.visible_units.sample(self.visible_field(h))

    def filters(self) -> Tensor:
        """The weights into each hidden unit, (num_hidden, num_visible)."""
        return self.weights.detach().t()

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = −log Σ_h exp(−E(v, h)), so that p(v) = exp(−F(v)) / Z: (batch, num_visible) → (batch,), nats."""
        machine = self.machine()
        return machine.free_energy(v, machine.hidden_field(v))

    # ---- training

    def start_from_data(self, x: Tensor) -> None:
        """Base rates, and of Gaussian visible units the data's own scale. ValueError for what units cannot be."""
        if isinstance(self.visible_units, (Softmax, ReplicatedSoftmax)):
            self.visible_units.require(x)
        if isinstance(self.visible_units, Gaussian):
            self.start_from_data_std(x.std(dim=0, correction=0))
        self.start_from_data_mean(x.mean(dim=0))

    def start_from_data_mean(self, mean: Tensor) -> None:
        """Sets the visible bias to the base rates of the data (Hinton 2010, §8); for use before the first step.

        mean: (num_visible,), of the training data. Its field is kept as `base_field`, where annealing starts; a tied
            start keeps the biases it has.
        """
        with torch.no_grad():
            if isinstance(self.visible_units, Gaussian) and self.start != "tied":
                self.visible_units.location.copy_(mean)
            self.base_field.copy_(self.visible_units.field_of_mean(mean.to(self.visible_bias)))
            if self.start != "tied":
                self.visible_bias.copy_(self.base_field)
            if self.centering is not None:
                self.centering.start(self.machine(), mean.to(self.visible_bias))

    def start_from_data_std(self, std: Tensor) -> None:
        """Gaussian visible units take the data's standard deviations for their own; for use before the first step.

        std: (num_visible,), of the training data. With it and their mean the machine works on standardised data.
        """
        if isinstance(self.visible_units, Gaussian) and self.start != "tied":
            self.visible_units.rescale(std)

    def after_step(self) -> None:
        """Keeps a learned variance in its range; lets fast weights follow the gradient of the step."""
        if isinstance(self.visible_units, Gaussian):
            self.visible_units.keep_in_range()
        parameters = (self.weights, self.visible_bias, self.hidden_bias)
        self.negative_phase.follow([p.grad for p in parameters if p.grad is not None])

    def start_from_below(self, below: Layer | None) -> None:
        """A tied start takes the RBM below upside down: W = W_belowᵀ, b = c_below, c = b_below.

        Its p(v) is then p(h) of the RBM below, so that a belief net of the two is the same model as that RBM, and the
        variational bound starts where it was (Hinton, Osindero & Teh 2006, §4). Only training on draws of the hidden
        units below (`hand_up: sample`) is sure to raise that bound. ValueError if there is no mirrored RBM below.
        """
        if self.start != "tied":
            return
        if not isinstance(below, RBM):
            found = "the data" if below is None else f"a layer of class {type(below).__name__}"
            raise ValueError(f"start: tied is the transpose of an rbm below, but it stands on {found}")
        copy_upside_down(below.machine(), self.machine())

    def losses(self, batch: Batch) -> Losses:
        """{"loss": mean F(data) − mean F(model samples)} in nats; batch: (batch, num_visible).

        With chains in equilibrium the loss has the gradient of −log p(data); its value does not measure progress, but
        for the exact algorithm, whose loss is −log p(data): see `monitors`. Parallel tempering adds "swap_acceptance",
        a sparsity target "hidden_activity". In training mode persistent chains and moving averages move on.
        """
        assert isinstance(batch, Tensor)
        machine = self.learned_machine()
        found, field = self.negative_phase.losses(machine, batch)
        if self.sparsity is not None:
            mean_field = machine.hidden_field(batch.mean(0, keepdim=True))[0]
            found["loss"] = found["loss"] + self.sparsity.pull(mean_field)
            found["hidden_activity"] = self.hidden_units.mean(field).mean()
        if self.training:
            self._move_averages(batch, field)
        return found

    @torch.no_grad()
    def monitors(self, batch: Batch) -> dict[str, Tensor]:
        """ "reconstruction_error": ‖v − E[v | h]‖², h drawn given v; of Bernoulli v "log_pseudolikelihood", nats."""
        assert isinstance(batch, Tensor)
        machine = self.machine()
        field = machine.hidden_field(batch)
        replicas = machine.visible_units.replicas(batch)
        reconstruction = machine.visible_units.mean(machine.visible_field(machine.hidden_units.sample(field)), replicas)
        found = {"reconstruction_error": (batch - reconstruction).square().sum(1).mean()}
        if self.has_log_prob and isinstance(self.visible_units, Bernoulli):
            found["log_pseudolikelihood"] = machine.log_pseudolikelihood(batch, field).mean()
        return found

    @torch.no_grad()
    def _move_averages(self, v: Tensor, hidden_field: Tensor) -> None:
        if self.sparsity is not None:
            self.sparsity.move(self.hidden_units.mean(hidden_field))
        if self.centering is not None:
            hidden = self.hidden_units.statistic(self.hidden_units.mean(hidden_field))
            self.centering.move(self.visible_units.statistic(v), hidden)

    def moving_averages(self) -> Sequence[Tensor]:
        """Offsets and activities, where there are any."""
        following = [part for part in (self.centering, self.sparsity) if part is not None]
        return [buffer for part in following for buffer in part.buffers()]

    def free_energy_difference(self, data: Tensor, model: Tensor, model_weights: Tensor | None = None) -> Tensor:
        """mean F(data) − mean F(model), a scalar in nats whose gradient reaches the parameters alone.

        data, model: positive and negative phase, (batch, num_visible) and (num_chains, num_visible).
        model_weights: (num_chains,), take the place of the plain mean. All states, each weighted by its probability,
        make it the exact gradient of −log p(data).
        """
        both, machine = torch.cat([data.detach(), model.detach()]), self.machine()
        with torch.no_grad():
            fields = machine.hidden_field(both)
        return machine.free_energy_difference(both, fields, len(data), model_weights)

    def rank_state(self) -> dict[str, Tensor]:
        """{"chains": (num_chains, num_visible)} of persistent chains and, after a step, "hidden", their hidden units;
        "chains" of replicas are (num_chains, num_temperatures, num_visible). Else nothing is kept.
        """
        return self.negative_phase.rank_state()

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Takes over persistent chains, any number of them. ValueError if they are missing or of another width."""
        self.negative_phase.load_rank_state(state)

    # ---- density and samples

    @torch.no_grad()
    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """E[v | h] after `effort.num_temperatures` Gibbs steps, one independent chain per sample, from base rates."""
        start = density.start_field(self.machine())
        replicas = None
        if self.reads_counts:  # as many words as a document has on average, see ReplicatedSoftmax.field_of_mean
            replicas = start.exp().sum().round().expand(num_samples, 1)
        v = self.visible_units.sample(start.expand(num_samples, -1), replicas)
        return next(islice(self.chains(v), effort.num_temperatures - 1, None))

    @torch.no_grad()
    def chains(self, v: Tensor) -> Iterator[Tensor]:
        """E[v | h] after each sweep v → h → v, (batch, num_visible), without end."""
        replicas = self.visible_units.replicas(v)
        while True:
            field = self.visible_field(self.sample_hidden(v))
            yield self.visible_units.mean(field, replicas)
            v = self.visible_units.sample(field, replicas)

    @torch.no_grad()
    def annealing(
        self,
        num_chains: int,
        base_field: Tensor | None = None,
        *,
        start: Tensor | None = None,
        replicas: int | None = None,
    ) -> Annealing:
        """Chains for annealed importance sampling, drawn at β = 0, or for its reverse, standing at `start`.

        base_field: (num_visible,), the field of the independent visible units at β = 0; by default that of the training
        data's means, or the visible bias where `start_from_data_mean` never said.
        start: (num_chains, num_visible). replicas: the number of words, of documents.
        """
        return density.annealing(self.machine(), num_chains, base_field, start=start, replicas=replicas)

    @torch.no_grad()
    def log_partition(
        self,
        *,
        effort: Effort,
        base_field: Tensor | None = None,
        examples: Tensor | None = None,
        replicas: int | None = None,
    ) -> LogPartition:
        """log Z, exact where the hidden or the Bernoulli visible units are at most 20, else estimated by AIS.

        examples: (any, num_visible), data near which the model should put its mass; an estimate then also has one from
        the other side, `reverse`, of chains that begin where `effort.num_temperatures` Gibbs steps lead from some of
        them. Doubled units are not enumerated. replicas: the number of words of a document, and of all `examples`.
        ValueError where the units have no density.
        """
        return density.log_partition(self.machine(), effort, base_field, examples, replicas)

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """−F(x) − log Z, (batch,) nats. A call costs one `log_partition`: hand over a whole data set at once.

        Of doubled visible units: the log-probability that both copies are x, a lower bound of that of one.
        Of documents: that of their words, given how many there are; one `log_partition` for each number there is.
        ValueError where the units have no density.
        """
        return density.log_prob(self.machine(), x, effort)

    @property
    def has_log_prob(self) -> bool:
        """False with noisy rectified units on either side."""
        return density.has_density(self.machine())

    @property
    def has_free_energy(self) -> bool:
        """False with noisy rectified units, and of documents, whose log Z depends on their length."""
        return self.has_log_prob and not self.reads_counts

    @property
    def reads_counts(self) -> bool:
        """Of replicated softmax units."""
        return density.reads_counts(self.machine())

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Six binary visible and four hidden units, and two samples."""
        return cls(num_visible=6, num_hidden=4), torch.tensor([[1.0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 0, 1]])
