"""Variational autoencoders: a deep latent variable model and, trained with it, a network that infers its latents.

Kingma & Welling 2014, Rezende, Mohamed & Wierstra 2014 (the model and the reparameterised gradient); Burda, Grosse &
Salakhutdinov 2016 (importance-weighted bounds). Symbols: `x` data, `z` latent, p the generative model, q(z | x) the
posterior's approximation. What is NOT here: averaging importance weights (`likelihood.py`), discrete latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.interfaces import Batch, Effort, Encodes, HasLogProb, LogLikelihood, Losses, Model, Samples
from lightning_modules.likelihood import importance_weighted
from lightning_modules.perceptron import perceptron

_LOG_STD_BOUND = 7.0  # e^-7 is a quarter of an 8-bit gray level: no density of stored data means anything below
_CHUNK = 2**23  # floats in the widest activation of one chunk of importance samples: 32 MiB


class VAE(Model, Encodes, Samples, HasLogProb):
    """z ~ N(0, I), x ~ p(x | decoder(z)); q(z | x) = N(mean(x), diag exp(2 log_std(x))).

    ELBO(x) = E_q[log p(x | z)] − KL(q(z | x) ‖ N(0, I)) = E_q[log w(z)] ≤ log p(x),   w = p(x, z) / q(z | x)

    Arguments: `hidden` are the encoder's widths from the data inwards, the decoder mirrors them; none makes both
    networks affine, with a Gaussian likelihood the linear VAE whose optimum is probabilistic PCA (Lucas et al. 2019).
    likelihood: bernoulli (x in [0, 1], a density for binary x only) or gaussian (mean from the decoder; one standard
    deviation for all components, learned with the rest, or fixed by `visible_std` in units of the data).
    Log standard deviations stay within ±7 nats: the encoder's through 7 tanh(·/7), the learned one by `after_step`.
    """

    revision: ClassVar[int] = 2

    def __init__(
        self,
        *,
        num_visible: int,
        num_latent: int,
        hidden: Sequence[int] = (200, 200),
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        visible_std: float | None = None,
        activation: Literal["relu", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        if min(num_visible, num_latent, *hidden) < 1:
            raise ValueError("num_visible, num_latent and all hidden widths must be at least 1")
        if visible_std is not None and (likelihood != "gaussian" or visible_std <= 0):
            raise ValueError(f"visible_std must be above 0 and is of the gaussian likelihood, not {visible_std}")
        self.num_visible, self.num_latent, self.num_hidden = num_visible, num_latent, num_latent
        self.hidden, self.likelihood, self.activation = tuple(hidden), likelihood, activation
        self.visible_std = visible_std
        self.encoder = perceptron((num_visible, *self.hidden, 2 * num_latent), activation)
        self.decoder = perceptron((num_latent, *reversed(self.hidden), num_visible), activation)
        learns_std = likelihood == "gaussian" and visible_std is None
        self.visible_log_std = nn.Parameter(torch.zeros(())) if learns_std else None

    @property
    def visible_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if self.likelihood == "bernoulli" else None

    def losses(self, batch: Batch) -> Losses:
        """{"loss": −ELBO, "reconstruction": −E_q[log p(x | z)] by one sample, "kl"}, means in nats per example."""
        x = batch
        assert isinstance(x, Tensor)  # (batch, num_visible)
        mean, log_std = self._posterior(x)
        reconstruction = -self._log_likelihood(x, reparameterised(mean, log_std)).mean()
        kl = kl_from_standard_normal(mean, log_std).mean()
        return {"loss": reconstruction + kl, "reconstruction": reconstruction.detach(), "kl": kl.detach()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Keeps the learned log standard deviation of the likelihood within its bounds."""
        if self.visible_log_std is not None:
            self.visible_log_std.clamp_(-_LOG_STD_BOUND, _LOG_STD_BOUND)

    def log_weights(self, x: Tensor, num_samples: int) -> Tensor:
        """log p(x, z_s) − log q(z_s | x) for z_s ~ q(z | x): (batch, num_visible) → (num_samples, batch), nats.

        Differentiable. Its mean over samples estimates the ELBO, the logarithm of the mean weight the
        importance-weighted bound, which the evaluation computes from the same numbers.
        """
        mean, log_std = self._posterior(x)  # (batch, num_latent)
        noise = torch.randn(num_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        z = mean + log_std.exp() * noise  # (num_samples, batch, num_latent)
        log_prior_ratio = (log_std + 0.5 * (noise.square() - z.square())).sum(-1)  # log p(z) − log q(z | x)
        return self._log_likelihood(x, z) + log_prior_ratio

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """The importance-weighted lower bound with `effort.num_samples` samples per example, (batch,) nats.

        Memory stays bounded: samples are drawn a few at a time and only their weights kept.
        """
        width = max(self.num_visible, self.num_latent, *self.hidden)
        at_once = max(1, _CHUNK // (width * max(1, len(x))))
        counts = [min(at_once, effort.num_samples - start) for start in range(0, effort.num_samples, at_once)]
        return importance_weighted(torch.cat([self.log_weights(x, count) for count in counts]), effort)

    def encode(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_latent): the posterior's mean."""
        return self._posterior(v)[0]

    def decode(self, z: Tensor) -> Tensor:
        """(batch, num_latent) → (batch, num_visible): the likelihood's mean."""
        logits = self.decoder(z)
        return torch.sigmoid(logits) if self.likelihood == "bernoulli" else logits

    @torch.no_grad()
    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """→ (num_samples, num_visible): the likelihood's mean for z ~ N(0, I). One pass whatever the effort."""
        reference = next(self.parameters())
        return self.decode(torch.randn(num_samples, self.num_latent, dtype=reference.dtype, device=reference.device))

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        model = cls(num_visible=6, num_latent=2, hidden=(5,))
        return model, torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]])

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x), each (batch, num_latent)."""
        mean, log_std = self.encoder(x).chunk(2, dim=-1)
        return mean, _LOG_STD_BOUND * torch.tanh(log_std / _LOG_STD_BOUND)

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z): (batch, num_visible), (…, batch, num_latent) → (…, batch), nats."""
        output = self.decoder(z)
        if self.likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(output, x.expand_as(output), reduction="none").sum(-1)
        log_std = self._visible_log_std(x)
        standardised = (x - output) * torch.exp(-log_std)
        return (-0.5 * standardised.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def _visible_log_std(self, x: Tensor) -> Tensor:
        if self.visible_std is not None:
            return x.new_tensor(math.log(self.visible_std))
        assert self.visible_log_std is not None
        return self.visible_log_std


def reparameterised(mean: Tensor, log_std: Tensor) -> Tensor:
    """One draw z = mean + exp(log_std) ε, ε ~ N(0, I), through which gradients flow (Kingma & Welling 2014, §2.4)."""
    return mean + log_std.exp() * torch.randn_like(mean)


def kl_from_standard_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, diag exp(2 log_std)) ‖ N(0, I)) = Σ ½ (mean² + σ² − 1) − log σ, (…, num_latent) → (…), nats.

    Kingma & Welling 2014, appendix B. The variance part is written with expm1, so that it does not turn negative by
    rounding where q is nearly the prior.
    """
    return (0.5 * (mean.square() + torch.expm1(2 * log_std)) - log_std).sum(-1)
