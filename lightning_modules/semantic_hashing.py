"""Semantic hashing: a deep autoencoder whose code is bits, so that what is alike differs in few of them.

Salakhutdinov & Hinton 2007, SIGIR workshop; 2009, Int. J. Approx. Reason. 50 (documents; noise on the code's input);
Krizhevsky & Hinton 2011, ESANN (pictures; rounded codes whose gradient is that of the probabilities). Symbols: z the
field of the code units, μ its running mean, b the bits, w the weights of a document's words. What is NOT here: other
hash codes (`itq`), the search among codes, how good it is (`retrieval`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.autoencoders import Autoencoder
from lightning_modules.corruption import Corruption, Denoises, Noise
from lightning_modules.interfaces import Batch, Hashes, Layer, Losses, Model, MovingAverages, StreamingModel
from lightning_modules.stack import Stack
from lightning_modules.unrolled import DeepAutoencoder

FOLLOWING = 0.05  # how far μ goes towards a batch's mean


class SemanticHashing(Model, Layer, Hashes, Denoises, MovingAverages):
    """A stack unrolled as in `unrolled`, its top units bits, whatever they were: b = 1 where z > μ, else 0.

    μ is the mean of z, of the batch while training, of batches gone by afterwards: every bit is 1 for about half of
    the data. While training the decoder gets b, and z the gradient of σ(z − μ) in its place (straight through); with
    noise on the code it gets σ(z − μ + noise), which the noise hurts least where it is near 0 or 1.

    stack: RBMs and tied autoencoders, trained or not; kept, not copied. Below them may lie layers that were fitted by a
        pass (tfidf, whitening …), which stay as they are: h₀ is what they hand up, and what is to come back.
    loss: cross_entropy and squared_error as of a deep autoencoder, or softmax, for documents: − Σ_i w_i log ŵ_i with
        w = h₀, counts or weights of words, and ŵ their shares, a softmax over all words; nats.
    start: "stack", or "random": weights uniform in ±1/√fan_in and no biases, whatever the stack has learned. Small
        fields learn more than those that begin saturated.
    noise, noise_level: of the input, see `corruption`; masked counts are words left out.
    code_noise: standard deviation of the Gaussian noise on z, ≥ 0; 0: straight through.
    """

    def __init__(
        self,
        *,
        stack: Stack,
        loss: Literal["cross_entropy", "squared_error", "softmax"] = "cross_entropy",
        start: Literal["stack", "random"] = "stack",
        noise: Noise = "none",
        noise_level: float = 0.0,
        code_noise: float = 0.0,
    ) -> None:
        super().__init__()
        layers = list(stack)
        passed = next((n for n, layer in enumerate(layers) if not isinstance(layer, StreamingModel)), len(layers))
        if passed == len(layers):
            raise ValueError("the stack has no layer to learn: on top of fitted ones it needs RBMs or autoencoders")
        if not code_noise >= 0:
            raise ValueError(f"code_noise must not be negative, as {code_noise} is")
        self.below = Stack(layers=layers[:passed]) if passed else None
        inner: Literal["cross_entropy", "squared_error"] = "squared_error" if loss == "softmax" else loss
        self.net = DeepAutoencoder(stack=Stack(layers=layers[passed:]), loss=inner)
        self.loss, self.start, self.code_noise = loss, start, code_noise
        self.noise, self.noise_level = noise, noise_level
        self.corruption = Corruption(noise, noise_level)
        self.num_visible, self.num_hidden, self.num_bits = stack.num_visible, stack.num_hidden, stack.num_hidden
        self.middle: Tensor
        self.register_buffer("middle", torch.zeros(stack.num_hidden))  # μ
        if start == "random":
            self.randomize()

    @property
    def stack(self) -> Stack:
        return Stack(layers=[*(self.below or []), *self.net.stack])

    @property
    def visible_range(self) -> tuple[float, float] | None:
        return self.stack.visible_range

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0)

    @property
    def reads_counts(self) -> bool:
        return bool(getattr(self.stack[0], "reads_counts", False))

    def losses(self, batch: Batch) -> Losses:
        """{"loss", "bits_on": share of bits that are 1, "undecided": mean of 4 q (1 − q), q = σ(z − μ)}, means.

        In training mode the μ of later moves on.
        """
        assert isinstance(batch, Tensor)  # (batch, num_visible)
        z = self._field(self._handed_up(self.corruption(batch)))
        if self.training:
            with torch.no_grad():
                self.middle.lerp_(z.mean(0).to(self.middle), FOLLOWING)
        z = z - (z.mean(0) if self.training else self.middle)
        q = torch.sigmoid(z)
        b = (q > 0.5).to(q.dtype)
        code = torch.sigmoid(z + self.code_noise * torch.randn_like(z)) if self.code_noise else b + q - q.detach()
        loss = self._error(self.net.output_field(code), self._handed_up(batch))
        return {"loss": loss, "bits_on": b.mean(), "undecided": (4 * q * (1 - q)).mean().detach()}

    def moving_averages(self) -> Sequence[Tensor]:
        return [self.middle]

    def bits(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_bits) bool: z > μ."""
        return self._field(self._handed_up(v)) > self.middle

    def encode(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_hidden): σ(z − μ), above ½ where the bit is 1."""
        return torch.sigmoid(self._field(self._handed_up(v)) - self.middle)

    def decode(self, h: Tensor) -> Tensor:
        """(batch, num_hidden) → (batch, num_visible): data again, or shares of words."""
        field = self.net.output_field(h)
        if self.loss == "softmax":
            return F.softmax(field, dim=1)
        return self.net.output_mean(field) if self.below is None else self.below.decode(self.net.output_mean(field))

    @torch.no_grad()
    def randomize(self) -> None:
        """Makes the untrained twin in place, see `start`."""
        for layer in self.net.stack:
            for parameter in cast(nn.Module, layer).parameters():
                _start_small(parameter)
        for weights in self.net.decoder_weights:
            _start_small(weights)
        self.middle.zero_()

    def _handed_up(self, v: Tensor) -> Tensor:
        """h₀, (batch, num_visible) → (batch, values of the lowest layer that learns)."""
        return v if self.below is None else self.below.encode(v)

    def _field(self, h: Tensor) -> Tensor:
        """z, from h₀: (batch, num_bits)."""
        layers = list(self.net.stack)
        for layer in layers[:-1]:
            h = layer.encode(h)
        top = layers[-1]
        return top.hidden_field(h)  # type: ignore[attr-defined,no-any-return]  # of RBMs and autoencoders

    def _error(self, field: Tensor, target: Tensor) -> Tensor:
        match self.loss:
            case "cross_entropy":
                return F.binary_cross_entropy_with_logits(field, target, reduction="none").sum(1).mean()
            case "squared_error":
                return 0.5 * (target - self.net.output_mean(field)).square().sum(1).mean()
            case "softmax":
                return -(target * F.log_softmax(field, dim=1)).sum(1).mean()

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        layers: list[Layer] = [
            Autoencoder(num_visible=6, num_hidden=4),
            Autoencoder(num_visible=4, num_hidden=3),
        ]
        return cls(stack=Stack(layers=layers)), torch.tensor([[0.0, 1, 0.5, 0, 1, 0.25], [1, 0, 0, 0.75, 1, 0]])


def _start_small(parameter: Tensor) -> None:
    """(fan_in, fan_out): uniform in ±1/√fan_in; biases 0."""
    if parameter.ndim < 2:
        parameter.zero_()
    else:
        parameter.uniform_(-1, 1).div_(len(parameter) ** 0.5)
