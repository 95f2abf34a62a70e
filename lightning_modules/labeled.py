"""A restricted Boltzmann machine of data and their labels (Hinton, Osindero & Teh 2006, §4; Larochelle & Bengio 2008).

Symbols: v binary data, or the hidden units of the layer below; y the label, one of K units that exactly one is on of;
h binary hidden units; W, U the weights of v and y; b, d, c the biases of v, y, h.

    E(v, y, h) = −b·v − d_y − c·h − vᵀ W h − U_y h,       p(v, y, h) = exp(−E(v, y, h)) / Z
    log p(y | v) = d_y + Σ_j softplus(c_j + (vW)_j + U_yj) − log of the same summed over all classes

Not here: the layers below, which make a deep belief net with labels in its top (`belief_nets`, `up_down`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.boltzmann import RBM
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
    RankState,
    Samples,
    SamplesByClass,
    SamplesHidden,
    StartsFromData,
)
from lightning_modules.likelihood import LogPartition, normalized
from lightning_modules.units import Bernoulli, Units


class WithLabel(Units):
    """Binary units and, behind them, a group of K units of which exactly one is on, with the field's softmax."""

    value_range = (0.0, 1.0)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.binary = Bernoulli()

    def log_base(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    def statistic(self, x: Tensor) -> Tensor:
        return x

    def log_partition(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self.binary.log_partition(field[..., : -self.num_classes]) + self._label(field).logsumexp(-1)

    def mean(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return torch.cat([self.binary.mean(field[..., : -self.num_classes]), self._label(field).softmax(-1)], dim=-1)

    def sample(self, field: Tensor, replicas: Tensor | None = None) -> Tensor:
        return self.draw(self.mean(field))

    def draw(self, mean: Tensor) -> Tensor:
        shares = self._label(mean)
        label = torch.multinomial(shares.reshape(-1, self.num_classes), 1).view(*shares.shape[:-1], 1)
        one_on = torch.zeros_like(shares).scatter_(-1, label, 1.0)
        return torch.cat([self.binary.draw(mean[..., : -self.num_classes]), one_on], dim=-1)

    def field_of_mean(self, mean: Tensor) -> Tensor:
        log_shares = self._label(mean).clamp(min=self.binary.smallest_mean).log()
        return torch.cat([self.binary.field_of_mean(mean[..., : -self.num_classes]), log_shares], dim=-1)

    def _label(self, x: Tensor) -> Tensor:
        return x[..., -self.num_classes :]


class LabeledRBM(
    Model,
    Layer,
    SamplesHidden,
    Samples,
    SamplesByClass,
    HasLogProb,
    HasFreeEnergy,
    HasChains,
    HasMonitors,
    StartsFromData,
    RankState,
):
    """p(v, y) ∝ Σ_h exp(−E(v, y, h)); as a layer and as a density it is that of v, the label summed out exactly.

    num_visible, num_hidden: at least 1. num_classes: K, at least 2.
    algorithm, gibbs_steps, num_chains, weight_std: see `RBM`; the chains of the negative phase carry labels as well.
    """

    revision: ClassVar[int] = 3
    num_classes: int

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        num_classes: int,
        algorithm: Literal["cd", "pcd"] = "cd",
        gibbs_steps: int = 1,
        num_chains: int = 100,
        weight_std: float = 0.01,
    ) -> None:
        super().__init__()
        if num_visible < 1:
            raise ValueError(f"num_visible must be at least 1, not {num_visible}")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}")
        self.joint = RBM(
            num_visible=num_visible + num_classes,
            num_hidden=num_hidden,
            algorithm=algorithm,
            gibbs_steps=gibbs_steps,
            num_chains=num_chains,
            weight_std=weight_std,
        )
        self.joint.visible_units = units = WithLabel(num_classes)
        if chains := self.joint.rank_state():
            no_field = torch.zeros_like(chains["chains"])
            self.joint.load_rank_state({"chains": units.sample(no_field)})
        self.num_visible, self.num_hidden, self.num_classes = num_visible, num_hidden, num_classes
        self.algorithm, self.gibbs_steps, self.num_chains, self.weight_std = (
            algorithm, gibbs_steps, num_chains, weight_std,
        )  # fmt: skip

    def idle_arguments(self) -> dict[str, str]:
        """As of an RBM."""
        return self.joint.idle_arguments()

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """That of binary units: (0, 1)."""
        return self.joint.visible_range

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        """That of binary units: (0, 1)."""
        return self.joint.hidden_range

    def join(self, v: Tensor, label: Tensor) -> Tensor:
        """(batch, num_visible) and (batch,) classes → the visible units of `joint`, (batch, num_visible + K)."""
        return torch.cat([v, functional.one_hot(label, self.num_classes).to(v.dtype)], dim=1)

    # ---- the label given the data

    def logits(self, x: Tensor) -> Tensor:
        """d_y + Σ_j softplus(c_j + (xW)_j + U_yj): log p(y | x) up to a constant, (batch, num_classes)."""
        field = self._field_without_label(x)
        hidden = [self.joint.hidden_units.log_partition(field + of_class) for of_class in self._label_weights]
        return torch.stack(hidden, dim=1) + self.joint.visible_bias[self.num_visible :]

    def _field_without_label(self, v: Tensor) -> Tensor:
        return torch.addmm(self.joint.hidden_bias, v, self.joint.weights[: self.num_visible])

    @property
    def _label_weights(self) -> Tensor:
        """U, (num_classes, num_hidden)."""
        return self.joint.weights[self.num_visible :]

    def free_energy(self, v: Tensor) -> Tensor:
        """−log Σ_y Σ_h exp(−E(v, y, h)), (batch, num_visible) → (batch,), nats."""
        return -v @ self.joint.visible_bias[: self.num_visible] - self.logits(v).logsumexp(1)

    # ---- a layer

    def encode(self, v: Tensor) -> Tensor:
        """p(h = 1 | v) = Σ_y p(y | v) σ(c + vW + U_y), (batch, num_visible) → (batch, num_hidden)."""
        field, shares = self._field_without_label(v), self.logits(v).softmax(1)
        code = torch.zeros_like(field)
        for share, of_class in zip(shares.unbind(1), self._label_weights, strict=True):
            code = code + share[:, None] * self.joint.hidden_units.mean(field + of_class)
        return code

    def decode(self, h: Tensor) -> Tensor:
        """E[v | h], (batch, num_hidden) → (batch, num_visible)."""
        return self.joint.decode(h)[:, : self.num_visible]

    @torch.no_grad()
    def sample_hidden(self, v: Tensor) -> Tensor:
        """y ~ p(y | v), then h ~ p(h | v, y): (batch, num_visible) → (batch, num_hidden)."""
        return self.joint.sample_hidden(self._with_drawn_label(v))

    def _with_drawn_label(self, v: Tensor) -> Tensor:
        """The visible units of `joint` with y ~ p(y | v), (batch, num_visible + K)."""
        return self.join(v, torch.multinomial(self.logits(v).softmax(1), 1)[:, 0])

    def filters(self) -> Tensor:
        """The weights from v into each hidden unit, (num_hidden, num_visible)."""
        return self.joint.filters()[:, : self.num_visible]

    # ---- training

    def start_from_data(self, x: Tensor) -> None:
        self.start_from_data_mean(x.mean(dim=0))

    def start_from_data_mean(self, mean: Tensor) -> None:
        """Sets the biases of v to base rates, as in an RBM, and those of the labels to equal shares.

        mean: (num_visible,), of the training data.
        """
        equal_shares = mean.new_full((self.num_classes,), 1 / self.num_classes)
        self.joint.start_from_data_mean(torch.cat([mean, equal_shares]))

    def losses(self, batch: Batch) -> Losses:
        """{"loss": mean F(v, y) − mean F(model samples)} as in an RBM with one visible vector of both, nats.

        batch: {"x": (batch, num_visible), "label": (batch,)}. Out of training mode also "error", the share of labels
        that are not the most probable one.
        """
        assert not isinstance(batch, Tensor)
        found = self.joint.losses(self.join(batch["x"], batch["label"]))
        if not self.training:
            found["error"] = (self.logits(batch["x"]).argmax(1) != batch["label"]).to(batch["x"].dtype).mean()
        return found

    def monitors(self, batch: Batch) -> dict[str, Tensor]:
        """Those of `joint`, v and label together."""
        assert not isinstance(batch, Tensor)
        return self.joint.monitors(self.join(batch["x"], batch["label"]))

    def rank_state(self) -> dict[str, Tensor]:
        """Persistent chains of v and y, if there are any."""
        return self.joint.rank_state()

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """See `RBM.load_rank_state`."""
        self.joint.load_rank_state(state)

    # ---- density and samples

    @torch.no_grad()
    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """E[v | h] after `effort.num_temperatures` Gibbs steps over v and y: (num_samples, num_visible)."""
        return self.joint.sample(num_samples, effort=effort)[:, : self.num_visible]

    @torch.no_grad()
    def sample_class(self, label: Tensor, *, effort: Effort) -> Tensor:
        """E[v | h] after `effort.num_temperatures` Gibbs steps with the label units clamped, from base rates."""
        units = self.joint.visible_units
        v = units.sample(self.joint.visible_bias.expand(len(label), -1))[:, : self.num_visible]
        for _ in range(effort.num_temperatures - 1):
            h = self.joint.sample_hidden(self.join(v, label))
            v = self.joint.sample_visible(h)[:, : self.num_visible]
        return self.decode(self.joint.sample_hidden(self.join(v, label)))

    @torch.no_grad()
    def chains(self, v: Tensor) -> Iterator[Tensor]:
        """E[v | h] after each sweep over v and y, from y ~ p(y | v): (batch, num_visible), without end."""
        for mean in self.joint.chains(self._with_drawn_label(v)):
            yield mean[:, : self.num_visible]

    def log_partition(self, *, effort: Effort, examples: Tensor | None = None) -> LogPartition:
        """log Z of the joint machine: exact for at most 20 hidden units, else estimated by AIS.

        examples: (any, num_visible), as for `RBM.log_partition`; their labels are drawn from p(y | v).
        """
        joint = None if examples is None else self._with_drawn_label(examples)
        return self.joint.log_partition(effort=effort, examples=joint)

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """log p(x) = −F(x) − log Z with the label summed out, (batch,) nats."""
        return normalized(-self.free_energy(x), self.log_partition(effort=effort, examples=x), effort)

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        """Six binary visible, four hidden units and three classes, and two samples."""
        x = torch.tensor([[1.0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 0, 1]])
        return cls(num_visible=6, num_hidden=4, num_classes=3), {"x": x, "label": torch.tensor([2, 0])}
