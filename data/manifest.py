"""The manifest: what a folder of shards holds, with the SHA-256 of every file; written last, so that it means "whole".

    train-00000.tar             samples, one .npy or .txt member each, named by their global number (data/tar.py)
    train-00000.index.npy       offset, length, CRC-32 and content digest of each
    train-00000.keys.jsonl      their source keys, one JSON string a line; absent where keys are row numbers
    train-labels.npy            int64 class number of every sample of the set, −1 where missing
    train-mean.npy              float64 mean of every value over the set; texts have none
    features.json               names of the values of vectors (columns, words), where they have any
    duplicates.npy              int64 pairs: a sample's number, that of the first one of the same content; absent: none
    ingest.json                 what is being written (source's description, shard size); written first
    manifest.json               all of the above by size and SHA-256, counts, schema, statistics; its own digest

What is NOT here: writing shards (data/ingest.py), hashing them (data/verification.py), reading them (data/shards.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import Damaged, InputError, show
from data import durable
from data.sources import SETS, number_range
from data.tar import INDEX, TEXT, Layout, from_npy, layout_of

FORMAT = 2  # of everything in the folder; raised when an older strata could misread it
NAME = "manifest.json"
PLAN = "ingest.json"
FEATURES = "features.json"
DUPLICATES = "duplicates.npy"
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
REPAIR = "run ingest into this folder again from the same source to rewrite it, or restore it from a copy"


@dataclass(frozen=True)
class Shard:
    """One tar: `count` samples of a set; `first` is the global number of the first one, `row` its place in the set."""

    set_name: str
    number: int
    first: int
    row: int
    count: int

    @property
    def stem(self) -> str:
        return f"{self.set_name}-{self.number:05d}"

    @property
    def name(self) -> str:
        return f"{self.stem}.tar"

    @property
    def index_name(self) -> str:
        return f"{self.stem}.index.npy"

    @property
    def keys_name(self) -> str:
        return f"{self.stem}.keys.jsonl"

    @property
    def files(self) -> tuple[str, str, str]:
        """What a shard consists of; the list of keys may be absent."""
        return self.name, self.index_name, self.keys_name


@dataclass(frozen=True)
class SetSummary:
    """A set's size and streaming statistics; mean and std over all its values (not stored numbers), std is biased.

    Of texts, the values are their lengths in bytes.
    """

    samples: int
    labeled: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Manifest:
    """A folder of shards. Global sample numbers run over the sets in the order train, validation, test.

    content: the raw content's digest; samples_digest: the samples, their order and keys, whatever their labels and
    shard size; labels_digest: the labels; files: name → [bytes, SHA-256]; digest: SHA-256 of all this as canonical
    JSON.
    """

    folder: Path
    source: str
    content: str
    samples_digest: str
    labels_digest: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    classes: tuple[str, ...]
    shard_size: int
    sets: dict[str, SetSummary]
    num_duplicates: int  # samples whose content an earlier one has
    files: dict[str, tuple[int, str]] = field(repr=False)

    # --- what it says ---

    @property
    def num_samples(self) -> int:
        return sum(summary.samples for summary in self.sets.values())

    @property
    def num_values(self) -> int:
        """Values per sample: the number of visible units of a model that reads it flat."""
        return 0 if self.holds_texts else math.prod(self.shape)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(height, width) or (channels, height, width) where samples are pictures."""
        return self.shape if len(self.shape) in (2, 3) else None

    @property
    def low(self) -> float:
        return min(summary.low for summary in self.sets.values())

    @property
    def high(self) -> float:
        return max(summary.high for summary in self.sets.values())

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.shape, self.dtype)

    @property
    def holds_texts(self) -> bool:
        return self.dtype == TEXT

    @cached_property
    def shards(self) -> list[Shard]:
        return list(plan_shards({name: summary.samples for name, summary in self.sets.items()}, self.shard_size))

    @cached_property
    def digest(self) -> str:
        return durable.digest_value(self._content())

    def numbers(self, set_name: str) -> range:
        """The global sample numbers of one of the source's own sets; empty if there is no such set."""
        return number_range({name: summary.samples for name, summary in self.sets.items()}, set_name)

    # --- files beside the shards; every one is checked against its digest as it is read ---

    def read(self, name: str) -> bytes:
        """A listed file's content. Errors: Damaged, if it is missing or differs from its digest."""
        if name not in self.files:
            raise Damaged(f"{show(self.folder / NAME)}: does not list {show(name)}; {REPAIR}")
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Damaged(f"{show(path)}: {(error.strerror or str(error)).lower()}; {REPAIR}") from None
        if durable.digest_bytes(content) != self.files[name][1]:
            raise Damaged(f"{show(path)}: differs from the digest in {NAME} ({len(content)} bytes found); {REPAIR}")
        return content

    def labels(self, set_name: str) -> np.ndarray:
        """(n,) int64 class numbers of a set, −1 where missing; empty if there is no such set."""
        if set_name not in self.sets:
            return np.zeros(0, np.int64)
        return np.frombuffer(from_npy(self.read(f"{set_name}-labels.npy")), "<i8").astype(np.int64)

    def feature_mean(self, set_name: str) -> np.ndarray:
        """float64 mean of every value over a set, in a sample's shape."""
        return np.frombuffer(from_npy(self.read(f"{set_name}-mean.npy")), "<f8").reshape(self.shape)

    def features(self) -> tuple[str, ...]:
        """Names of the values of a vector; empty if they have none."""
        return tuple(json.loads(self.read(FEATURES))) if FEATURES in self.files else ()

    def duplicates(self) -> np.ndarray:
        """(num_duplicates, 2) int64: a sample's number, and that of the first one with the same content."""
        if DUPLICATES not in self.files:
            return np.zeros((0, 2), np.int64)
        return np.frombuffer(from_npy(self.read(DUPLICATES)), "<i8").reshape(-1, 2).astype(np.int64)

    def index(self, shard: Shard) -> np.ndarray:
        """(n,) rows of tar.INDEX."""
        return np.frombuffer(from_npy(self.read(shard.index_name)), INDEX)

    def keys(self, set_name: str) -> Iterator[str]:
        """The source key of every sample of a set, in order."""
        for shard in self.shards:
            if shard.set_name == set_name:
                yield from self.keys_of(shard)

    def keys_of(self, shard: Shard) -> list[str]:
        """The source key of every sample of a shard, in order."""
        if shard.keys_name not in self.files:
            return list(map(str, range(shard.row, shard.row + shard.count)))
        keys: list[str] = json.loads(b"[" + b",".join(self.read(shard.keys_name).splitlines()) + b"]")
        return keys

    # --- the file ---

    def _content(self) -> dict[str, Any]:
        value = {key: item for key, item in asdict(self).items() if key != "folder"}
        value["files"] = {name: list(entry) for name, entry in self.files.items()}
        return value | {"format": FORMAT, "shape": list(self.shape), "classes": list(self.classes)}

    def write(self) -> None:
        """Commits the folder. Errors: OSError."""
        durable.write_json(self.folder / NAME, self._content() | {"digest": self.digest})

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Errors: InputError if there are no finished shards; Damaged if the manifest is not what strata wrote."""
        path = Path(folder) / NAME
        try:
            written = path.read_bytes()
            content = json.loads(written)
        except FileNotFoundError:
            found = "an unfinished ingest; run it again to go on" if (path.parent / PLAN).exists() else f"no {NAME}"
            raise InputError(
                f"{show(folder)}: expected a folder of finished shards, found {found} (see strata ingest --help)"
            ) from None
        except OSError as error:
            raise InputError(f"{show(path)}: {(error.strerror or str(error)).lower()}") from None
        except ValueError:
            raise Damaged(f"{show(path)}: is no JSON any more; {REPAIR}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            version = content.get("format") if isinstance(content, dict) else None
            raise Damaged(f"{show(path)}: expected format {FORMAT}, found {show(version)}; ingest into another folder")
        try:  # every byte counts: 1e-05 and 1E-05 are one flipped bit apart and equal values
            genuine = written == durable.readable(content) and content.pop("digest", None) == durable.digest_value(
                content
            )
        except ValueError:  # NaN or half a surrogate pair, which we never write
            genuine = False
        if not genuine:
            raise Damaged(f"{show(path)}: does not match its own digest; {REPAIR}")
        try:
            return cls._parse(Path(folder), content)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{show(path)}: right digest, but wrong fields ({show(error)}); {REPAIR}") from None

    @classmethod
    def _parse(cls, folder: Path, content: dict[str, Any]) -> Manifest:
        del content["format"]
        content["shape"], content["classes"] = tuple(content["shape"]), tuple(content["classes"])
        content["sets"] = {name: SetSummary(**content["sets"][name]) for name in SETS if name in content["sets"]}
        content["files"] = {name: (int(size), str(sha)) for name, (size, sha) in content["files"].items()}
        manifest = cls(folder=folder, **content)
        unsafe = [name for name in manifest.files if not SAFE_NAME.fullmatch(name)]
        missing = [shard.name for shard in manifest.shards if not {shard.name, shard.index_name} <= set(manifest.files)]
        if unsafe or missing:
            raise ValueError(f"file name {(unsafe + missing)[0]!r}")
        return manifest


def plan_shards(sets: dict[str, int], shard_size: int) -> Iterator[Shard]:
    """The shards of sets of these sizes, data sets one after another, every shard full but a set's last."""
    for set_name in SETS:
        numbers = number_range(sets, set_name)
        for number, row in enumerate(range(0, len(numbers), shard_size)):
            yield Shard(set_name, number, numbers.start + row, row, min(shard_size, len(numbers) - row))
