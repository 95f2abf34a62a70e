"""What there is to see of a finished model, as arrays; the report draws them.

Each figure is a function of its own that asks the model for one ability (`interfaces`, axis 2) and gives nothing where
it is missing. Arrays that end in `num_visible` are data and may be pictures; all others are plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_modules.corruption import Denoises
from lightning_modules.interfaces import (
    Effort,
    Encodes,
    Fitted,
    HasChains,
    HasHiddenLayers,
    HasTopics,
    Samples,
    SamplesByClass,
)
from lightning_modules.stack import Stack

NUM_SAMPLES, NUM_FILTERS, NUM_RECONSTRUCTIONS, NUM_CLASSES, NUM_CHAINS = 64, 100, 16, 16, 8
NUM_NAMED, NUM_RAISED, NUM_LOWERED = 20, 8, 4  # units of documents, and words of each
NUM_ACTIVE = 1000  # examples that the activity of hidden units is measured on
NUM_BINS = 41  # of the histogram of weights, the middle one around zero
FIRST_SWEEPS = 24  # of the chains, shown one by one; after them every power of five

Data = dict[str, Tensor]  # (…, num_visible)
Numbers = dict[str, Tensor]
Ability = TypeVar("Ability")


def able(model: Fitted, ability: type[Ability]) -> Ability | None:
    """The model if it has the ability or, of a stack of one layer, that layer, which knows more; None if neither has.

    What a higher layer can do it does with codes, and that compares with nothing.
    """
    only = model[0] if isinstance(model, Stack) and len(model) == 1 else model
    return next((one for one in (only, model) if isinstance(one, ability)), None)


def reads_counts(model: Fitted) -> bool:
    """Whether its data are documents, which come back as shares of words: to be compared with no counts."""
    lowest = model[0] if isinstance(model, Stack) else model
    return bool(getattr(lowest, "reads_counts", False))


def spread(x: Tensor, number: int) -> Tensor:
    """At most `number` rows at even distances: the first ones of sorted data would all be of one kind."""
    return x[torch.linspace(0, len(x) - 1, min(number, len(x)), dtype=torch.float64).round().long()]


def reconstructions(model: Fitted, x: Tensor) -> Data:
    """Some examples and what comes back of them, encoded and decoded: (16, num_visible) each.

    Of a layer that learned to undo noise also "corrupted" copies, which then are what comes back.
    """
    decode = getattr(model, "decode", None)
    if decode is None or not isinstance(model, Encodes) or reads_counts(model):
        return {}
    found = {"originals": spread(x, NUM_RECONSTRUCTIONS)}
    denoiser = able(model, Denoises)
    if denoiser is not None and denoiser.corruption.noise != "none":
        found["corrupted"] = denoiser.corruption(found["originals"])
    return found | {"reconstructions": decode(model.encode(found.get("corrupted", found["originals"])))}


def filters(model: Fitted) -> Data:
    """{layerK: the receptive fields of its units, the 100 longest in their order}, (≤ 100, num_visible) a layer."""
    shown = able(model, HasHiddenLayers)
    fields = {} if shown is None else shown.receptive_fields()
    longest = {height: field.norm(dim=1).argsort(descending=True)[:NUM_FILTERS] for height, field in fields.items()}
    return {f"layer{height}": field[longest[height].sort().values] for height, field in fields.items()}


def named(model: Fitted, names: Sequence[str]) -> dict[str, list[list[list[str]]]]:
    """{layerK: of some of the units that `filters` shows the names of the values that raise and that lower them most}.

    Of topics "topics". All beside the mean over the units, since frequent words have much of everything.
    """
    topical = able(model, HasTopics)
    fields = filters(model) if topical is None else {"topics": topical.topics()}
    fields = {layer: field - field.mean(0) for layer, field in fields.items()}
    return {
        layer: [
            [[names[place] for place in ends.tolist() if sign * unit[place] > 0] for sign, ends in _ends(unit)]
            for unit in field[:NUM_NAMED]
        ]
        for layer, field in fields.items()
        if len(names) == field.shape[1]
    }


def _ends(unit: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Places of a unit's largest values, and of its smallest."""
    order = unit.argsort(descending=True, stable=True)
    yield 1, order[:NUM_RAISED]
    yield -1, order.flip(0)[:NUM_LOWERED]


def activity(model: Fitted, x: Tensor) -> Numbers:
    """How active hidden units are on some examples: the means q of each unit given each example, by layer.

    layerK_units (num_units,): a unit's mean over examples; layerK_lowest, layerK_highest: the ends of its range.
    layerK_examples (examples,): the mean over units given one example, the share of units that are on.
    layerK_rectified (): 1, there only for units whose means are no probabilities but any values ≥ 0.
    """
    shown = able(model, HasHiddenLayers)
    numbers: Numbers = {}
    for height, means in ({} if shown is None else shown.hidden_means(spread(x, NUM_ACTIVE))).items():
        about = {
            "units": means.mean(0),
            "lowest": means.amin(0),
            "highest": means.amax(0),
            "examples": means.mean(1),
        }
        if getattr(shown, "hidden_range", None) == (0.0, math.inf):
            about["rectified"] = torch.tensor(1)
        numbers |= {f"layer{height}_{name}": values for name, values in about.items()}
    return numbers


def weights(model: Fitted) -> Numbers:
    """How large weights are, by layer.

    layerK_norms (num_units,): ‖w_j‖ of the weights into a unit. layerK_counts (41,), layerK_edges (42,): how many of
    all weights lie in each of 41 equal intervals, from −max |w| to max |w|.
    """
    shown = able(model, HasHiddenLayers)
    numbers: Numbers = {}
    for height, incoming in ({} if shown is None else shown.incoming_weights()).items():
        values = incoming.double().cpu().numpy()
        limit = float(np.abs(values).max()) or 1.0
        counts, edges = np.histogram(values, NUM_BINS, (-limit, limit))
        about = {"norms": incoming.norm(dim=1), "counts": torch.from_numpy(counts), "edges": torch.from_numpy(edges)}
        numbers |= {f"layer{height}_{name}": found for name, found in about.items()}
    return numbers


def samples(model: Fitted, effort: Effort) -> Data:
    """64 draws, (64, num_visible)."""
    sampler = able(model, Samples)
    return {} if sampler is None else {"images": sampler.sample(NUM_SAMPLES, effort=effort)}


def samples_by_class(model: Fitted, effort: Effort) -> Data:
    """A square of draws, one class a row, (16 · 16, num_visible) at most."""
    joint = able(model, SamplesByClass)
    if joint is None or joint.num_classes is None:
        return {}
    side = min(joint.num_classes, NUM_CLASSES)
    return {"images": joint.sample_class(torch.arange(side).repeat_interleave(side), effort=effort)}


def chains(model: Fitted, x: Tensor, effort: Effort) -> tuple[Data, Numbers]:
    """8 Gibbs chains that start at examples: frames (frames, chains, num_visible) after `sweeps` (frames,) sweeps.

    Every one of the first 24, then 25, 125, 625 … up to `effort.num_temperatures`; frame 0 is the examples themselves.
    """
    walker = able(model, HasChains)
    if walker is None:
        return {}, {}
    last = effort.num_temperatures
    wanted = [sweep for sweep in (*range(FIRST_SWEEPS + 1), *_powers_of_five(last)) if sweep <= last]
    start = spread(x, NUM_CHAINS)
    walk = enumerate(islice(walker.chains(start), wanted[-1]), start=1)
    frames = [start, *(mean for sweep, mean in walk if sweep in wanted)]
    return {"frames": torch.stack(frames)}, {"sweeps": torch.tensor(wanted)}


def _powers_of_five(last: int) -> Iterator[int]:
    """25, 125 … ≤ last."""
    sweep = 25
    while sweep <= last:
        yield sweep
        sweep *= 5
