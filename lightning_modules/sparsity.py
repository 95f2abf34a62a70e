"""Hidden units that are rarely on (Lee, Ekanadham & Ng 2008, NIPS 20; here as in Hinton 2010, "A practical guide to
training RBMs", §11).

A unit's activity q, a moving average of E[h | data], is drawn to the target p by the cross-entropy of the two, whose
derivative by the unit's field is q − p. The same derivative goes to its bias and, through the data's means, to its
weights: to the bias alone, the weights would grow against it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.bipartite import Bipartite
from lightning_modules.units import Bernoulli, Units

DECAY = 0.95  # of the moving average a step; between Hinton's 0.9 and 0.99


class Sparsity(nn.Module):
    """units: hidden, binary. target: p in (0, 1). cost: of the cross-entropy against the log-likelihood, > 0.

    On several ranks the activity is averaged, see `interfaces.MovingAverages`.
    """

    activity: Tensor

    def __init__(self, units: Units, num_hidden: int, *, target: float, cost: float) -> None:
        super().__init__()
        if not isinstance(units, Bernoulli):
            raise ValueError("sparsity_target is an activity of bernoulli hidden units, doubled ones excepted")
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

    def pull(self, machine: Bipartite, data: Tensor) -> Tensor:
        """A scalar of value 0 whose gradient is cost · (q − p) at every unit's field; data: (batch, num_visible)."""
        mean_field = machine.hidden_field(data.mean(0, keepdim=True))[0]
        pull = self.cost * (self.activity - self.target).clone() @ mean_field
        return pull - pull.detach()
