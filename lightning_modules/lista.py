"""LISTA: an encoder made of the first steps of ISTA, whose matrices are learned so that few steps go far
(Gregor & LeCun 2010, ICML; the energy as its objective: Sprechmann, Bronstein & Sapiro 2015, IEEE PAMI 37).

Symbols: v the data, D (num_hidden, num_visible) the dictionary, an atom a row of length 1, h* the LASSO optimum
argmin_h ½‖v − h D‖² + λ‖h‖₁, T the depth. What is NOT here: the solvers (`lasso`), encoders of one layer (`psd`).
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from lightning_modules.interfaces import Batch, Losses
from lightning_modules.predicted_codes import PredictsCodes, curvature, descended, shrink


class LISTA(PredictsCodes):
    """h₁ = shrink(v W, θ₁), h_t = shrink(v W + h_{t−1} S_t, θ_t), the code being h_T.

    W, S_t and θ_t start at Dᵀ/L, I − D Dᵀ/L and λ/L, L = λ_max(D Dᵀ), where h_t is exactly that of ISTA. D learns to
    explain the data by h*, which `steps` steps of FISTA from h_T approach. The encoder's objective is the energy
    ½‖v − h_T D‖² + λ‖h_T‖₁ or, `codes`, ½‖h_T − h*‖² as published.

    depth: T ≥ 1; penalty: λ > 0, in units of the data; steps ≥ 1.
    """

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        depth: int = 3,
        penalty: float = 0.5,
        objective: Literal["energy", "codes"] = "energy",
        steps: int = 10,
    ) -> None:
        super().__init__(num_visible, num_hidden, penalty, steps)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self.depth, self.objective = depth, objective
        self.weights = nn.Parameter(torch.empty(num_visible, num_hidden))
        self.inhibition = nn.Parameter(torch.empty(depth - 1, num_hidden, num_hidden)) if depth > 1 else None
        self.thresholds = nn.Parameter(torch.empty(depth, num_hidden))
        self.start_from_ista()

    @torch.no_grad()
    def start_from_ista(self) -> None:
        """Makes the encoder the first T steps of ISTA for the dictionary there is."""
        step = 1 / curvature(self.dictionary)
        self.weights.copy_(step * self.dictionary.t())
        self.thresholds.copy_((self.penalty * step).expand_as(self.thresholds))
        if self.inhibition is not None:
            identity = torch.eye(self.num_hidden, dtype=step.dtype, device=step.device)
            self.inhibition.copy_((identity - step * self.dictionary @ self.dictionary.t()).expand_as(self.inhibition))

    def losses(self, batch: Batch) -> Losses:
        """{"loss": the dictionary's and the encoder's, "reconstruction_error": ‖v − h* D‖², "prediction_error":
        ‖h_T − h*‖²}, means."""
        v = batch
        assert isinstance(v, Tensor)  # (batch, num_visible)
        guess = self.encode(v)
        best = descended(v, self.dictionary, self.penalty, guess.detach(), self.steps)
        reconstruction_error = (v - best @ self.dictionary).square().sum(1).mean()
        prediction_error = (guess - best).square().sum(1).mean()
        if self.objective == "codes":
            encoding = 0.5 * prediction_error
        else:
            left = v - guess @ self.dictionary.detach()
            encoding = (0.5 * left.square().sum(1) + self.penalty * guess.abs().sum(1)).mean()
        return {
            "loss": 0.5 * reconstruction_error + encoding,
            "reconstruction_error": reconstruction_error.detach(),
            "prediction_error": prediction_error.detach(),
        }

    def encode(self, v: Tensor) -> Tensor:
        """h_T, (batch, num_visible) → (batch, num_hidden)."""
        field = v @ self.weights
        h = shrink(field, self.thresholds[0])
        deeper = self.inhibition if self.inhibition is not None else ()
        for inhibition, thresholds in zip(deeper, self.thresholds[1:], strict=True):
            h = shrink(torch.addmm(field, h, inhibition), thresholds)
        return h

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        model = cls(num_visible=6, num_hidden=4, depth=2, penalty=0.1)
        return model, torch.tensor([[0.5, 1.0, -0.5, 0.0, 1.0, 0.25], [-1.0, 0.0, 0.5, 0.75, 1.0, 0.0]])
