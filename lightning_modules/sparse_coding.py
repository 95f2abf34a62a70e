"""Sparse coding: a dictionary of unit atoms in which each example is a combination of few.

Olshausen & Field 1996, Nature 381 (gradient); Mairal, Bach, Ponce & Sapiro 2009, ICML, 2010, JMLR 11 (online). Symbols:
v the data, μ their mean, D (num_hidden, num_visible) the dictionary, an atom a row, ‖d_j‖ = 1, h the code, λ > 0.

    F(v; D) = min_h ½‖v − μ − h D‖² + λ‖h‖₁        −log p(v, h) of unit noise and Laplacian codes, up to a constant

What is NOT here: how codes are found (`lasso`), how gradients go back through them (`lasso_gradient`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.atoms import random_atoms, to_unit_length
from lightning_modules.interfaces import (
    Batch,
    Dictionary,
    HasDictionary,
    Layer,
    Losses,
    Measures,
    Model,
    MovingAverages,
    StartsFromData,
)
from lightning_modules.lasso import Solution, Solver, solve
from lightning_modules.lasso_gradient import codes
from lightning_modules.lasso_problem import Problem

BLOCK = 32  # atoms that move by themselves before all others hear of it
FORGETTING = 2  # statistics of step t weigh as t², against codes of early dictionaries (Mairal et al. 2010, §3.4.1)
REVIVAL_STEPS = 50  # between two looks for atoms that do nothing
DEAD = 0.02  # used so much less often than the average atom
TWINS = 0.9  # |cosine| of two atoms that do the same


class SparseCoding(Model, Layer, HasDictionary, StartsFromData, Measures, MovingAverages):
    """encode: argmin_h of the formula above by `solver`; decode: μ + h D. Gradients pass both ways (`lasso_gradient`).

    Learning takes the codes of a batch under the present dictionary, then moves the dictionary by `update`:

    online    to the optimum given the codes of all batches so far, through A = E[hᵀh] and B = E[hᵀ(v − μ)], atom by
              atom on the sphere; the optimizer and its learning rate have no say
    gradient  along −∇ F = hᵀ (v − μ − h D) with the optimizer, then back to the sphere

    Every 50 steps, atoms that were hardly used and second ones of nearly the same direction begin anew, drawn with the
    covariance of what the dictionary left unexplained. penalty: λ > 0 in units of the data; by default the rule of
    Mairal et al. 2010, §6, 1.2 / √num_visible of the data's root mean square length around μ. solver, tolerance (of
    the relative duality gap) and max_steps: see `lasso.solve`.
    """

    mean: Tensor
    threshold: Tensor
    num_steps: Tensor
    usage: Tensor
    unexplained: Tensor
    code_moments: Tensor
    joint_moments: Tensor

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        penalty: float | None = None,
        update: Literal["online", "gradient"] = "online",
        nonnegative: bool = False,
        solver: Solver = "fista",
        tolerance: float = 1e-4,
        max_steps: int = 200,
    ) -> None:
        super().__init__()
        if num_visible < 1 or num_hidden < 1:
            raise ValueError(f"num_visible and num_hidden must be at least 1, not {num_visible} and {num_hidden}")
        if penalty is not None and not penalty > 0:
            raise ValueError(f"penalty must be positive, not {penalty}")
        if not tolerance > 0 or max_steps < 1:
            raise ValueError(f"tolerance must be positive and max_steps at least 1, not {tolerance} and {max_steps}")
        if solver == "omp" and nonnegative:
            raise ValueError("solver omp has no non-negative variant")
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.penalty, self.update, self.nonnegative = penalty, update, nonnegative
        self.solver, self.tolerance, self.max_steps = solver, tolerance, max_steps
        self.dictionary = nn.Parameter(random_atoms(num_hidden, num_visible))
        self.register_buffer("mean", torch.zeros(num_visible))
        self.register_buffer("threshold", torch.tensor(penalty or 1.2 / math.sqrt(num_visible)))  # λ
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("usage", torch.zeros(num_hidden))  # share of examples, since the last revival
        self.register_buffer("unexplained", torch.zeros(num_visible, num_visible))  # E[rᵀr], since the last revival
        if update == "online":
            self.register_buffer("code_moments", torch.zeros(num_hidden, num_hidden))  # A
            self.register_buffer("joint_moments", torch.zeros(num_hidden, num_visible))  # B

    @torch.no_grad()
    def start_from_data(self, x: Tensor) -> None:
        """Mean, λ and first atoms, which are examples; x: (number, num_visible) of the training data."""
        self.mean.copy_(x.mean(0))
        x = x - self.mean
        length = float(x.square().sum(1).mean().sqrt())
        if self.penalty is None and length > 0:
            self.threshold.fill_(1.2 / math.sqrt(self.num_visible) * length)
        x = x[x.norm(dim=1) > 0.1 * length]
        if len(x):
            chosen = x[torch.randperm(len(x), device=x.device)[torch.arange(self.num_hidden) % len(x)]]
            noise = torch.randn_like(self.dictionary) / math.sqrt(self.num_visible)  # for those taken twice
            self.dictionary.copy_(F.normalize(F.normalize(chosen, dim=1) + 0.1 * noise, dim=1))

    def losses(self, batch: Batch) -> Losses:
        """{"loss": F, "reconstruction_error": ‖v − v̂‖², "nonzeros": of a code}, means per example."""
        assert isinstance(batch, Tensor)
        with torch.autocast(batch.device.type, enabled=False):  # sums over many batches are kept
            v = batch.to(self.mean.dtype) - self.mean  # (batch, num_visible)
            h = self._solve(v).codes
            residual = v - h @ self.dictionary
            squares = residual.square().sum(1).mean()
            used = (h != 0).to(v.dtype)
            loss = 0.5 * squares + self.threshold * h.abs().sum(1).mean()
            if self.training:
                self._take_in(v, h, residual.detach(), used)
            if self.update == "online":
                loss = loss.detach() + 0 * self.dictionary.sum()
        return {"loss": loss, "reconstruction_error": squares.detach(), "nonzeros": used.sum(1).mean()}

    def moving_averages(self) -> Sequence[Tensor]:
        online = [self.code_moments, self.joint_moments] if self.update == "online" else []
        return [self.usage, self.unexplained, *online]

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the dictionary, if online; back to the sphere; revives atoms."""
        self.num_steps += 1
        with torch.autocast(self.dictionary.device.type, enabled=False):
            if self.update == "online":
                self._descend_by_atoms()
            to_unit_length(self.dictionary)
            if int(self.num_steps) % REVIVAL_STEPS == 0:
                self._revive()
                self.usage.zero_()
                self.unexplained.zero_()

    def encode(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_hidden): the optimal code, to the tolerance or max_steps."""
        return codes(
            v.to(self.mean.dtype) - self.mean,
            self.dictionary,
            float(self.threshold),
            solver=self.solver,
            nonnegative=self.nonnegative,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )

    def decode(self, h: Tensor) -> Tensor:
        """μ + h D, (batch, num_hidden) → (batch, num_visible)."""
        return torch.addmm(self.mean, h, self.dictionary)

    def dictionary_of_codes(self) -> Dictionary:
        return Dictionary(self.dictionary.detach(), self.mean, float(self.threshold), self.nonnegative)

    def filters(self) -> Tensor:
        """The atoms, (num_hidden, num_visible)."""
        return self.dictionary.detach()

    @torch.no_grad()
    def measure(self, v: Tensor) -> dict[str, float]:
        """objective: mean F; nonzeros: of a code; unused_atoms; largest_gap: the codes' relative duality gap."""
        found = self._solve(v - self.mean)
        used = found.codes != 0
        given = Problem(v - self.mean, self.dictionary, float(self.threshold), self.nonnegative)
        return {
            "objective": float(given.objective(found.codes).mean()),
            "nonzeros": float(used.sum(1).double().mean()),
            "unused_atoms": float((~used.any(0)).sum()),
            "largest_gap": float(found.gap.max()),
        }

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        model = cls(num_visible=6, num_hidden=8, penalty=0.2, update="gradient", tolerance=1e-6)
        return model, torch.tensor([[0.0, 1.0, 0.5, 0.0, 1.0, 0.25], [1.0, -2.0, 0.0, 0.75, 1.0, 0.0]])

    def _solve(self, v: Tensor) -> Solution:
        return solve(
            v,
            self.dictionary,
            float(self.threshold),
            solver=self.solver,
            nonnegative=self.nonnegative,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )

    @torch.no_grad()
    def _take_in(self, v: Tensor, h: Tensor, residual: Tensor, used: Tensor) -> None:
        """A step's means into the averages: over the steps since the last revival, or all so far."""
        step = int(self.num_steps)
        recent = 1 / (step % REVIVAL_STEPS + 1)
        self.usage.lerp_(used.mean(0), recent)
        self.unexplained.lerp_(residual.T @ residual / len(v), recent)
        if self.update == "online":
            weight = (1 + FORGETTING) / (step + 1 + FORGETTING)
            self.code_moments.lerp_(h.T @ h / len(v), weight)
            self.joint_moments.lerp_(h.T @ v / len(v), weight)

    def _descend_by_atoms(self) -> None:
        """d_j = argmin E ½‖v − h D‖² on the sphere given all other atoms, j = 1, 2 …: along B_j − Σ_{k≠j} A_jk d_k."""
        dictionary, moments = self.dictionary.data, self.code_moments
        pull = self.joint_moments - moments @ dictionary
        for first in range(0, self.num_hidden, BLOCK):
            block = slice(first, first + BLOCK)
            within, before = moments[block, block], dictionary[block].clone()
            for j, square in enumerate(within.diagonal().tolist(), start=first):
                if square <= 1e-12:
                    continue
                atom = F.normalize(pull[j] + square * dictionary[j], dim=0)
                pull[block].addr_(within[j - first], atom - dictionary[j], alpha=-1)
                dictionary[j] = atom
            change = dictionary[block] - before
            pull[:first].addmm_(moments[:first, block], change, alpha=-1)
            pull[first + BLOCK :].addmm_(moments[first + BLOCK :, block], change, alpha=-1)

    def _revive(self) -> None:
        """Draws depend on the step alone: the same on all ranks, and after a resume."""
        overlaps = (self.dictionary @ self.dictionary.T).abs()
        more_used = (self.usage[:, None] < self.usage) | (self.usage[:, None] == self.usage).tril(-1)
        dead = (self.usage <= DEAD * self.usage.mean()) | ((overlaps > TWINS) & more_used).any(1)
        number = int(dead.sum())
        if not number or not self.unexplained.any():
            return
        values, axes = torch.linalg.eigh(self.unexplained.double().cpu())
        draws = torch.randn(
            number, self.num_visible, generator=torch.Generator().manual_seed(int(self.num_steps)), dtype=values.dtype
        )
        atoms = draws * values.clamp_min(0).sqrt() @ axes.T
        self.dictionary[dead] = F.normalize(atoms, dim=1).to(self.dictionary)
        if self.update == "online":
            self.code_moments[dead] = 0
            self.code_moments[:, dead] = 0
            self.joint_moments[dead] = 0
