"""Gabor functions fitted to pictures of filters: how much of a filter is a localized, oriented wave.

Gabor 1946; Daugman 1985 (receptive fields of simple cells); Jones & Palmer 1987 (least-squares fits to them). Symbols:
x across the stripes and y along them, from the middle (column, row) of the function and turned by `angle`.

    g(x, y) = exp(−x² / 2σ_x² − y² / 2σ_y²) (a cos 2πfx + b sin 2πfx)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

FITS = 0.7  # R² from which a filter counts as a Gabor function
LEAST_WIDTH = 0.6  # of the envelope, pixels
_PADDED = 64  # side of the spectrum that starts are read from
_STARTS = ((0, 0.15), (0, 0.3), (1, 0.2), (2, 0.2))  # (peak of the spectrum, width in parts of the picture's side)
_ENOUGH = 0.95  # R² after which no other start is tried

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gabor:
    """A fit. Lengths in pixels, `frequency` in waves a pixel, `angle` in radians."""

    column: float
    row: float
    angle: float
    across: float  # σ_x
    along: float  # σ_y
    frequency: float
    even: float  # a
    odd: float  # b
    r_squared: float  # 1 − Σ(picture − g)² / Σ(picture − its mean)²; 0 for a constant one


def fit(picture: Array) -> Gabor:
    """The best of several least-squares fits to (height, width) values, each from a peak of the power spectrum."""
    picture = np.asarray(picture, np.float64)
    height, width = picture.shape
    scale = float(np.sqrt(np.square(picture - picture.mean()).sum()))
    best = Gabor((width - 1) / 2, (height - 1) / 2, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    if not scale > 0 or not np.isfinite(scale):
        return best
    target = (picture / scale).ravel()
    rows, columns = (place.ravel().astype(float) for place in np.mgrid[:height, :width])
    side = float(max(height, width))
    low = np.array([-0.5, -0.5, -np.inf, LEAST_WIDTH, LEAST_WIDTH, 0.0, -np.inf, -np.inf])
    high = np.array([width - 0.5, height - 0.5, np.inf, side, side, 0.5, np.inf, np.inf])
    for start in _starts(picture, rows, columns):
        start = start.clip(low[:6] + 1e-6, high[:6] - 1e-6)
        basis = [_function(np.append(start, phase), rows, columns) for phase in np.eye(2)]
        amplitudes = np.linalg.lstsq(np.stack(basis, axis=1), target, rcond=None)[0]
        found = least_squares(
            lambda p: _function(p, rows, columns) - target,
            np.concatenate([start, amplitudes]),
            jac=lambda p: _slopes(p, rows, columns),  # type: ignore[arg-type]
            bounds=(low, high),
            x_scale=np.array([1.0, 1.0, 0.3, 1.0, 1.0, 0.05, 0.1, 0.1]),
            max_nfev=60,
            ftol=1e-6,
            xtol=1e-6,
            gtol=1e-8,
        )
        r_squared = 1 - 2 * float(found.cost)
        if r_squared > best.r_squared:
            found.x[6:] *= scale
            best = Gabor(*np.append(found.x, r_squared).tolist())
        if best.r_squared > _ENOUGH:
            break
    return best


def r_squared(pictures: Array) -> Array:
    """(n, height, width) → (n,): how well the best Gabor function fits each."""
    return np.array([fit(picture).r_squared for picture in pictures])


def picture(gabor: Gabor, height: int, width: int) -> Array:
    """(height, width) values of g."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    p = np.array([gabor.column, gabor.row, gabor.angle, gabor.across, gabor.along, gabor.frequency,
                  gabor.even, gabor.odd])  # fmt: skip
    return _function(p, rows.ravel(), columns.ravel()).reshape(height, width)


def _starts(picture: Array, rows: Array, columns: Array) -> list[Array]:
    """Middle, angle, widths, frequency: the middle of the energy, waves at the highest peaks of the spectrum."""
    energy = np.square(picture - picture.mean()).ravel()
    energy = np.square(energy) / np.square(energy).sum()  # its peak counts more than a wide background
    row, column = float(energy @ rows), float(energy @ columns)
    peaks = _peaks(picture - picture.mean(), 1 + max(peak for peak, _ in _STARTS))
    starts = []
    for peak, share in _STARTS:
        if peak < len(peaks):
            down, right = peaks[peak]
            width = share * max(picture.shape)
            starts.append(np.array([column, row, np.arctan2(down, right), width, width, np.hypot(down, right)]))
    return starts


def _peaks(values: Array, number: int) -> list[tuple[float, float]]:
    """The strongest waves of one half plane, (down, right) in waves a pixel, each 1.5 / side away from the others."""
    power = np.abs(np.fft.fft2(values, (_PADDED, _PADDED))) ** 2
    down, right = np.meshgrid(np.fft.fftfreq(_PADDED), np.fft.fftfreq(_PADDED), indexing="ij")
    power[(right < 0) | ((right == 0) & (down < 0))] = -1
    found: list[tuple[float, float]] = []
    for _ in range(number):
        at = int(power.argmax())
        if power.flat[at] <= 0:
            break
        found.append((float(down.flat[at]), float(right.flat[at])))
        power[np.hypot(down - found[-1][0], right - found[-1][1]) < 1.5 / max(values.shape)] = -1
    return found


def _function(p: Array, rows: Array, columns: Array) -> Array:
    envelope, cosine, sine, _, _ = _parts(p, rows, columns)
    return envelope * (p[6] * cosine + p[7] * sine)


def _slopes(p: Array, rows: Array, columns: Array) -> Array:
    """∂g/∂p, (pixels, 8)."""
    envelope, cosine, sine, x, y = _parts(p, rows, columns)
    turn_cosine, turn_sine = np.cos(p[2]), np.sin(p[2])
    across, along, wave = p[3], p[4], 2 * np.pi * p[5]
    value = envelope * (p[6] * cosine + p[7] * sine)
    by_phase = envelope * (p[7] * cosine - p[6] * sine)  # ∂g/∂(2πfx)
    by_x = -value * x / across**2 + by_phase * wave
    by_y = -value * y / along**2
    return np.stack(
        [
            -by_x * turn_cosine + by_y * turn_sine,
            -by_x * turn_sine - by_y * turn_cosine,
            by_x * y - by_y * x,
            value * x**2 / across**3,
            value * y**2 / along**3,
            by_phase * 2 * np.pi * x,
            envelope * cosine,
            envelope * sine,
        ],
        axis=1,
    )


def _parts(p: Array, rows: Array, columns: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Envelope, cosine, sine, x, y at each pixel."""
    right, down = columns - p[0], rows - p[1]
    x = right * np.cos(p[2]) + down * np.sin(p[2])
    y = -right * np.sin(p[2]) + down * np.cos(p[2])
    envelope = np.exp(-np.square(x / p[3]) / 2 - np.square(y / p[4]) / 2)
    return envelope, np.cos(2 * np.pi * p[5] * x), np.sin(2 * np.pi * p[5] * x), x, y
