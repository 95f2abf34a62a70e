"""Codes of the coefficient problem that pass gradients on, to the data and to the dictionary.

On the support A, with signs s, the optimum is h_A = G_AA⁻¹ (v D_Aᵀ − λ s), and close by it stays so. Hence, with
β_A = G_AA⁻¹ ∂L/∂h_A and zeros elsewhere (Mairal, Bach & Ponce 2012, PAMI 34, proposition 1),

    ∂L/∂v = β D,        ∂L/∂D = βᵀ r − hᵀ β D,        r = v − h D

Symbols as in `lasso_problem`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_modules.lasso import Solver, solve
from lightning_modules.lasso_paths import solve_on

DAMPING = 1e-5  # of G_AA, so that nearly dependent atoms in a support give no gradient beyond all bounds


def codes(
    v: Tensor,
    dictionary: Tensor,
    penalty: float,
    *,
    solver: Solver,
    nonnegative: bool,
    tolerance: float,
    max_steps: int,
) -> Tensor:
    """As `lasso.solve` → (batch, num_hidden), differentiable once in v and in the dictionary."""
    found: Tensor = _Codes.apply(v, dictionary, penalty, solver, nonnegative, tolerance, max_steps)
    return found


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        v: Tensor,
        dictionary: Tensor,
        penalty: float,
        solver: Solver,
        nonnegative: bool,
        tolerance: float,
        max_steps: int,
    ) -> Tensor:
        found = solve(
            v,
            dictionary,
            penalty,
            solver=solver,
            nonnegative=nonnegative,
            tolerance=tolerance,
            max_steps=max_steps,
        )
        ctx.save_for_backward(v, dictionary, found.codes)
        return found.codes

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with torch.autocast(gradient.device.type, enabled=False):
            v, dictionary, h = (saved.double() for saved in ctx.saved_tensors)
            (beta,) = solve_on(dictionary @ dictionary.T, h != 0, gradient.double(), ridge=DAMPING)
            back = beta @ dictionary
            through = beta.T @ (v - h @ dictionary) - h.T @ back
        return back.to(gradient.dtype), through.to(ctx.saved_tensors[1].dtype), *[None] * 5
