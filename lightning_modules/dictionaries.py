"""What there is to see of a dictionary: its atoms by use, how many are Gabor functions, sparsity against error, codes.

All of it is of a stack whose top layer has a dictionary, on examples as that layer sees them, encoded by those below.
What is NOT here: the fits (`gabor`), the optimal codes (`lasso`), other figures (`figures`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules import gabor
from lightning_modules.interfaces import Dictionary, Fitted, HasDictionary, Layer
from lightning_modules.lasso import solve
from lightning_modules.stack import Rescales, Stack
from lightning_modules.whitening import Whitening

NUM_EXAMPLES = 1000  # that use, codes and the path are measured on
NUM_PATH = 300  # of them for the path
NUM_PICTURES, NUM_FITS = 256, 400  # the most used atoms that are drawn, and that are fitted
LARGEST_SIDE = 20  # of pictures whose atoms are fitted, pixels; a larger fit takes too long
PATH = tuple(2.0**power for power in range(4, -4, -1))  # penalties, in units of the model's own, the largest first
TOLERANCE = 1e-3  # relative duality gap along the path
NUM_BINS = 41  # of the histogram of coefficients, the middle one around zero

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """Figures by name, pictures (…, num_visible) apart from numbers, and metrics; empty of what has no dictionary."""

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: Arrays = field(default_factory=dict)
    numbers: Arrays = field(default_factory=dict)
    codes: Arrays = field(default_factory=dict)
    sparsity: Arrays = field(default_factory=dict)


@torch.no_grad()
def seen(model: Fitted, x: Tensor, shape: tuple[int, ...] | None) -> Seen:
    """x: (examples, num_visible) of data; shape: of an example, where it is a picture."""
    if not isinstance(model, Stack) or not isinstance(model[-1], HasDictionary):
        return Seen()
    top = model[-1]
    inputs = x[torch.linspace(0, len(x) - 1, min(NUM_EXAMPLES, len(x)), dtype=torch.float64).round().long()]
    for layer in list(model)[:-1]:
        inputs = layer.encode(inputs)
    codes = top.encode(inputs)
    use = codes.abs().mean(0)
    order = use.argsort(descending=True, stable=True)
    atoms = pictured(model)[order]
    numbers = {"use": use[order]}
    metrics = {}
    sides = [side for side in shape or () if side > 1]
    if len(sides) == 2 and max(sides) <= LARGEST_SIDE:
        pictures = atoms[:NUM_FITS].reshape(-1, *sides)
        numbers["r_squared"] = torch.from_numpy(gabor.r_squared(pictures.double().cpu().numpy()))
        metrics["gabor_share"] = float((numbers["r_squared"] > gabor.FITS).double().mean())
    dictionary = top.dictionary_of_codes()
    path = sparsity(dictionary, inputs[:: max(1, len(inputs) // NUM_PATH)], codes[:: max(1, len(inputs) // NUM_PATH)])
    return Seen(metrics, {"atoms": atoms[:NUM_PICTURES]}, numbers, histograms(codes), path)


def pictured(stack: Stack) -> Tensor:
    """The top layer's atoms as pictures of data, (num_hidden, num_visible).

    Through a layer that whitens or rescales they are only turned back, so that they look as they were learned; through
    any other they are decoded.
    """
    atoms = cast(HasDictionary, stack[-1]).dictionary_of_codes().atoms
    for below in reversed(list(stack)[:-1]):
        atoms = _through(below, atoms)
    return atoms


def _through(below: Layer, atoms: Tensor) -> Tensor:
    if isinstance(below, Rescales) or (isinstance(below, Whitening) and below.method == "zca"):
        return atoms
    if isinstance(below, Whitening):
        return atoms @ F.normalize(below.decoder).to(atoms)
    return below.decode(atoms) - below.decode(torch.zeros_like(atoms))


def sparsity(dictionary: Dictionary, v: Tensor, codes: Tensor) -> Arrays:
    """Nonzeros an example and the share of its squared length that is lost, at the optimum of a path of penalties.

    path_penalties, path_nonzeros, path_errors (penalties,), sparsest first; own_nonzeros, own_errors (1,): of `codes`.
    """
    v = v - dictionary.offset
    length = v.double().square().sum()
    if not length > 0:
        return {}

    def measured(h: Tensor) -> tuple[float, float]:
        lost = (v - h @ dictionary.atoms).double().square().sum() / length
        return float((h != 0).double().sum(1).mean()), float(lost)

    h, points = None, []
    for factor in PATH:
        penalty = factor * dictionary.penalty
        h = solve(v, dictionary.atoms, penalty, nonnegative=dictionary.nonnegative, tolerance=TOLERANCE, start=h).codes
        points.append(measured(h))
    own = measured(codes)
    return {
        "path_penalties": torch.tensor(PATH) * dictionary.penalty,
        "path_nonzeros": torch.tensor([nonzeros for nonzeros, _ in points]),
        "path_errors": torch.tensor([error for _, error in points]),
        "own_nonzeros": torch.tensor(own[:1]),
        "own_errors": torch.tensor(own[1:]),
    }


def histograms(codes: Tensor) -> Arrays:
    """counts (41,), edges (42,): how many coefficients lie where, those that are 0 left out, 99.8 % of the others.

    zeros (1,): the share that is 0; nonzeros (examples,): of each example.
    """
    used = codes[codes != 0].double().cpu().numpy()
    limit = float(np.quantile(np.abs(used), 0.998)) if used.size else 1.0
    counts, edges = np.histogram(used, NUM_BINS, (-limit, limit))
    return {
        "counts": torch.from_numpy(counts),
        "edges": torch.from_numpy(edges),
        "zeros": torch.tensor([float((codes == 0).double().mean())]),
        "nonzeros": (codes != 0).sum(1),
    }
