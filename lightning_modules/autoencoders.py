"""Autoencoders: codes learned by reconstructing the data, or the clean data behind a corrupted copy.

Bourlard & Kamp 1988, Baldi & Hornik 1989 (linear ones and PCA); Vincent et al. 2008, 2010 (denoising); Rifai et al.
2011, ICML (contractive); Makhzani & Frey 2013 (k-sparse). Symbols: `v` the data, ṽ the corrupted data, `h` the code.
What is NOT here: convolutional ones (`convolutional.py`), the noise (`corruption.py`), the sparsity target
(`sparsity.py`), stacking (`stack.py`), deep ones (`unrolled.py`), variational ones (`variational.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.corruption import Corruption, Denoises, Noise
from lightning_modules.interfaces import Batch, Layer, Losses, Model, MovingAverages
from lightning_modules.sparsity import Sparsity

# Glorot & Bengio 2010 derive U(±sqrt(6 / (fan_in + fan_out))) for units of slope 1 at 0; a logistic unit has slope 1/4
# there, a rectifier passes half of its input's variance (He et al. 2015).
_GAIN = {"sigmoid": 4.0, "relu": math.sqrt(2.0), "linear": 1.0}


class Autoencoder(Model, Layer, Denoises, MovingAverages):
    """h = f(v W + b), v̂ = decoder mean; the loss compares v̂(h(ṽ)) with the clean v.

    cross_entropy:  − Σ_i v_i log v̂_i + (1 − v_i) log(1 − v̂_i),  v̂ = sigmoid(h W' + c),  for data in [0, 1]
    squared_error:  ½ Σ_i (v_i − v̂_i)²,  v̂ = h W' + c;  − log N(v; v̂, 1) in nats up to a constant

    W' is Wᵀ when tied, else a matrix of its own. Only the loss sees corrupted data; codes are those of clean data.

    activation: f.
    noise, noise_level: see `corruption`.
    num_active: of each code only so many largest values are kept, the others are 0; all by default. Few of many units
        leave some that never win: begin with many.
    sparsity_target, sparsity_cost: mean in (0, 1) that each sigmoid unit is drawn to, or none, and how strongly, > 0:
        adds cost · KL(target ‖ mean), see `sparsity`.
    contraction: ≥ 0, adds contraction · ‖∂h/∂v‖²_F, squared and summed over all units and components, where the code
        was taken. Of a linear code it is weight decay.
    """

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        activation: Literal["sigmoid", "relu", "linear"] = "sigmoid",
        tied: bool = True,
        noise: Noise = "none",
        noise_level: float = 0.0,
        loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
        num_active: int | None = None,
        sparsity_target: float | None = None,
        sparsity_cost: float = 1.0,
        contraction: float = 0.0,
    ) -> None:
        super().__init__()
        if num_visible < 1 or num_hidden < 1:
            raise ValueError(f"num_visible and num_hidden must be at least 1, not {num_visible} and {num_hidden}")
        if num_active is not None and not 1 <= num_active <= num_hidden:
            raise ValueError(f"num_active must be in 1 … num_hidden = {num_hidden}, not {num_active}")
        if sparsity_target is not None and activation != "sigmoid":
            raise ValueError(f"sparsity_target is of sigmoid codes, not {activation}; num_active is of all")
        if sparsity_target is not None and num_active is not None:
            raise ValueError("sparsity_target and num_active both say how many units are on; choose one")
        if not contraction >= 0:
            raise ValueError(f"contraction must not be negative, as {contraction} is")
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.activation, self.tied, self.loss = activation, tied, loss
        self.noise, self.noise_level = noise, noise_level
        self.num_active, self.contraction = num_active, contraction
        self.sparsity_target, self.sparsity_cost = sparsity_target, sparsity_cost
        self.corruption = Corruption(noise, noise_level)
        self.weights = nn.Parameter(torch.empty(num_visible, num_hidden))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.decoder_weights = None if tied else nn.Parameter(torch.empty(num_hidden, num_visible))
        nn.init.xavier_uniform_(self.weights, gain=_GAIN[activation])
        if self.decoder_weights is not None:
            nn.init.xavier_uniform_(self.decoder_weights, gain=_GAIN[activation])
        self.sparsity = None
        if sparsity_target is not None:
            self.sparsity = Sparsity(num_hidden, target=sparsity_target, cost=sparsity_cost)

    def idle_arguments(self) -> dict[str, str]:
        """What only a sparsity target needs."""
        return {} if self.sparsity is not None else {"sparsity_cost": "a sparsity_target"}

    @property
    def visible_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if self.loss == "cross_entropy" else None

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if self.activation == "sigmoid" else None

    def losses(self, batch: Batch) -> Losses:
        """{"loss", "reconstruction_error": ‖v − v̂‖²}, means per example, `loss` in nats and with all penalties.

        A sparsity target adds "hidden_activity", a contraction "jacobian_norm", ‖∂h/∂v‖²_F. In training mode the
        activity moves on.
        """
        v = batch
        assert isinstance(v, Tensor)  # (batch, num_visible)
        h = self.encode(self.corruption(v))
        field = self._decoder_field(h)
        if self.loss == "cross_entropy":
            loss = F.binary_cross_entropy_with_logits(field, v, reduction="none").sum(1).mean()
        else:
            loss = 0.5 * (v - field).square().sum(1).mean()
        error = (v - self._decoder_mean(field)).square().sum(1).mean()
        found = {"loss": loss, "reconstruction_error": error.detach()}
        if self.sparsity is not None:
            found |= {"loss": loss + self.sparsity.divergence(h), "hidden_activity": h.detach().mean()}
            if self.training:
                self.sparsity.move(h)
        if self.contraction:
            norm = self._squared_slopes(h).mean(0) @ self.weights.square().sum(0)
            found |= {"loss": found["loss"] + self.contraction * norm, "jacobian_norm": norm.detach()}
        return found

    def moving_averages(self) -> Sequence[Tensor]:
        """The activity, where there is a target for it."""
        return [] if self.sparsity is None else [self.sparsity.activity]

    def encode(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_hidden): the code of clean data."""
        return self.activate(self.hidden_field(v))

    def hidden_field(self, v: Tensor) -> Tensor:
        """v W + b, (batch, num_visible) → (batch, num_hidden)."""
        return F.linear(v, self.weights.T, self.hidden_bias)

    def activate(self, field: Tensor) -> Tensor:
        """The code's nonlinearity, (batch, num_hidden) → (batch, num_hidden)."""
        match self.activation:
            case "sigmoid":
                h = torch.sigmoid(field)
            case "relu":
                h = torch.relu(field)
            case "linear":
                h = field
        if self.num_active is None:
            return h
        kept = field.topk(self.num_active, dim=-1).indices
        return torch.zeros_like(h).scatter(-1, kept, h.gather(-1, kept))

    def _squared_slopes(self, h: Tensor) -> Tensor:
        """f'² where the code is h, (batch, num_hidden); of a unit that was not kept it is 0."""
        if self.activation == "sigmoid":
            return (h * (1 - h)).square()
        if self.activation == "linear" and self.num_active is None:
            return torch.ones_like(h)
        return (h != 0).to(h.dtype)

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
