"""Predictive sparse decomposition: a dictionary learned together with an encoder that guesses its codes
(Kavukcuoglu, Ranzato & LeCun 2008, arXiv:1010.3467).

Symbols: v the data, D (num_hidden, num_visible) the dictionary, an atom a row of length 1, h the code, f the encoder,
λ the penalty, α the prediction weight. What is NOT here: solvers of the coefficient problem (`lasso`), deeper encoders
(`lista`).
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from lightning_modules.atoms import random_atoms, to_unit_length
from lightning_modules.interfaces import Batch, Dictionary, HasDictionary, Layer, Losses, Measures, Model
from lightning_modules.lasso import solve
from lightning_modules.lasso_descent import FISTA
from lightning_modules.lasso_problem import Problem

MEASURED = 2000  # examples whose optima are looked for
TOLERANCE = 1e-4  # relative duality gap of those optima


class PSD(Model, Layer, HasDictionary, Measures):
    """E(v, h) = ½‖v − h D‖² + λ‖h‖₁ + α/2 ‖h − f(v)‖², the code of v being f(v) alone.

    shrinkage: f(v) = shrink(v W, θ), shrink(x, θ) = sign(x) max(|x| − |θ|, 0) (Kavukcuoglu et al. 2010, NIPS 23)
    tanh: f(v) = g tanh(v W + c), as published; no code is ever 0

    A step looks for h = argmin E from f(v) by `steps` steps of FISTA, then moves D, f along the slopes of E at that h.
    penalty: λ > 0, in units of the data; prediction_weight: α > 0; steps ≥ 1.
    """

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        penalty: float = 0.5,
        encoder: Literal["shrinkage", "tanh"] = "shrinkage",
        prediction_weight: float = 1.0,
        steps: int = 10,
    ) -> None:
        super().__init__()
        refuse(num_visible, num_hidden, penalty, steps)
        if not prediction_weight > 0:
            raise ValueError(f"prediction_weight must be positive, not {prediction_weight}")
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.penalty, self.encoder, self.prediction_weight, self.steps = penalty, encoder, prediction_weight, steps
        self.dictionary = nn.Parameter(random_atoms(num_hidden, num_visible))
        step = 1 / curvature(self.dictionary)
        self.weights = nn.Parameter(step * self.dictionary.detach().t().contiguous())
        self.thresholds = nn.Parameter((penalty * step).expand(num_hidden).clone()) if encoder == "shrinkage" else None
        self.gains = nn.Parameter(torch.ones(num_hidden)) if encoder == "tanh" else None
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden)) if encoder == "tanh" else None

    def losses(self, batch: Batch) -> Losses:
        """{"loss": E at the code found, "reconstruction_error": ‖v − h D‖², "prediction_error": ‖h − f(v)‖²}, means."""
        v = batch
        assert isinstance(v, Tensor)  # (batch, num_visible)
        guess = self.encode(v)
        code = self._settled(v, guess.detach())
        reconstruction_error = (v - code @ self.dictionary).square().sum(1).mean()
        prediction_error = (code - guess).square().sum(1).mean()
        size = code.abs().sum(1).mean()
        loss = 0.5 * reconstruction_error + self.penalty * size + 0.5 * self.prediction_weight * prediction_error
        return {
            "loss": loss,
            "reconstruction_error": reconstruction_error.detach(),
            "prediction_error": prediction_error.detach(),
        }

    @torch.no_grad()
    def after_step(self) -> None:
        """Atoms back to length 1."""
        to_unit_length(self.dictionary)

    def encode(self, v: Tensor) -> Tensor:
        """f(v), (batch, num_visible) → (batch, num_hidden)."""
        field = v @ self.weights
        if self.thresholds is not None:
            return shrink(field, self.thresholds)
        assert self.gains is not None and self.hidden_bias is not None
        return self.gains * torch.tanh(field + self.hidden_bias)

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

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        model = cls(num_visible=6, num_hidden=4, penalty=0.1)
        return model, torch.tensor([[0.5, 1.0, -0.5, 0.0, 1.0, 0.25], [-1.0, 0.0, 0.5, 0.75, 1.0, 0.0]])

    @torch.no_grad()
    def _settled(self, v: Tensor, guess: Tensor) -> Tensor:
        """Towards argmin_h E from the guess; E is a LASSO too, of (v, √α f(v)) and the atoms (D, √α I)."""
        root = self.prediction_weight**0.5
        identity = torch.eye(self.num_hidden, dtype=guess.dtype, device=guess.device)
        atoms = torch.cat([self.dictionary, root * identity], dim=1)
        return descended(torch.cat([v, root * guess], dim=1), atoms, self.penalty, guess, self.steps)


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


def refuse(num_visible: int, num_hidden: int, penalty: float, steps: int) -> None:
    """Arguments that no model of this family takes."""
    if num_visible < 1 or num_hidden < 1:
        raise ValueError(f"num_visible and num_hidden must be at least 1, not {num_visible} and {num_hidden}")
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, not {penalty}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
