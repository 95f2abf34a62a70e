"""The report's sections on dictionaries: atoms by use with their Gabor fits, codes, sparsity against error."""

from __future__ import annotations

from flows import charts, dictionary_figures
from flows.markup import card, cards, image, section, text
from flows.results import Run, Stage
from flows.wording import measured, number, warning


def dictionaries(run: Run) -> str:
    drawn = []
    for stage in run.evaluations:
        found = dictionary_figures.atoms(stage.figure("dictionary"))
        if not found:
            continue
        small = f"{stage.row['kind']} · {found.num_atoms:,} atoms, the most used first"
        small += f", {found.num_shown:,} of them shown" if found.num_shown < found.num_atoms else ""
        small += f" · {found.num_atoms - found.num_used:,} never used"
        drawn.append(card(f"<b>{text(stage.name)}</b>", text(small), image(found.picture, f"atoms of {stage.name}")))
        if found.fits:
            share = f"{found.num_gabors / found.num_fitted:.0%}"
            small = f"{found.num_gabors:,} of {found.num_fitted:,} atoms, {share}, fit: R² > {dictionary_figures.FITS}"
            drawn.append(card(f"<b>{text(stage.name)}</b> · Gabor fits", small, found.fits))
        drawn.append(card(f"<b>{text(stage.name)}</b> · use", "", found.use))
    note = (
        "The pictures examples are put together from, each on a scale of its own, red above zero and blue below. Of "
        "photographs good atoms are edges: localized in place, direction and frequency, as a Gabor function is (a wave "
        "under a Gaussian hill), fitted to each by least squares; R² is the share of an atom's variance that the best "
        "one explains. Noise explains about a tenth. Atoms that are never used, or look like noise, mean a penalty "
        "that is too high, too little training or more atoms than the data ask for."
    )
    return section("Dictionaries", cards(drawn), note) if drawn else ""


def codes(run: Run) -> str:
    drawn, sets = [], []
    for stage in run.evaluations:
        name = f"<b>{text(stage.name)}</b>"
        if chart := dictionary_figures.sparsity(stage.figure("sparsity")):
            sets.append(stage.set)
            lines = charts.legend(["the best codes", "its own"])
            drawn.append(card(f"{name} · sparsity against error", text(_against_optimum(stage)), chart + lines))
        if found := dictionary_figures.codes(stage.figure("codes")):
            coefficients, nonzeros, zeros = found
            small = f"{zeros:.1%} of coefficients are 0 · {measured([stage.set])} examples"
            drawn.append(card(f"{name} · codes", text(small), coefficients + nonzeros))
    note = (
        "What few coefficients cost: for the same dictionary, the best codes at penalties from 16 λ down to λ / 8, and "
        "where the model's own codes lie. On the line they are as good as any of their sparsity; above it something is "
        "lost, which is what an encoder pays for its speed. A good dictionary's line falls steeply. The histograms are "
        "of the model's own codes: sparse ones peak near zero and have long tails." + warning(sets, "what codes cost")
    )
    return section("Sparse codes", cards(drawn), note) if drawn else ""


def _against_optimum(stage: Stage) -> str:
    metrics = stage.result.metrics if stage.result else {}
    ratio = metrics.get(f"{stage.set}/energy_ratio")
    return f"{stage.row['kind']}" + (f" · energy {number(ratio)} times the optimum's" if ratio is not None else "")
