"""Solvers of the coefficient problem that descend to its optimum step by step, all rows of a batch at once.

ISTA (Daubechies, Defrise & De Mol 2004), FISTA (Beck & Teboulle 2009, SIAM J. Imaging Sci. 2), cyclic coordinate
descent (Friedman et al. 2007, Ann. Appl. Stat. 1), LCA (Rozell et al. 2008, Neural Comput. 20). Symbols as in
`lasso_problem`. Rows that have reached the tolerance leave the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor

from lightning_modules.lasso_problem import Problem

CHECK_STEPS = 10  # between two looks at the gap, which costs as much as a step or two
BLOCK = 32  # coordinates that descend by themselves before all others hear of it
ROWS = 256  # at a time on a CPU, so that a step's arrays stay in its caches


class Descent(ABC):
    """Codes on their way down; `step` takes one step, or one sweep over all coordinates."""

    check_steps: ClassVar[int] = CHECK_STEPS

    def __init__(self, problem: Problem, start: Tensor) -> None:
        self.problem, self.codes = problem, start

    @abstractmethod
    def step(self) -> None: ...

    def keep(self, rows: Tensor) -> None:
        """Goes on with some of the rows, by number."""
        for name, value in self.by_row().items():
            setattr(self, name, value[rows])
        self.problem = self.problem.rows(rows)

    def join(self, others: Descent) -> None:
        """Takes in the rows of another."""
        for name, value in others.by_row().items():
            setattr(self, name, torch.cat([getattr(self, name), value]))
        self.problem = self.problem.joined(others.problem)

    def by_row(self) -> dict[str, Tensor]:
        """The state, first dimension the batch."""
        return {"codes": self.codes}


class _Proximal(Descent):
    """What ISTA and FISTA share: h = shrink(y + (v − y D) Dᵀ / L, λ / L)."""

    def __init__(self, problem: Problem, start: Tensor) -> None:
        super().__init__(problem, start)
        num_hidden, num_visible = problem.dictionary.shape
        self.through_gram = num_hidden <= 2 * num_visible  # the cheaper of y G and (y D) Dᵀ
        if self.through_gram:
            identity = torch.eye(num_hidden, dtype=start.dtype, device=start.device)
            self.matrix = identity - problem.gram / problem.curvature
            self.offset = problem.correlation / problem.curvature

    def _proximal(self, y: Tensor) -> Tensor:
        problem = self.problem
        if self.through_gram:
            z = torch.addmm(self.offset, y, self.matrix)
        else:
            residual = torch.addmm(problem.v, y, problem.dictionary, alpha=-1)
            z = torch.addmm(y, residual, problem.dictionary.T, alpha=1 / problem.curvature)
        return problem.shrink(z, problem.penalty / problem.curvature)

    def by_row(self) -> dict[str, Tensor]:
        return super().by_row() | ({"offset": self.offset} if self.through_gram else {})


class ISTA(_Proximal):
    """Steps down the gradient of the squares, then towards zero."""

    def step(self) -> None:
        self.codes = self._proximal(self.codes)


class FISTA(_Proximal):
    """The same from a point beyond the last: F(h_k) − F* ≤ 2 L ‖h₀ − h*‖² / (k + 1)².

    restart: a row whose momentum points uphill loses it (O'Donoghue & Candès 2015, Found. Comput. Math. 15, §3.2),
    after which convergence is linear; the bound is proven without.
    """

    restart: ClassVar[bool] = True

    def __init__(self, problem: Problem, start: Tensor) -> None:
        super().__init__(problem, start)
        self.ahead = start
        self.inertia = torch.ones(len(start), 1, dtype=start.dtype, device=start.device)

    def step(self) -> None:
        codes = self._proximal(self.ahead)
        moved = codes - self.codes
        if self.restart:
            uphill = ((self.ahead - codes) * moved).sum(1, keepdim=True) > 0
            self.inertia.masked_fill_(uphill, 1.0)
        inertia = self.inertia.square().mul_(4).add_(1).sqrt_().add_(1).div_(2)
        self.ahead = torch.addcmul(codes, moved, self.inertia.sub_(1).div_(inertia))
        self.codes, self.inertia = codes, inertia

    def by_row(self) -> dict[str, Tensor]:
        return super().by_row() | {"ahead": self.ahead, "inertia": self.inertia}


class PlainFISTA(FISTA):
    """FISTA as published, without restarts."""

    restart = False


class CoordinateDescent(Descent):
    """A sweep sets every coordinate in turn to its optimum given all others."""

    check_steps = 2

    def __init__(self, problem: Problem, start: Tensor) -> None:
        super().__init__(problem, start.clone())
        self.correlation = problem.correlation - start @ problem.gram

    def step(self) -> None:
        gram = self.problem.gram
        for first in range(0, gram.shape[0], BLOCK):
            block = slice(first, first + BLOCK)
            before = self.codes[:, block].T.contiguous().clone()  # (block, batch); of one row contiguous() is a view
            after = self._within(gram[block, block], before, self.correlation[:, block].T.contiguous().clone())
            self.correlation.addmm_((after - before).T, gram[block], alpha=-1)
            self.codes[:, block] = after.T

    def _within(self, gram: Tensor, codes: Tensor, correlation: Tensor) -> Tensor:
        codes = codes.clone()
        for j, square in enumerate(gram.diagonal().tolist()):
            if square <= 0:
                continue
            old = codes[j]
            new = self.problem.shrink(correlation[j] + square * old, self.problem.penalty) / square
            correlation.addr_(gram[j], new - old, alpha=-1)
            codes[j] = new
        return codes

    def by_row(self) -> dict[str, Tensor]:
        return super().by_row() | {"correlation": self.correlation}


class LCA(Descent):
    """Neurons of potentials u that inhibit one another by their overlaps: τ u̇ = v Dᵀ − u − h (G − I), h = shrink(u, λ).

    Euler steps of τ / L, or τ where L < 1.
    """

    def __init__(self, problem: Problem, start: Tensor) -> None:
        super().__init__(problem, start)
        silent = (problem.correlation - start @ problem.gram).clamp(-problem.penalty, problem.penalty)
        self.potential = torch.where(start == 0, silent, start + problem.penalty * start.sign())
        self.rate = min(1.0, 1 / problem.curvature)

    def step(self) -> None:
        drive = torch.addmm(self.problem.correlation, self.codes, self.problem.gram, alpha=-1) + self.codes
        self.potential = torch.lerp(self.potential, drive, self.rate)
        self.codes = self.problem.shrink(self.potential, self.problem.penalty)

    def by_row(self) -> dict[str, Tensor]:
        return super().by_row() | {"potential": self.potential}


def descend(
    descent: type[Descent], problem: Problem, start: Tensor, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Until the relative duality gap of a row is at most `tolerance` → codes; steps taken, gaps, (batch,).

    On a CPU so many rows are on their way at a time; one that is done makes room for the next.
    """
    codes, gaps = start.clone(), problem.gap(start)
    steps = torch.zeros(len(start), dtype=torch.long, device=start.device)
    problem.gram, problem.curvature, problem.correlation  # noqa: B018  computed once for all rows
    waiting = (gaps > tolerance).nonzero()[:, 0]
    going, begun = waiting[:0], waiting[:0]  # the numbers of rows on their way, and when they began
    walk = descent(problem.rows(going), start[going])
    places = ROWS if start.device.type == "cpu" else len(start)
    for now in count():
        regular = now % descent.check_steps == 0
        if regular or now % descent.check_steps == max_steps % descent.check_steps:
            found = walk.problem.gap(walk.codes)
            ended = (found <= tolerance) | (now - begun >= max_steps)
            if ended.any():
                codes[going[ended]], gaps[going[ended]] = walk.codes[ended], found[ended]
                steps[going[ended]] = now - begun[ended]
                left = (~ended).nonzero()[:, 0]
                walk.keep(left)
                going, begun = going[left], begun[left]
        if regular and len(waiting) and len(going) <= places - places // 8:
            following, waiting = waiting[: places - len(going)], waiting[places - len(going) :]
            walk.join(descent(problem.rows(following), start[following]))
            going, begun = torch.cat([going, following]), torch.cat([begun, torch.full_like(following, now)])
        if not len(going) and not len(waiting):
            return codes, steps, gaps
        walk.step()
    raise AssertionError("unreachable")
