"""Other people's WebDataset shards: pictures, .npy arrays of one shape, or texts, with or without a label beside each.

A sample is the adjacent members of one key, `KEY.EXTENSION`, the key being everything up to the first dot of the name;
its own key here is `SHARD/KEY`. What is decoded is a list: pictures, .npy, .txt; whatever could be a pickle is refused
by name wherever it stands. Nothing is run, unpacked by name, or guessed: two samples of one key, members between those
of another sample, a sample without the field that all have, a damaged or cut header are refused. webdataset itself is
not used: it takes a damaged header for the end of a shard. What is NOT here: the tar's bytes (data/archives.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

import conf
from conf.errors import InputError, show
from data import durable
from data.archives import Tar
from data.files import Entry, Tree, is_archive, open_tree, stamp
from data.remote import is_remote, local_path
from data.sources import SET_WORDS, SETS, Description, RawSource, set_in, unreadable
from data.sources.classes import Classes
from data.sources.fields import KINDS, Decoder, open_decoder

SHARDS = (".tar", ".tar.gz", ".tgz")
PLAIN = ("json", "cls", "cls2", "class", "count", "index", "inx", "id")  # beside samples; read only as a label
PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib", "dill", "cpkl", "pyc")
PACKED = ("gz", "bz2", "xz", "zst", "zip")
MAX_LABEL = 1024  # bytes
SYSTEM = ("._", ".DS_Store")  # what macOS puts into a tar


@dataclass(frozen=True)
class Shard:
    """path: relative to the source, empty if the source is one shard; stamp as the listing of its folder says."""

    set_name: str
    path: str
    address: str
    stamp: str


@dataclass(frozen=True)
class Index:
    """Where a shard's samples lie: offset and length of the field, and of the label (length −1: none)."""

    places: np.ndarray  # (n, 4) int64
    joined: bytes  # names of the field's members, one a line

    def __len__(self) -> int:
        return len(self.places)

    @property
    def names(self) -> list[str]:
        return self.joined.decode().split("\n") if len(self) else []


class _Tar(Tar):
    """A member whose name begins with a dot is a sample without a key, not a hidden file."""

    def passes_over(self, path: str) -> bool:
        return path.rpartition("/")[2].startswith(SYSTEM)


class Foreign(RawSource):
    """Samples as data/sources/fields.py makes them: uint8 pictures, arrays as they are, texts or word counts."""

    source: conf.WebDatasetSource

    def __init__(self, source: conf.WebDatasetSource) -> None:
        super().__init__(source)
        self._indices: dict[Shard, Index] = {}
        self._open: tuple[Shard, Tar] | None = None

    def fingerprint(self) -> str:
        seen = self._tree.fingerprint(lambda entry: entry.path.lower().endswith(SHARDS))
        return durable.digest_value([seen, self.source.model_dump()])

    def keys(self, set_name: str) -> Iterator[str]:
        for shard in self._shards[set_name]:
            for name in self._index(shard).names:
                yield _key(shard, name)

    def labels(self, set_name: str) -> np.ndarray:
        return self._labels[0][set_name]

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        description = self.describe()
        for shard, name, content in self._contents(set_name, np.asarray(rows, np.int64)):
            yield _key(shard, name), self._decoder.value(content, self._where(shard, name), description)

    def _describe(self) -> Description:
        digest, decoder = hashlib.sha256(), self._decoder
        sets = {name: sum(len(self._index(shard)) for shard in shards) for name, shards in self._shards.items()}
        sets = {name: count for name, count in sets.items() if count}
        for set_name, count in sets.items():
            for shard, name, content in self._contents(set_name, np.arange(count)):
                decoder.add(content, self._where(shard, name), counted=set_name == "train")
                digest.update(durable.canonical([set_name, _key(shard, name), durable.digest_bytes(content)]))
        if not sets:
            raise InputError(f"{self._tree.name}: no samples in its shards")
        (labels, classes), schema = self._labels, decoder.schema(self._tree.name)
        about = [
            digest.hexdigest(),
            {name: durable.digest_bytes(labels[name].tobytes()) for name in sets},
            list(classes),
        ]
        settings = self.source.model_dump(exclude={"path"})
        return Description(
            kind="webdataset",
            sets=sets,
            labeled={name: int((labels[name] >= 0).sum()) for name in sets},
            classes=classes,
            content=durable.digest_value([settings, *about, self.revision]),
            **schema,
        )

    # --- shards ---

    @cached_property
    def _tree(self) -> Tree:
        return _Tar(self.source.path) if is_archive(self.source.path) else open_tree(self.source.path)

    @cached_property
    def _shards(self) -> dict[str, list[Shard]]:
        """The shards of every set, by path. Errors: InputError, if there are none, or some of no set beside others."""
        if isinstance(self._tree, _Tar):
            return {"train": [Shard("train", "", self.source.path, "")]}
        entries = [entry for entry in self._tree.entries() if entry.path.lower().endswith(SHARDS)]
        if not entries:
            raise InputError(f"{self._tree.name}: no shards in it; expected {', '.join(SHARDS)} files")
        named = {entry.path: _set_of(entry.path) for entry in entries}
        odd = next((path for path, name in named.items() if not name), None)
        if odd is not None and any(named.values()):
            raise InputError(
                f"{self._tree.name}: some shards are called like sets (train, test …), but {show(odd)} is not; "
                "rename it or move it out"
            )
        result: dict[str, list[Shard]] = {}
        for entry in entries:
            name = named[entry.path] or "train"
            address = f"{self.source.path.rstrip('/')}/{entry.path}"
            result.setdefault(name, []).append(Shard(name, entry.path, address, f"{entry.size}:{entry.stamp}"))
        return {name: result[name] for name in SETS if name in result}

    def _contents(self, set_name: str, rows: np.ndarray) -> Iterator[tuple[Shard, str, bytes]]:
        """(shard, member's name, its bytes) of these ascending samples of a set."""
        first = 0
        for shard in self._shards[set_name]:
            if not len(rows) or rows[-1] < first:
                return
            index = self._index(shard)
            here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(index))] - first
            if len(here):
                names, limit = index.names, self._decoder.limit
                for row in here.tolist():
                    offset, length = index.places[row, :2].tolist()
                    yield shard, names[row], self._read(shard, names[row], offset, length, limit)
            first += len(index)

    def _read(self, shard: Shard, name: str, offset: int, length: int, limit: int) -> bytes:
        return self._archive(shard).read(Entry(name, length, str(offset)), limit)

    def _archive(self, shard: Shard) -> Tar:
        """One at a time is open. Errors: InputError if it is not the one that was listed."""
        if self._open is None or self._open[0] != shard:
            self._open = shard, _opened(shard)
        return self._open[1]

    def _where(self, shard: Shard, name: str) -> str:
        return self._archive(shard).where(name)

    def _index(self, shard: Shard) -> Index:
        if shard not in self._indices:
            self._indices[shard] = _walk(_opened(shard), self.source)
        return self._indices[shard]

    # --- what samples are ---

    @cached_property
    def _decoder(self) -> Decoder:
        """By the field of the first sample; the others must be of its kind, which shows when they are decoded."""
        for shard in (shard for shards in self._shards.values() for shard in shards):
            if len(self._index(shard)):
                first = self._index(shard).names[0]
                return open_decoder(_cut(first)[1], self.source)
        raise InputError(f"{self._tree.name}: no samples in its shards")

    @cached_property
    def _labels(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        classes, sizes = Classes(self._tree.name, minus_one_is_missing=True), []
        for shards in self._shards.values():
            for shard in shards:
                values: dict[str, int] = {}
                texts = (self._label(shard, *place) for place in self._index(shard).places[:, 2:].tolist())
                places = [values.setdefault(text, len(values)) for text in texts]
                classes.add(list(values), np.array(places, np.int64))
            sizes.append(sum(len(self._index(shard)) for shard in shards))
        numbers, names = classes.finish()
        return dict(zip(self._shards, np.split(numbers, np.cumsum(sizes)[:-1]), strict=True)), names

    def _label(self, shard: Shard, offset: int, length: int) -> str:
        if length < 0:
            return ""
        content = self._read(shard, f"a label at byte {offset}", offset, length, MAX_LABEL)
        try:
            return content.decode().strip()
        except UnicodeDecodeError:
            raise InputError(
                f"{self._where(shard, f'a label at byte {offset}')}: not UTF-8; expected a label"
            ) from None


def _opened(shard: Shard) -> _Tar:
    tar = _Tar(shard.address)
    if shard.stamp and not is_remote(shard.address):
        try:
            status = os.stat(local_path(shard.address))
        except OSError as error:
            raise unreadable(local_path(shard.address), error) from None
        if f"{status.st_size}:{stamp(status)}" != shard.stamp:
            raise InputError(f"{tar.name}: changed while it was read; run again once nobody writes it")
    return tar


def _set_of(path: str) -> str:
    """The set that a shard's top folder or the words of its name say, if they say one."""
    top, _, _ = path.rpartition("/")[0].partition("/")
    return SET_WORDS.get(top.lower()) or set_in(path.rpartition("/")[2])


def _key(shard: Shard, name: str) -> str:
    key = _cut(name)[0]
    return f"{shard.path}/{key}" if shard.path else key


def _cut(name: str) -> tuple[str, str]:
    """Key and extension of a member."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _walk(tree: Tar, source: conf.WebDatasetSource) -> Index:
    """A shard's samples in the order of its members. Errors: InputError, one line naming the members."""
    rows: list[list[int]] = []
    names: list[str] = []
    begun: dict[str, int] = {}  # key → number of its first member
    extensions: dict[str, str] = {}  # of the sample at hand: extension → member
    current = ""
    for number, entry in enumerate(sorted(tree.entries(), key=lambda entry: int(entry.stamp))):
        key, extension = _cut(entry.path)
        role = _role(tree, entry, extension, source)
        if key != current or not begun:
            if key in begun:
                raise InputError(
                    f"{tree.name}: the sample {show(repr(key))} begins at member {begun[key]} and goes on at member "
                    f"{number}, with others between them; expected a sample's members side by side, and no key twice"
                )
            _require_field(tree, current, extensions, len(names), len(begun), source)
            begun[key], current, extensions = number, key, {}
            rows.append([0, 0, 0, -1])
        if extension in extensions:
            raise InputError(f"{tree.where(entry)}: another {extensions[extension]} of the same sample; expected one")
        extensions[extension] = show(entry.path)
        if role == "field":
            if len(names) == len(begun):
                raise InputError(
                    f"{tree.where(entry)}: more than one member of the sample {show(repr(key))} could be what is read "
                    f"({show(', '.join(extensions))}); say which with source.field"
                )
            names.append(entry.path)
            rows[-1][:2] = int(entry.stamp), entry.size
        elif role == "label":
            rows[-1][2:] = int(entry.stamp), entry.size
    _require_field(tree, current, extensions, len(names), len(begun), source)
    return Index(np.array(rows, np.int64).reshape(-1, 4), "\n".join(names).encode())


def _require_field(
    tree: Tar, key: str, extensions: dict[str, str], found: int, samples: int, source: conf.WebDatasetSource
) -> None:
    if found != samples:
        raise InputError(
            f"{tree.name}: the sample {show(repr(key))} has {show(', '.join(extensions))}, but "
            f"{f'no {source.field}' if source.field else 'no picture, array or text'}, which every sample needs"
        )


def _role(tree: Tar, entry: Entry, extension: str, source: conf.WebDatasetSource) -> str:
    """`field`, `label` or nothing. Errors: InputError for a member that must not be there."""
    parts = extension.split(".")
    if parts[-1] in PICKLES or (parts[-1] in PACKED and parts[-2:-1] and parts[-2] in PICKLES):
        raise InputError(
            f"{tree.where(entry)}: could be a pickle, which runs what it likes when read; take it out of the shard"
        )
    if _cut(entry.path)[0].rpartition("/")[2] == "" or not extension:
        raise InputError(f"{tree.where(entry)}: expected a member called KEY.EXTENSION, so that it belongs to a sample")
    if source.field is not None and extension == source.field.lower():
        if parts[-1] not in KINDS:
            where = tree.where(entry)
            raise InputError(f"{where}: source.field names .{show(extension)}; expected one of {', '.join(KINDS)}")
        return "field"
    if extension == source.label.lower():
        return "label"
    if source.field is None and parts[-1] in KINDS:
        return "field"
    if source.field is None and parts[-1] not in PLAIN:
        raise InputError(
            f"{tree.where(entry)}: neither one of {', '.join(KINDS)} nor a label; say with source.field what to read"
        )
    return ""
