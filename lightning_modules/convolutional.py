"""Convolutional autoencoders: codes of pictures, each unit of which sees one place (Masci et al. 2011, ICANN).

Symbols: `v` the data, h_k the maps of layer k, (channels_k, height_k, width_k), h = h_L the code. From outside data and
codes are flat vectors, channel by channel, row by row. What is NOT here: dense ones (`autoencoders.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.corruption import Corruption, Denoises, Noise
from lightning_modules.interfaces import Batch, Layer, Losses, Model

_GAIN = {"sigmoid": 4.0, "relu": math.sqrt(2.0), "linear": 1.0}  # as of dense autoencoders


class ConvAutoencoder(Model, Layer, Denoises):
    """h_k = f_k(K_k ∗ h_{k−1} + b_k) with strides, and back ĥ_{k−1} = relu(K'_k ∗ᵀ ĥ_k + c_k), v̂ = decoder mean.

    f_L is `activation`, all others relu; ∗ᵀ is the transpose of the linear map ∗ (a convolution with strides 1/stride),
    K' is K when tied, else a set of kernels of its own. The loss compares v̂(h(ṽ)) with the clean v:

    cross_entropy:  − Σ_i v_i log v̂_i + (1 − v_i) log(1 − v̂_i),  v̂ = sigmoid(field),  for data in [0, 1]
    squared_error:  ½ Σ_i (v_i − v̂_i)²,  v̂ = field;  − log N(v; v̂, 1) in nats up to a constant

    image_shape: (height, width) or (channels, height, width) of a sample.
    channels: of each layer's maps, the lowest first; the last are the code, num_hidden = channels · height · width.
    kernel_size: pixels, odd. stride: at least 1; every layer divides height and width by it, rounded up.
    noise, noise_level: see `corruption`; only the loss sees corrupted data.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        channels: Sequence[int] = (16, 32),
        kernel_size: int = 5,
        stride: int = 2,
        activation: Literal["sigmoid", "relu", "linear"] = "sigmoid",
        tied: bool = True,
        noise: Noise = "none",
        noise_level: float = 0.0,
        loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
    ) -> None:
        super().__init__()
        if len(image_shape) not in (2, 3) or min(image_shape) < 1:
            raise ValueError(f"image_shape must be [height, width] or [channels, height, width], not {[*image_shape]}")
        if not channels or min(channels) < 1:
            raise ValueError(f"channels must be one number or more, each at least 1, not {[*channels]}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        if stride < 1:
            raise ValueError(f"stride must be at least 1, not {stride}")
        self.image_shape, self.channels = list(image_shape), list(channels)
        self.kernel_size, self.stride = kernel_size, stride
        self.activation, self.tied, self.loss = activation, tied, loss
        self.noise, self.noise_level = noise, noise_level
        self.corruption = Corruption(noise, noise_level)
        self._shapes = self._layer_shapes()
        self.num_visible, self.num_hidden = math.prod(self.visible_shape), math.prod(self.hidden_shape)
        depths = [shape[0] for shape in self._shapes]
        sizes = [(above, below, kernel_size, kernel_size) for below, above in zip(depths, depths[1:], strict=False)]
        self.kernels = nn.ParameterList(torch.empty(size) for size in sizes)
        self.hidden_biases = nn.ParameterList(torch.empty(depth) for depth in depths[1:])
        self.visible_biases = nn.ParameterList(torch.empty(depth) for depth in depths[:-1])
        self.decoder_kernels = None if tied else nn.ParameterList(torch.empty(size) for size in sizes)
        self.randomize()

    def _layer_shapes(self) -> list[tuple[int, int, int]]:
        """(channels, height, width) of the data and of every layer's maps."""
        depth, height, width = ([1] * (3 - len(self.image_shape))) + self.image_shape
        shapes = [(depth, height, width)]
        for depth in self.channels:
            height, width = -(-height // self.stride), -(-width // self.stride)
            shapes.append((depth, height, width))
        return shapes

    @torch.no_grad()
    def randomize(self) -> None:
        """Kernels uniform in ±g √(6 / (fan_in + fan_out)), g by the layer's nonlinearity, see `Stack.randomize`."""
        for kernels in (self.kernels, self.decoder_kernels):
            for height, kernel in enumerate(kernels if kernels is not None else [], start=1):
                top = height == len(self.channels)
                nn.init.xavier_uniform_(kernel, _GAIN[self.activation if top else "relu"])
        for bias in [*self.hidden_biases, *self.visible_biases]:
            bias.zero_()

    @property
    def visible_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a sample."""
        return self._shapes[0]

    @property
    def hidden_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of its code."""
        return self._shapes[-1]

    @property
    def visible_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if self.loss == "cross_entropy" else None

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if self.activation == "sigmoid" else None

    def losses(self, batch: Batch) -> Losses:
        """{"loss", "reconstruction_error": ‖v − v̂‖²}, both means per example; `loss` in nats."""
        v = batch
        assert isinstance(v, Tensor)  # (batch, num_visible)
        field = self._decoder_field(self.encode(self.corruption(v)))
        if self.loss == "cross_entropy":
            loss = F.binary_cross_entropy_with_logits(field, v, reduction="none").sum(1).mean()
        else:
            loss = 0.5 * (v - field).square().sum(1).mean()
        return {"loss": loss, "reconstruction_error": (v - self._decoder_mean(field)).square().sum(1).mean().detach()}

    def encode(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_hidden): the code of clean data."""
        maps = v.reshape(-1, *self.visible_shape)
        for height, (kernel, bias) in enumerate(zip(self.kernels, self.hidden_biases, strict=True), start=1):
            maps = F.conv2d(maps, kernel, bias, self.stride, self.kernel_size // 2)
            if height < len(self.channels) or self.activation == "relu":
                maps = torch.relu(maps)
        return torch.sigmoid(maps.flatten(1)) if self.activation == "sigmoid" else maps.flatten(1)

    def decode(self, h: Tensor) -> Tensor:
        """(batch, num_hidden) → (batch, num_visible): the decoder's mean."""
        return self._decoder_mean(self._decoder_field(h))

    def _decoder_field(self, h: Tensor) -> Tensor:
        maps = h.reshape(-1, *self.hidden_shape)
        kernels = self.kernels if self.decoder_kernels is None else self.decoder_kernels
        for height in range(len(self.channels) - 1, -1, -1):
            maps = self._transposed(maps, kernels[height], height) + self.visible_biases[height][:, None, None]
            if height > 0:
                maps = torch.relu(maps)
        return maps.flatten(1)

    def _decoder_mean(self, field: Tensor) -> Tensor:
        return torch.sigmoid(field) if self.loss == "cross_entropy" else field

    def _transposed(self, maps: Tensor, kernel: Tensor, height: int) -> Tensor:
        """∗ᵀ from the maps of layer `height` + 1 to those below them."""
        padding = self.kernel_size // 2
        reached = [(size - 1) * self.stride + self.kernel_size - 2 * padding for size in maps.shape[2:]]
        missing = [size - found for size, found in zip(self._shapes[height][1:], reached, strict=True)]
        return F.conv_transpose2d(maps, kernel, None, self.stride, padding, missing)

    # ---- what its units look for, see `stack.Convolves`

    @torch.no_grad()
    def filters(self) -> Tensor:
        """Receptive field of the unit in the middle of each map of the code, (channels_L, num_visible)."""
        depth, height, width = self.hidden_shape
        units = self.kernels[0].new_zeros(depth, depth, height, width)
        units[torch.arange(depth), torch.arange(depth), height // 2, width // 2] = 1
        return self.projected(units.flatten(1))

    @torch.no_grad()
    def projected(self, filters: Tensor) -> Tensor:
        """Filters of its codes, (n, num_hidden) → of its data, (n, num_visible), leaving out the nonlinearities."""
        maps = filters.reshape(-1, *self.hidden_shape)
        for height in range(len(self.channels) - 1, -1, -1):
            maps = self._transposed(maps, self.kernels[height], height)
        return maps.flatten(1)

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        """Pictures of 5 × 6 pixels, two layers."""
        model = cls(image_shape=(5, 6), channels=(3, 2), kernel_size=3, noise="masking", noise_level=0.25)
        return model, torch.linspace(0, 1, 60).square().reshape(2, 30)
