"""The door to the coefficient problem (`lasso_problem`): one function, its solvers by name.

    ista, fista, coordinate_descent, lca    descend, stop by the duality gap             (`lasso_descent`)
    lars, feature_sign                      exact, from support to support, in float64   (`lasso_paths`)
    omp                                     the same; few atoms instead of the L1 objective

All rows of a batch are solved side by side on their device. What is NOT here: where dictionaries come from
(`sparse_coding`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_modules.lasso_descent import FISTA, ISTA, LCA, CoordinateDescent, Descent, descend
from lightning_modules.lasso_paths import feature_sign_search, lars, orthogonal_matching_pursuit
from lightning_modules.lasso_problem import Problem

Solver = Literal["ista", "fista", "coordinate_descent", "lca", "lars", "feature_sign", "omp"]
DESCENTS: dict[str, type[Descent]] = {
    "ista": ISTA,
    "fista": FISTA,
    "coordinate_descent": CoordinateDescent,
    "lca": LCA,
}


@dataclass(frozen=True)
class Solution:
    """Codes and how good they are.

    steps (batch,): what it took; gap (batch,) float64: the objective is at most so much of itself above the optimum.
    """

    codes: Tensor  # (batch, num_hidden)
    steps: Tensor
    gap: Tensor
    tolerance: float

    @property
    def converged(self) -> Tensor:
        """(batch,) bool."""
        return self.gap <= self.tolerance


@torch.no_grad()
def solve(
    v: Tensor,
    dictionary: Tensor,
    penalty: float,
    *,
    solver: Solver = "fista",
    nonnegative: bool = False,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
    start: Tensor | None = None,
) -> Solution:
    """argmin_h ½‖v − h D‖² + λ‖h‖₁ for every row of v (batch, num_visible); D (num_hidden, num_visible), λ > 0.

    tolerance: of the relative duality gap, > 0; float32 tells gaps of some 1e-6 apart. max_steps ≥ 0 caps what it
    takes (steps, sweeps, supports); the solution says what was reached. start: codes to begin with, by default zeros;
    lars and omp always begin at zeros. omp ends where no atom's |c_j| is above λ: its gap says how far from the LASSO
    that is. Atoms of any length, also equal ones and zeros. Errors: ValueError.
    """
    _refuse(v, dictionary, penalty, solver, nonnegative, tolerance, max_steps, start)
    with torch.autocast(v.device.type, enabled=False):
        given = Problem(v, dictionary.to(v.dtype), penalty, nonnegative)
        exact = given if solver in DESCENTS else given.double()
        begin = v.new_zeros(len(v), len(dictionary)) if start is None else start
        begin = begin.to(exact.v.dtype).clamp_min(0) if nonnegative else begin.to(exact.v.dtype)
        if solver in DESCENTS:
            return Solution(*descend(DESCENTS[solver], given, begin, tolerance, max_steps), tolerance)
        if solver == "lars":
            codes, steps = lars(exact, max_steps)
        elif solver == "omp":
            codes, steps = orthogonal_matching_pursuit(exact, max_steps)
        else:
            codes, steps = feature_sign_search(exact, begin, max_steps)
        return Solution(codes.to(v.dtype), steps, exact.gap(codes), tolerance)


def _refuse(
    v: Tensor,
    dictionary: Tensor,
    penalty: float,
    solver: str,
    nonnegative: bool,
    tolerance: float,
    max_steps: int,
    start: Tensor | None,
) -> None:
    if solver not in get_args(Solver):
        raise ValueError(f"solver must be one of {', '.join(get_args(Solver))}, not {solver!r}")
    if not penalty > 0 or not tolerance > 0 or max_steps < 0:
        raise ValueError(
            f"penalty and tolerance must be positive and max_steps not negative, "
            f"not {penalty}, {tolerance} and {max_steps}"
        )
    if solver == "omp" and nonnegative:
        raise ValueError("omp has no non-negative variant; every other solver has one")
    if v.ndim != 2 or dictionary.ndim != 2 or v.shape[1] != dictionary.shape[1]:
        raise ValueError(
            f"v (batch, num_visible) and dictionary (num_hidden, num_visible) do not fit: "
            f"{tuple(v.shape)} and {tuple(dictionary.shape)}"
        )
    if start is not None and start.shape != (len(v), len(dictionary)):
        raise ValueError(f"start must be {(len(v), len(dictionary))} codes, not {tuple(start.shape)}")
