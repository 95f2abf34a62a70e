"""Deep embedded clustering (Xie, Girshick & Farhadi 2016, ICML): an encoder and centres of its codes learn together.

Symbols: z the stack's code of a sample, μ_k the centre of cluster k of K, q and p two distributions over clusters.

    q_k ∝ (1 + ‖z − μ_k‖² / α)^−(α+1)/2,     p_k ∝ q_k² / f_k,     loss = KL(p ‖ q) = Σ_k p_k log p_k / q_k

f_k is how often cluster k is chosen: p is surer than q, and does not let large clusters grow larger. What is NOT here:
the stack and its pretraining, without which there is nothing to be sure of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lightning_modules.interfaces import Batch, Clusters, Losses, MovingAverages, StartsFromData
from lightning_modules.kmeans import best_of_starts, nearest, squared_distances
from lightning_modules.stack import OverStack, Stack


class DEC(OverStack, Clusters, StartsFromData, MovingAverages):
    """K = num_clusters ≥ 2 centres among the codes of a stack; both are trained, the stack's decoder is not.

    degrees: α > 0 of the Student t distribution. averaging: in [0, 1); f is the mean of q over the batches so far, of
    which each step keeps this share. starts: of k-means on the codes of a sample, where centres and f begin.

    The paper computes p of all samples now and then and keeps it; here p is that of the batch at hand, from its q and
    the running f of the batches before: no state beside the model's, so that it resumes exactly, and the same on any
    number of ranks.
    """

    revision: ClassVar[int] = 2

    def __init__(
        self, *, stack: Stack, num_clusters: int, degrees: float = 1.0, averaging: float = 0.99, starts: int = 20
    ) -> None:
        super().__init__()
        if num_clusters < 2:
            raise ValueError(f"num_clusters must be at least 2, not {num_clusters}")
        if starts < 1:
            raise ValueError(f"starts must be at least 1, not {starts}")
        if not degrees > 0:
            raise ValueError(f"degrees must be above 0, not {degrees}")
        if not 0 <= averaging < 1:
            raise ValueError(f"averaging must be in [0, 1), not {averaging}")
        self.stack, self.num_clusters, self.degrees = stack, num_clusters, degrees
        self.averaging, self.starts = averaging, starts
        self.num_visible, self.num_hidden = stack.num_visible, stack.num_hidden
        self.centres = nn.Parameter(torch.randn(num_clusters, stack.num_hidden))
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.full((num_clusters,), 1 / num_clusters))

    @torch.no_grad()
    def start_from_data(self, x: Tensor) -> None:
        codes = self.encode(x)
        if len(codes) >= self.num_clusters:
            self.centres.copy_(best_of_starts(codes, self.num_clusters, self.starts))
            self.frequencies.copy_(self._log_memberships(codes).exp().mean(0))

    def losses(self, batch: Batch) -> Losses:
        """{"loss": KL(p ‖ q), nats, "confidence": mean of max_k q_k}, means over the batch."""
        assert isinstance(batch, Tensor)
        log_q = self.log_memberships(batch)
        with torch.no_grad():
            q = log_q.exp()
            target = q.square() / self.frequencies.clamp(min=1e-8)
            target = target / target.sum(1, keepdim=True)
            if self.training:
                self.frequencies.lerp_(q.mean(0), 1 - self.averaging)
        loss = torch.xlogy(target, target).sum(1).mean() - (target * log_q).sum(1).mean()
        return {"loss": loss, "confidence": q.amax(1).mean()}

    def log_memberships(self, v: Tensor) -> Tensor:
        """log q, (batch, num_visible) → (batch, num_clusters)."""
        return self._log_memberships(self.encode(v))

    def _log_memberships(self, z: Tensor) -> Tensor:
        squared = squared_distances(z, self.centres).clamp(min=0)
        return (-(self.degrees + 1) / 2 * torch.log1p(squared / self.degrees)).log_softmax(1)

    def assign(self, v: Tensor) -> Tensor:
        """The most probable one under q: the nearest centre's."""
        return nearest(self.encode(v), self.centres)[1]

    def moving_averages(self) -> Sequence[Tensor]:
        return [self.frequencies]

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Two clusters in the codes of a tiny stack."""
        stack, x = Stack.example()
        return cls(stack=stack, num_clusters=2), x
