"""Mixtures of Gaussians by expectation–maximization (Dempster, Laird & Rubin 1977), a pass over the data each step.

    p(x) = Σ_k π_k N(x; μ_k, Σ_k),     r_k(x) = π_k N(x; μ_k, Σ_k) / p(x)

Symbols: π the weights of K components, μ_k and Σ_k their means and covariances, r_k the responsibility of component k
for x. What is NOT here: the passes (`rounds.py`), where they start (`kmeans.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.interfaces import (
    Batch,
    Clusters,
    Effort,
    HasLogProb,
    IteratedModel,
    Layer,
    LogLikelihood,
    Samples,
)
from lightning_modules.kmeans import best_of_starts, nearest

LEAST = 1e-8  # samples a component must answer for, else it stays as it is


class GaussianMixture(IteratedModel, Layer, Clusters, HasLogProb, Samples):
    """K = num_components Gaussians; the code is r(x), (K,), the way back the mean Σ_k h_k μ_k.

    covariance: diagonal, full, or spherical, Σ_k = σ_k² I. regularization: ≥ 0, in squared units of the data, added to
    every variance; with 0 a step never lowers the likelihood, and a component on too few samples is an error.
    passes: at most; tolerance: ≥ 0 nats a sample that a pass must gain, else it is the last. starts: of k-means on a
    sample, whose clusters are the first responsibilities. All of it is float64.
    """

    revision: ClassVar[int] = 2
    batch_size: None = None

    def __init__(
        self,
        *,
        num_visible: int,
        num_components: int,
        covariance: Literal["diagonal", "full", "spherical"] = "diagonal",
        regularization: float = 1e-6,
        passes: int = 100,
        tolerance: float = 1e-3,
        starts: int = 4,
    ) -> None:
        super().__init__()
        counts = {"num_visible": num_visible, "num_components": num_components, "passes": passes, "starts": starts}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        for name, value in {"regularization": regularization, "tolerance": tolerance}.items():
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")
        self.num_visible, self.num_components = num_visible, num_components
        self.num_hidden = self.num_clusters = num_components
        self.covariance, self.regularization = covariance, regularization
        self.passes, self.tolerance, self.starts = passes, tolerance, starts
        self.start_samples = max(10_000, 10 * num_components)
        self.weights: Tensor
        self.means: Tensor
        self.covariances: Tensor
        self.log_likelihood: Tensor
        shape = {"diagonal": (num_visible,), "full": (num_visible, num_visible), "spherical": ()}[covariance]
        ones = torch.eye(num_visible) if covariance == "full" else torch.ones(shape)
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components, dtype=torch.float64))
        self.register_buffer("means", torch.zeros(num_components, num_visible, dtype=torch.float64))
        self.register_buffer("covariances", ones.double().expand(num_components, *shape).clone())
        self.register_buffer("log_likelihood", torch.full((), -math.inf, dtype=torch.float64))  # before the last step
        self._settled = False
        self._counts: Tensor | None = None
        self._total: Tensor
        self.forget()

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0)

    @property
    def least_samples(self) -> int:
        return self.num_components

    # ---- fitting

    @torch.no_grad()
    def start(self, sample: Tensor) -> None:
        if len(sample) < self.num_components:
            raise ValueError(f"{self.num_components} components need as many samples or more, found {len(sample)}")
        centres = best_of_starts(sample, self.num_components, self.starts)
        self.means.copy_(centres)
        self.forget()
        self._gather(sample.double(), F.one_hot(nearest(sample, centres)[1], self.num_components).double())
        self._step()
        self.log_likelihood.fill_(-math.inf)
        self._settled = False
        self.forget()

    @property
    def settled(self) -> bool:
        return self._settled

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """E: the responsibilities of each component for these samples, and the sums they weigh."""
        assert isinstance(batch, Tensor)
        for x in batch.double().split(2048):
            joint = self._log_joint(x)
            log_prob = joint.logsumexp(1)
            self._total = self._total + log_prob.sum().cpu()
            self._gather(x, (joint - log_prob[:, None]).exp())

    def _gather(self, x: Tensor, responsibilities: Tensor) -> None:
        """Σ r, Σ r (x − μ_k) and Σ r (x − μ_k)(x − μ_k)ᵀ or its diagonal, around the means as they are."""
        sums, squares = [], []
        for k in range(self.num_components):
            away, r = x - self.means[k], responsibilities[:, k]
            weighted = r[:, None] * away
            sums.append(weighted.sum(0))
            squares.append(weighted.T @ away if self.covariance == "full" else (weighted * away).sum(0))
        self._add(responsibilities.sum(0), torch.stack(sums), torch.stack(squares))
        self._number += len(x)

    def _add(self, counts: Tensor, sums: Tensor, squares: Tensor) -> None:
        if self._counts is None:
            self._counts, self._sums, self._squares = counts, sums, squares
            return
        at = self._counts.device
        self._counts = self._counts + counts.to(at)
        self._sums, self._squares = self._sums + sums.to(at), self._squares + squares.to(at)

    def partial(self) -> dict[str, Tensor]:
        if self._counts is None:
            return {"number": torch.tensor(0)}
        own = {"counts": self._counts, "sums": self._sums, "squares": self._squares, "total": self._total}
        return {name: tensor.cpu() for name, tensor in own.items()} | {"number": torch.tensor(self._number)}

    def merge(self, partial: Mapping[str, Tensor]) -> None:
        if int(partial["number"]):
            self._add(partial["counts"], partial["sums"], partial["squares"])
            self._total = self._total + partial["total"]
            self._number += int(partial["number"])

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """M: weights, means and covariances → {"samples", "log_likelihood" before the step, nats a sample}."""
        number = self._number
        if number < self.num_components:
            raise ValueError(f"{self.num_components} components need as many samples or more, found {number}")
        log_likelihood, before = float(self._total) / number, float(self.log_likelihood)
        self._step()
        self._settled = log_likelihood - before < self.tolerance
        self.log_likelihood.fill_(log_likelihood)
        self.forget()
        return {"samples": float(number), "log_likelihood": log_likelihood}

    def _step(self) -> None:
        assert self._counts is not None
        counts = self._counts.clamp(min=LEAST)
        shift = self._sums / counts[:, None]
        if self.covariance == "full":
            found = self._squares / counts[:, None, None] - shift[:, :, None] * shift[:, None, :]
            found = found + self.regularization * torch.eye(self.num_visible, dtype=found.dtype, device=found.device)
            bad = torch.linalg.cholesky_ex(found).info > 0
        else:
            found = self._squares / counts[:, None] - shift.square() + self.regularization
            found = found.mean(1) if self.covariance == "spherical" else found
            bad = (found.reshape(len(counts), -1) <= 0).any(1)
        alive = self._counts > LEAST
        if (bad & alive).any():
            component = int((bad & alive).nonzero()[0, 0])
            raise ValueError(
                f"the covariance of component {component}, on {float(self._counts[component]):.1f} samples, is not "
                f"positive definite; raise regularization (now {self.regularization:g}) or take fewer components"
            )
        self.weights.copy_(self._counts / self._counts.sum())
        self.means.add_(shift)
        self.covariances.copy_(torch.where(alive.reshape(-1, *[1] * (found.ndim - 1)), found, self.covariances))

    def forget(self) -> None:
        self._counts, self._number = None, 0
        self._total = torch.zeros((), dtype=torch.float64, device="cpu")

    # ---- what it can do

    def _log_joint(self, x: Tensor) -> Tensor:
        """log π_k N(x; μ_k, Σ_k), (batch, num_visible) float64 → (batch, K)."""
        if self.covariance == "full":
            roots = torch.linalg.cholesky(self.covariances)
            squared = torch.stack(
                [
                    torch.linalg.solve_triangular(root, (x - mean).T, upper=False).square().sum(0)
                    for root, mean in zip(roots, self.means, strict=True)
                ],
                1,
            )
            log_volume = 2 * roots.diagonal(dim1=1, dim2=2).log().sum(1)
        else:
            variances = self.covariances.reshape(len(self.weights), -1).expand_as(self.means)
            middle = self.means.mean(0)
            away, means = x - middle, self.means - middle
            cross = away.square() @ (1 / variances).T - 2 * away @ (means / variances).T
            squared = (cross + (means.square() / variances).sum(1)).clamp(min=0)
            log_volume = variances.log().sum(1)
        return self.weights.log() - 0.5 * (squared + log_volume + self.num_visible * math.log(2 * math.pi))

    def encode(self, v: Tensor) -> Tensor:
        return self._log_joint(v.double()).softmax(1).to(v.dtype)

    def decode(self, h: Tensor) -> Tensor:
        return (h.double() @ self.means).to(h.dtype)

    def assign(self, v: Tensor) -> Tensor:
        return self._log_joint(v.double()).argmax(1)

    def filters(self) -> Tensor:
        """(num_hidden, num_visible): the means."""
        return self.means.float()

    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """log Σ_k π_k N(x; μ_k, Σ_k)."""
        nats = torch.cat([self._log_joint(part).logsumexp(1) for part in x.double().split(2048)])
        return LogLikelihood(nats=nats, kind="exact", estimator="sum over components", effort=effort)

    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """A component for each, and a draw from it."""
        component = torch.multinomial(self.weights, num_samples, replacement=True)
        noise = torch.randn(num_samples, self.num_visible, dtype=self.means.dtype, device=self.means.device)
        if self.covariance == "full":
            noise = (torch.linalg.cholesky(self.covariances)[component] @ noise[:, :, None])[:, :, 0]
        else:
            noise = noise * self.covariances.reshape(len(self.weights), -1).sqrt()[component]
        return (self.means[component] + noise).float()

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Two components of six values, and two samples."""
        model = cls(num_visible=6, num_components=2)
        x = torch.sin(torch.arange(120.0).square()).reshape(20, 6)
        model.means.copy_(x[:2])
        for _ in range(2):
            model.update(x)
            model.finish()
        return model, x[:2]
