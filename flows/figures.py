"""A stage's figure files, figures/NAME.npz (lightning_modules/figures.py writes them) → pictures and charts.

What is drawn of an array stands here and nowhere else, for the report and MLflow alike; how pixels and lines are drawn,
in flows/pictures.py and flows/charts.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows import charts, dictionary_figures, pictures
from flows.pictures import Array

NUM_BINS = 20  # of the histograms of activity
SILENT = 0.05  # a unit that no example makes likelier on than this is never on; as far from 1, always on
MILLISECONDS = 200  # a frame of moving chains

_SHOWN_SWEEPS = {0, *(5**power for power in range(10))}

Figure = Mapping[str, Array]


def read(path: Path) -> dict[str, Array]:
    """The arrays of a figure file; {} where there is none or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], float) for name in file.files}
    except (OSError, ValueError, EOFError, KeyError):
        return {}


def tiles(content: Figure) -> bytes | None:
    """Samples, data, samples by class: a square of pictures or, of vectors, a row each."""
    values = content.get("images")
    if values is None or not values.size:
        return None
    return pictures.heat(np.atleast_2d(values)) if values.ndim < 3 else _square(pictures.gray(values))


def reconstructions(content: Figure) -> bytes | None:
    """Each original over its corrupted copy, if there is one, and what came back."""
    parts = [content[name] for name in ("originals", "corrupted", "reconstructions") if name in content]
    if len(parts) < 2 or not all(part.size for part in parts):
        return None
    return pictures.columns(parts, 8) if parts[0].ndim > 2 else pictures.heat(np.concatenate(parts))


def filters(content: Figure) -> dict[str, bytes]:
    """One picture a layer, by the layer's name, each on a colour scale of its own."""
    shown = {layer: values for layer, values in content.items() if values.size}
    return {
        layer: pictures.heat(values) if values.ndim < 3 else _square(pictures.diverging(values))
        for layer, values in sorted(shown.items())
    }


def rows_of_ten(content: Figure) -> bytes | None:
    """Clusters: ten pictures a row."""
    values = content.get("images")
    if values is None or not values.size:
        return None
    return pictures.heat(np.atleast_2d(values)) if values.ndim < 3 else pictures.grid(pictures.gray(values), 10)


def plane(content: Figure, classes: Sequence[str]) -> str:
    """The map of codes, a colour a class; "" without one."""
    places, labels = content.get("places"), content.get("labels")
    if places is None or labels is None or not len(places) or not np.isfinite(places).all():
        return ""
    groups: dict[str, list[tuple[float, float]]] = {}
    for label in np.unique(labels).astype(int).tolist():
        name = "no label" if label < 0 else classes[label] if label < len(classes) else str(label)
        groups[name] = [(float(x), float(y)) for x, y in places[labels == label]]
    return charts.scatter(groups, "map of codes")


SEARCHES = ("code", "shortlist", "raw", "lsa", "pca", "itq")


def precision(content: Figure) -> tuple[str, list[str]]:
    """Precision against recall as a chart, and the searches in it by colour; "" without any."""
    drawn = {name: content[name] for name in SEARCHES if name in content}
    if "recall" not in content or not drawn:
        return "", []
    across = np.log10(content["recall"])
    series = {name: list(zip(across.tolist(), values.tolist(), strict=True)) for name, values in drawn.items()}
    levels = {-3.0: "0.1 %", -2.0: "1 %", -1.0: "10 %", 0.0: "all"}
    chart = charts.curves(series, "precision against recall", "recall", "precision", levels)
    return chart, list(drawn)


def _square(images: Array) -> bytes:
    return pictures.grid(images, math.ceil(math.sqrt(len(images))))


# --- chains ----------------------------------------------------------------------------------------------------------


def strip(content: Figure) -> tuple[list[int], bytes] | None:
    """(after how many sweeps, picture): a row a chain, a column for 0, 1, 5, 25, 125 … sweeps. None of vectors."""
    frames, sweeps = _chains(content)
    if frames is None:
        return None
    shown = [number for number, sweep in enumerate(sweeps) if sweep in _SHOWN_SWEEPS]
    columns = np.swapaxes(frames[shown], 0, 1)  # (chains, columns, height, width, …)
    images = columns.reshape(-1, *columns.shape[2:])
    return [sweeps[number] for number in shown], pictures.grid(pictures.gray(images), len(shown))


def animation(content: Figure) -> bytes | None:
    """The chains sweep by sweep, as long as every sweep is there."""
    frames, sweeps = _chains(content)
    if frames is None:
        return None
    every = sum(number == sweep for number, sweep in enumerate(sweeps))
    columns = math.ceil(frames.shape[1] / 2)
    return pictures.moving(np.stack([pictures.gray(images) for images in frames[:every]]), columns, MILLISECONDS)


def _chains(content: Figure) -> tuple[Array | None, list[int]]:
    frames, sweeps = content.get("frames"), content.get("sweeps")
    if frames is None or sweeps is None or frames.ndim < 4:
        return None, []
    return frames, [int(sweep) for sweep in sweeps]


# --- hidden units ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """How active the units of a layer are on some examples: with which probability or, if rectified, how strongly."""

    num_units: int
    num_examples: int
    never_on: int
    always_on: int
    mean: float
    rectified: bool  # their values are no probabilities
    by_unit: str  # charts
    by_example: str


def activity(content: Figure) -> dict[str, Units]:
    """By layer."""
    found = {}
    for layer in sorted({name.partition("_")[0] for name in content}):
        units, examples = content[f"{layer}_units"], content[f"{layer}_examples"]
        title = f"activity of {layer}"
        highest, lowest = content[f"{layer}_highest"], content[f"{layer}_lowest"]
        rectified = f"{layer}_rectified" in content
        top = float(max(units.max(), examples.max())) or 1.0 if rectified else 1.0
        edges = np.linspace(0.0, top, NUM_BINS + 1)
        by_unit, by_example = (np.histogram(values, edges)[0].tolist() for values in (units, examples))
        of_example = "mean over units" if rectified else "share of units on"
        found[layer] = Units(
            num_units=len(units),
            num_examples=len(examples),
            never_on=int((highest < SILENT).sum()),
            always_on=0 if rectified else int((lowest > 1 - SILENT).sum()),
            mean=float(units.mean()),
            rectified=rectified,
            by_unit=charts.histogram(by_unit, edges.tolist(), title, "a unit's mean over examples", "units"),
            by_example=charts.histogram(by_example, edges.tolist(), title, of_example, "examples"),
        )
    return found


def weights(content: Figure) -> dict[str, tuple[str, str]]:
    """By layer: the charts of all weights, and of the norms of those into each unit."""
    found = {}
    for layer in sorted({name.partition("_")[0] for name in content}):
        norms, edges = content[f"{layer}_norms"], content[f"{layer}_edges"].tolist()
        counts = content[f"{layer}_counts"].astype(int).tolist()
        numbers, ends = np.histogram(norms, NUM_BINS, (0.0, float(norms.max()) or 1.0))
        found[layer] = (
            charts.histogram(counts, edges, f"weights of {layer}", "weight", "weights"),
            charts.histogram(numbers.tolist(), ends.tolist(), f"norms of {layer}", "‖w‖ of a unit", "units"),
        )
    return found


# --- files -----------------------------------------------------------------------------------------------------------


def write(folder: Path, into: Path) -> list[Path]:
    """Everything that is drawn of the figure files in `folder`, a file each → those written."""
    content = {path.stem: read(path) for path in sorted(folder.glob("*.npz"))}
    drawn: dict[str, bytes | str | None] = {
        f"{name}.png": tiles(content[name]) for name in ("samples", "data", "samples_by_class") if name in content
    }
    drawn["reconstructions.png"] = reconstructions(content.get("reconstructions", {}))
    drawn |= {f"filters_{layer}.png": picture for layer, picture in filters(content.get("filters", {})).items()}
    drawn |= {"clusters.png": rows_of_ten(content.get("clusters", {})), "map.svg": plane(content.get("map", {}), [])}
    drawn["precision.svg"] = precision(content.get("retrieval", {}))[0]
    chains = content.get("chains", {})
    drawn |= {"chains.png": (strip(chains) or (0, None))[1], "chains_moving.png": animation(chains)}
    for layer, units in activity(content.get("activity", {})).items():
        drawn |= {f"activity_{layer}_units.svg": units.by_unit, f"activity_{layer}_examples.svg": units.by_example}
    for layer, (all_weights, norms) in weights(content.get("weights", {})).items():
        drawn |= {f"weights_{layer}.svg": all_weights, f"norms_{layer}.svg": norms}
    drawn |= dictionary_figures.files(content)
    for name, picture in drawn.items():
        if picture:
            (into / name).write_bytes(charts.alone(picture).encode() if isinstance(picture, str) else picture)
    return sorted(into.iterdir())
