"""Raw inputs → samples, one kind per file.

A source has up to three sets, `train`, `validation` and `test`; one that does not say otherwise is all `train`. A
sample is an array of one shape and dtype for the whole source (the value a model sees is stored / scale), or a text of
any length: (n,) uint8, its UTF-8. Labels are class numbers, −1 where missing, and stay apart from the samples from here
on. What is NOT here: dividing sets further (data/splits.py) and writing anything (data/ingest.py).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import TypeAdapter

import conf
from conf.errors import InputError, show
from data import durable

SETS = ("train", "validation", "test")  # in the order of their global sample numbers
SET_WORDS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}


@dataclass(frozen=True)
class Description:
    """What a source holds, known before anything is written.

    sets: samples per set; labeled: how many of them have a label; shape of one sample, channels first; dtype as numpy
    names it; value = stored / scale; low, high: bounds of the values (not of the stored numbers); classes: names, a
    label is a position in them; content: SHA-256 of all that ingest will read, whatever the files are called;
    features: names of the values of a vector (columns, words), if they have any. Texts have the dtype "text", the shape
    () and as low and high their shortest and longest length in bytes.
    """

    kind: str
    sets: dict[str, int]
    labeled: dict[str, int]
    shape: tuple[int, ...]
    dtype: str
    scale: float
    low: float
    high: float
    classes: tuple[str, ...]
    content: str
    features: tuple[str, ...] = ()

    @property
    def num_values(self) -> int:
        """Values per sample: the number of visible units of a model that reads it flat."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {name: list(getattr(self, name)) for name in ("shape", "classes", "features")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Description:
        """The inverse of to_json. Errors: TypeError, KeyError for anything else."""
        return cls(**value | {name: tuple(value[name]) for name in ("shape", "classes", "features")})


class RawSource(ABC):
    """Samples where they come from, in an order that depends on nothing but the content.

    A kind implements the abstract methods; the others are final. Like a manifest, a source can be divided by
    data.splits.partition.
    """

    revision: ClassVar[int] = 1  # raised with any change of the numbers a kind gives; part of `content`
    _described: Description | None = None
    _seen = ""  # the fingerprint it was described under

    def __init__(self, source: Any) -> None:
        """source: the kind's part of a recipe (conf.Source)."""
        self.source = source

    @abstractmethod
    def fingerprint(self) -> str:
        """Cheap, taken anew at every call: changes when a file is added, removed, renamed or written."""

    @abstractmethod
    def keys(self, set_name: str) -> Iterator[str]:
        """The source key of every sample of a set, in order, without reading samples again. Errors: InputError.

        A key is a path relative to the source or a row number, unique in its set. Parts of one thing (patches of a
        picture, windows of a recording) are `KEY#0`, `KEY#1` …, which data.splits keeps together.
        """

    @abstractmethod
    def labels(self, set_name: str) -> np.ndarray:
        """(n,) int64 class numbers of a set, −1 where missing; in the order of `samples`."""

    @abstractmethod
    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        """(source key, stored array) of these samples of a set, rows ascending. Errors: InputError, naming the key.

        Works without `describe` in a process that was told what to expect (`expect`), so that several can share it.
        """

    @abstractmethod
    def _describe(self) -> Description: ...

    def describe(self) -> Description:
        """Reads the source once and checks it. Errors: InputError, one line naming file and sample."""
        if self._described is None:
            self._seen = self.fingerprint()
            self._described = self._describe()
            self.require_unchanged()
        return self._described

    def expect(self, description: Description, fingerprint: str) -> None:
        """For another process that reads the same source: what `describe` found, and under which fingerprint."""
        self._described, self._seen = description, fingerprint
        self.require_unchanged()

    @property
    def seen(self) -> str:
        """The fingerprint the source was described under."""
        self.describe()
        return self._seen

    @property
    def sets(self) -> dict[str, int]:
        """Samples per set."""
        return self.describe().sets

    def numbers(self, set_name: str) -> range:
        """The global sample numbers a set will have; empty if there is no such set."""
        return number_range(self.sets, set_name)

    def require_unchanged(self) -> None:
        """Raises InputError if the source is no longer what `describe` saw (somebody is still writing it)."""
        if self.fingerprint() != self._seen:
            raise InputError("the source's files changed while they were read; run again once nobody writes them")


class Limited(RawSource):
    """At most `limit` samples of each set of another source, evenly spread over it: row i of n is i · total // n."""

    def __init__(self, inner: RawSource, limit: int) -> None:
        super().__init__(inner.source)
        self.inner, self.limit = inner, limit

    def fingerprint(self) -> str:
        return durable.digest_value([self.inner.fingerprint(), self.limit])

    def keys(self, set_name: str) -> Iterator[str]:
        wanted = iter(self._rows(set_name))
        row = next(wanted, None)
        for number, key in enumerate(self.inner.keys(set_name)):
            if number == row:
                yield key
                row = next(wanted, None)

    def labels(self, set_name: str) -> np.ndarray:
        return self.inner.labels(set_name)[self._rows(set_name)]

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        chosen = self._rows(set_name)
        return self.inner.samples(set_name, [chosen[row] for row in rows])

    def _rows(self, set_name: str) -> list[int]:
        total = self.inner.sets[set_name]
        number = min(self.limit, total)
        return [row * total // number for row in range(number)]

    def _describe(self) -> Description:
        whole = self.inner.describe()
        sets = {name: min(self.limit, number) for name, number in whole.sets.items()}
        labeled = {name: int((self.labels(name) >= 0).sum()) for name in sets}
        content = durable.digest_value([whole.content, self.limit])
        return replace(whole, sets=sets, labeled=labeled, content=content)


def open_source(source: conf.Source, limit: int | None = None) -> RawSource:
    """The source a recipe names, or so many samples of each of its sets. Reads nothing yet."""
    module, name = _KINDS[source.kind]
    kind: type[RawSource] = getattr(import_module(f"data.sources.{module}"), name)
    return kind(source) if limit is None else Limited(kind(source), limit)


def request(source: RawSource) -> dict[str, Any]:
    """What another process needs to read the same source as this one described it, in JSON types."""
    limit = source.limit if isinstance(source, Limited) else None
    whole = source.inner if isinstance(source, Limited) else source
    return {
        "source": whole.source.model_dump(mode="json"),
        "limit": limit,
        "description": whole.describe().to_json(),
        "fingerprint": whole.seen,
    }


def reopen(asked: dict[str, Any]) -> RawSource:
    """The source of a `request`. Errors: InputError if its files have changed since."""
    settings: Any = TypeAdapter(conf.Source).validate_python(asked["source"])
    whole = open_source(settings)
    whole.expect(Description.from_json(asked["description"]), asked["fingerprint"])
    return whole if asked["limit"] is None else Limited(whole, asked["limit"])


_KINDS = {  # imported only when asked for: a kind may need a large library
    "digits": ("digits", "Digits"),
    "idx": ("idx", "Idx"),
    "arrays": ("arrays", "Arrays"),
    "images": ("images", "Images"),
    "table": ("tables", "Table"),
    "text": ("texts", "Texts"),
    "counts": ("counts", "Counts"),
    "webdataset": ("foreign", "Foreign"),
    "audio": ("audio", "Audio"),
    "patches": ("patches", "Patches"),
}


def set_in(name: str) -> str:
    """The set that one of a name's words says; "" for a name that says none, or several."""
    words = re.split(r"[-_.\s]+", name.lower())
    named = {SET_WORDS[word] for word in words if word in SET_WORDS}
    return named.pop() if len(named) == 1 else ""


def number_range(sets: dict[str, int], set_name: str) -> range:
    """The global sample numbers of one of these sets, which follow one another in the order of SETS."""
    first = sum(sets.get(name, 0) for name in SETS[: SETS.index(set_name)])
    return range(first, first + sets.get(set_name, 0))


def finite(values: np.ndarray) -> np.ndarray:
    """(n,) bool: which samples hold only numbers that are finite in 32 bits, as models see them."""
    if values.dtype.kind != "f":
        return np.ones(len(values), bool)
    with np.errstate(over="ignore"):
        fine: np.ndarray = np.isfinite(values.astype(np.float32, copy=False))
    return np.all(fine.reshape(len(fine), -1), axis=1)


def fingerprint_files(root: Path, files: list[Path], settings: Any = None) -> str:
    """Digest of path, size, mtime_ns and inode of each file, and of the settings that decide what is read from them."""
    rows = []
    for file in sorted(files):
        try:
            status = file.stat()
        except OSError as error:
            raise unreadable(file, error) from None
        rows.append([str(file), status.st_size, status.st_mtime_ns, status.st_ino])
    return durable.digest_value([str(root.absolute()), settings, rows])


def unreadable(path: Path, error: OSError) -> InputError:
    """The InputError for a raw file or folder that the operating system will not give."""
    return InputError(f"{show(path)}: {(error.strerror or str(error)).lower()}; expected a readable file or folder")
