"""Damaged shards that a recipe allows to be left out, as long as they hold few enough of the samples.

What is left out is decided before the first step and becomes part of a stage's key: a result without these samples is
another result. What is NOT here: finding damage (data/verification.py), leaving shards out (data/splits.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conf.errors import Damaged
from data.manifest import Manifest
from data.verification import damaged, refusal


@dataclass(frozen=True)
class Loss:
    """Shards that nobody will read, by name and in order, and the number of samples in them."""

    shards: tuple[str, ...] = ()
    samples: int = 0
    of: int = 0

    def __str__(self) -> str:
        names = ", ".join(self.shards[:8]) + (" …" if len(self.shards) > 8 else "")
        number = f"{len(self.shards)} damaged shard" + "s" * (len(self.shards) != 1)
        return f"{number} left out ({names}): {self.samples:,} of {self.of:,} samples lost"


def lost(folder: Path, share: float, remembered: Path | None = None) -> Loss:
    """Checks the folder and gives what has to be left out, at most `share` of all samples.

    A shard is lost with its tar, its index or its list of keys. Errors: InputError (no finished shards), Damaged (more
    is lost, or a file that belongs to no shard).
    """
    manifest = Manifest.load(folder)
    bad = damaged(manifest, remembered)
    shards = [shard for shard in manifest.shards if not bad.keys().isdisjoint(shard.files)]
    loss = Loss(tuple(shard.name for shard in shards), sum(shard.count for shard in shards), manifest.num_samples)
    if bad.keys() - {name for shard in shards for name in shard.files}:
        raise Damaged(refusal(manifest, bad))
    if loss.samples > share * manifest.num_samples:
        budget = f"{loss.samples:,} of {loss.of:,} samples are in them, more than the {share:g} of data.quarantine"
        raise Damaged(f"{refusal(manifest, bad)}; {budget}")
    return loss


def without_keys(manifest: Manifest) -> frozenset[str]:
    """The shards whose lists of keys are damaged, which nobody can divide into parts; cheap, tars are not looked at."""
    found = set()
    for shard in manifest.shards:
        try:
            manifest.keys_of(shard)
        except Damaged:
            found.add(shard.name)
    return frozenset(found)
