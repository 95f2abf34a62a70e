"""Statistics of a stream in float64, merged exactly: count, least, greatest, mean, variances, covariance or a sketch.

Chunks merge by Chan, Golub & LeVeque 1983 (The American Statistician 37), in any order and from any number of
processes. Of n_a and n_b samples whose means differ by δ, the scatter Σ (x − mean)(x − mean)ᵀ of all is

    S = S_a + S_b + (n_a n_b / n) δ δᵀ

so a merge only ever appends rows: the centered samples of a chunk, and √(n_a n_b / n) δ. That is why the same rows can
go into a sketch where a d × d matrix is too much: Frequent Directions (Liberty 2013, KDD; Ghashami, Liberty, Phillips &
Woodruff 2016, SIAM J. Comput. 45). What is NOT here: what becomes of the statistics (`whitening.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

WIDEST = 4096  # values whose covariance is kept whole: 128 MiB and half a minute for its eigenvectors; wider: a sketch


class Scatter:
    """Σ r rᵀ over all rows r appended, (width, width)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.matrix = torch.zeros(width, width, dtype=torch.float64, device=device)

    def append(self, rows: Tensor) -> None:
        """rows: (n, width) float64."""
        self.matrix.addmm_(rows.T, rows)

    def merge(self, tensors: Mapping[str, Tensor]) -> None:
        self.matrix += tensors["scatter"].to(self.matrix.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"scatter": self.matrix}


class FrequentDirections:
    """A sketch B of all rows appended, A: fewer than 2ℓ rows, yet for every unit vector x and every k < ℓ

        0 ≤ ‖A x‖² − ‖B x‖² ≤ shrinkage ≤ ‖A − A_k‖_F² / (ℓ − k),   A_k the best approximation of A of rank k

    Rows collect in a buffer of 2ℓ; when it is full, the ℓ-th largest squared singular value is taken from all of them
    and what falls below zero is forgotten. `shrinkage` is the sum of what was taken, so the error is known afterwards.
    Sketches of parts, appended to one another, keep the same promise about the whole.
    """

    def __init__(self, width: int, rows: int, device: torch.device) -> None:
        if rows < 1:
            raise ValueError(f"a sketch needs at least 1 row, not {rows}")
        self.rows, self.shrinkage = rows, 0.0
        self._buffer = torch.zeros(2 * rows, width, dtype=torch.float64, device=device)
        self._filled = 0

    @property
    def matrix(self) -> Tensor:
        """B, (fewer than 2ℓ, width) float64."""
        return self._buffer[: self._filled]

    def append(self, rows: Tensor) -> None:
        """rows: (n, width) float64."""
        while len(rows):
            fitting = min(len(rows), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + fitting] = rows[:fitting]
            self._filled += fitting
            rows = rows[fitting:]
            if self._filled == len(self._buffer):
                self._shrink()

    def merge(self, tensors: Mapping[str, Tensor]) -> None:
        self.append(tensors["sketch"].to(self._buffer.device))
        self.shrinkage += float(tensors["shrinkage"])

    def tensors(self) -> dict[str, Tensor]:
        return {"sketch": self.matrix, "shrinkage": torch.tensor(self.shrinkage, dtype=torch.float64)}

    def _shrink(self) -> None:
        """Leaves fewer than ℓ rows: of B = U Σ Vᵀ, √(Σ² − σ_ℓ²) Vᵀ where that is real.

        From the eigenvectors of the small matrix B Bᵀ = U Σ² Uᵀ, as Σ Vᵀ = Uᵀ B.
        """
        squares, vectors = torch.linalg.eigh(self._buffer @ self._buffer.T)  # ascending, (2ℓ,) and (2ℓ, 2ℓ)
        taken = float(squares[-self.rows].clamp(min=0))
        kept = squares > taken
        factors = (1 - taken / squares[kept]).sqrt()
        left = factors[:, None] * (vectors[:, kept].T @ self._buffer)
        self._filled = len(left)
        self._buffer[: self._filled] = left
        self.shrinkage += taken


class Moments:
    """What is known of a stream of samples of `width` values, in float64 on the device of the first one.

    scatter: "none" keeps variances alone; "full" the covariance; "sketch" a sketch of it with `sketch_rows` rows (ℓ of
    `FrequentDirections`, where A are the centered samples). Variances and covariances divide by n − 1.
    """

    def __init__(
        self, width: int, *, scatter: Literal["none", "full", "sketch"] = "full", sketch_rows: int = 0
    ) -> None:
        self.width, self.kind, self.sketch_rows = width, scatter, sketch_rows
        self.count = 0
        self.scatter: Scatter | FrequentDirections | None = None
        self.least = self.greatest = self.mean = self.squares = torch.zeros(width, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Takes in a chunk, (n, width) of any floating type. Errors: ValueError for another width."""
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ValueError(f"expected samples of {self.width} values, found {tuple(x.shape)}")
        if not len(x):
            return
        x = x.detach().to(torch.float64)
        mean = x.mean(0)
        least, greatest = x.amin(0), x.amax(0)
        rows = x - mean
        self._join(len(x), mean, least, greatest, rows.square().sum(0))
        if self.scatter is not None:
            self.scatter.append(rows)

    def merge(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes in all that another stream of the same kind has gathered, its `tensors()`."""
        count = int(tensors["count"])
        if not count:
            return
        names = ("mean", "least", "greatest", "squares")
        device = tensors["mean"].device if not self.count else self.mean.device
        self._join(count, *(tensors[name].to(device) for name in names))
        if self.scatter is not None:
            self.scatter.merge(tensors)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, on the CPU."""
        own = {"count": torch.tensor(self.count), "least": self.least, "greatest": self.greatest,
               "mean": self.mean, "squares": self.squares}  # fmt: skip
        gathered = self.scatter.tensors() if self.scatter is not None else {}
        return {name: tensor.cpu() for name, tensor in (own | gathered).items()}

    def variance(self) -> Tensor:
        """(width,); zeros for a single sample."""
        return self.squares / max(self.count - 1, 1)

    def covariance(self) -> Tensor:
        """(width, width). Errors: ValueError where only variances or a sketch are kept."""
        if not isinstance(self.scatter, Scatter):
            raise ValueError(f"a covariance needs scatter 'full' and a sample, not {self.kind!r} and {self.count}")
        matrix = self.scatter.matrix
        return (matrix + matrix.T) / (2 * max(self.count - 1, 1))

    def _join(self, count: int, mean: Tensor, least: Tensor, greatest: Tensor, squares: Tensor) -> None:
        """Merges all but the other's scatter, whose rows follow."""
        if not self.count:
            self.count, self.mean, self.least, self.greatest, self.squares = count, mean, least, greatest, squares
            if self.kind == "full":
                self.scatter = Scatter(self.width, mean.device)
            elif self.kind == "sketch":
                self.scatter = FrequentDirections(self.width, self.sketch_rows, mean.device)
            return
        total = self.count + count
        difference = mean - self.mean
        between = math.sqrt(self.count * count / total) * difference
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + squares + between.square()
        self.least, self.greatest = torch.minimum(self.least, least), torch.maximum(self.greatest, greatest)
        self.count = total
        if self.scatter is not None:
            self.scatter.append(between[None])


@dataclass(frozen=True)
class Principal:
    """The directions of largest variance."""

    variances: Tensor  # (number,) float64, descending
    axes: Tensor  # (number, width) orthonormal rows; in each the entry of largest magnitude is positive
    rank: int  # of the whole covariance (of what the sketch kept of it)
    error: float  # a variance may be larger by at most this: 0 but for a sketch


def principal(moments: Moments, number: int) -> Principal:
    """The first `number` principal axes (Hotelling 1933), computed on the CPU in float64.

    Eigenvalues up to λ_1 × width × 2.2e-16 count as zero. Errors: ValueError if statistics hold fewer directions.
    """
    if moments.scatter is None:
        raise ValueError("principal axes need a covariance or a sketch of it, and samples")
    matrix = moments.scatter.matrix.cpu()
    degrees = max(moments.count - 1, 1)
    if isinstance(moments.scatter, Scatter):
        squares, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        squares, axes, error = squares.flip(0), vectors.T.flip(0), 0.0
    else:
        _, singular, axes = torch.linalg.svd(matrix, full_matrices=False)
        squares, error = singular.square(), moments.scatter.shrinkage
    if number > len(squares):
        raise ValueError(f"{number} principal axes were asked of {len(squares)} directions")
    rank = int((squares > squares[:1] * moments.width * torch.finfo(torch.float64).eps).sum())
    axes = axes[:number]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = torch.where(largest < 0, -axes, axes).contiguous()
    return Principal(squares[:number].clamp(min=0) / degrees, axes, rank, error / degrees)
