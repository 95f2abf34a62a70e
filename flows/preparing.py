"""Everything that is known before a run writes anything: the recipe checked against its data and the models.

The answer is kept in the output folder under (recipe, code, what the sources' fingerprints say), so that the same
command needs no torch to know its keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import data.sources
from conf import Data, Recipe, Split
from conf.errors import InputError
from conf.protocol import Description, Plan, PlanJob
from data import durable
from data.manifest import FORMAT, Manifest
from data.quarantine import without_keys
from data.remote import CACHE, cache_folder, is_remote, local_path
from data.shard_cache import folder_of, open_remote
from data.splits import partition
from flows import stage
from flows.places import refuse_unwritable, require_readable


@dataclass(frozen=True)
class Prepared:
    """A recipe that can run: checked against its data and the models, nothing written yet."""

    recipe: Recipe
    plan: Plan
    ingests: Mapping[str, Mapping[str, Any]]  # per data set: what identifies its shards
    descriptions: Mapping[str, Description]
    digest: str
    remembered: bool  # the plan was found in the output folder

    @property
    def run(self) -> str:
        """The run's name: the same recipe on the same data is the same run."""
        asked = [self.recipe.model_dump(mode="json"), self.ingests]
        return f"{self.recipe.name}-{durable.digest_value(asked)[:8]}"


def prepare(recipe: Recipe, out: Path | None = None) -> Prepared:
    """Checks everything that can be wrong before anything is written, or finds the answer given before in `out`.

    Errors: InputError (recipe, raw data); OutputError (out); Damaged (shards a recipe names).
    """
    if out is not None:
        refuse_unwritable(out)
        os.environ[CACHE] = str(_cache(out))
    origins = recipe.origins
    for origin in origins.values():
        if origin.source is not None:
            require_readable(origin.source, out)
    fingerprints = {name: _fingerprint(origin) for name, origin in origins.items()}
    digest = durable.digest_value([recipe.model_dump(mode="json"), fingerprints, code_digest()])
    kept = out / "plans" / f"{digest}.json" if out is not None else Path(os.devnull)
    with suppress(OSError, ValueError, KeyError, TypeError):  # none kept, or not readable: asked anew
        known = durable.read_json(kept)
        descriptions = {name: Description.model_validate(value) for name, value in known["descriptions"].items()}
        return Prepared(recipe, Plan.model_validate(known["plan"]), known["ingests"], descriptions, digest, True)
    found = {name: _describe(origin) for name, origin in origins.items()}
    descriptions = {name: description for name, (_, description) in found.items()}
    for name, description in descriptions.items():
        if not description.shape:
            raise InputError(
                f"{name}: holds texts, which no model reads as they are; set `vocabulary` in its source for word counts"
            )
    plan = stage.ask_plan(PlanJob(recipe=recipe, descriptions=descriptions))
    return Prepared(recipe, plan, {name: key for name, (key, _) in found.items()}, descriptions, digest, False)


def _fingerprint(origin: Data) -> str:
    if origin.source is not None:
        return data.sources.open_source(origin.source, origin.limit).fingerprint()
    return _shards(origin).digest


def _shards(origin: Data) -> Manifest:
    """Of finished shards; remote ones have a folder in the cache from here on."""
    address = str(origin.shards)
    if not is_remote(address):
        return Manifest.load(local_path(address))
    return Manifest.load(open_remote(address, cache_folder(), int(origin.cache_gib * 2**30)))


def shards_folder(origin: Data, digest: str, out: Path) -> Path:
    """Where the finished shards that a data set names lie here; digest: of their manifest."""
    address = str(origin.shards)
    return folder_of(address, digest, _cache(out)) if is_remote(address) else local_path(address).absolute()


def _cache(out: Path) -> Path:
    """What is fetched once and kept: remote shards and raw files."""
    return out.absolute() / "cache"


def _describe(origin: Data) -> tuple[dict[str, Any], Description]:
    """What names the shards of a data set, and what `plan` must know of it."""
    if origin.source is None:
        manifest = _shards(origin)
        left_out = without_keys(manifest) if origin.quarantine else frozenset()
        return {"manifest": manifest.digest}, _after_split(manifest, manifest, origin.split, left_out)
    source = data.sources.open_source(origin.source, origin.limit)
    described = source.describe()
    key = {"content": described.content, "shard_size": origin.shard_size, "format": FORMAT}
    return key, _after_split(described, source, origin.split)


def _after_split(
    found: Any, shards: Manifest | data.sources.RawSource, split: Split, left_out: frozenset[str] = frozenset()
) -> Description:
    """found: the manifest or the source's description."""
    parts = partition(shards, split, left_out)

    def labeled(part: str) -> int:
        own = part if part in shards.sets else "train"
        return int((shards.labels(own)[parts[part] - shards.numbers(own).start] >= 0).sum()) if len(parts[part]) else 0

    return Description(
        shape=list(found.shape),
        low=found.low,
        high=found.high,
        sizes={name: len(numbers) for name, numbers in parts.items()},
        labeled=labeled("train"),
        labeled_test=labeled("test"),
        num_classes=len(found.classes),
    )


@cache
def code_digest() -> str:
    """Digest of our own source files: a plan made by other code is made anew."""
    root = Path(__file__).parent.parent
    files = sorted(
        path for name in ("conf", "data", "flows", "lightning_modules") for path in (root / name).rglob("*.py")
    )
    return durable.digest_value([[str(path.relative_to(root)), durable.digest_file(path)] for path in files])
