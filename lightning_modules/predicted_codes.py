"""Sparse codes guessed by a trained encoder instead of looked for, and how far the guesses are from the best codes.

Symbols: v the data, D (num_hidden, num_visible) the dictionary, an atom a row of length 1, h a code, λ the penalty.

    E(v, h) = ½‖v − h D‖² + λ‖h‖₁

What is NOT here: the encoders (`psd`, `lista`), solvers of the coefficient problem (`lasso`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.atoms import random_atoms, to_unit_length
from lightning_modules.interfaces import Dictionary, HasDictionary, Layer, Measures, Model
from lightning_modules.lasso import solve
from lightning_modules.lasso_descent import FISTA
from lightning_modules.lasso_problem import Problem

MEASURED = 2000  # examples whose optima are looked for
TOLERANCE = 1e-4  # relative duality gap of those optima


class PredictsCodes(Model, Layer, HasDictionary, Measures):
    """A dictionary, and an encoder that begins with v W, `weights`, to guess its codes.

    penalty: λ > 0, in units of the data; steps ≥ 1, of FISTA from the guess in training.
    """

    weights: nn.Parameter  # W, (num_visible, num_hidden)

    def __init__(self, num_visible: int, num_hidden: int, penalty: float, steps: int) -> None:
        super().__init__()
        if num_visible < 1 or num_hidden < 1:
            raise ValueError(f"num_visible and num_hidden must be at least 1, not {num_visible} and {num_hidden}")
        if not penalty > 0:
            raise ValueError(f"penalty must be positive, not {penalty}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        self.num_visible, self.num_hidden, self.penalty, self.steps = num_visible, num_hidden, penalty, steps
        self.dictionary = nn.Parameter(random_atoms(num_hidden, num_visible))

    @torch.no_grad()
    def after_step(self) -> None:
        """Atoms back to length 1."""
        to_unit_length(self.dictionary)

    def decode(self, h: Tensor) -> Tensor:
        """h D, (batch, num_hidden) → (batch, num_visible)."""
        return h @ self.dictionary

    def filters(self) -> Tensor:
        """(num_hidden, num_visible): what the encoder looks for."""
        return self.weights.detach().t()

    def dictionary_of_codes(self) -> Dictionary:
        offset = torch.zeros_like(self.dictionary[0])
        return Dictionary(self.dictionary.detach(), offset, self.penalty)

    def measure(self, v: Tensor) -> dict[str, float]:
        """See `against_optimum`."""
        return against_optimum(v, self.encode(v[:MEASURED]), self.dictionary, self.penalty)


def shrink(field: Tensor, thresholds: Tensor) -> Tensor:
    """sign(field) max(|field| − |θ|, 0), with slopes in both."""
    thresholds = thresholds.abs()
    return field - field.clamp(-thresholds, thresholds)


@torch.no_grad()
def curvature(dictionary: Tensor) -> Tensor:
    """λ_max(D Dᵀ), a scalar."""
    return torch.linalg.matrix_norm(dictionary, 2).square()


@torch.no_grad()
def descended(v: Tensor, dictionary: Tensor, penalty: float, start: Tensor, steps: int) -> Tensor:
    """Codes after so many steps of FISTA, (batch, num_hidden)."""
    walk = FISTA(Problem(v, dictionary.detach(), penalty), start)
    for _ in range(steps):
        walk.step()
    return walk.codes


@torch.no_grad()
def against_optimum(v: Tensor, predicted: Tensor, dictionary: Tensor, penalty: float) -> dict[str, float]:
    """The energy ½‖v − h D‖² + λ‖h‖₁ of predicted codes of the first rows of v beside that of the best ones.

    energy: at the prediction, a mean per example; energy_ratio: of that to the optimum's; active: the share of
    coefficients that are not 0; optimal_active: at the optimum.
    """
    v = v[: len(predicted)]
    best = solve(v, dictionary, penalty, tolerance=TOLERANCE).codes
    problem = Problem(v, dictionary, penalty)
    energy, optimum = (float(problem.objective(h).mean()) for h in (predicted, best))
    return {
        "energy": energy,
        **({"energy_ratio": energy / optimum} if optimum > 0 else {}),
        "active": float((predicted != 0).double().mean()),
        "optimal_active": float((best != 0).double().mean()),
    }
