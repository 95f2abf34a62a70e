"""Handwriting set upright: each picture's slant taken out by its moments (LeCun et al. 1998, Proc. IEEE 86, §III.A).

Symbols: v(x, y) the ink at a place, 0 where there is none; m, (x̄, ȳ), σ_xy and σ_yy its sum, middle and moments around
it; a the slant. What is NOT here: slants that are learned to be told from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.interfaces import Batch, Layer, StreamingModel

STEEPEST = 1.0  # slants beyond 45° are of strokes that lie


class Deskew(StreamingModel, Layer):
    """h(x, y) = v(x̄ + x + a y, ȳ + y),  a = σ_xy / σ_yy, at most 45°; (x, y) from the picture's middle.

    So h has its middle there, and σ_xy = 0. Between pixels v is linear, outside 0; channels move as one, by the moments
    of their sum. Nothing is fitted; the pass measures how large slants are. No way back: a code stands for itself.

    image_shape: [height, width] or [channels, height, width].
    """

    def __init__(self, *, image_shape: Sequence[int]) -> None:
        super().__init__()
        if len(image_shape) not in (2, 3) or min(image_shape) < 1:
            raise ValueError(f"image_shape must be [height, width] or [channels, height, width], not {[*image_shape]}")
        self.image_shape = list(image_shape)
        self.num_visible = self.num_hidden = math.prod(image_shape)
        self.mean_slant: Tensor
        self.register_buffer("mean_slant", torch.zeros((), dtype=torch.float64))
        self._gathered: dict[str, Tensor] = {}

    @property
    def visible_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0)

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0)

    @property
    def hidden_shape(self) -> list[int]:
        """That of a picture, for layers above that want one."""
        return self.image_shape

    def update(self, batch: Batch) -> None:
        assert isinstance(batch, Tensor)  # (batch, num_visible)
        slants = self._moments(batch)[2].double().abs().sum().cpu()
        self.merge({"samples": torch.tensor(float(len(batch)), dtype=torch.float64), "slants": slants})

    def partial(self) -> dict[str, Tensor]:
        return self._gathered or {name: torch.zeros((), dtype=torch.float64) for name in ("samples", "slants")}

    def merge(self, partial: Mapping[str, Tensor]) -> None:
        known = self.partial()
        self._gathered = {name: known[name] + partial[name] for name in known}

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """→ {"samples", "mean_slant": mean |a|, the tangent of an angle}."""
        samples, slants = self.partial()["samples"], self.partial()["slants"]
        if samples < self.least_samples:
            raise ValueError(f"needs {self.least_samples} samples or more, found {int(samples)}")
        self.mean_slant.copy_(slants / samples)
        self._gathered = {}
        return {"samples": float(samples), "mean_slant": float(self.mean_slant)}

    def encode(self, v: Tensor) -> Tensor:
        pictures = v.reshape(len(v), -1, *self.image_shape[-2:])
        height, width = self.image_shape[-2:]
        middle_x, middle_y, slant = self._moments(v)
        maps = torch.eye(2, 3, dtype=v.dtype, device=v.device).repeat(len(v), 1, 1)  # places run from −1 to 1
        maps[:, 0, 1] = slant * height / width
        maps[:, 0, 2], maps[:, 1, 2] = 2 * middle_x / width, 2 * middle_y / height
        places = F.affine_grid(maps, list(pictures.shape), align_corners=False)
        return F.grid_sample(pictures, places, align_corners=False).clamp(0, 1).flatten(1)

    def decode(self, h: Tensor) -> Tensor:
        return h

    def rescaled(self, filters: Tensor) -> Tensor:
        """Filters of its codes are filters of pictures, once these are upright."""
        return filters

    def _moments(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x̄ and ȳ in pixels from the picture's middle, and the slant, (batch,) each; 0 where there is no ink."""
        height, width = self.image_shape[-2:]
        ink = v.reshape(len(v), -1, height, width).sum(1)
        y, x = (torch.arange(side, dtype=v.dtype, device=v.device) - (side - 1) / 2 for side in (height, width))
        mass = ink.sum((1, 2)).clamp(min=1e-6)
        middle_x, middle_y = (ink.sum(1) * x).sum(1) / mass, (ink.sum(2) * y).sum(1) / mass
        x, y = x - middle_x[:, None], y - middle_y[:, None]
        both = (ink * y[:, :, None] * x[:, None, :]).sum((1, 2)) / mass
        upright = (ink.sum(2) * y.square()).sum(1) / mass
        return middle_x, middle_y, (both / upright.clamp(min=1e-6)).clamp(-STEEPEST, STEEPEST)

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Pictures of 5 × 6 pixels."""
        return cls(image_shape=[5, 6]), torch.linspace(0, 1, 60).square().reshape(2, 30)
