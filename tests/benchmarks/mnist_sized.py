"""Any number of samples of MNIST's size, 784 uint8, no two alike: MNIST itself, over and over, if STRATA_DATA names it.

Every copy has its number in the first three pixels, which are black in MNIST; without MNIST, sparse noise.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data.sources.idx import read_idx

ORIGINAL = 60_000


def write(path: Path, number: int) -> Path:
    """A .npy file of `number` samples, a multiple of 60,000."""
    original = _original()
    samples = np.lib.format.open_memmap(path, "w+", np.uint8, (number, 784))
    for copy in range(number // ORIGINAL):
        part = samples[copy * ORIGINAL : (copy + 1) * ORIGINAL]
        part[:] = original
        part[:, :3] = copy % 256, copy // 256, 1
    samples.flush()
    return path


def _original() -> np.ndarray:
    folder = Path(os.environ.get("STRATA_DATA", "")) / "mnist"
    if "STRATA_DATA" in os.environ and folder.is_dir():
        return read_idx(folder / "train-images-idx3-ubyte.gz").reshape(ORIGINAL, 784)
    random = np.random.default_rng(0)
    return random.integers(0, 256, (ORIGINAL, 784), np.uint8) * (random.random((ORIGINAL, 784)) < 0.2)
