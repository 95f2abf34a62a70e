"""Word counts: a line is a document, `[leading] id:count id:count …`, as libsvm and LDA-C write them → dense vectors.

A folder holds one file a set, whose name has the set among its words (`train.feat`, `docs-test.txt.gz`). Of the other
files there, one with as many lines as there are ids names the ids, by the first word of its lines. A sample's key is
the number of its line, from 1. Documents without a single id (an empty line, or a leading value alone) say nothing and
are left out; `empty_rows` tells how many. A label of −1 is a class like any other, as libsvm has it.
What is NOT here: where lines begin (data/sources/lines.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

import conf
from conf.errors import InputError, show
from data import durable
from data.files import Entry, Tree, open_tree
from data.remote import Remote, is_remote, local_path
from data.sources import SETS, Description, RawSource, set_in
from data.sources.classes import Classes
from data.sources.lines import Lines
from data.sources.words import count_dtype

PAIRS = re.compile(rb"(?:[0-9]{1,10}:[0-9]{1,10}(?:\s+|$))*")
MAX_COUNT = 2**32 - 1
MAX_IDS = 1 << 20  # values of a sample; a single id beyond it would make every vector as long
MAX_VOCABULARY = 256 << 20  # bytes of a file that may name the ids


class Counts(RawSource):
    """Samples (ids,) uint16, or uint32 where a count needs it."""

    source: conf.CountsSource

    def __init__(self, source: conf.CountsSource) -> None:
        super().__init__(source)
        self._kept: dict[str, np.ndarray] = {}  # set → which of its file's lines have ids

    def fingerprint(self) -> str:
        seen = self._tree.fingerprint() if self._tree is not None else Lines(self.source.path).fingerprint()
        return durable.digest_value([seen, self.source.model_dump()])

    def keys(self, set_name: str) -> Iterator[str]:
        numbers = self._files[set_name].numbers()
        return (str(number) for number, kept in zip(numbers, self._rows(set_name), strict=True) if kept)

    def labels(self, set_name: str) -> np.ndarray:
        return self._labels[0][set_name]

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        description, lines = self.describe(), self._files[set_name]
        wanted = np.flatnonzero(self._rows(set_name))[np.asarray(rows, np.int64)]
        for number, _, line in lines.read(wanted):  # type: ignore[arg-type]
            _, ids, counts = self._parse(line, f"{lines.name}:{number}")
            vector = np.zeros(description.shape, description.dtype)
            vector[ids] = counts
            yield str(number), vector

    @property
    def empty_rows(self) -> dict[str, int]:
        """How many documents of each set have no ids, and are left out."""
        result = {}
        for name, lines in self._files.items():
            documents = len(lines)
            if self.source.leading == "none":  # then an empty line is one too
                documents = max(lines.numbers())
            result[name] = documents - int(self._rows(name).sum())
        return result

    def _describe(self) -> Description:
        highest_id, highest, content = -1, 0, hashlib.sha256()
        for set_name, lines in self._files.items():
            content.update(set_name.encode() + b"\n")
            kept = np.zeros(len(lines), bool)
            for row, (number, _, line) in enumerate(lines.read(range(len(lines)))):
                _, ids, counts = self._parse(line, f"{lines.name}:{number}")
                content.update(line + b"\n")
                if len(ids):
                    kept[row] = True
                    highest_id, highest = max(highest_id, int(ids.max())), max(highest, int(counts.max()))
            self._kept[set_name] = kept
        sets = {name: int(kept.sum()) for name, kept in self._kept.items() if kept.any()}
        if highest == 0:
            raise InputError(f"{self._where}: every count is 0, so there is nothing to learn")
        num_ids = self.source.vocabulary or highest_id + 1
        features, (labels, classes) = self._names(num_ids), self._labels
        settings = self.source.model_dump(exclude={"path"})
        return Description(
            kind="counts",
            sets=sets,
            labeled={name: int((labels[name] >= 0).sum()) for name in sets},
            shape=(num_ids,),
            dtype=count_dtype(highest),
            scale=1.0,
            low=0.0,
            high=float(highest),
            classes=classes,
            content=durable.digest_value([settings, content.hexdigest(), list(features), self.revision]),
            features=features,
        )

    # --- files ---

    @cached_property
    def _tree(self) -> Tree | None:
        """The folder, if it is one."""
        path = self.source.path
        if is_remote(path):
            return open_tree(path) if not path.startswith("http") and Remote(path).status().folder else None
        return open_tree(path) if local_path(path).is_dir() else None

    @cached_property
    def _where(self) -> str:
        return Lines(self.source.path).name

    @cached_property
    def _files(self) -> dict[str, Lines]:
        """The file of every set. Errors: InputError for a folder that holds none, or two of one set."""
        if self._tree is None:
            return {"train": Lines(self.source.path)}
        found: dict[str, Entry] = {}
        for entry in self._tree.entries():
            name = _set_of(entry.path)
            if name in found:
                raise InputError(
                    f"{self._where}: both {show(found[name].path)} and {show(entry.path)} could be the {name} set; "
                    "leave one there"
                )
            if name:
                found[name] = entry
        if not found:
            listing = ", ".join(entry.path for entry in self._tree.entries()[:5]) or "nothing"
            raise InputError(f"{self._where}: expected files named like sets (train…, test…), found {show(listing)}")
        folder = self.source.path.rstrip("/")
        return {name: Lines(f"{folder}/{found[name].path}") for name in SETS if name in found}

    def _names(self, num_ids: int) -> tuple[str, ...]:
        """The ids' names from the one file with as many lines; none if there is no such file, or more than one."""
        found = []
        for entry in self._tree.entries() if self._tree is not None else []:
            if not _set_of(entry.path) and entry.size <= MAX_VOCABULARY:
                lines = self._tree.read(entry, MAX_VOCABULARY).splitlines()  # type: ignore[union-attr]
                if len(lines) == num_ids and all(line.strip() for line in lines):
                    found.append([line.split()[0] for line in lines])
        try:
            return tuple(word.decode() for word in found[0]) if len(found) == 1 else ()
        except UnicodeDecodeError:
            return ()

    def _rows(self, set_name: str) -> np.ndarray:
        """(lines,) bool: which lines of a set's file have ids."""
        if set_name not in self._kept:
            lines = self._files[set_name]
            flags = (b":" in line for _, _, line in lines.read(range(len(lines))))
            self._kept[set_name] = np.fromiter(flags, bool, len(lines))
        return self._kept[set_name]

    @cached_property
    def _labels(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Class numbers of every set."""
        if self.source.leading != "label":
            return {name: np.full(int(self._rows(name).sum()), -1, np.int64) for name in self._files}, ()
        classes = Classes(self._where, minus_one_is_missing=False)
        for name, lines in self._files.items():
            values: dict[str, int] = {}
            tokens = (
                _shown(line.split(None, 1)[0])
                for (_, _, line), kept in zip(lines.read(range(len(lines))), self._rows(name), strict=True)
                if kept
            )
            places = np.fromiter((values.setdefault(token, len(values)) for token in tokens), np.int64)
            classes.add(list(values), places)
        numbers, names = classes.finish()
        ends = np.cumsum([int(self._rows(name).sum()) for name in self._files])
        return dict(zip(self._files, np.split(numbers, ends[:-1]), strict=True)), names

    # --- a line ---

    def _parse(self, line: bytes, where: str) -> tuple[bytes, np.ndarray, np.ndarray]:
        """(what leads, ids from 0, counts) of a line. Errors: InputError, beginning with file and line."""
        leading, body = b"", line.strip()
        if self.source.leading != "none":
            parts = body.split(None, 1)
            leading, body = parts[0], parts[1] if len(parts) > 1 else b""
            if b":" in leading:
                raise InputError(
                    f"{where}: begins with {show(repr(_shown(leading)))}; expected what source.leading says, "
                    f"{'a label' if self.source.leading == 'label' else 'a number'}, before the first id:count"
                )
        if not PAIRS.fullmatch(body):
            raise self._malformed(body, where)
        values = np.fromstring(body.replace(b":", b" "), np.int64, sep=" ")
        ids, counts = values[::2] - self.source.first_id, values[1::2]
        self._check(ids, counts, where)
        if self.source.leading == "number" and leading != str(len(ids)).encode():
            raise InputError(
                f"{where}: says it has {show(_shown(leading))} ids, found {len(ids)}; fetch the file again"
            )
        return leading, ids, counts

    def _check(self, ids: np.ndarray, counts: np.ndarray, where: str) -> None:
        if not len(ids):
            return
        first, limit = self.source.first_id, self.source.vocabulary or MAX_IDS
        if ids.min() < 0 or ids.max() >= limit:
            wrong = int(ids[(ids < 0) | (ids >= limit)][0]) + first
            raise InputError(
                f"{where}: the id {wrong}; expected {first} to {limit - 1 + first}, as source.first_id and "
                f"{'source.vocabulary say' if self.source.vocabulary else 'the longest vector allowed here say'}"
            )
        if counts.max() > MAX_COUNT:
            raise InputError(f"{where}: the count {counts.max()}; expected at most {MAX_COUNT}")
        if len(ids) > 1 and (np.diff(np.sort(ids)) == 0).any():
            values, times = np.unique(ids, return_counts=True)
            raise InputError(f"{where}: the id {values[np.argmax(times > 1)] + first} is there twice; expected once")

    def _malformed(self, body: bytes, where: str) -> InputError:
        bad = next((token for token in body.split() if not PAIRS.fullmatch(token) or not token), body)
        hint = ""
        if self.source.leading == "none" and b":" not in bad and body.startswith(bad):
            hint = "; if something else stands first in a line, say what with source.leading"
        return InputError(
            f"{where}: found {show(repr(_shown(bad)), 60)}, expected id:count, both whole numbers from 0{hint}"
        )


def _shown(token: bytes) -> str:
    return token.decode("utf-8", "backslashreplace")


def _set_of(path: str) -> str:
    """The set that the name of a file in the folder itself says, if it says one."""
    return "" if "/" in path else set_in(path)
