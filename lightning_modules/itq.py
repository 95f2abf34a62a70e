"""Iterative quantization: principal components, rotated until their signs say as much of them as signs can (Gong &
Lazebnik 2011, CVPR). Symbols: p the principal components of a sample, b ∈ {−1, 1} their code, R the rotation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Self

import torch
from torch import Tensor

from lightning_modules.interfaces import Batch, Hashes, Layer, StreamingModel
from lightning_modules.whitening import PCA


class ITQ(StreamingModel, Layer, Hashes):
    """h = (v − μ) Uᵀ R, bits h > 0; R lessens the quantization error Σ ‖b − p R‖² over a sample of the data.

    R begins as a random rotation, the same for every fit of as many bits. An iteration is two exact minimizations,
    b = sign(p R), then R = A Bᵀ from the singular vectors of pᵀ b = A Σ Bᵀ, so that the error never grows.

    num_hidden: bits. iterations: 0 leaves the random rotation, which already spreads the variance evenly.
    num_kept: samples that R is fitted to, those whose contents have the lowest digests: neither their order nor the
        number of ranks has a say.
    """

    def __init__(self, *, num_visible: int, num_hidden: int, iterations: int = 50, num_kept: int = 10_000) -> None:
        super().__init__()
        if iterations < 0:
            raise ValueError(f"iterations must not be negative, as {iterations} is")
        if num_kept < 1:
            raise ValueError(f"num_kept must be at least 1, not {num_kept}")
        self.pca = PCA(num_visible=num_visible, num_hidden=num_hidden)
        self.num_visible, self.num_hidden, self.num_bits = num_visible, num_hidden, num_hidden
        self.iterations, self.num_kept = iterations, num_kept
        self.rotation: Tensor
        self.register_buffer("rotation", torch.eye(num_hidden, dtype=torch.float64))
        self._kept = _Kept.none(num_visible)

    @property
    def least_samples(self) -> int:
        return self.pca.least_samples

    def update(self, batch: Batch) -> None:
        assert isinstance(batch, Tensor)  # (batch, num_visible)
        self.pca.update(batch)
        self._kept = self._kept.with_others(_Kept.of(batch), self.num_kept)

    def partial(self) -> dict[str, Tensor]:
        return self.pca.partial() | {"kept": self._kept.values, "digests": self._kept.digests}

    def merge(self, partial: Mapping[str, Tensor]) -> None:
        self.pca.merge({name: value for name, value in partial.items() if name not in ("kept", "digests")})
        self._kept = self._kept.with_others(_Kept(partial["kept"], partial["digests"]), self.num_kept)

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        facts = self.pca.finish()
        components = self._project(self._kept.values.to(self.rotation.device))
        rotations = self.rotations(components)
        errors = []
        for rotation in rotations:
            errors.append(quantization_error(components @ rotation))
        self.rotation.copy_(rotation)
        self._kept = _Kept.none(self.num_visible)
        return facts | {"quantization_error": errors[-1], "quantization_error_at_start": errors[0]}

    def rotations(self, components: Tensor) -> Iterator[Tensor]:
        """The random one, then that after each iteration; components: (samples, num_hidden) float64."""
        generator = torch.Generator().manual_seed(self.num_bits)
        normal = torch.randn(self.num_bits, self.num_bits, dtype=torch.float64, generator=generator)
        rotation = torch.linalg.qr(normal).Q.to(components.device)
        yield rotation
        for _ in range(self.iterations):
            left, _, right = torch.linalg.svd(components.T @ signs(components @ rotation))
            rotation = left @ right
            yield rotation

    def encode(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_hidden): the rotated components, whose signs are the bits."""
        return (self._project(v) @ self.rotation).to(v.dtype)

    def decode(self, h: Tensor) -> Tensor:
        components = (h.double() @ self.rotation.T) @ self.pca.decoder
        return (self.pca.mean + components).to(h.dtype)

    def bits(self, v: Tensor) -> Tensor:
        return self.encode(v) > 0

    def filters(self) -> Tensor:
        """(num_hidden, num_visible): what each bit looks for."""
        return (self.pca.encoder @ self.rotation).T.float()

    def _project(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → principal components, (batch, num_hidden) float64."""
        return (v.double() - self.pca.mean) @ self.pca.encoder

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Fitted to 20 fixed samples of full rank; the first two."""
        model = cls(num_visible=6, num_hidden=3, iterations=5)
        x = torch.sin(torch.arange(120.0).reshape(20, 6).square())
        model.update(x)
        model.finish()
        return model, x[:2]


def signs(h: Tensor) -> Tensor:
    """−1 or 1, as the bits say."""
    return torch.where(h > 0, 1.0, -1.0).to(h)


def quantization_error(h: Tensor) -> float:
    """Mean of ‖sign(h) − h‖² over samples, (samples, num_bits)."""
    return float((signs(h) - h).square().sum(1).mean())


class _Kept:
    """Some samples, by the digests of their contents, lowest first; of equal ones each counts."""

    def __init__(self, values: Tensor, digests: Tensor) -> None:
        self.values, self.digests = values, digests  # (n, num_visible) float32, (n,) int64

    @classmethod
    def none(cls, num_visible: int) -> _Kept:
        return cls(torch.empty(0, num_visible, device="cpu"), torch.empty(0, dtype=torch.int64, device="cpu"))

    @classmethod
    def of(cls, batch: Tensor) -> _Kept:
        values = batch.detach().float().cpu().contiguous()
        found = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values.numpy()]
        return cls(values, torch.tensor([int.from_bytes(one, "little", signed=True) for one in found]))

    def with_others(self, others: _Kept, number: int) -> _Kept:
        digests, order = torch.cat([self.digests, others.digests]).sort(stable=True)
        kept = order[:number]
        return _Kept(torch.cat([self.values, others.values])[kept], digests[:number])
