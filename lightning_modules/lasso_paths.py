"""Solvers of the coefficient problem that go from support to support, each solved exactly; all rows of a batch at once.

LARS with the LASSO's drops (Efron et al. 2004, Ann. Stat. 32; the homotopy of Osborne, Presnell & Turlach 2000),
orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad 1993), feature-sign search (Lee, Battle, Raina & Ng 2006,
NIPS 19). Symbols as in `lasso_problem`; A a row's support, s the signs on it. In float64 throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.lasso_problem import Problem

RIDGE = 1e-13  # on G_AA, where atoms of one support depend on one another
FLAT = 1e-9  # slopes below are none: of duplicates of atoms in the support
Found = tuple[Tensor, Tensor]  # codes; steps taken (batch,)


def solve_on(gram: Tensor, active: Tensor, *targets: Tensor, ridge: float = RIDGE) -> tuple[Tensor, ...]:
    """x with G_AA x_A = target_A and zeros elsewhere; active (batch, num_hidden) bool, targets and x of its shape."""
    width = int(active.sum(1).max()) if len(active) else 0
    if width == 0:
        return tuple(torch.zeros_like(target) for target in targets)
    index = active.to(torch.int8).topk(width).indices  # (batch, width), filled up with others
    valid = active.gather(1, index)
    both = valid[:, :, None] & valid[:, None, :]
    identity = torch.eye(width, dtype=gram.dtype, device=gram.device)
    matrix = torch.where(both, gram[index[:, :, None], index[:, None, :]], identity) + ridge * identity
    right = torch.stack([target.gather(1, index) * valid for target in targets], dim=2)
    found = torch.cholesky_solve(right, torch.linalg.cholesky_ex(matrix).L)
    return tuple(
        torch.zeros_like(target).scatter(1, index, x) for target, x in zip(targets, found.unbind(2), strict=True)
    )


def lars(problem: Problem, max_steps: int) -> Found:
    """Follows the optimum as λ falls from where it is zero: h_A = G_AA⁻¹ (v D_Aᵀ − λ s_A), piece by piece.

    A piece ends where an atom's |c_j| reaches λ and joins, or where a coefficient reaches zero and is dropped.
    """
    gram, b = problem.gram, problem.correlation
    codes, signs, active = torch.zeros_like(b), torch.zeros_like(b), torch.zeros_like(b, dtype=torch.bool)
    steps = torch.zeros(len(b), dtype=torch.long, device=b.device)
    level = torch.full_like(b[:, 0], torch.inf)  # λ of now
    left = torch.arange(len(b), device=b.device)
    for step in range(max_steps + 1):
        on, s, now = active[left], signs[left], level[left]
        p, q = solve_on(gram, on, b[left], s)  # h = p − λ q,  c = u + λ w
        u, w = b[left] - p @ gram, q @ gram
        joins = [_where_joins(sign * u, sign * w, on, now) for sign in ((1,) if problem.nonnegative else (1, -1))]
        drops = torch.where(on & (s * q < 0), p / q, 0.0).minimum(now[:, None])
        events = torch.cat([drops, *joins], dim=1)
        following, event = events.max(1)
        ended = (following <= problem.penalty) | (step == max_steps)
        codes[left[ended]] = p[ended] - following[ended, None].clamp_min(problem.penalty) * q[ended]
        steps[left[ended]] = step
        level[left] = following
        left, event = left[~ended], event[~ended]
        if not len(left):
            break
        kind, atom = event // b.shape[1], event % b.shape[1]
        active[left, atom] = kind > 0
        signs[left, atom] = torch.tensor([0.0, 1.0, -1.0], dtype=b.dtype, device=b.device)[kind]
    return codes, steps


def _where_joins(u: Tensor, w: Tensor, on: Tensor, now: Tensor) -> Tensor:
    """λ at which u + λ w = λ, for each atom that is not on; where it is already above, now."""
    slope = 1 - w
    return torch.where(~on & (slope > FLAT) & (u > 0), u / slope, 0.0).minimum(now[:, None])


def orthogonal_matching_pursuit(problem: Problem, max_steps: int) -> Found:
    """Takes the atom that agrees best with the residual, fits all taken ones anew, until no |c_j| is above λ.

    Its aim is few atoms, not the LASSO's objective.
    """
    gram, b = problem.gram, problem.correlation
    codes, active = torch.zeros_like(b), torch.zeros_like(b, dtype=torch.bool)
    steps = torch.zeros(len(b), dtype=torch.long, device=b.device)
    left = torch.arange(len(b), device=b.device)
    for _ in range(min(max_steps, *problem.dictionary.shape)):
        best, atom = (b[left] - codes[left] @ gram).abs().masked_fill(active[left], 0.0).max(1)
        going = best > problem.penalty
        left, atom = left[going], atom[going]
        if not len(left):
            break
        active[left, atom] = True
        steps[left] += 1
        (codes[left],) = solve_on(gram, active[left], b[left])
    return codes, steps


def feature_sign_search(problem: Problem, start: Tensor, max_steps: int) -> Found:
    """Guesses signs, solves the quadratic problem they leave, and goes there as far as the objective falls.

    A row whose signs are right takes in the atom that violates its condition most.
    """
    gram, b, penalty = problem.gram, problem.correlation, problem.penalty
    codes = start.clone()
    slack = 1e-9 * penalty + 1e-13 * b.abs().amax(1)
    steps = torch.full((len(b),), max_steps, device=b.device)
    left = torch.arange(len(b), device=b.device)
    for step in range(max_steps + 1):
        h = codes[left]
        c, signs = b[left] - h @ gram, h.sign()
        right = torch.where(h != 0, (c - penalty * signs).abs(), 0.0).amax(1) <= slack[left]
        outside, atom = (c if problem.nonnegative else c.abs()).masked_fill(h != 0, 0.0).max(1)
        joining = right & (outside > penalty + slack[left])
        ended = right & ~joining
        steps[left[ended]] = step
        if step == max_steps or ended.all():
            break
        rows = torch.arange(len(left), device=b.device)[joining]
        signs[rows, atom[joining]] = c[rows, atom[joining]].sign()
        left, h, signs = left[~ended], h[~ended], signs[~ended]
        (aim,) = solve_on(gram, signs != 0, b[left] - penalty * signs)
        codes[left] = _line_search(problem.rows(left), h, aim)
    return codes, steps


def _line_search(problem: Problem, h: Tensor, aim: Tensor) -> Tensor:
    """The best of the points between h and aim where a coefficient changes its sign, and of aim itself."""
    way = aim - h
    crossing = torch.where(h * aim < 0, h / (h - aim), 1.0)  # 1: aim
    width = int((crossing < 1).sum(1).max()) + 1
    shares, at = crossing.topk(width, largest=False)  # (batch, width)
    bend = ((way @ problem.gram) * way).sum(1, keepdim=True)
    slope = ((h @ problem.gram - problem.correlation) * way).sum(1, keepdim=True)
    lengths = torch.stack([(h + share[:, None] * way).abs().sum(1) for share in shares.unbind(1)], dim=1)
    best = (0.5 * shares.square() * bend + shares * slope + problem.penalty * lengths).argmin(1, keepdim=True)
    share = shares.gather(1, best)
    found = torch.where(share == 1, aim, h + share * way)
    if problem.nonnegative:
        found = found.clamp_min(0)
    return torch.where(share == 1, found, found.scatter(1, at.gather(1, best), 0.0))
