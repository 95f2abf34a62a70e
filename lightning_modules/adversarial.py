"""Generative adversarial networks: a generator learned against a discriminator, no density anywhere.

Goodfellow et al. 2014 (the game, the non-saturating loss of §3); Mescheder, Geiger & Nowozin 2018 (the R1 penalty,
which makes training converge locally). Symbols: `x` data, `z` ~ N(0, I) the latent, G(z) generated data, D(x) a
logit, high for data. What is NOT here: other games; batch normalisation, whose running statistics would differ
between ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_modules.interfaces import Batch, Effort, Losses, Phase, PhasedModel, Samples
from lightning_modules.perceptron import perceptron


class GAN(PhasedModel, Samples):
    """Two multilayer perceptrons that take turns, on data in [0, 1].

    discriminator:  E softplus(−D(x)) + E softplus(D(G(z))) + (r1 / 2) E ‖∇_x D(x)‖²      (binary cross-entropy, nats)
    generator:      E softplus(−D(G(z)))                                                  (non-saturating)

    Arguments: `generator_hidden`, `discriminator_hidden` are widths of hidden layers (leaky rectifiers, slope 0.2,
    Radford et al. 2016); `r1` ≥ 0 weighs the gradient penalty, 0 leaves it out. On 8×8 digits 0.1 beat 1 (samples
    less sharp) and 0 (classes unevenly covered); Mescheder et al. use 10 for large pictures.
    At the equilibrium D = 0 everywhere: the first two parts are log 2 each.
    """

    def __init__(
        self,
        *,
        num_visible: int,
        num_latent: int,
        generator_hidden: Sequence[int] = (256, 256),
        discriminator_hidden: Sequence[int] = (256, 256),
        r1: float = 0.1,
    ) -> None:
        super().__init__()
        if min(num_visible, num_latent, *generator_hidden, *discriminator_hidden) < 1:
            raise ValueError("num_visible, num_latent and all hidden widths must be at least 1")
        if r1 < 0:
            raise ValueError(f"r1 must be 0 or more, not {r1}")
        self.num_visible, self.num_latent, self.r1 = num_visible, num_latent, r1
        self.generator_hidden, self.discriminator_hidden = tuple(generator_hidden), tuple(discriminator_hidden)
        self.generator = perceptron((num_latent, *generator_hidden, num_visible), "leaky_relu")
        self.discriminator = perceptron((num_visible, *discriminator_hidden, 1), "leaky_relu")

    @property
    def visible_range(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def phases(self) -> Sequence[Phase]:
        """Discriminator first, then generator, one step each."""
        return (
            Phase("discriminator", list(self.discriminator.parameters()), self._discriminator_losses),
            Phase("generator", list(self.generator.parameters()), self._generator_losses),
        )

    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """→ (num_samples, num_visible): G(z). Costs one pass whatever the effort."""
        with torch.no_grad():
            return self._generate(num_samples)

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        model = cls(num_visible=6, num_latent=3, generator_hidden=(5,), discriminator_hidden=(5,))
        return model, torch.tensor([[0.0, 1.0, 0.5, 0.0, 1.0, 0.25], [1.0, 0.0, 0.0, 0.75, 1.0, 0.0]])

    def _generate(self, num_samples: int) -> Tensor:
        reference = next(self.parameters())
        z = torch.randn(num_samples, self.num_latent, dtype=reference.dtype, device=reference.device)
        return torch.sigmoid(self.generator(z))

    def _discriminator_losses(self, x: Tensor) -> Losses:
        with torch.no_grad():
            generated = self._generate(len(x))
        real = F.softplus(-self.discriminator(x)).mean()
        fake = F.softplus(self.discriminator(generated)).mean()
        penalty = 0.5 * self.r1 * self._squared_slope(x) if self.r1 else real.new_zeros(())
        return {
            "loss": real + fake + penalty,
            "discriminator_real": real.detach(),
            "discriminator_fake": fake.detach(),
            "gradient_penalty": penalty.detach(),
        }

    def _generator_losses(self, x: Tensor) -> Losses:
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits = functional_call(self.discriminator, frozen, (self._generate(len(x)),))
        loss = F.softplus(-logits).mean()
        return {"loss": loss, "discriminator_fooled": torch.sigmoid(logits).mean().detach()}

    def _squared_slope(self, x: Tensor) -> Tensor:
        """Mean of ‖∇_x D(x)‖² over the batch, differentiable; also where the caller evaluates without gradients."""
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.discriminator(at).sum(), at, create_graph=True)
            return slope.square().sum(1).mean()
