"""One-pass jobs in this process, on arrays at hand, and planted Gaussians to do them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lightning_modules as registry
from conf import Evaluate, Split, Train
from conf.protocol import EvaluateJob, Inputs
from data.shards import Reader, ingest
from lightning_modules.evaluation import evaluate
from lightning_modules.learning import learn
from tests.stage_kills import standing_on

EVERYTHING = Split(test=0, validation=0)


def mixed(samples: int, width: int, condition: float = 30.0) -> Tensor:
    """Samples of a planted Gaussian with a mean, float32: standard deviations from `condition` down to 1."""
    generator = torch.Generator().manual_seed(width)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(0, np.log10(condition), width, dtype=torch.float64)
    draws = torch.randn(samples, width, dtype=torch.float64)
    return (draws * scales @ basis + 5).float()


def read(folder: Path, source: Any, split: Split) -> Inputs:
    manifest = ingest(source, folder, shard_size=10_000)
    return Inputs(shards=str(folder), samples_digest=manifest.samples_digest,
                  labels_digest=manifest.labels_digest, split=split)  # fmt: skip


def stored(inputs: Inputs, samples: int) -> np.ndarray:
    return Reader(Path(inputs.shards)).values(np.arange(samples))


def learned(job: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    told: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    answer = learn(job.model_copy(update={"folder": str(folder)}), told.append, save=True)
    return registry.load(folder / "model"), answer | {"told": told}


def measured(folder: Path, inputs: Inputs, num_examples: int = 10_000) -> dict[str, float]:
    job = EvaluateJob(
        stage="some", folder=str(folder), model=standing_on(folder), inputs=inputs,
        evaluate=Evaluate(num_examples=num_examples), train=Train(threads=1), seed=0,
    )  # fmt: skip
    return evaluate(job, lambda said: None)[1]
