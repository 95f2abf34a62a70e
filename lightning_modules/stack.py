"""A greedy stack of layers, each trained on the codes of the one below (Hinton, Osindero & Teh 2006, Neural Comput. 18;
Bengio et al. 2007, NIPS 19).

A stack is again a layer. It holds no parameters of its own and fits nothing: training grows it one layer per stage,
`belief_nets` makes generative models of it, fine-tuning puts an output layer on top of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_modules.interfaces import (
    ComposedModel,
    Encodes,
    HasHiddenLayers,
    Layer,
    Model,
    SamplesHidden,
    StreamingModel,
)


@runtime_checkable
class HasFilters(Protocol):
    """A layer that can say what each of its hidden units responds to."""

    def filters(self) -> Tensor:
        """The weights into each hidden unit, (num_hidden, num_visible)."""
        ...


@runtime_checkable
class Rescales(Protocol):
    """A layer whose hidden units are its visible ones on other scales: it has no filters to look at."""

    def rescaled(self, filters: Tensor) -> Tensor:
        """Filters of its codes → filters of what it reads, (n, num_visible)."""
        ...


@runtime_checkable
class Convolves(Protocol):
    """A layer of maps, whose units look for the same thing at every place: its filters are one a map, in its middle."""

    @property
    def hidden_shape(self) -> tuple[int, int, int]:
        """(maps, height, width) of its code."""
        ...

    def projected(self, filters: Tensor) -> Tensor:
        """Filters of its codes → filters of what it reads, (n, num_visible)."""
        ...


@runtime_checkable
class Randomizes(Protocol):
    """A layer made of layers of several kinds, which knows how each of them begins."""

    def randomize(self) -> None:
        """See `Stack.randomize`."""
        ...


class Stack(ComposedModel, Layer, HasHiddenLayers):
    """Layers in order, the one nearest the data first: h₀ = v, h_k = encode_k(h_{k−1}), code = h_L.

    Of its hidden layers it shows the top one, which is new; those below have been shown as they were learned.

    layers: at least one; each must expect as many visible units as the one below has hidden units, else ValueError.
    """

    revision = 1

    def __init__(self, *, layers: Sequence[Layer]) -> None:
        super().__init__()
        if not layers:
            raise ValueError("a stack needs at least one layer")
        for number, (below, above) in enumerate(pairwise(layers), start=2):
            if above.num_visible != below.num_hidden:
                raise ValueError(
                    f"layer {number} expects {above.num_visible} visible units "
                    f"but layer {number - 1} below it has {below.num_hidden} hidden units"
                )
        self.layers = nn.ModuleList(cast(Sequence[nn.Module], layers))
        self.num_visible = layers[0].num_visible
        self.num_hidden = layers[-1].num_hidden

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return cast(Layer, self.layers[index])

    def __iter__(self) -> Iterator[Layer]:
        return iter(cast(Sequence[Layer], self.layers))

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """That of the lowest layer."""
        return cast(tuple[float, float] | None, self.layers[0].visible_range)

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        """That of the top layer."""
        return self[-1].hidden_range

    def encode(self, v: Tensor) -> Tensor:
        """Means through all layers, (batch, num_visible) → (batch, num_hidden)."""
        for layer in self:
            v = layer.encode(v)
        return v

    def decode(self, h: Tensor) -> Tensor:
        """Means from the top layer down to the data, (batch, num_hidden) → (batch, num_visible)."""
        for index in reversed(range(len(self))):
            h = self[index].decode(h)
        return h

    @torch.no_grad()
    def hand_up(self, v: Tensor, *, sample: bool) -> Tensor:
        """What the next layer is trained on, (batch, num_hidden): means, or one draw of every layer's hidden units.

        A layer trained on draws improves the variational bound of the belief net (Hinton, Osindero & Teh 2006, §4);
        means carry less noise to a classifier. ValueError if draws are asked of a layer without stochastic units.
        """
        if not sample:
            return self.encode(v)
        for number, layer in enumerate(self, start=1):
            if not isinstance(layer, SamplesHidden):
                raise ValueError(f"layer {number} ({type(layer).__name__}) has no stochastic hidden units to sample")
            v = layer.sample_hidden(v)
        return v

    @torch.no_grad()
    def randomize(self) -> None:
        """Makes the untrained twin in place, for comparison with purely supervised training.

        Parameters of two or more dimensions: uniform in ±g √(6 / (fan_in + fan_out)) (Glorot & Bengio 2010), where
        g = 4 under sigmoid codes, whose slope at 0 is 1/4, √2 under relu codes, else 1; all others zero. Without the 4
        the twin of a 784-500-500 sigmoid net errs on 31 % of MNIST from 100 labels instead of 21 %: no fair rival.
        What says how the data lie stays: buffers (the statistics of a whitening layer), and parameters of visible units
        (a learned variance). A layer that is itself made of layers randomizes those.
        """
        for layer in self.layers:
            if isinstance(layer, Randomizes):
                layer.randomize()
                continue
            rectified = getattr(layer, "activation", None) == "relu"
            gain = 4.0 if layer.hidden_range == (0.0, 1.0) else math.sqrt(2) if rectified else 1.0
            for name, parameter in layer.named_parameters():
                if name.startswith("visible_units."):
                    continue
                if parameter.ndim >= 2:
                    nn.init.xavier_uniform_(parameter, gain)
                else:
                    parameter.zero_()

    @torch.no_grad()
    def filters(self) -> list[Tensor]:
        """Receptive fields in data space, one (num_hidden_k, num_visible) per layer.

        Layer 1: its own filters. Above: the filters of the layer below, weighted and summed,
        R_k = filters_k R_{k−1} (Lee, Ekanadham & Ng 2008, NIPS 20), which leaves out the nonlinearities between them.
        A layer that only rescales has none, and is no entry of the list; one that convolves has one for each map.
        """
        projected: list[Tensor] = []
        for height, layer in enumerate(self):
            if isinstance(layer, Rescales):
                continue
            filters = _filters(layer)
            for below in reversed(self.layers[:height]):
                filters = _seen_from_below(filters, cast(Layer, below))
            projected.append(filters)
        return projected

    def hidden_means(self, v: Tensor) -> dict[int, Tensor]:
        """{L: codes}, (batch, num_hidden), if they lie in [0, 1] or are those of an RBM's rectified units."""
        rectified = self.hidden_range == (0.0, math.inf) and isinstance(self[-1], SamplesHidden)
        return {self._height: self.encode(v)} if rectified or self.hidden_range == (0.0, 1.0) else {}

    def incoming_weights(self) -> dict[int, Tensor]:
        """{L: the top layer's own filters}, if it learned any by gradient and they are its weights."""
        top = self[-1]
        if isinstance(top, (StreamingModel, Convolves)) or not isinstance(top, HasFilters):
            return {}
        return {self._height: top.filters()}

    def receptive_fields(self) -> dict[int, Tensor]:
        """{L: its filters as seen from the data}, (num_hidden, num_visible), unless it only rescales."""
        return {} if isinstance(self[-1], Rescales) else {self._height: self.filters()[-1]}

    @property
    def _height(self) -> int:
        """L: of the top layer, of one made of a stack that of its code."""
        below = getattr(self[-1], "stack", None)
        return len(self) - 1 + (len(below) if isinstance(below, Stack) else 1)

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Two tiny RBMs, and two binary samples."""
        from lightning_modules.boltzmann import RBM  # a stack itself knows no family of layers

        layers = [RBM(num_visible=6, num_hidden=4), RBM(num_visible=4, num_hidden=3)]
        return cls(layers=layers), torch.tensor([[1.0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 0, 1]])


class OfStack(Encodes):
    """Made of a stack, and reads and gives what it does."""

    stack: Stack

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """That of the lowest layer."""
        return self.stack.visible_range

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        """That of the top layer."""
        return self.stack.hidden_range


class OverStack(OfStack, Model):
    """Stands over a stack whose layers go on learning in it; its codes are the stack's."""

    def encode(self, v: Tensor) -> Tensor:
        return self.stack.encode(v)


def _seen_from_below(filters: Tensor, layer: Layer) -> Tensor:
    """Filters of a layer's codes → filters of what it reads."""
    if isinstance(layer, Rescales):
        return layer.rescaled(filters)
    if isinstance(layer, Convolves):
        return layer.projected(filters)
    return filters @ _filters(layer)


def _filters(layer: Layer) -> Tensor:
    """A layer's own filters or, where it offers none, how its decoder answers to each hidden unit alone."""
    if isinstance(layer, HasFilters):
        return layer.filters()
    module = cast(nn.Module, layer)  # what was fitted by a pass is float64, but turns codes of any type back
    reference = next(chain(module.parameters(), module.buffers()), torch.zeros(()))
    units = torch.eye(layer.num_hidden, dtype=reference.dtype, device=reference.device)
    return layer.decode(units) - layer.decode(torch.zeros_like(units))
