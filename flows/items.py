"""What a person knows an item by: the samples of shards under the numbers of their codes. Draws pictures of them.

A document of word counts is known by the words that it has more often than others do; its own text only where shards
of the same source keep the texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import InputError, show
from data.manifest import Manifest, Shard
from flows import pictures
from flows.contents import Contents

SUBJECT = re.compile(r"^Subject:[ \t]*(\S.*)$", re.MULTILINE)
NUM_WORDS, TITLE_LENGTH, KEY_LENGTH, OPEN_SHARDS = 6, 120, 120, 64
COUNTS = ("uint16", "uint32")  # how word counts are stored


@dataclass(frozen=True)
class Item:
    number: int  # of its code
    place: str = ""  # "train/17": its set and its row there
    key: str = ""  # in the source
    label: str = ""  # the name of its class
    title: str = ""  # of a document


class Items:
    """The samples of some shards. texts: shards of the same source that keep the texts.

    Errors: InputError (no finished shards, other samples than the codes are of), Damaged.
    """

    def __init__(self, shards: Path, samples_digest: str, texts: Path | None = None) -> None:
        self._contents = Contents(shards)
        self.manifest: Manifest = self._contents.manifest
        if self.manifest.samples_digest != samples_digest:
            raise InputError(
                f"{show(shards)}: holds other samples than the codes are of; name theirs by --shards, or encode these"
            )
        self._texts = None if texts is None else Contents(texts)
        if self._texts and (not self._texts.manifest.holds_texts or len(self._texts.reader) != len(self)):
            raise InputError(f"--texts {show(texts)}: expected shards of the same {len(self):,} documents as texts")
        self._keys = lru_cache(OPEN_SHARDS)(self.manifest.keys_of)

    def __len__(self) -> int:
        return self.manifest.num_samples

    @property
    def are_pictures(self) -> bool:
        return self.manifest.image_shape is not None

    @property
    def are_counts(self) -> bool:
        return self.manifest.dtype in COUNTS and bool(self.manifest.features())

    def number(self, text: str) -> int:
        """`17` or `test/17` → the number of a code. Errors: InputError."""
        set_name, _, row = text.strip().rpartition("/")
        if not row.isdecimal() or len(row) > 18 or (set_name and set_name not in self.manifest.sets):
            sets = " or ".join(f"{name}/ROW" for name in self.manifest.sets)
            raise InputError(f"item {show(text)}: expected a number, or {sets}")
        numbers = self.manifest.numbers(set_name) if set_name else range(len(self))
        if int(row) >= len(numbers):
            raise InputError(f"item {show(text)}: expected a number from 0 to {len(numbers) - 1:,}")
        return numbers[int(row)]

    def item(self, number: int) -> Item:
        shard = self._shard(number)
        row, label = number - shard.first, int(self._contents.reader.labels()[number])
        key = self._keys(shard)[row]
        return Item(
            number,
            f"{shard.set_name}/{shard.row + row}",
            show(key, KEY_LENGTH),
            show(self._contents.class_name(label)) if label >= 0 else "",
            self._title(number, key),
        )

    def pictures(self, numbers: list[int]) -> np.ndarray:
        """(n, h, w, 3) 8-bit."""
        values = self._contents.reader.values(np.array(numbers, np.int64))
        return pictures.gray(self._contents.as_pictures(values.reshape(-1, *self.manifest.shape)))

    def evenly(self, number: int) -> list[int]:
        """At most so many numbers, evenly from all."""
        number = min(number, len(self))
        return [i * len(self) // number for i in range(number)]

    def _shard(self, number: int) -> Shard:
        firsts = self._firsts
        return self.manifest.shards[int(np.searchsorted(firsts, number, side="right")) - 1]

    @property
    def _firsts(self) -> np.ndarray:
        return np.array([shard.first for shard in self.manifest.shards])

    def _title(self, number: int, key: str) -> str:
        if self._texts is not None:
            if self._texts.of(number)[2] != key:
                raise InputError("--texts: its documents are others, or in another order; ingest the same source again")
            return _headline(self._texts.reader.texts(np.array([number]))[0])
        if self.manifest.holds_texts:
            return _headline(self._contents.reader.texts(np.array([number]))[0])
        return ", ".join(self._words(number)) if self.are_counts else ""

    def _words(self, number: int) -> list[str]:
        """Those with the largest count × −log(mean count): that of words more frequent than one a document is 0."""
        counts: Any = self._contents.reader.values(np.array([number]))[0]
        weights = counts * -np.log(self._contents.feature_mean.clip(1e-9, 1))
        names = self.manifest.features()
        best = np.argsort(-weights, kind="stable")[:NUM_WORDS]
        return [show(names[place], 30) for place in best.tolist() if weights[place] > 0]


def _headline(text: str) -> str:
    """A post's subject, or the first line that says anything."""
    found = SUBJECT.search(text[:4000])
    line = found[1] if found else next((line for line in text.splitlines() if line.strip()), "")
    return show(" ".join(line.split()), TITLE_LENGTH)
