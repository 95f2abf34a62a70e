"""`strata sample`: draws from a model as an array, and as a picture where samples are pictures."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import lightning_modules as registry
from conf.errors import InputError
from conf.protocol import SampleJob
from data import durable
from lightning_modules import figures
from lightning_modules.evaluation import kind_of
from lightning_modules.interfaces import Effort, Samples
from lightning_modules.seeding import seed_torch


@torch.no_grad()
def sample(job: SampleJob) -> dict[str, Any]:
    """Draws from a model → OUT.npy (number, num_visible), and OUT.png where samples are pictures."""
    model = registry.load(Path(job.model)).eval()
    sampler = figures.able(model, Samples)
    if sampler is None:
        able = ", ".join(kind for kind, drawing in registry.MODELS.items() if issubclass(drawing, Samples))
        raise InputError(f"{job.model}: a {kind_of(model)} does not draw samples; these do: {able}")
    seed_torch(job.seed, "sample")
    drawn = sampler.sample(job.number, effort=Effort(num_temperatures=job.gibbs_steps)).float().numpy()
    out = Path(job.out)
    buffer = io.BytesIO()
    np.save(buffer, drawn, allow_pickle=False)
    durable.write_bytes(out, buffer.getvalue())
    written = [str(out)]
    shape = durable.read_json(Path(job.model) / "model.json").get("shape", [])
    if len(shape) > 1 and math.prod(shape) == drawn.shape[1]:
        picture = out.with_suffix(".png")
        images = drawn.reshape(-1, *shape)
        _write_grid(picture, np.moveaxis(images, 1, -1) if len(shape) == 3 else images[..., None])
        written.append(str(picture))
    return {"written": written, "number": len(drawn), "width": drawn.shape[1]}


def _write_grid(path: Path, images: np.ndarray) -> None:
    """images: (n, height, width, channels), 1 or 3 of them."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    grid = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        grid[top : top + height, left : left + width] = (255 * image.clip(0, 1)).round()
    scale = max(1, 600 // max(grid.shape))
    buffer = io.BytesIO()
    Image.fromarray(grid if channels == 3 else grid[..., 0]).resize(
        (grid.shape[1] * scale, grid.shape[0] * scale), Image.Resampling.NEAREST
    ).save(buffer, "PNG")
    durable.write_bytes(path, buffer.getvalue())
