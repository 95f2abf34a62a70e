"""How much of an RBM's training is arithmetic: the whole stack beside its five matrix products alone.

MNIST, 784-500, CD-1, batch 100, one thread. `stack` is two epochs through shards, Lightning, the journal and SGD;
`products` the five matrix products of CD-1 (two up, one down, two for the gradient) on tensors that lie ready.
Interleaved pairs, median of their ratio: a machine that is busy slows both. Printed by `make bench`; the limit is 0.5.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

from conf import Train
from data.loading import ShardData
from lightning_modules.boltzmann import RBM
from lightning_modules.training import fit, seed_torch

BATCH, VISIBLE, HIDDEN, EPOCHS, PAIRS = 100, 784, 500, 2, 5
STEPS = EPOCHS * 600


@pytest.mark.slow
def test_the_stack_keeps_half_the_rate_of_its_products(mnist_shards: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    samples = np.arange(600 * BATCH)
    _stack(mnist_shards, samples, tmp_path / "warm")
    _products(60)
    pairs = []
    for number in range(PAIRS):
        pairs.append((_stack(mnist_shards, samples, tmp_path / str(number)), _products(STEPS)))
    ratios = [products / stack for stack, products in pairs]
    for (stack, products), ratio in zip(pairs, ratios, strict=True):
        print(f"stack {STEPS / stack:6.1f} steps/s   products {STEPS / products:6.1f} steps/s   ratio {ratio:.2f}")
    print(f"median ratio {median(ratios):.2f}, limit 0.50")
    assert median(ratios) >= 0.5


def _stack(shards: Path, samples: np.ndarray, folder: Path) -> float:
    """Seconds of two epochs, start-up of the trainer and every sample's first checksum included."""
    folder.mkdir()
    seed_torch(0, "benchmark")
    model = RBM(num_visible=VISIBLE, num_hidden=HIDDEN)
    remembered = folder.parent / "verified.json"
    data = ShardData(shards=shards, samples=samples, batch_size=BATCH, epochs=EPOCHS, seed=0, remembered=remembered)
    began = time.perf_counter()
    fit(model, data, Train(epochs=EPOCHS, batch_size=BATCH), stage="bench", seed=0, folder=folder)
    return time.perf_counter() - began


def _products(steps: int) -> float:
    v, h = torch.rand(BATCH, VISIBLE), torch.rand(BATCH, HIDDEN)
    weights = torch.rand(VISIBLE, HIDDEN)
    began = time.perf_counter()
    for _ in range(steps):
        v @ weights
        h @ weights.t()
        v @ weights
        v.t() @ h
        v.t() @ h
    return time.perf_counter() - began
