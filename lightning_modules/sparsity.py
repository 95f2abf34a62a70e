"""Hidden units that are rarely on (Lee, Ekanadham & Ng 2008, NIPS 20).

A unit's activity q, a moving average of its mean over the data, is drawn to the target p by

    KL(p ‖ q) = p log(p / q) + (1 − p) log((1 − p) / (1 − q)),

whose derivative by q is (q − p) / (q (1 − q)) and, by the field of a sigmoid of value q, q − p. Machines take the
latter (Hinton 2010, "A practical guide to training RBMs", §11), autoencoders the former (Ng, "Sparse autoencoder",
CS294A lecture notes, whose q is the mean over all data).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY = 0.95  # of the moving average a step; between Hinton's 0.9 and 0.99
LEAST = 1e-4  # activity, from 0 and from 1, beyond which KL gets no steeper


class Sparsity(nn.Module):
    """target: p in (0, 1). cost: of the divergence against the log-likelihood, > 0.

    Penalties are linear in the examples of a batch, given the activity before it: ranks' gradients average to those of
    the whole batch. The activity itself is averaged over them, see `interfaces.MovingAverages`.
    """

    activity: Tensor

    def __init__(self, num_hidden: int, *, target: float, cost: float) -> None:
        super().__init__()
        if not 0 < target < 1:
            raise ValueError(f"sparsity_target must lie between 0 and 1, not {target}")
        if not cost > 0:
            raise ValueError(f"sparsity_cost must be positive, not {cost}")
        self.target, self.cost = target, cost
        self.register_buffer("activity", torch.full((num_hidden,), target))

    @torch.no_grad()
    def move(self, hidden_mean: Tensor) -> None:
        """Takes in E[h | v] of a batch, (batch, num_hidden)."""
        self.activity.lerp_(hidden_mean.mean(0).to(self.activity), 1 - DECAY)

    def pull(self, mean_field: Tensor) -> Tensor:
        """A scalar of value 0 whose gradient is cost · (q − p) at every unit's field.

        mean_field: (num_hidden,), at the data's means: through it the same derivative goes to a unit's bias and to its
        weights; to the bias alone, the weights would grow against it.
        """
        pull = self.cost * (self.activity - self.target).clone() @ mean_field
        return pull - pull.detach()

    def divergence(self, hidden_mean: Tensor) -> Tensor:
        """cost · Σ_j KL(p ‖ q̂_j), q̂ the batch's own means, to first order around q.

        hidden_mean: (batch, num_hidden).
        """
        p, q = self.target, self.activity.clamp(LEAST, 1 - LEAST)
        value = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        return self.cost * (value + (q - p) / (q * (1 - q)) * (hidden_mean.mean(0) - q)).sum()
