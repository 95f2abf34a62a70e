"""Statistics as layers: standardization, principal components, whitening; fitted in one pass, saved, invertible.

Hotelling 1933 (principal components); Bell & Sejnowski 1997, Vision Res. 37 (ZCA); Coates, Lee & Ng 2011, AISTATS
(whitening before unsupervised layers). Symbols: μ the mean, U (d, m) the principal axes of the covariance, Λ the
variances along them. What is NOT here: the statistics (`statistics.py`), the pass over the data (`passes.py`).

Fitted numbers are float64, and so is the arithmetic within: rounded to float32 a mean of 1.6e9 (a time in seconds) is
off by 64, and μ + (W (v − μ)) W⁻¹ by 1e-7 times the matrix's condition. Codes have the type of the data.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor, nn

from lightning_modules.interfaces import Batch, Layer, Measures, StreamingModel
from lightning_modules.statistics import WIDEST, Moments, Principal, principal

WIDEST_SKETCHED = 512  # components of data wider than WIDEST: the sketch has twice as many rows


class _Streamed(StreamingModel, Layer):
    """What the three share: statistics of the stream, forgotten once they are turned into buffers."""

    _moments: Moments | None = None

    def update(self, batch: Batch) -> None:
        assert isinstance(batch, Tensor)  # (batch, num_visible)
        self._gathered().update(batch)

    def partial(self) -> dict[str, Tensor]:
        return self._gathered().tensors()

    def merge(self, partial: Mapping[str, Tensor]) -> None:
        self._gathered().merge(partial)

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        moments = self._gathered()
        if moments.count < self.least_samples:
            raise ValueError(f"needs {self.least_samples} samples or more, found {moments.count}")
        if not moments.squares.isfinite().all():
            raise ValueError("the data are not finite")
        facts = self._fit(moments)
        self._moments = None
        return {"samples": float(moments.count), **facts}

    def _gathered(self) -> Moments:
        if self._moments is None:
            self._moments = self._begin()
        return self._moments

    @abstractmethod
    def _begin(self) -> Moments:
        """Empty statistics of the kind this model needs."""

    @abstractmethod
    def _fit(self, moments: Moments) -> dict[str, float]:
        """Sets the buffers → facts about the fit."""


class Standardize(_Streamed):
    """h = (v − μ) / σ, value by value; σ² divides by n − 1. A value that never changes keeps its scale, σ = 1."""

    def __init__(self, *, num_visible: int) -> None:
        super().__init__()
        if num_visible < 1:
            raise ValueError(f"num_visible must be at least 1, not {num_visible}")
        self.num_visible = self.num_hidden = num_visible
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(num_visible, dtype=torch.float64))
        self.register_buffer("std", torch.ones(num_visible, dtype=torch.float64))

    def encode(self, v: Tensor) -> Tensor:
        return ((v.double() - self.mean) / self.std).to(v.dtype)

    def decode(self, h: Tensor) -> Tensor:
        return (self.mean + h.double() * self.std).to(h.dtype)

    def rescaled(self, filters: Tensor) -> Tensor:
        """(n, num_hidden) filters of codes → (n, num_visible) filters of data."""
        return filters / self.std.to(filters.dtype)

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        model = cls(num_visible=6)
        return model, _fitted_to_waves(model)

    def _begin(self) -> Moments:
        return Moments(self.num_visible, scatter="none")

    def _fit(self, moments: Moments) -> dict[str, float]:
        constant = moments.least == moments.greatest
        self.mean.copy_(moments.mean)
        self.std.copy_(torch.where(constant, 1.0, moments.variance().sqrt()))
        return {"constant_values": float(constant.sum())}


class _Linear(_Streamed, Measures):
    """h = (v − μ) E, v̂ = μ + h D, from the principal axes; E and D are fitted once the axes are known."""

    def __init__(self, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        if not 1 <= num_hidden <= num_visible:
            raise ValueError(f"num_hidden must be in 1 … num_visible = {num_visible}, not {num_hidden}")
        if num_visible > WIDEST and num_hidden > WIDEST_SKETCHED:
            raise ValueError(
                f"above {WIDEST} values only a sketch of the covariance is kept, so num_hidden must be "
                f"at most {WIDEST_SKETCHED} for {num_visible} values, not {num_hidden}"
            )
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.mean: Tensor
        self.encoder: Tensor
        self.decoder: Tensor
        self.variances: Tensor
        self.register_buffer("mean", torch.zeros(num_visible, dtype=torch.float64))
        self.register_buffer("encoder", torch.zeros(num_visible, num_hidden, dtype=torch.float64))
        self.register_buffer("decoder", torch.zeros(num_hidden, num_visible, dtype=torch.float64))
        self.register_buffer("variances", torch.zeros(num_hidden, dtype=torch.float64))  # along the axes

    def encode(self, v: Tensor) -> Tensor:
        return ((v.double() - self.mean) @ self.encoder).to(v.dtype)

    def decode(self, h: Tensor) -> Tensor:
        return torch.addmm(self.mean, h.double(), self.decoder).to(h.dtype)

    def filters(self) -> Tensor:
        """(num_hidden, num_visible): what each code looks for."""
        return self.encoder.T.float()

    def _begin(self) -> Moments:
        if self.num_visible <= WIDEST:
            return Moments(self.num_visible)
        return Moments(self.num_visible, scatter="sketch", sketch_rows=max(256, 2 * self.num_hidden))

    def _fit(self, moments: Moments) -> dict[str, float]:
        found = principal(moments, self.num_hidden)
        encoder, decoder = self._matrices(found, moments)
        self.mean.copy_(moments.mean)
        self.encoder.copy_(encoder)
        self.decoder.copy_(decoder)
        self.variances.copy_(found.variances)
        total = float(moments.variance().sum())
        facts = {"explained_variance": float(found.variances.sum()) / total} if total else {}
        whole = self.num_visible <= WIDEST
        return facts | ({"rank": float(found.rank)} if whole else {"sketch_error": found.error})

    def _explained(self, v: Tensor) -> dict[str, float]:
        """The share of the data's squared distances from μ that comes back."""
        around = (v.double() - self.mean).square().sum()
        lost = (v.double() - self.decode(self.encode(v)).double()).square().sum()
        return {"explained_variance": float(1 - lost / around)} if around > 0 else {}

    @abstractmethod
    def _matrices(self, found: Principal, moments: Moments) -> tuple[Tensor, Tensor]:
        """E (num_visible, num_hidden) and D (num_hidden, num_visible)."""


class PCA(_Linear):
    """h = Uᵀ (v − μ), v̂ = μ + U h: the linear code of num_hidden values with the least squared error.

    Above 4,096 values the axes come from a sketch of the covariance; `sketch_error` then says by how much a variance
    may be too small. num_hidden: 1 … num_visible.
    """

    def __init__(self, *, num_visible: int, num_hidden: int) -> None:
        super().__init__(num_visible, num_hidden)

    @property
    def least_samples(self) -> int:
        return self.num_hidden + 1

    def measure(self, v: Tensor) -> dict[str, float]:
        """explained_variance: 1 − Σ‖v − v̂‖² / Σ‖v − μ‖²."""
        return self._explained(v)

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        model = cls(num_visible=6, num_hidden=3)
        return model, _fitted_to_waves(model)

    def _matrices(self, found: Principal, moments: Moments) -> tuple[Tensor, Tensor]:
        return found.axes.T, found.axes


class Whitening(_Linear):
    """Codes of covariance I: h = (Λ + ε)^−½ Uᵀ (v − μ) by "pca", or as near to the data as such codes get by "zca",
    h = U (Λ + ε)^−½ Uᵀ (v − μ). The way back is their inverse on the span of U.

    num_hidden: components kept, default all; "zca" keeps all. epsilon: ≥ 0, in squared units of the data, added to
    every variance: without it a covariance of lower rank than num_hidden cannot be whitened, and directions of tiny
    variance, often noise, become as large as all others (Coates, Lee & Ng 2011: 0.1 for patches of variance 1).
    """

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int | None = None,
        method: Literal["pca", "zca"] = "pca",
        epsilon: float = 0.0,
    ) -> None:
        super().__init__(num_visible, num_visible if num_hidden is None else num_hidden)
        if not epsilon >= 0:
            raise ValueError(f"epsilon must not be negative, as {epsilon} is")
        if method == "zca" and self.num_hidden != num_visible:
            raise ValueError(
                f"zca keeps all {num_visible} values, so num_hidden cannot be {num_hidden}; method pca can"
            )
        self.method, self.epsilon = method, epsilon

    @property
    def least_samples(self) -> int:
        return 2 if self.epsilon else self.num_hidden + 1

    def measure(self, v: Tensor) -> dict[str, float]:
        """explained_variance as for PCA; covariance_error: the largest entry of |covariance of the codes − I|."""
        codes = self.encode(v).double()
        identity = torch.eye(self.num_hidden, dtype=codes.dtype, device=codes.device)
        covariance = torch.cov(codes.T).reshape(identity.shape)
        return self._explained(v) | {"covariance_error": float((covariance - identity).abs().max())}

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        model = cls(num_visible=6, num_hidden=3)
        return model, _fitted_to_waves(model)

    def _matrices(self, found: Principal, moments: Moments) -> tuple[Tensor, Tensor]:
        if not self.epsilon and found.rank < self.num_hidden:
            constant = int((moments.least == moments.greatest).sum())
            raise ValueError(
                f"the covariance of the {self.num_visible} values ({constant} of them constant, "
                f"{moments.count} samples) has rank {found.rank}, too small to whiten {self.num_hidden}; "
                f"choose num_hidden: {found.rank} or less with method pca, or an epsilon above 0"
            )
        scales = (found.variances + self.epsilon).sqrt()
        encoder, decoder = found.axes.T / scales, scales[:, None] * found.axes
        if self.method == "pca":
            return encoder, decoder
        return encoder @ found.axes, found.axes.T @ decoder


def _fitted_to_waves(model: nn.Module) -> Tensor:
    """Fits a tiny model to 20 fixed samples of full rank and gives the first two."""
    assert isinstance(model, _Streamed)
    place = torch.arange(20 * model.num_visible, dtype=torch.float64).reshape(20, -1)
    x = (torch.sin(place.square()) + 0.1 * place.remainder(7)).float()
    model.update(x)
    model.finish()
    return x[:2]
