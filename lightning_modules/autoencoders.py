"""Autoencoders: codes learned by reconstructing the data, or the clean data behind a corrupted copy.

Bourlard & Kamp 1988 (linear autoencoders and PCA); Vincent et al. 2008, 2010 (denoising). Symbols: `v` the data,
ṽ the corrupted data, `h` the code. What is NOT here: stacking (`stack.py`), variational ones (`variational.py`).
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.interfaces import Batch, Layer, Losses, Model

# Glorot & Bengio 2010 derive U(±sqrt(6 / (fan_in + fan_out))) for units of slope 1 at 0; a logistic unit has slope 1/4
# there, a rectifier passes half of its input's variance (He et al. 2015).
_GAIN = {"sigmoid": 4.0, "relu": math.sqrt(2.0), "linear": 1.0}


class Autoencoder(Model, Layer):
    """h = activation(v W + b), v̂ = decoder mean; the loss compares v̂(h(ṽ)) with the clean v.

    cross_entropy:  − Σ_i v_i log v̂_i + (1 − v_i) log(1 − v̂_i),  v̂ = sigmoid(h W' + c),  for data in [0, 1]
    squared_error:  ½ Σ_i (v_i − v̂_i)²,  v̂ = h W' + c;  − log N(v; v̂, 1) in nats up to a constant

    W' is Wᵀ when tied, else a matrix of its own. Arguments: `noise_level` is the share of components set to 0
    (masking) or, by a fair coin, to 0 or 1 (salt_and_pepper), each component by itself (Vincent et al. 2010, §3.3), or
    the standard deviation of what is added (gaussian), in units of the data. Only the loss sees corrupted data;
    codes are those of clean data.
    """

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        activation: Literal["sigmoid", "relu", "linear"] = "sigmoid",
        tied: bool = True,
        noise: Literal["none", "masking", "gaussian", "salt_and_pepper"] = "none",
        noise_level: float = 0.0,
        loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
    ) -> None:
        super().__init__()
        if num_visible < 1 or num_hidden < 1:
            raise ValueError(f"num_visible and num_hidden must be at least 1, not {num_visible} and {num_hidden}")
        if noise_level < 0 or (noise != "gaussian" and noise_level > 1):
            raise ValueError(f"noise_level must be 0 or more, and a share at most 1, not {noise_level}")
        if (noise == "none") != (noise_level == 0):
            raise ValueError(f"noise {noise!r} and noise_level {noise_level} contradict each other")
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.activation, self.tied, self.loss = activation, tied, loss
        self.noise, self.noise_level = noise, noise_level
        self.weights = nn.Parameter(torch.empty(num_visible, num_hidden))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.decoder_weights = None if tied else nn.Parameter(torch.empty(num_hidden, num_visible))
        nn.init.xavier_uniform_(self.weights, gain=_GAIN[activation])
        if self.decoder_weights is not None:
            nn.init.xavier_uniform_(self.decoder_weights, gain=_GAIN[activation])

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
        field = self._decoder_field(self.encode(self._corrupt(v)))
        if self.loss == "cross_entropy":
            loss = F.binary_cross_entropy_with_logits(field, v, reduction="none").sum(1).mean()
        else:
            loss = 0.5 * (v - field).square().sum(1).mean()
        return {"loss": loss, "reconstruction_error": (v - self._decoder_mean(field)).square().sum(1).mean().detach()}

    def encode(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_hidden): the code of clean data."""
        return self.activate(F.linear(v, self.weights.T, self.hidden_bias))

    def activate(self, field: Tensor) -> Tensor:
        """The code's nonlinearity, (…, num_hidden) → (…, num_hidden)."""
        match self.activation:
            case "sigmoid":
                return torch.sigmoid(field)
            case "relu":
                return torch.relu(field)
            case "linear":
                return field

    def decode(self, h: Tensor) -> Tensor:
        """(batch, num_hidden) → (batch, num_visible): the decoder's mean."""
        return self._decoder_mean(self._decoder_field(h))

    def filters(self) -> Tensor:
        """(num_hidden, num_visible): what each code unit looks for, its row of encoder weights."""
        return self.weights.detach().T

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        model = cls(num_visible=6, num_hidden=4, noise="masking", noise_level=0.25)
        return model, torch.tensor([[0.0, 1.0, 0.5, 0.0, 1.0, 0.25], [1.0, 0.0, 0.0, 0.75, 1.0, 0.0]])

    def _decoder_field(self, h: Tensor) -> Tensor:
        weights = self.weights if self.decoder_weights is None else self.decoder_weights.T  # (num_visible, num_hidden)
        return F.linear(h, weights, self.visible_bias)

    def _decoder_mean(self, field: Tensor) -> Tensor:
        return torch.sigmoid(field) if self.loss == "cross_entropy" else field

    def _corrupt(self, v: Tensor) -> Tensor:
        match self.noise:
            case "none":
                return v
            case "masking":
                return v * (torch.rand_like(v) >= self.noise_level)
            case "gaussian":
                return v + self.noise_level * torch.randn_like(v)
            case "salt_and_pepper":
                hit = torch.rand_like(v) < self.noise_level
                return torch.where(hit, (torch.rand_like(v) < 0.5).to(v.dtype), v)
