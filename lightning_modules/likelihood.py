"""Log-likelihoods and partition functions: exact enumeration, annealed importance sampling, importance-weighted bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_modules.interfaces import Effort, LogLikelihood


def importance_weighted(log_weights: Tensor, effort: Effort) -> LogLikelihood:
    """The importance-weighted bound L_k = E[log (1/k) Σ_s w_s] ≤ log p(x) (Burda, Grosse & Salakhutdinov 2016, eq. 8).

    log_weights: (num_samples, batch), log p(x, z_s) − log q(z_s | x) for z_s ~ q. One sample gives the ELBO.
    Standard error by the delta method, Var[log ŵ] ≈ Var[w] / (k E[w]²); None with one sample, which says nothing of it.
    The effective sample size is the mean over the batch of (Σ w)² / Σ w², between 1 and k.
    """
    num_samples, batch = log_weights.shape
    log_weights = log_weights.double()
    nats = log_weights.logsumexp(0) - math.log(num_samples)
    concentration = log_weights.softmax(0).square().sum(0)  # (batch,), Σ w² / (Σ w)²
    std_error = None
    if num_samples > 1:
        variance = (concentration - 1 / num_samples).clamp(min=0) * num_samples / (num_samples - 1)
        std_error = variance.sum().sqrt().item() / batch
    return LogLikelihood(
        nats=nats.to(torch.get_default_dtype()),
        kind="lower_bound",
        estimator=f"IW-{num_samples}",
        effort=effort,
        std_error=std_error,
        effective_sample_size=concentration.reciprocal().mean().item(),
    )
