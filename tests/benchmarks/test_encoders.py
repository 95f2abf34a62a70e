"""Trained encoders of sparse codes on patches of photographs: what their guesses cost and how much faster they are.

12×12 patches of 180 pictures are learned from, those of 20 others measured; ZCA-whitened, 144 atoms, λ = 1. Beside one
another: the energy ½‖v − h D‖² + λ‖h‖₁ at each encoder's guess and at the optimum for its own dictionary, and samples
a second, by the processor's time on one thread, of the encoder and of FISTA down to a duality gap, in the same batches:
of one patch, of 100, as the recipes train, and of 1,000, whose arrays leave the processor's caches. Printed by
`make bench`; reads STRATA_DATA/bsds500_images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conf import ImagesSource, PatchesSource
from data.sources import open_source
from lightning_modules import gabor
from lightning_modules.lasso import solve
from lightning_modules.lista import LISTA
from lightning_modules.predicted_codes import TOLERANCE
from lightning_modules.psd import PSD
from lightning_modules.whitening import Whitening
from tests.benchmarks.turns import in_turns, ratio, told
from tests.sparse_data import descend

pytestmark = pytest.mark.slow

SIDE, PER_PICTURE, HELD_OUT = 12, 300, 20
BATCHES = {1: 400, 100: 100, 1000: 20}  # sizes, and how often the encoder goes through one while FISTA does once
QUICK = {"epochs": 4, "rate": 0.005, "batch_size": 100}
ENCODERS: dict[str, tuple[type[PSD] | type[LISTA], dict[str, Any], dict[str, Any]]] = {  # and how they are trained
    "psd, shrinkage": (PSD, {}, QUICK),
    "psd, tanh": (PSD, {"encoder": "tanh"}, QUICK),
    "lista, 3 layers": (LISTA, {"depth": 3, "steps": 5}, {"epochs": 40, "rate": 0.002, "batch_size": 250}),
}
WANTED = {"psd, shrinkage": 1.1, "lista, 3 layers": 1.01}  # energy at the guess, of the optimum's
WANTED_RATE = 50  # of FISTA's in batches of 100, by encoders of one step


@pytest.fixture(scope="module")
def patches() -> tuple[Tensor, Tensor]:
    """Whitened ones to learn from and held-out ones, (number, 144)."""
    path = Path(os.environ.get("STRATA_DATA", "")) / "bsds500_images" / "bsds500_train200.zip"
    if not path.is_file():
        pytest.skip("STRATA_DATA names no folder with bsds500_images/ in it")
    pictures = ImagesSource(kind="images", path=str(path), size=(320, 320), fit="crop")
    source = open_source(PatchesSource(kind="patches", of=pictures, size=(SIDE, SIDE), per_picture=PER_PICTURE))
    rows = range(source.describe().sets["train"])
    values = np.stack([value for _, value in source.samples("train", rows)])
    x = torch.from_numpy(values.reshape(len(values), -1)).float() / 255
    white = Whitening(num_visible=SIDE * SIDE, method="zca", epsilon=0.01)
    white.update(x[: -HELD_OUT * PER_PICTURE])
    white.finish()
    x = white.encode(x)
    return x[: -HELD_OUT * PER_PICTURE], x[-HELD_OUT * PER_PICTURE :]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_beside_fista(name: str, patches: tuple[Tensor, Tensor]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seen, held_out = patches
    kind, arguments, training = ENCODERS[name]
    model = kind(num_visible=SIDE * SIDE, num_hidden=144, penalty=1.0, **arguments)
    seen = seen[torch.randperm(len(seen))]
    descend(model, seen, **training)
    model.eval()
    found = model.measure(held_out[torch.randperm(len(held_out))])
    atoms = model.dictionary.detach()
    fits = gabor.r_squared(atoms.reshape(-1, SIDE, SIDE).double().numpy()) > gabor.FITS
    contrasts = held_out[held_out.norm(dim=1) > held_out.norm(dim=1).median()]  # no single patch of plain sky
    for size, times in BATCHES.items():
        v = (contrasts if size == 1 else held_out[torch.randperm(len(held_out))])[:size]
        fista = f"FISTA, gap {TOLERANCE:g}"
        rivals = {
            "encoder": _repeated(partial(model.encode, v), times, size),
            fista: _repeated(partial(solve, v, atoms, 1.0, tolerance=TOLERANCE), 1, size),
        }
        processor: dict[str, list[float]] = {}
        with torch.no_grad():
            in_turns(rivals, 1)
            in_turns(rivals, processor=processor)
        told(f"{name}: inference, batches of {size:,}, by the processor's time", processor)
        faster = ratio(processor, "encoder", fista)
        print(f"  {faster:.0f} times as fast" + (f"; wanted: {WANTED_RATE}" if size == 100 and kind is PSD else ""))
        if size == 100:
            assert faster >= (WANTED_RATE if kind is PSD else 1)
    print(
        f"  energy {found['energy_ratio']:.4f} of the optimum's (gap {TOLERANCE:g}); {found['active']:.1%} active, "
        f"{found['optimal_active']:.1%} at the optimum; {fits.mean():.0%} of atoms fit a Gabor function"
    )
    assert 1 <= found["energy_ratio"] <= WANTED.get(name, np.inf)
    assert fits.mean() >= 0.6


def _repeated(work: Callable[[], Any], times: int, size: int) -> Callable[[], int]:
    def done() -> int:
        for _ in range(times):
            work()
        return times * size

    return done
