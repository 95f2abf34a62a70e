"""Arrays → pictures: tiled grids as PNG, curves and few-label plots as SVG. Draws, never computes models.

Colours of a grid are shared by all its tiles: data and samples gray on [0, 1], filters on a diverging scale symmetric
around 0, cut at the 99.5th percentile of |weight|. SVG takes its colours from the page (`var(--…)`), so that light and
dark schemes both work. Only numpy and Pillow: importing matplotlib would cost more than drawing all of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
Points = Sequence[tuple[float, float]]

_NEGATIVE, _ZERO, _POSITIVE = (np.array(rgb, float) for rgb in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))
_TARGET = 640  # pixels: small pictures are enlarged to about this by whole factors, so that pixels stay square
_PALETTE = ("var(--first)", "var(--second)", "var(--third)", "var(--fourth)")
_MAX_POINTS = 240  # of a curve; longer ones are averaged in bins


def arrays(path: Path) -> dict[str, Array]:
    """The arrays of a figure file; {} where there is none or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], float) for name in file.files}
    except (OSError, ValueError, EOFError, KeyError):
        return {}


# --- grids -----------------------------------------------------------------------------------------------------------


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
    number, height, width, channels = tiles.shape
    columns = max(1, min(columns, number))
    rows = -(-number // columns)
    gap = gap or max(1, height // 14)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width, 3] = 255
        canvas[top : top + height, left : left + width, :channels] = tile
    return png(canvas)


def pairs(originals: Array, reconstructions: Array, columns: int) -> bytes:
    """Each original with its reconstruction right under it; pairs stand further apart than their parts."""
    number = min(len(originals), len(reconstructions))
    above, below = (np.insert(gray(part[:number]), 3, 255, axis=-1) for part in (originals, reconstructions))
    gap = max(1, above.shape[1] // 14)
    between = np.zeros((number, gap, *above.shape[2:]), np.uint8)
    return grid(np.concatenate([above, between, below], axis=1), columns, 3 * gap)


def heat(vectors: Array) -> bytes:
    """Samples without pictures, (n, d): one row a sample, one column a feature, blue below 0 and red above."""
    return png(diverging(vectors[None])[0])


def png(pixels: Array) -> bytes:
    """(h, w, 3 or 4) 8-bit → PNG, enlarged by a whole factor to about 640 pixels."""
    factor = max(1, _TARGET // max(pixels.shape[:2]))
    image = Image.fromarray(np.ascontiguousarray(pixels).repeat(factor, axis=0).repeat(factor, axis=1))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def figure(name: str, content: Mapping[str, Array]) -> bytes | None:
    """The picture of figures/NAME.npz: samples, data or reconstructions, of images or of vectors."""
    if name == "reconstructions":
        ours = [content.get(part) for part in ("originals", "reconstructions")]
        if any(part is None or not part.size for part in ours):
            return None
        originals, seen = (np.asarray(part) for part in ours)
        return pairs(originals, seen, 8) if originals.ndim > 2 else heat(np.concatenate([originals, seen]))
    values = content.get("images", content.get("vectors"))
    if values is None or not values.size:
        return None
    return heat(np.atleast_2d(values)) if values.ndim < 3 else _square(gray(values))


def filters(content: Mapping[str, Array]) -> dict[str, bytes]:
    """One picture a layer of figures/filters.npz, by the layer's name, each on a colour scale of its own."""
    shown = {layer: values for layer, values in content.items() if values.size}
    return {
        layer: heat(values) if values.ndim < 3 else _square(diverging(values))
        for layer, values in sorted(shown.items())
    }


def _square(tiles: Array) -> bytes:
    return grid(tiles, math.ceil(math.sqrt(len(tiles))))


def write_figures(figures: Path, into: Path) -> list[Path]:
    """A PNG for each picture of the figure files → those written."""
    drawn: dict[str, bytes | None] = {}
    for path in sorted(figures.glob("*.npz")):
        content = arrays(path)
        drawn |= (
            {f"filters_{layer}": picture for layer, picture in filters(content).items()}
            if (path.stem == "filters")
            else {path.stem: figure(path.stem, content)}
        )
    for name, picture in drawn.items():
        if picture:
            (into / f"{name}.png").write_bytes(picture)
    return sorted(into.glob("*.png"))


# --- charts ----------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers inside [low, high], about `count` of them."""
    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's label: 1500 → 1.5k, −0.25 with a real minus."""
    text = f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
    return text.replace("-", "−")


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most 240 points; longer curves are averaged in bins of equal size."""
    size = -(-len(points) // _MAX_POINTS)
    chunks = (points[start : start + size] for start in range(0, len(points), max(1, size)))
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


class _Frame:
    """The plotting area of a chart and the way from values to pixels."""

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        margin = 0.06 * (y[1] - y[0]) or abs(y[0]) * 0.1 or 1.0
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = 52, width - 16, 12, height - 40
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 1, x[0] + 1)
        self.y0, self.y1 = y[0] - margin, y[1] + margin

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (y - self.y0) / (self.y1 - self.y0)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def axes(self, x_label: str, y_label: str, x_ticks: Mapping[float, str]) -> list[str]:
        parts = []
        for value in ticks(self.y0, self.y1):
            _, y = self.at(self.x0, value)
            parts.append(f'<line class="rule" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>')
        for value, text in x_ticks.items():
            x, _ = self.at(value, self.y0)
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + 16}" text-anchor="middle">{escape(text)}</text>')
        middle, half = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        parts.append(f'<line class="axis" x1="{self.left}" x2="{self.right}" y1="{self.bottom}" y2="{self.bottom}"/>')
        parts.append(f'<text x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>')
        turn = f"rotate(-90 12 {half})"
        parts.append(f'<text x="12" y="{half}" transform="{turn}" text-anchor="middle">{escape(y_label)}</text>')
        return parts

    def svg(self, parts: list[str], title: str) -> str:
        opening = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(title)}">'
        return opening + "".join(parts) + "</svg>"


def curves(series: Mapping[str, Points], title: str, x_label: str, y_label: str) -> str:
    """Lines on shared axes; points that are not finite are left out. Empty text where none is left."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    finite = {name: thinned(points) for name, points in finite.items() if points}
    if not finite:
        return ""
    xs, ys = zip(*(point for points in finite.values() for point in points), strict=True)
    frame = _Frame(340, 220, (0.0, max(xs)), (min(ys), max(ys)))
    parts = frame.axes(x_label, y_label, {value: label(value) for value in ticks(0.0, frame.x1)})
    for points, colour in zip(finite.values(), _PALETTE, strict=False):
        pixels = [frame.at(x, y) for x, y in points]
        if len(pixels) == 1:
            parts.append(f'<circle cx="{pixels[0][0]:.1f}" cy="{pixels[0][1]:.1f}" r="3" style="fill:{colour}"/>')
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        parts.append(f'<polyline class="curve" points="{path}" style="stroke:{colour}"/>')
    return frame.svg(parts, title)


def bars(names: Sequence[str], shares: Sequence[float], edges: Sequence[str] | None, title: str, x_label: str) -> str:
    """A histogram: one column a bin, as high as its share. Below stand the bins' names, or the edges between them."""
    frame = _Frame(640, 260, (0.0, float(len(names))), (0.0, max(shares)))
    frame.y0 = 0.0
    below = {float(index): name for index, name in enumerate(edges)} if edges else {}
    below = below or {index + 0.5: name for index, name in enumerate(names)}
    step = -(-len(below) // 11)  # about as many as fit
    parts = frame.axes(x_label, "share", dict(list(below.items())[::step]))
    for index, (name, share) in enumerate(zip(names, shares, strict=True)):
        (left, top), (right, bottom) = frame.at(index + 0.06, share), frame.at(index + 0.94, 0.0)
        box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<rect class="bar" {box}><title>{escape(name)}: {share:.2%}</title></rect>')
    return frame.svg(parts, title)


def sparkline(shares: Sequence[float], title: str) -> str:
    """A histogram the height of a line of text, without axes."""
    width, height, most = 6 * len(shares), 24, max(shares) or 1.0
    boxes = "".join(
        f'<rect class="bar" x="{6 * i}" y="{height - height * share / most:.1f}" width="5" '
        f'height="{height * share / most:.1f}"/>'
        for i, share in enumerate(shares)
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{boxes}</svg>'


def legend(names: Sequence[str]) -> str:
    keys = (
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(names, _PALETTE, strict=False)
    )
    return f'<p class="legend">{"".join(keys)}</p>'


def paired(groups: Mapping[str, Sequence[tuple[float, float | None]]], x_label: str, y_label: str) -> str:
    """Per group of labels: each seed's (ours, twin's) value as a pair of dots joined by a line, means as wide marks."""
    values = [value for runs in groups.values() for run in runs for value in run if value is not None]
    if not values:
        return ""
    frame = _Frame(640, 280, (-0.5, len(groups) - 0.5), (0.0, max(values)))
    frame.y0 = 0.0
    parts = frame.axes(x_label, y_label, {float(index): name for index, name in enumerate(groups)})
    for index, runs in enumerate(groups.values()):
        for side, colour in ((1, _PALETTE[1]), (0, _PALETTE[0])):
            shown = [run[side] for run in runs if run[side] is not None]
            where = index + (-0.16 if side else 0.16)
            for ours, twin in runs if side else []:
                if twin is not None:
                    (x1, y1), (x2, y2) = frame.at(index - 0.16, twin), frame.at(index + 0.16, ours)
                    parts.append(f'<line class="pair" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
            for value in shown:
                x, y = frame.at(where, value or 0.0)
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{colour}" opacity=".55"/>')
            if shown:
                x, y = frame.at(where, sum(value or 0.0 for value in shown) / len(shown))
                parts.append(
                    f'<line x1="{x - 22:.1f}" x2="{x + 22:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                    f'style="stroke:{colour};stroke-width:3"/>'
                )
    return frame.svg(parts, y_label)
