"""Every byte of a folder of shards: a bit flipped or a file cut short is found, and no wrong sample gets out.

Digits, MNIST and 20 Newsgroups. A trial goes through the real `verify`, `check` and `Reader`; to be quick, all happens
in one process, a trial's damage is undone after it, and of files that no trial touches the digest is taken once. The
full counts are for `make bench`: 10,000 bits and 500 cuts over each of the two real sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conf
from conf.errors import Damaged
from data import durable
from data.manifest import NAME
from data.shards import Manifest, Reader, Shard, check, ingest, verify
from data.sources import RawSource, open_source
from tests.raw_folders import real
from tests.shard_folders import digits, flip


def mnist(limit: int | None = None) -> RawSource:
    return open_source(conf.IdxSource(kind="idx", path=str(real("mnist"))), limit)


def newsgroups(limit: int | None = None) -> RawSource:
    path = real("20newsgroups", "20news-bydate.tar.gz")
    return open_source(conf.TextSource(kind="text", path=str(path), encoding="latin-1"), limit)


class Trials:
    """A folder of shards, what is read from it, and how much of the damage done to it was noticed by whom."""

    def __init__(self, source: RawSource, folder: Path, shard_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = ingest(source, folder, shard_size=shard_size).folder
        self.touched = ""
        self.digests: dict[str, str] = {}
        real_digest = durable.digest_file

        def digest_file(path: Path) -> str:
            if path.name == self.touched:
                return real_digest(path)
            if path.name not in self.digests:
                self.digests[path.name] = real_digest(path)
            return self.digests[path.name]

        monkeypatch.setattr(durable, "digest_file", digest_file)
        assert verify(self.folder) == []
        manifest = Manifest.load(self.folder)
        self.sizes = {name: size for name, (size, _) in manifest.files.items()}
        self.sizes[NAME] = (self.folder / NAME).stat().st_size
        self.places = np.cumsum(list(self.sizes.values()))
        self.shards = {name: shard for shard in manifest.shards for name in (shard.name, shard.index_name)}
        self.expected = {name: self._read(name) for name in self.sizes}
        self.unverified = self.unchecked = self.wrong = self.refused = 0

    def somewhere(self, random: np.random.Generator) -> tuple[str, int]:
        """A file and a place in it: half the time any byte of the folder, half the time any file, small or large."""
        names = list(self.sizes)
        if random.random() < 0.5:
            name = names[int(random.integers(len(names)))]
            return name, int(random.integers(self.sizes[name]))
        place = int(random.integers(self.places[-1]))
        owner = int(np.searchsorted(self.places, place, side="right"))
        return names[owner], place - (int(self.places[owner - 1]) if owner else 0)

    def judge(self, name: str, problem: str) -> None:
        """Counts what goes unnoticed while file `name` is damaged."""
        self.touched = name
        try:
            found = [(finding.file, finding.problem) for finding in verify(self.folder)]
            self.unverified += found != [(name, problem)]
        except Damaged:
            self.unverified += name != NAME
        try:
            check(self.folder)
            self.unchecked += 1
        except Damaged as error:
            self.unchecked += name not in str(error)
        try:
            self.wrong += not same(self._read(name), self.expected[name])
        except Damaged:
            self.refused += 1

    def _read(self, name: str) -> Any:
        """What a fresh reader makes of the file: a shard's samples, or all that is beside them."""
        reader = Reader(self.folder)
        if name in self.shards:
            return samples(reader, self.shards[name])
        if name == NAME:
            return dataclasses.astuple(reader.manifest), reader.labels()
        sets = list(reader.manifest.sets)
        means = [] if reader.manifest.holds_texts else [reader.manifest.feature_mean(each) for each in sets]
        return [*means, reader.labels(), [reader.keys(each) for each in sets], reader.manifest.duplicates()]


def samples(reader: Reader, shard: Shard) -> Any:
    numbers = np.arange(shard.first, shard.first + shard.count)
    return reader.texts(numbers) if reader.manifest.holds_texts else reader.read(numbers)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(same(*pair) for pair in zip(found, expected, strict=True))
    return np.array_equal(found, expected) if isinstance(expected, np.ndarray) else bool(found == expected)


def flips(trials: Trials, number: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(number):
        (name, place), bit = trials.somewhere(random), int(random.integers(8))
        flip(trials.folder / name, place, bit)
        trials.judge(name, "altered")
        flip(trials.folder / name, place, bit)


def cuts(trials: Trials, number: int) -> None:
    random = np.random.default_rng(1)
    for _ in range(number):
        name, place = trials.somewhere(random)
        path = trials.folder / name
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(place)
        trials.judge(name, "truncated")
        path.write_bytes(content)


@pytest.mark.parametrize(
    "source", [digits, lambda: mnist(1000), lambda: newsgroups(200)], ids=["digits", "mnist", "text"]
)
def test_a_sample_of_flips_and_cuts(
    source: Callable[[], RawSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _none_unnoticed(Trials(source(), tmp_path, 150, monkeypatch), 150, 30)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "shard_size"), [(mnist, 1000), (newsgroups, 400)], ids=["mnist", "text"])
def test_10_000_flips_and_500_cuts(
    source: Callable[[], RawSource], shard_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _none_unnoticed(Trials(source(), tmp_path, shard_size, monkeypatch), 10_000, 500)


def _none_unnoticed(trials: Trials, num_flips: int, num_cuts: int) -> None:
    flips(trials, num_flips)
    cuts(trials, num_cuts)
    size, refused = int(trials.places[-1]), trials.refused
    print(
        f"\n{num_flips} flips, {num_cuts} cuts in {len(trials.sizes)} files, {size >> 20} MiB: unnoticed by verify "
        f"{trials.unverified}, by check {trials.unchecked}; wrong samples read {trials.wrong}, refused {refused}"
    )
    assert (trials.unverified, trials.unchecked, trials.wrong) == (0, 0, 0)
    assert refused > num_cuts / 2
    trials.touched = ""
    trials.digests.clear()
    assert verify(trials.folder) == []
