"""Figure files of dictionaries (lightning_modules/dictionaries.py writes them) → pictures and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flows import charts, pictures
from flows.pictures import Array

FITS = 0.7  # R² from which an atom counts as a Gabor function
NUM_BINS = 20

Figure = Mapping[str, Array]


@dataclass(frozen=True)
class Atoms:
    """A dictionary, its most used atoms first."""

    num_atoms: int
    num_shown: int
    num_used: int
    num_fitted: int
    num_gabors: int
    picture: bytes
    fits: str  # charts; "" where nothing was fitted
    use: str


def atoms(content: Figure) -> Atoms | None:
    shown, use = content.get("atoms"), content.get("use")
    if shown is None or use is None or not shown.size or not use.size or not np.isfinite(use).all():
        return None
    drawn = (
        pictures.heat(shown)
        if shown.ndim < 3
        else pictures.grid(pictures.diverging(_alike(shown)), math.ceil(math.sqrt(len(shown))))
    )
    r_squared = content.get("r_squared", np.zeros(0))
    return Atoms(
        num_atoms=len(use),
        num_shown=len(shown),
        num_used=int((use > 0).sum()),
        num_fitted=len(r_squared),
        num_gabors=int((r_squared > FITS).sum()),
        picture=drawn,
        fits=_fits(r_squared),
        use=charts.curves(
            {"use": list(enumerate(use.tolist(), start=1))},
            "use of atoms",
            "atom, most used first",
            "mean |coefficient|",
        ),
    )


def sparsity(content: Figure) -> str:
    """The chart; "" without one."""
    if "path_errors" not in content:
        return ""
    series = {
        name: list(zip(content[f"{key}_nonzeros"].tolist(), content[f"{key}_errors"].tolist(), strict=True))
        for name, key in (("the best codes", "path"), ("its own", "own"))
    }
    return charts.curves(series, "sparsity against error", "coefficients an example", "share of ‖v‖² lost")


def codes(content: Figure) -> tuple[str, str, float] | None:
    """Charts of the coefficients that are not 0 and of their number an example; the share that is 0."""
    if "counts" not in content:
        return None
    counts, edges = content["counts"].astype(int).tolist(), content["edges"].tolist()
    nonzeros = content["nonzeros"]
    numbers, ends = np.histogram(
        nonzeros, NUM_BINS, (0.0, max(NUM_BINS, math.ceil(nonzeros.max() / NUM_BINS) * NUM_BINS))
    )
    return (
        charts.histogram(counts, edges, "coefficients", "coefficient that is not 0", "coefficients"),
        charts.histogram(numbers.tolist(), ends.tolist(), "codes", "coefficients that are not 0", "examples"),
        float(content["zeros"][0]),
    )


def files(content: Mapping[str, Figure]) -> dict[str, bytes | str | None]:
    """What is drawn of all figures of a stage, by file name."""
    drawn: dict[str, bytes | str | None] = {"sparsity.svg": sparsity(content.get("sparsity", {}))}
    if found := atoms(content.get("dictionary", {})):
        drawn |= {"dictionary.png": found.picture, "gabor_fits.svg": found.fits, "use_of_atoms.svg": found.use}
    if histograms := codes(content.get("codes", {})):
        drawn |= {"coefficients.svg": histograms[0], "nonzeros.svg": histograms[1]}
    return drawn


def _fits(r_squared: Array) -> str:
    if not r_squared.size:
        return ""
    counts, edges = np.histogram(r_squared, NUM_BINS, (0.0, 1.0))
    return charts.histogram(counts.tolist(), edges.tolist(), "Gabor fits", "R² of the best Gabor function", "atoms")


def _alike(shown: Array) -> Array:
    """Every atom on the same scale: they differ in how far they are spread, not in what they weigh."""
    largest = np.abs(shown).reshape(len(shown), -1).max(1)
    return shown / np.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (shown.ndim - 1))
