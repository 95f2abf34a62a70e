"""Numbers → charts as SVG: curves, histograms, few-label pairs, likelihoods with their errors.

SVG takes its colours from the page (`var(--…)`), so that light and dark schemes both work; `alone` gives it those of
the light one for a file of its own. Importing matplotlib would cost more than drawing all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_PALETTE = ("var(--first)", "var(--second)", "var(--third)", "var(--fourth)", "var(--fifth)")
_CLASSES = (  # twenty colours that stand out on white and on black (Tableau's)
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#7f7f7f",
    "#a0cbe8", "#ffbe7d", "#86bcb6", "#8cd17d", "#b6992d", "#f1ce63", "#499894", "#d37295", "#d4a6c8", "#d7b5a6",
)  # fmt: skip
_LIGHT = (
    "svg{--first:#1f6fb2;--second:#d9730d;--third:#2e8b57;--fourth:#8e5bb5;--fifth:#b8870b;"
    "background:#fff;font:11px sans-serif}"
    "text{fill:#5d666f}.curve{fill:none;stroke-width:1.8}"
    ".rule{stroke:#e2e4e6}.axis{stroke:#5d666f}.bar{fill:#1f6fb2}"
)
LONGEST = 26  # of a name in the legend of a map, characters
_MAX_POINTS = 240  # of a curve; longer ones are averaged in bins


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers inside [low, high], about `count` of them."""
    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's label: 1500 → 1.5k, 1900000 → 1.9M, −0.25 with a real minus."""
    thousands = 0 if abs(value) < 1000 else 1 if abs(value) < 1e6 else 2
    text = f"{value / 1000**thousands:g}{' kM'[thousands].strip()}"
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
        self.left, self.right, self.top, self.bottom = 62, width - 16, 12, height - 40
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 1, x[0] + 1)
        self.y0, self.y1 = y[0] - margin, y[1] + margin

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (y - self.y0) / (self.y1 - self.y0)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def axes(self, x_label: str, y_label: str, x_ticks: Mapping[float, str], *, heights: bool = True) -> list[str]:
        parts = []
        for value in ticks(self.y0, self.y1) if heights else ():
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


def curves(
    series: Mapping[str, Points], title: str, x_label: str, y_label: str, x_ticks: Mapping[float, str] | None = None
) -> str:
    """Lines on shared axes, in the colours of their order; points that are not finite are left out. "" without any.

    The horizontal axis begins at 0 or, in a wide chart of its own, ends with the outer ones of `x_ticks`.
    """
    finite = [thinned([(x, y) for x, y in points if math.isfinite(y)]) for points in series.values()]
    if not any(finite):
        return ""
    xs, ys = zip(*(point for points in finite for point in points), strict=True)
    ends = (min(x_ticks), max(x_ticks)) if x_ticks else (0.0, max(xs))
    frame = _Frame(*((640, 300) if x_ticks else (340, 220)), ends, (min(ys), max(ys)))
    parts = frame.axes(x_label, y_label, x_ticks or {value: label(value) for value in ticks(0.0, frame.x1)})
    for points, colour in zip(finite, _PALETTE, strict=False):
        if not points:
            continue
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


def histogram(counts: Sequence[int], edges: Sequence[float], title: str, x_label: str, y_label: str) -> str:
    """One column a bin, as high as its count, between its edges; bins of one width."""
    frame = _Frame(340, 190, (edges[0], edges[-1]), (0.0, max(*counts, 1)))
    frame.y0 = 0.0
    parts = frame.axes(x_label, y_label, {value: label(value) for value in ticks(edges[0], edges[-1])})
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        (left, top), (right, bottom) = frame.at(low, count), frame.at(high, 0.0)
        box = f'x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<rect class="bar" {box}><title>{low:.3g} to {high:.3g}: {count:,}</title></rect>')
    return frame.svg(parts, title)


def intervals(rows: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str) -> str:
    """A row a name; in it values, each with the width of its error to both sides, in the colours of their order."""
    values = [value + side * error for row in rows.values() for value, error in row for side in (-1, 1)]
    frame = _Frame(640, 60 + 26 * len(rows), (min(values), max(values)), (0.0, float(len(rows))))
    margin = 0.04 * (frame.x1 - frame.x0)
    frame.left, frame.x0, frame.x1 = 140, frame.x0 - margin, frame.x1 + margin
    frame.y0, frame.y1 = 0.0, float(len(rows))
    parts = frame.axes(x_label, "", {value: label(value) for value in ticks(frame.x0, frame.x1, 6)}, heights=False)
    for number, (name, row) in enumerate(rows.items()):
        _, y = frame.at(frame.x0, len(rows) - number - 0.5)
        parts.append(f'<line class="rule" x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for (value, error), colour in zip(row, _PALETTE, strict=False):
            (low, _), (x, _), (high, _) = (frame.at(value + side * error, 0.0) for side in (-1, 0, 1))
            style = f'style="stroke:{colour};stroke-width:2"'
            parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" {style}/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" style="fill:{colour}"/>')
    return frame.svg(parts, title)


def scatter(groups: Mapping[str, Points], title: str) -> str:
    """Points of a plane, equal scales, a colour a group, the legend beside them; after twenty groups all are gray."""
    points = [point for group in groups.values() for point in group]
    xs, ys = zip(*points, strict=True)
    side, left = 300, 6
    width = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    middle = ((max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2)
    named = list(groups.items())[: len(_CLASSES)] if len(groups) > 1 else []
    names = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name, _ in named]
    frame = _Frame(left + side + (max(40, 24 + 6 * max(map(len, names))) if named else 6), side + 12, (0, 1), (0, 1))
    parts = []
    for number, group in enumerate(groups.values()):
        colour = _CLASSES[number] if number < len(_CLASSES) else "#7f7f7f"
        dots = "".join(
            f"M{left + side * (0.5 + (x - middle[0]) / width):.1f} {6 + side * (0.5 - (y - middle[1]) / width):.1f}h0"
            for x, y in group
        )
        parts.append(f'<path d="{dots}" style="stroke:{colour};stroke-width:3.4;stroke-linecap:round;opacity:.75"/>')
    for number, name in enumerate(names):
        y = 16 + 14.5 * number
        parts.append(f'<circle cx="{left + side + 12}" cy="{y - 4:.1f}" r="4" style="fill:{_CLASSES[number]}"/>')
        parts.append(f'<text x="{left + side + 21}" y="{y:.1f}">{escape(name)}</text>')
    if named and len(groups) > len(named):
        parts.append(f'<text x="{left + side + 21}" y="{side + 4}">and {len(groups) - len(named):,} more, gray</text>')
    return frame.svg(parts, title)


def alone(svg: str) -> str:
    """A chart as a file of its own."""
    opening, _, rest = svg.partition(">")
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{_LIGHT}</style>{rest}'


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
