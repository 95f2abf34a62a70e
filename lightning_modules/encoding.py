"""`strata encode`: codes of all samples of some shards, as numbers or as packed bits (data/codes.py).

Samples pass by in batches, on a GPU if there is one: memory does not grow with their number. A killed job leaves no
codes.json, and the next one begins anew; finished codes of the same model and samples are left as they are, others are
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lightning_modules as registry
from conf.errors import Damaged, InputError, show
from conf.protocol import EncodeJob
from data import durable
from data.codes import NAME, Codes, opened_for_writing
from data.shards import Reader
from lightning_modules.evaluation import kind_of
from lightning_modules.hashing import Coder, hasher
from lightning_modules.interfaces import Encodes, Fitted

Tell = Callable[[dict[str, Any]], None]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def encode(job: EncodeJob, tell: Tell) -> dict[str, Any]:
    """Codes of every sample into OUT, in shard order → what was written, or was there before ("cached").

    Errors: InputError (no codes, other samples than the model's, foreign files or other codes in OUT), Busy, Damaged,
    OSError.
    """
    model, reader = registry.load(Path(job.model)).eval(), Reader(Path(job.shards))
    width, coder = _coder(model, job)
    values = reader.manifest.num_values
    if values != model.num_visible:
        raise InputError(f"{job.shards}: a sample has {values} values, but {job.model} expects {model.num_visible}")
    about = {
        "model": str(durable.read_json(Path(job.model) / "model.json")["digest"]),
        "shards": reader.manifest.samples_digest,
    }
    codes = _finished(Path(job.out), about | {"width": width, "bits": job.bits})
    cached = codes is not None
    if codes is None:
        model.to(device())
        done = 0

        def pieces(samples: range) -> Iterator[np.ndarray]:
            nonlocal done
            for start in range(samples.start, samples.stop, job.batch_size):
                some = np.arange(start, min(start + job.batch_size, samples.stop))
                found = coder(torch.from_numpy(reader.values(some)).to(device()))
                yield (found if job.bits else found.float()).cpu().numpy()
                done += len(some)
                tell({"progress": {"done": done, "of": len(reader), "loss": float("nan")}})

        with opened_for_writing(Path(job.out), width, job.bits) as writer:
            for name in reader.manifest.sets:
                samples = reader.manifest.numbers(name)
                writer.write(name, len(samples), pieces(samples))
            codes = writer.commit(**about, lay={"model": job.model, "shards": job.shards})
    written = [str(codes.folder / name) for name in [*codes.files, NAME]]
    of = {"num_bits" if job.bits else "num_hidden": width, "samples": codes.num_samples}
    return {"written": written, "cached": cached} | of


def _coder(model: Fitted, job: EncodeJob) -> tuple[int, Coder]:
    found = hasher(model) if job.bits or not isinstance(model, Encodes) else (model.num_hidden, model.encode)
    if found is None:
        known = "layers, stacks, dbn, vae and classifiers do"
        raise InputError(f"{show(job.model)}: a {kind_of(model)} has no codes; {known}")
    if not job.bits and not isinstance(model, Encodes):
        raise InputError(f"{show(job.model)}: a {kind_of(model)} has codes of bits alone; add --bits")
    return found


def _finished(out: Path, expected: dict[str, Any]) -> Codes | None:
    """The codes in OUT if they are whole. Errors: InputError if they are others, whole or not."""
    try:
        codes = Codes.load(out)
    except (InputError, Damaged):
        return None
    for name, value in expected.items():
        if getattr(codes, name) != value:
            kind = "bits" if codes.bits else "numbers"
            theirs = {"model": "another model", "shards": "other samples"}.get(name, kind)
            raise InputError(f"{show(out)}: holds finished codes of {theirs}; choose another folder or remove it")
    try:
        for name in codes.files:
            codes.rows(name)
    except Damaged:
        return None
    return codes
