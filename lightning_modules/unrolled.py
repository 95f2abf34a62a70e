"""Deep autoencoders: a pretrained stack unrolled into an encoder and a decoder, fine-tuned together by
back-propagation (Hinton & Salakhutdinov 2006, Science 313).

Symbols: h₀ = v the data, h_k the code of layer k, L layers, ĥ_k the decoder's idea of h_k. What is NOT here: the layers
themselves and their pretraining (`boltzmann`, `autoencoders`), rectifying or noisy codes (`Autoencoder`'s own loss).
"""

from __future__ import annotations

from itertools import takewhile
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.autoencoders import Autoencoder
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Batch, Layer, Losses, StreamingModel
from lightning_modules.stack import OverStack, Stack
from lightning_modules.units import Bernoulli

Unrollable = RBM | Autoencoder


class DeepAutoencoder(OverStack, Layer):
    """Up through the stack's layers, down through their mirror image:

    h_k = f_k(h_{k−1} W_k + c_k),   ĥ_L = h_L,   ĥ_{k−1} = f_{k−1}(ĥ_k D_k + b_k),   v̂ = ĥ₀

    f_k is the nonlinearity of layer k's code (a linear one for Gaussian units), f₀ that of the lowest layer's decoder:
    a sigmoid for binary data, else none. D_k starts as W_kᵀ and goes its own way afterwards.

    stack: RBMs and tied autoencoders, trained or not. It is kept, not copied: its weights and hidden biases become the
    encoder's, its visible biases the decoder's. Layers fitted by passes at its bottom (whitening, features) stay as
    they are: v above are their codes, and the way back goes through them.
    start: "stack", or "random": the same net from random weights, see `randomize`, whatever the stack has learned.
    loss: cross_entropy − Σ_i v_i log v̂_i + (1 − v_i) log(1 − v̂_i), for data in [0, 1], or squared_error
        ½ Σ_i (v_i − v̂_i)², nats up to a constant.
    """

    revision: ClassVar[int] = 1

    def __init__(
        self,
        *,
        stack: Stack,
        loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
        start: Literal["stack", "random"] = "stack",
    ) -> None:
        super().__init__()
        below = list(takewhile(lambda layer: isinstance(layer, StreamingModel), stack))
        if len(below) == len(stack):
            raise ValueError("a deep autoencoder unrolls RBMs and tied autoencoders, but the stack has none")
        for number, layer in enumerate(list(stack)[len(below) :], start=len(below) + 1):
            if not isinstance(layer, (RBM, Autoencoder)) or not getattr(layer, "tied", True):
                found = f"untied {type(layer).__name__}" if isinstance(layer, Autoencoder) else type(layer).__name__
                raise ValueError(
                    f"a deep autoencoder unrolls RBMs and tied autoencoders, but layer {number} is {found}"
                )
        self.stack, self.loss, self.start = stack, loss, start
        self._num_below = len(below)
        self.num_visible, self.num_hidden = stack.num_visible, stack.num_hidden
        if loss == "cross_entropy" and not self._binary:
            raise ValueError("cross_entropy needs a lowest layer of binary data; choose loss: squared_error")
        self.decoder_weights = nn.ParameterList(
            layer.weights.detach().t().clone(memory_format=torch.contiguous_format) for layer in self._layers
        )
        if start == "random":
            self.randomize()

    @property
    def _layers(self) -> list[Unrollable]:
        return cast(list[Unrollable], list(self.stack)[self._num_below :])

    @property
    def _binary(self) -> bool:
        """Whether the output is a sigmoid of its field."""
        lowest = self._layers[0]
        return (
            isinstance(lowest.visible_units, Bernoulli) if isinstance(lowest, RBM) else lowest.loss == "cross_entropy"
        )

    def losses(self, batch: Batch) -> Losses:
        """{"loss", "reconstruction_error": ‖v − v̂‖²}, both means per example; `loss` in nats."""
        assert isinstance(batch, Tensor)  # (batch, num_visible)
        v = code = self._read(batch)
        for layer in self._layers:
            code = layer.encode(code)
        field = self.output_field(code)
        squared_error = (v - self.output_mean(field)).square().sum(1).mean()
        if self.loss == "squared_error":
            return {"loss": squared_error / 2, "reconstruction_error": squared_error.detach()}
        loss = F.binary_cross_entropy_with_logits(field, v, reduction="none").sum(1).mean()
        return {"loss": loss, "reconstruction_error": squared_error.detach()}

    def decode(self, h: Tensor) -> Tensor:
        """(batch, num_hidden) → (batch, num_visible)."""
        v = self.output_mean(self.output_field(h))
        for layer in reversed(list(self.stack)[: self._num_below]):
            v = layer.decode(v)
        return v

    @torch.no_grad()
    def _read(self, v: Tensor) -> Tensor:
        """Through the layers that stay as they are."""
        for layer in list(self.stack)[: self._num_below]:
            v = layer.encode(v)
        return v

    def output_field(self, h: Tensor) -> Tensor:
        """The field of v̂, (batch, num_hidden) → (batch, width of v)."""
        layers = self._layers
        for height in range(len(layers) - 1, -1, -1):
            field = torch.addmm(layers[height].visible_bias, h, self.decoder_weights[height])
            if height > 0:
                below = layers[height - 1]
                h = below.hidden_units.mean(field) if isinstance(below, RBM) else below.activate(field)
        return field

    def output_mean(self, field: Tensor) -> Tensor:
        """v̂ of its field."""
        lowest = self._layers[0]
        if isinstance(lowest, RBM):
            return lowest.visible_units.mean(field)
        return torch.sigmoid(field) if self._binary else field

    @torch.no_grad()
    def randomize(self) -> None:
        """Makes the untrained twin in place, see `Stack.randomize`; the decoder starts as the encoder's transpose."""
        Stack(layers=self._layers).randomize()
        for layer, weights in zip(self._layers, self.decoder_weights, strict=True):
            weights.copy_(layer.weights.t())

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        """A sigmoid layer under a linear one, and two samples."""
        layers = [
            Autoencoder(num_visible=6, num_hidden=4),
            Autoencoder(num_visible=4, num_hidden=2, activation="linear"),
        ]
        return cls(stack=Stack(layers=layers)), torch.tensor([[0.0, 1, 0.5, 0, 1, 0.25], [1, 0, 0, 0.75, 1, 0]])
