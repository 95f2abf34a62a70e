"""Predictive sparse decomposition: a dictionary learned together with an encoder that guesses its codes
(Kavukcuoglu, Ranzato & LeCun 2008, arXiv:1010.3467).

Symbols: v the data, D (num_hidden, num_visible) the dictionary, an atom a row of length 1, h the code, f the encoder,
λ the penalty, α the prediction weight. What is NOT here: what it shares with deeper encoders (`predicted_codes`), which
are in `lista`.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from lightning_modules.interfaces import Batch, Losses
from lightning_modules.predicted_codes import PredictsCodes, curvature, descended, shrink


class PSD(PredictsCodes):
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
        super().__init__(num_visible, num_hidden, penalty, steps)
        if not prediction_weight > 0:
            raise ValueError(f"prediction_weight must be positive, not {prediction_weight}")
        self.encoder, self.prediction_weight = encoder, prediction_weight
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

    def encode(self, v: Tensor) -> Tensor:
        """f(v), (batch, num_visible) → (batch, num_hidden)."""
        field = v @ self.weights
        if self.thresholds is not None:
            return shrink(field, self.thresholds)
        assert self.gains is not None and self.hidden_bias is not None
        return self.gains * torch.tanh(field + self.hidden_bias)

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
