"""Deep belief nets made from a stack of RBMs (Hinton, Osindero & Teh 2006, Neural Comput. 18).

Symbols: h₀ = v the data, h_k the hidden units of layer k, L layers. The top RBM is an undirected prior over h_{L−1};
every layer below keeps only its downward half p(h_{k−1} | h_k), its upward half q(h_k | h_{k−1}) infers.
Not here: the layers themselves (`boltzmann`, `labeled`), growing the stack (`stack`), fine-tuning the whole net
(`up_down`), nets whose layers are all undirected.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol, Self, cast

import torch
from torch import Tensor

from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import (
    ComposedModel,
    Effort,
    HasChains,
    HasHiddenLayers,
    HasLogProb,
    Layer,
    LogLikelihood,
    Samples,
    SamplesByClass,
    SamplesHidden,
)
from lightning_modules.labeled import LabeledRBM
from lightning_modules.likelihood import bounded
from lightning_modules.stack import OfStack, Stack
from lightning_modules.units import Bernoulli, Units


class Directed(Protocol):
    """A layer of a belief net: q(h | v) by one field, p(v | h) by another, which may share their weights (an RBM)."""

    @property
    def visible_units(self) -> Units: ...

    @property
    def hidden_units(self) -> Units: ...

    def hidden_field(self, v: Tensor) -> Tensor: ...

    def visible_field(self, h: Tensor) -> Tensor: ...


class BeliefNet(OfStack, Layer, SamplesHidden, Samples, SamplesByClass, HasLogProb, HasChains, HasHiddenLayers):
    """p(v, h_1 … h_{L−1}) = p(v | h_1) ⋯ p(h_{L−2} | h_{L−1}) p_top(h_{L−1}), with q(h_k | h_{k−1}) to infer.

    What a DBN and a net with untied weights have in common; they say what their directed layers are.
    """

    @property
    @abstractmethod
    def directed_layers(self) -> Sequence[Directed]:
        """All layers but the top one, lowest first."""

    @property
    def top(self) -> RBM | LabeledRBM:
        """The undirected layer."""
        return cast(RBM | LabeledRBM, self.stack[-1])

    @property
    def labeled_top(self) -> LabeledRBM:
        """The undirected layer, if it has label units, else ValueError."""
        if not isinstance(self.top, LabeledRBM):
            raise ValueError("this belief net has no label units; its top layer would have to be a labeled_rbm")
        return self.top

    @property
    def reads_counts(self) -> bool:
        """Whether the lowest layer does."""
        return bool(getattr(self.stack[0], "reads_counts", False))

    # ---- upwards

    def recognise(self, v: Tensor) -> Tensor:
        """Means upwards to h_{L−1}, (batch, num_visible) → (batch, num_hidden_{L−1})."""
        for layer in self.directed_layers:
            v = layer.hidden_units.mean(layer.hidden_field(v))
        return v

    def encode(self, v: Tensor) -> Tensor:
        """Means from the data to the top units, (batch, num_visible) → (batch, num_hidden)."""
        return self.top.encode(self.recognise(v))

    def hidden_means(self, v: Tensor) -> dict[int, Tensor]:
        """Means of every layer given the means of the one below, (batch, num_hidden_k) each."""
        means: dict[int, Tensor] = {}
        for height, layer in enumerate(self.directed_layers, start=1):
            v = means[height] = layer.hidden_units.mean(layer.hidden_field(v))
        return means | {len(self.stack): self.top.encode(v)}

    def incoming_weights(self) -> dict[int, Tensor]:
        """Of every layer, downwards where up and down differ: (num_hidden_k, num_hidden_{k−1})."""
        layers = cast(Sequence[RBM | LabeledRBM], list(self.stack))
        return {height: layer.filters() for height, layer in enumerate(layers, start=1)}

    def receptive_fields(self) -> dict[int, Tensor]:
        """See `Stack.filters`."""
        return dict(enumerate(self.stack.filters(), start=1))

    def logits(self, x: Tensor) -> Tensor:
        """log p(label | h) up to a constant, at the mean h of the units under the top layer: (batch, num_classes)."""
        return self.labeled_top.logits(self.recognise(x))

    @torch.no_grad()
    def infer(self, x: Tensor) -> list[Tensor]:
        """h_1 … h_{L−1}, one draw of each from q(h_k | h_{k−1}): (batch, num_hidden_k)."""
        hidden: list[Tensor] = []
        for layer in self.directed_layers:
            x = layer.hidden_units.sample(layer.hidden_field(x))
            hidden.append(x)
        return hidden

    @torch.no_grad()
    def sample_hidden(self, v: Tensor) -> Tensor:
        """One draw in every layer upwards, (batch, num_visible) → (batch, num_hidden)."""
        return self.top.sample_hidden(self.infer(v)[-1] if len(self.stack) > 1 else v)

    def filters(self) -> Tensor:
        """Receptive fields of the top units in data space, see `Stack.filters`: (num_hidden, num_visible)."""
        return self.stack.filters()[-1]

    # ---- downwards

    def decode(self, h: Tensor) -> Tensor:
        """Means from the top units to the data, (batch, num_hidden) → (batch, num_visible)."""
        h = self.top.decode(h)
        for layer in reversed(self.directed_layers):
            h = layer.visible_units.mean(layer.visible_field(h))
        return h

    @torch.no_grad()
    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """`effort.num_temperatures` Gibbs steps in the top RBM, then one pass down: draws, and means at the data."""
        return self._descend(self.top.sample(num_samples, effort=effort))

    @torch.no_grad()
    def sample_class(self, label: Tensor, *, effort: Effort) -> Tensor:
        """As `sample`, with the label units clamped: (batch,) classes → (batch, num_visible)."""
        return self._descend(self.labeled_top.sample_class(label, effort=effort))

    @torch.no_grad()
    def chains(self, v: Tensor) -> Iterator[Tensor]:
        """Chains of the top RBM from h_{L−1} ~ q(h | v); after each of its sweeps one pass down, without end."""
        highest = self.infer(v)[-1] if self.directed_layers else v
        for mean in self.top.chains(highest):
            yield self._descend(mean)

    def _descend(self, mean: Tensor) -> Tensor:
        for layer in reversed(self.directed_layers):
            mean = layer.visible_units.mean(layer.visible_field(layer.hidden_units.draw(mean)))
        return mean

    # ---- the bound

    @torch.no_grad()
    def log_weights(self, x: Tensor, num_samples: int) -> Tensor:
        """log p*(x, h) − log q(h | x) without the top layer's log Z, for draws h ~ q: (num_samples, batch), nats.

        Constant over h where q is the posterior, as under a top layer whose weights are the transposed ones below it.
        """
        return torch.stack([self._log_weight(x, self.infer(x)) for _ in range(num_samples)])

    def _log_weight(self, x: Tensor, hidden: list[Tensor]) -> Tensor:
        """Σ_k [log p(h_{k−1} | h_k) − log q(h_k | h_{k−1})] − F_top(h_{L−1}), (batch,)."""
        total = x.new_zeros(len(x))
        below = x
        for layer, above in zip(self.directed_layers, hidden, strict=True):
            total += layer.visible_units.log_prob(below, layer.visible_field(above))
            total -= layer.hidden_units.log_prob(above, layer.hidden_field(below))
            below = above
        return total - self.top.free_energy(below)

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """E_q[log p*(x, h) − log q(h | x)] − log Z ≤ log p(x), (batch,) nats (Salakhutdinov & Murray 2008, ICML).

        The mean of `effort.num_samples` draws of q per example. Where log Z is an estimate by AIS, which is low in
        expectation, the bound holds only up to its error, and the answer is called an estimate. Standard error and
        effective sample size: see `likelihood.bounded`. The reverse chains of AIS start near draws of q.
        """
        log_weights = self.log_weights(x, effort.num_samples)
        highest = self.infer(x)[-1] if self.directed_layers else x
        partition = self.top.log_partition(effort=effort, examples=highest)
        return bounded(log_weights, partition, effort, name=f"variational bound ({effort.num_samples} draws of q)")


def require_belief_net(stack: Stack) -> None:
    """ValueError for a stack that no belief net can be made of."""
    for number, layer in enumerate(stack, start=1):
        if isinstance(layer, LabeledRBM) and number < len(stack):
            raise ValueError(f"label units belong in the top layer of a DBN, but layer {number} has them")
        if not isinstance(layer, (RBM, LabeledRBM)):
            raise ValueError(f"every layer of a DBN is an RBM, but layer {number} is {type(layer).__name__}")
        if number > 1 and isinstance(layer, RBM) and not isinstance(layer.visible_units, Bernoulli):
            raise ValueError(f"layer {number} of a DBN stands on binary units, so its visible must be bernoulli")
        if isinstance(layer, RBM) and layer.doubled != "none":
            raise ValueError(
                f"a DBN has every unit once, but layer {number} is doubled: {layer.doubled}; a dbm takes it"
            )
        if layer.hidden_range != (0.0, 1.0):
            raise ValueError(f"all hidden units of a DBN are binary, so hidden of layer {number} must be bernoulli")


class DBN(BeliefNet, ComposedModel):
    """A belief net whose directed layers are the RBMs of a stack, with the same weights up and down.

    stack: RBMs only, those above the lowest with Bernoulli visible units, else ValueError; the top one may have label
    units, which `log_prob` and `sample` then sum out. It is kept, not copied.
    """

    revision: ClassVar[int] = 2

    def __init__(self, *, stack: Stack) -> None:
        super().__init__()
        require_belief_net(stack)
        self.stack = stack
        self.num_visible, self.num_hidden = stack.num_visible, stack.num_hidden
        self.num_classes = getattr(self.top, "num_classes", None)

    @property
    def directed_layers(self) -> list[RBM]:
        """All layers but the top one, lowest first."""
        return cast(list[RBM], list(self.stack)[:-1])

    @torch.no_grad()
    def randomize(self) -> None:
        """Makes the untrained twin in place, see `Stack.randomize`."""
        self.stack.randomize()

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Two tiny RBMs, and two binary samples."""
        stack, batch = Stack.example()
        return cls(stack=stack), batch
