"""Streamed statistics equal numpy's over the whole, however the stream is cut; a sketch keeps its promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.statistics import FrequentDirections, Moments, principal

RANDOM = np.random.default_rng(0)


def hard(samples: int = 2000) -> np.ndarray:
    """Float32 samples of 9 values: correlated, a constant one, a time in seconds, a tiny one, a heavy tail."""
    x = RANDOM.normal(size=(samples, 9)) @ RANDOM.normal(size=(9, 9))
    x[:, 0] = 7.5
    x[:, 1] = 1.6e9 + 1000 * x[:, 1]
    x[:, 2] *= 1e-6
    x[:, 3] = RANDOM.standard_cauchy(samples)
    return x.astype(np.float32)


def streamed(x: np.ndarray, cuts: list[int], scatter: str = "full", sketch_rows: int = 0) -> Moments:
    moments = Moments(x.shape[1], scatter=scatter, sketch_rows=sketch_rows)  # type: ignore[arg-type]
    for chunk in np.split(x, cuts):
        moments.update(torch.from_numpy(chunk))
    return moments


def assert_equals_numpy(moments: Moments, x: np.ndarray) -> None:
    """To 1e-8 of each value's own scale, and of both values' for a covariance."""
    x = x.astype(np.float64)
    scale = x.std(0) + 1e-300
    assert moments.count == len(x)
    assert np.array_equal(moments.least.numpy(), x.min(0)) and np.array_equal(moments.greatest.numpy(), x.max(0))
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance().numpy(), x.var(0, ddof=1), rtol=1e-8, atol=1e-300)
    error = np.abs(moments.covariance().numpy() - np.cov(x, rowvar=False))
    assert (error <= 1e-8 * np.outer(scale, scale)).all()


@pytest.mark.parametrize("trial", range(10))
def test_however_the_stream_is_cut_it_is_numpys_mean_and_covariance(trial: int) -> None:
    """Chunks of random sizes, empty ones and single samples among them, merged as a random tree in random order."""
    random = np.random.default_rng(trial)
    x = hard()
    cuts = np.sort(random.integers(0, len(x), size=12)).tolist() + [len(x) - 1]
    parts = [streamed(chunk, [len(chunk) // 3]) for chunk in np.split(x, cuts)]
    while len(parts) > 1:
        one, other = (parts.pop(int(random.integers(len(parts)))) for _ in range(2))
        one.merge(other.tensors())
        parts.append(one)
    assert_equals_numpy(parts[0], x)


def test_one_stream_is_numpys_mean_and_covariance() -> None:
    x = hard()
    assert_equals_numpy(streamed(x, [1, 2, 1000]), x)
    alone = streamed(x, [700], scatter="none")
    np.testing.assert_allclose(alone.variance().numpy(), x.astype(np.float64).var(0, ddof=1), rtol=1e-8)
    with pytest.raises(ValueError, match="'none'"):
        alone.covariance()


def test_a_single_sample_and_none() -> None:
    assert Moments(3).count == 0 and not Moments(3).tensors()["mean"].any()
    moments = streamed(np.array([[1.0, 2.0, 3.0]]), [0, 1])
    assert moments.count == 1 and not moments.covariance().any() and moments.mean.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="samples of 3 values"):
        moments.update(torch.zeros(2, 4))


def test_principal_axes_are_numpys_with_signs_of_their_own() -> None:
    x = (RANDOM.normal(size=(500, 6)) * [5, 4, 3, 2, 1, 0]) @ np.linalg.qr(RANDOM.normal(size=(6, 6)))[0] + 3
    found = principal(streamed(x, [99]), 4)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    np.testing.assert_allclose(found.variances.numpy(), values[::-1][:4], rtol=1e-10)
    axes = found.axes.numpy()
    np.testing.assert_allclose(np.abs((axes * vectors.T[::-1][:4]).sum(1)), 1, rtol=1e-10)
    assert (axes[np.arange(4), np.abs(axes).argmax(1)] > 0).all()
    assert found.rank == 5 and found.error == 0
    turned = principal(streamed(2 * x.mean(0) - x, [99]), 4)  # mirrored: the same covariance
    np.testing.assert_allclose(turned.axes.numpy(), axes, atol=1e-9)


# ------------------------------------------------------------------------------------------------ the sketch


def decaying(rows: int, width: int, power: float) -> Tensor:
    scales = torch.arange(1, width + 1, dtype=torch.float64) ** -power
    basis = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    return torch.randn(rows, width, dtype=torch.float64) * scales @ basis


def assert_promise(sketch: FrequentDirections, a: Tensor) -> None:
    """0 ≤ ‖A x‖² − ‖B x‖² ≤ shrinkage ≤ ‖A − A_k‖_F² / (ℓ − k) for every unit x and all k < ℓ: exact, no chance."""
    b = sketch.matrix
    differences = torch.linalg.eigvalsh(a.T @ a - b.T @ b)
    squares = torch.linalg.svdvals(a).square()
    rounding = 1e-10 * float(squares[0])
    assert differences.min() >= -rounding
    assert differences.max() <= sketch.shrinkage + rounding
    for k in range(min(sketch.rows, len(squares))):
        assert sketch.shrinkage <= squares[k:].sum() / (sketch.rows - k) + rounding, k


@pytest.mark.parametrize(("rows", "power"), [(5, 0.0), (20, 0.5), (20, 2.0), (64, 0.0), (1, 1.0)])
def test_a_sketch_keeps_its_promise(rows: int, power: float) -> None:
    torch.manual_seed(rows)
    a = decaying(700, 40, power)
    sketch = FrequentDirections(40, rows, torch.device("cpu"))
    for chunk in a.split(37):
        sketch.append(chunk)
        assert len(sketch.matrix) < 2 * rows
    assert_promise(sketch, a)
    assert sketch.shrinkage > 0 or rows > 40


def test_sketches_of_parts_keep_it_about_the_whole() -> None:
    torch.manual_seed(0)
    a = decaying(900, 30, 0.7)
    parts = []
    for chunk in a.split(200):
        parts.append(FrequentDirections(30, 8, torch.device("cpu")))
        parts[-1].append(chunk)
    for part in parts[1:]:
        parts[0].merge(part.tensors())
    assert_promise(parts[0], a)


def test_the_sketched_covariance_is_of_centered_samples() -> None:
    """The promise holds for the samples minus the mean of all of them, which no chunk knows."""
    torch.manual_seed(0)
    x = decaying(600, 30, 1.0) + 100
    moments = streamed(x.numpy(), [50, 333], scatter="sketch", sketch_rows=12)
    other = streamed(x.numpy() * 2, [200], scatter="sketch", sketch_rows=12)
    moments.merge(other.tensors())
    whole = torch.cat([x, 2 * x])
    assert isinstance(moments.scatter, FrequentDirections)
    assert_promise(moments.scatter, whole - whole.mean(0))
    np.testing.assert_allclose(moments.variance().numpy(), whole.var(0).numpy(), rtol=1e-10)


def test_a_sketch_that_forgot_nothing_gives_the_principal_axes() -> None:
    torch.manual_seed(0)
    x = decaying(50, 5, 1.0) @ torch.randn(5, 40, dtype=torch.float64)
    sketched = principal(streamed(x.numpy(), [13], scatter="sketch", sketch_rows=8), 4)
    whole = principal(streamed(x.numpy(), [13]), 4)
    torch.testing.assert_close(sketched.variances, whole.variances, rtol=1e-9, atol=0)
    torch.testing.assert_close(sketched.axes, whole.axes, rtol=0, atol=1e-7)
    assert sketched.error == pytest.approx(0, abs=1e-9 * float(whole.variances[0]))
