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
    if "STRATA_DATA" not in os.environ:
        pytest.skip("STRATA_DATA does not name a folder with mnist/train-images-idx3-ubyte.gz")
    with gzip.open(Path(os.environ["STRATA_DATA"]) / "mnist" / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + 10_000 * 784), dtype=np.uint8, offset=16)
    return torch.from_numpy(pixels.reshape(-1, 784) > 127).float()
