"""MNIST from the folder STRATA_DATA names; a test skips where there is none."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor


def mnist() -> Tensor:
    """The first 10,000 training digits, binarised at half intensity, (10000, 784)."""
    return torch.from_numpy(_pixels("train", 10_000) > 127).float()


def mnist_intensities() -> tuple[Tensor, Tensor]:
    """All digits of both sets, in [0, 1], (60000, 784) and (10000, 784)."""
    train, test = (torch.from_numpy(_pixels(*part)).float() / 255 for part in (("train", 60_000), ("t10k", 10_000)))
    return train, test


def mnist_folder() -> Path:
    """Where its four IDX files lie."""
    if "STRATA_DATA" not in os.environ:
        pytest.skip("STRATA_DATA does not name a folder with mnist/train-images-idx3-ubyte.gz")
    return Path(os.environ["STRATA_DATA"]) / "mnist"


def _pixels(part: str, number: int) -> np.ndarray:
    with gzip.open(mnist_folder() / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + number * 784), dtype=np.uint8, offset=16)
    return pixels.reshape(-1, 784).copy()
