"""Features of pictures from k-means of their patches (Coates, Lee & Ng 2011, AISTATS), pooled over regions.

Symbols: p a patch of a picture, p̂ the same normalised and whitened, μ_k the centre k of K, z_k = ‖p̂ − μ_k‖.
What is NOT here: k-means itself (`kmeans.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.interfaces import Batch, IteratedModel, Layer
from lightning_modules.kmeans import KMeans

AT_A_TIME = 200  # pictures


class PatchFeatures(IteratedModel, Layer):
    """h = for each region and centre, the mean over the region's patches of max(0, mean_j z_j − z_k).

    p̂ = W ((p − mean p) / √(var p + contrast) − m),  m and W = (C + ε)^−½ from patches of a sample of pictures (ZCA)

    image_shape: [height, width] or [channels, height, width]. patch_size, stride: pixels; the latter between patches.
    regions: a side of the grid that codes are pooled over; num_hidden = regions² num_centres, region by region of one
    centre, then the next. contrast, epsilon: ≥ 0, in squared units of the data, and of normalised patches.
    passes, tolerance, starts: as of k-means, which learns from patches half their size apart.

    The way back paints each place with the mean of the centres that are active there, in units of normalised patches.
    """

    revision: ClassVar[int] = 2
    batch_size: None = None
    start_samples = 2000

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_centres: int = 100,
        patch_size: int = 7,
        stride: int = 2,
        regions: int = 3,
        contrast: float = 0.01,
        epsilon: float = 0.1,
        passes: int = 10,
        tolerance: float = 1e-3,
        starts: int = 1,
    ) -> None:
        super().__init__()
        if len(image_shape) not in (2, 3) or min(image_shape) < 1:
            raise ValueError(f"image_shape must be [height, width] or [channels, height, width], not {[*image_shape]}")
        if num_centres < 2:
            raise ValueError(f"num_centres must be at least 2, not {num_centres}")
        counts = {"patch_size": patch_size, "stride": stride, "regions": regions}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        for name, value in {"contrast": contrast, "epsilon": epsilon}.items():
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")
        channels, height, width = (1, *image_shape)[-3:]
        places = [(side - patch_size) // stride + 1 for side in (height, width)]
        if min(places) < regions:
            raise ValueError(
                f"{regions} regions a side need as many patches, but {height}×{width} pixels hold "
                f"{max(0, places[0])}×{max(0, places[1])} of {patch_size} pixels at stride {stride}; "
                f"lower patch_size, stride or regions"
            )
        self.image_shape, self.num_centres, self.patch_size = list(image_shape), num_centres, patch_size
        self.stride, self.regions, self.contrast, self.epsilon = stride, regions, contrast, epsilon
        self.passes, self.tolerance, self.starts = passes, tolerance, starts
        self.num_visible, self.num_hidden = math.prod(image_shape), regions**2 * num_centres
        self._picture, self._places = (channels, height, width), places
        size = channels * patch_size**2
        self.mean: Tensor
        self.whitening: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.eye(size))
        self.clusters = KMeans(
            num_visible=size, num_hidden=num_centres, passes=passes, tolerance=tolerance, starts=starts, code="triangle"
        )

    @property
    def least_samples(self) -> int:
        """Pictures that hold a patch for each centre."""
        _, *sides = self._picture
        apart = math.prod((side - self.patch_size) // self._apart + 1 for side in sides)
        return -(-self.num_centres // apart)

    # ---- fitting

    @torch.no_grad()
    def start(self, sample: Tensor) -> None:
        patches = torch.cat([self._normalised(v, self._apart) for v in sample.split(AT_A_TIME)])
        self.mean.copy_(patches.mean(0))
        variances, axes = torch.linalg.eigh(torch.cov(patches.T.double(), correction=0))
        scales = (variances.clamp(min=0) + max(self.epsilon, 1e-8)).rsqrt()
        self.whitening.copy_((axes * scales) @ axes.T)
        self.clusters.start((patches - self.mean) @ self.whitening)

    @property
    def settled(self) -> bool:
        return self.clusters.settled

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        assert isinstance(batch, Tensor)
        for v in batch.split(AT_A_TIME):
            self.clusters.update(self._patches(v, self._apart))

    def partial(self) -> dict[str, Tensor]:
        return self.clusters.partial()

    def merge(self, partial: Mapping[str, Tensor]) -> None:
        self.clusters.merge(partial)

    def finish(self) -> dict[str, float]:
        """One of Lloyd's rounds → {"patches", "inertia", "revived"}."""
        facts = self.clusters.finish()
        return {"patches": facts.pop("samples"), **facts}

    def forget(self) -> None:
        self.clusters.forget()

    @property
    def _apart(self) -> int:
        return max(1, self.patch_size // 2)

    # ---- codes

    def encode(self, v: Tensor) -> Tensor:
        return torch.cat([self._pooled(part) for part in v.split(AT_A_TIME)])

    def _pooled(self, v: Tensor) -> Tensor:
        active = self.clusters.encode(self._patches(v, self.stride))  # (pictures · places, num_centres)
        maps = active.reshape(len(v), *self._places, self.num_centres).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(maps, self.regions).flatten(1)

    def decode(self, h: Tensor) -> Tensor:
        shares = h.clamp(min=0).reshape(-1, self.num_centres, self.regions, self.regions)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-8)
        places = F.interpolate(shares, self._places).flatten(2).transpose(1, 2)  # (pictures, places, num_centres)
        patterns = torch.linalg.solve(self.whitening, self.clusters.centres.T).T + self.mean
        painted, often = (
            F.fold(patches.transpose(1, 2), self._picture[1:], self.patch_size, stride=self.stride)
            for patches in (places @ patterns, torch.ones_like(places @ patterns))
        )
        return (painted / often.clamp(min=1)).flatten(1)

    def _patches(self, v: Tensor, stride: int) -> Tensor:
        """(batch, num_visible) → (batch · places, patch): normalised and whitened."""
        return (self._normalised(v, stride) - self.mean) @ self.whitening

    def _normalised(self, v: Tensor, stride: int) -> Tensor:
        pictures = v.reshape(-1, *self._picture)
        patches = F.unfold(pictures, self.patch_size, stride=stride).transpose(1, 2).flatten(0, 1)
        patches = patches - patches.mean(1, keepdim=True)
        variance = patches.square().mean(1, keepdim=True)
        return patches / (variance + max(self.contrast, 1e-8)).sqrt()

    @torch.no_grad()
    def randomize(self) -> None:
        """The untrained twin, see `KMeans.randomize`."""
        self.clusters.randomize()

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Four centres of 3×3 patches of 6×6 pictures, and two pictures."""
        model = cls(image_shape=[6, 6], num_centres=4, patch_size=3, stride=1, regions=2)
        x = torch.sin(torch.arange(360.0).square()).reshape(10, 36)
        model.clusters.centres.copy_(torch.sin(torch.arange(36.0)).reshape(4, 9))
        return model, x[:2]
