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
from data.sources.whole import DTYPES
from data.tar import INDEX, TEXT, Layout, layout_of, npy_header

FORMAT = 2  # of everything in the folder; raised when an older strata could misread it
NAME = "manifest.json"
PLAN = "ingest.json"
FEATURES = "features.json"
DUPLICATES = "duplicates.npy"
MAX_BYTES = 1 << 46  # of a folder; all of it is given addresses at once, and a process has 1 << 47
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
            content = durable.read_bytes(path)
        except OSError as error:
            raise Damaged(f"{show(path)}: {(error.strerror or str(error)).lower()}; {REPAIR}") from None
        if durable.digest_bytes(content) != self.files[name][1]:
            raise Damaged(f"{show(path)}: differs from the digest in {NAME} ({len(content)} bytes found); {REPAIR}")
        return content

    def labels(self, set_name: str) -> np.ndarray:
        """(n,) int64 class numbers of a set, −1 where missing; empty if there is no such set."""
        if set_name not in self.sets:
            return np.zeros(0, np.int64)
        name = f"{set_name}-labels.npy"
        labels = self._array(name, "<i8", (self.sets[set_name].samples,)).astype(np.int64)
        if labels.min(initial=-1) < -1 or labels.max(initial=-1) >= len(self.classes):
            raise self._wrong(name, f"holds other labels than the numbers of its {len(self.classes)} classes and −1")
        return labels

    def feature_mean(self, set_name: str) -> np.ndarray:
        """float64 mean of every value over a set, in a sample's shape."""
        return self._array(f"{set_name}-mean.npy", "<f8", self.shape)

    def features(self) -> tuple[str, ...]:
        """Names of the values of a vector; empty if they have none."""
        return tuple(self._strings(FEATURES, self.read(FEATURES), self.num_values)) if FEATURES in self.files else ()

    def duplicates(self) -> np.ndarray:
        """(num_duplicates, 2) int64: a sample's number, and that of the first one with the same content."""
        if DUPLICATES not in self.files:
            return np.zeros((0, 2), np.int64)
        pairs = self._array(DUPLICATES, "<i8", (self.num_duplicates, 2)).astype(np.int64)
        if pairs.min(initial=0) < 0 or pairs.max(initial=0) >= self.num_samples:
            raise self._wrong(DUPLICATES, f"holds other numbers than those of {self.num_samples} samples")
        return pairs

    def index(self, shard: Shard) -> np.ndarray:
        """(n,) rows of tar.INDEX."""
        return self._array(shard.index_name, INDEX, (shard.count,))

    def keys(self, set_name: str) -> Iterator[str]:
        """The source key of every sample of a set, in order."""
        for shard in self.shards:
            if shard.set_name == set_name:
                yield from self.keys_of(shard)

    def keys_of(self, shard: Shard) -> list[str]:
        """The source key of every sample of a shard, in order."""
        if shard.keys_name not in self.files:
            return list(map(str, range(shard.row, shard.row + shard.count)))
        lines = b"[" + b",".join(self.read(shard.keys_name).splitlines()) + b"]"
        return self._strings(shard.keys_name, lines, shard.count)

    def _array(self, name: str, dtype: str | np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """A listed .npy file. Errors: Damaged if it is any other than one of this dtype and shape."""
        content, header = self.read(name), npy_header(shape, np.dtype(dtype))
        size = len(header) + math.prod(shape) * np.dtype(dtype).itemsize
        if not content.startswith(header) or len(content) != size:
            raise self._wrong(name, f"is no array of {'×'.join(map(str, shape))} values as they are stored there")
        return np.frombuffer(content, dtype, offset=len(header)).reshape(shape)

    def _strings(self, name: str, content: bytes, count: int) -> list[str]:
        try:
            values = durable.parse_json(content)
        except ValueError:
            raise self._wrong(name, "is no JSON") from None
        if not isinstance(values, list) or len(values) != count or not all(isinstance(each, str) for each in values):
            raise self._wrong(name, f"is no list of {count} texts")
        return values

    def _wrong(self, name: str, what: str) -> Damaged:
        return Damaged(f"{show(self.folder / name)}: right digest, but {what}; {REPAIR}")

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
            written = durable.read_bytes(path)
            content = durable.parse_json(written)
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
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{show(path)}: right digest, but wrong fields ({show(error)}); {REPAIR}") from None

    @classmethod
    def _parse(cls, folder: Path, content: dict[str, Any]) -> Manifest:
        del content["format"]
        content["shape"], content["classes"] = tuple(content["shape"]), tuple(content["classes"])
        _require_plausible(content)
        content["sets"] = {name: SetSummary(**content["sets"][name]) for name in SETS if name in content["sets"]}
        content["files"] = {name: (int(size), str(sha)) for name, (size, sha) in content["files"].items()}
        manifest = cls(folder=folder, **content)
        unsafe = [name for name in manifest.files if not SAFE_NAME.fullmatch(name)]
        missing = [shard.name for shard in manifest.shards if not {shard.name, shard.index_name} <= set(manifest.files)]
        if unsafe or missing:
            raise ValueError(f"file name {(unsafe + missing)[0]!r}")
        for shard in manifest.shards:
            header = len(npy_header((shard.count,), INDEX))
            if manifest.files[shard.index_name][0] != header + shard.count * INDEX.itemsize:
                raise ValueError(f"size of {shard.index_name}")
        return manifest


def _require_plausible(content: dict[str, Any]) -> None:
    """Raises ValueError for fields that no ingest writes and that nobody could read without harm.

    A digest only says that a manifest was not damaged, not that strata wrote it.
    """
    summaries, sizes = list(content["sets"].values()), [size for size, _ in content["files"].values()]
    counts = [each[name] for each in summaries for name in ("samples", "labeled")]
    numbers = [each[name] for each in summaries for name in ("mean", "std", "low", "high")]
    if not all(type(size) is int and 0 <= size <= MAX_BYTES for size in sizes) or sum(sizes) > MAX_BYTES:
        raise ValueError("sizes of files")
    if not all(type(each) is int and each >= 0 for each in [*counts, content["num_duplicates"]]):
        raise ValueError("numbers of samples")
    if not all(math.isfinite(each) for each in numbers) or not 0 < content["scale"] < math.inf:
        raise ValueError("statistics or scale")
    if type(content["shard_size"]) is not int or content["shard_size"] < 1:
        raise ValueError("shard_size")
    if sum(each["samples"] for each in summaries) > len(sizes) * content["shard_size"]:
        raise ValueError("more samples than its shards can hold")
    if content["dtype"] not in (TEXT, *DTYPES) or not all(type(n) is int and n > 0 for n in content["shape"]):
        raise ValueError("dtype or shape")
    if not all(isinstance(name, str) for name in content["classes"]):
        raise ValueError("names of classes")


def plan_shards(sets: dict[str, int], shard_size: int) -> Iterator[Shard]:
    """The shards of sets of these sizes, data sets one after another, every shard full but a set's last."""
    for set_name in SETS:
        numbers = number_range(sets, set_name)
        for number, row in enumerate(range(0, len(numbers), shard_size)):
            yield Shard(set_name, number, numbers.start + row, row, min(shard_size, len(numbers) - row))
