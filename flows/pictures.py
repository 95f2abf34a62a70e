"""Arrays → pictures: tiled grids as PNG, one after the other as animated PNG. Draws, never computes models.

Colours of a grid are shared by all its tiles: data and samples gray on [0, 1], filters on a diverging scale symmetric
around 0, cut at the 99.5th percentile of |weight|. Charts are in flows/charts.py.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

_NEGATIVE, _ZERO, _POSITIVE = (np.array(rgb, float) for rgb in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))
_TARGET = 640  # pixels: small pictures are enlarged to about this by whole factors, so that pixels stay square


def gray(values: Array) -> Array:
    """[0, 1] → 8-bit RGB; (n, h, w) or (n, h, w, 1 or 3) → (n, h, w, 3)."""
    values = values[..., None] if values.ndim == 3 else values
    return np.broadcast_to((255 * np.nan_to_num(values).clip(0, 1)).round(), (*values.shape[:3], 3)).astype(np.uint8)


def diverging(values: Array) -> Array:
    """Any real range → blue, white, red around 0; filters of colour pictures keep their colours around gray."""
    values = np.nan_to_num(values)
    limit = float(np.percentile(np.abs(values), 99.5)) or 1.0
    if values.ndim == 4 and values.shape[-1] == 3:
        return gray(0.5 + values / (2 * limit))
    scaled = (values[..., 0] if values.ndim == 4 else values)[..., None].clip(-limit, limit) / limit
    towards = np.where(scaled < 0, _NEGATIVE, _POSITIVE)
    return (_ZERO + np.abs(scaled) * (towards - _ZERO)).round().astype(np.uint8)


def grid(tiles: Array, columns: int, gap: int = 0) -> bytes:
    """(n, h, w, 3 or 4) 8-bit tiles, row by row → PNG; the gaps between them are transparent."""
    return png(_tiled(tiles, columns, gap))


def moving(frames: Array, columns: int, milliseconds: int) -> bytes:
    """(frames, n, h, w, 3) 8-bit → animated PNG without end, a grid a frame; the last one stands five times as long.

    Of each channel 16 levels are kept, which makes it a quarter of the size.
    """
    coarse = frames // 16 * 17
    gray = bool((coarse == coarse[..., :1]).all())
    tiled = [_tiled(tiles, columns)[..., :3] for tiles in coarse]
    pages = [_enlarged(pixels[..., 0] if gray else pixels, _TARGET // 2) for pixels in tiled]
    shown = [milliseconds] * (len(pages) - 1) + [5 * milliseconds]
    buffer = io.BytesIO()
    pages[0].save(buffer, "PNG", save_all=True, append_images=pages[1:], duration=shown, loop=0, optimize=True)
    return buffer.getvalue()


def _tiled(tiles: Array, columns: int, gap: int = 0) -> Array:
    """Tiles → (h, w, 4) pixels."""
    number, height, width, channels = tiles.shape
    columns = max(1, min(columns, number))
    rows = -(-number // columns)
    gap = gap or max(1, height // 14)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width, 3] = 255
        canvas[top : top + height, left : left + width, :channels] = tile
    return canvas


def columns(parts: Sequence[Array], number: int) -> bytes:
    """The pictures of each part, (n, h, w[, 1 or 3]), right under those of the part before; `number` side by side.

    What belongs together stands nearer than its neighbours.
    """
    shown = min(len(part) for part in parts)
    tiles = [np.insert(gray(part[:shown]), 3, 255, axis=-1) for part in parts]
    gap = max(1, tiles[0].shape[1] // 14)
    between = np.zeros((shown, gap, *tiles[0].shape[2:]), np.uint8)
    below = [part for tile in tiles[1:] for part in (between, tile)]
    return grid(np.concatenate([tiles[0], *below], axis=1), number, 3 * gap)


def heat(vectors: Array) -> bytes:
    """Samples without pictures, (n, d): one row a sample, one column a feature, blue below 0 and red above."""
    return png(diverging(vectors[None])[0])


def png(pixels: Array) -> bytes:
    """(h, w, 3 or 4) 8-bit → PNG, enlarged by a whole factor to about 640 pixels."""
    buffer = io.BytesIO()
    _enlarged(pixels, _TARGET).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _enlarged(pixels: Array, target: int) -> Image.Image:
    factor = max(1, target // max(pixels.shape[:2]))
    return Image.fromarray(np.ascontiguousarray(pixels).repeat(factor, axis=0).repeat(factor, axis=1))
