"""Folders of shards that somebody else made up, with every digest right: what strata reads is not always its own."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data.manifest
import data.shard_cache
from data import durable
from data.manifest import Manifest, plan_shards
from data.mapping import Mapping
from data.shards import Reader, check, verify
from data.tar import npy_header
from flows.contents import Contents
from tests.attacks import Halves, attack
from tests.attacks.files import VALUES, ingested, npy, patience, remanifest, replace, shards, succeeds


def read_all(folder: Path) -> None:
    """Whatever any command reads of a folder of shards."""
    contents = Contents(folder)
    contents.to_json()
    reader = contents.reader
    reader.texts(np.arange(len(reader))) if reader.manifest.holds_texts else reader.values(np.arange(len(reader)))
    for name in reader.manifest.sets:
        reader.keys(name)
        if not reader.manifest.holds_texts:
            reader.manifest.feature_mean(name)
    assert not verify(folder)


def unguarded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(data.manifest, "_require_plausible", lambda content: None)


def written_npy(values: np.ndarray) -> bytes:
    return npy_header(values.shape, values.dtype) + values.tobytes()


def texts(folder: Path) -> Path:
    (folder / "in.txt").write_bytes(b"one\ntwo\n")
    return ingested("text", folder / "in.txt", folder / "shards").folder


@attack("../secret", "ABSOLUTE", "a/../../secret", "..", ".hidden", "a b", "x\n", "")
def a_manifest_that_names_a_file_elsewhere(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Halves:
    path, secret = shards(folder), folder / "secret"
    secret.write_bytes(b"secret")
    name = name.replace("ABSOLUTE", str(secret))
    (path / "a").mkdir()
    entry = [6, durable.digest_bytes(b"secret")]
    remanifest(path, lambda value: value["files"].__setitem__(name, entry))
    yield "wrong fields .file name", lambda: read_all(path)
    patch.setattr(data.manifest, "SAFE_NAME", re.compile(r"[\s\S]*"))
    manifest = Manifest.load(path)
    yield manifest.read(name) == b"secret" if "secret" in name else name in manifest.files


@attack()
def sizes_that_place_a_shard_outside_of_its_memory(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path, names = shards(folder), [f"train-0000{number}.tar" for number in range(3)]
    size = (path / names[0]).stat().st_size

    remanifest(path, lambda value: value["files"][names[1]].__setitem__(0, -4096))
    yield "sizes of files", lambda: read_all(path)
    unguarded(patch)
    manifest = Manifest.load(path)
    memory = Mapping([manifest.files[name][0] for name in names[:2]])
    yield int(memory.starts[0]) + size > len(memory.content)  # the file would be laid over what lies behind


@attack()
def sizes_beyond_all_memory(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    remanifest(path, lambda value: value["files"]["train-00000.tar"].__setitem__(0, 1 << 60))
    yield "sizes of files", lambda: read_all(path)
    unguarded(patch)
    yield succeeds(lambda: Reader(path), OSError)


@attack()
def more_samples_than_can_be_listed(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    remanifest(path, lambda value: (value["sets"]["train"].update(samples=10**15), value.update(shard_size=1)))
    yield "more samples than its shards can hold", lambda: read_all(path)
    value = json.loads((path / "manifest.json").read_bytes())
    sets = {"train": value["sets"]["train"]["samples"]}
    yield len(list(itertools.islice(plan_shards(sets, value["shard_size"]), 100_000))) == 100_000


@attack(("object", "object"), ("dates", "datetime64[s]"), ("records", "V8"), ("strings", "S8"))
def a_dtype_that_is_no_number(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str]) -> Halves:
    path = shards(folder)
    remanifest(path, lambda value: value.update(dtype=variant[1], shape=[1]))
    yield "dtype or shape", lambda: read_all(path)
    unguarded(patch)
    yield Manifest.load(path).layout.dtype.kind not in "biuf"  # type: ignore[attr-defined]


@attack(("dtype", {"dtype": "int8"}), ("shape", {"shape": [4]}), ("both", {"dtype": "float64", "shape": [1]}))
def a_schema_that_is_not_that_of_the_samples(folder: Path, patch: pytest.MonkeyPatch, variant: Any) -> Halves:
    path = shards(folder)
    remanifest(path, lambda value: value.update(variant[1]))
    yield "differs from its checksum|does not fit its shard", lambda: read_all(path)
    patch.setattr(Reader, "_check", lambda self, indices, right: None)
    patch.setattr("data.tar.ArrayLayout.plausible", lambda *_: True)
    found = Reader(path).read(np.arange(1))
    yield found.shape != (1, 8) or not np.array_equal(found[0], VALUES[0]) or found.dtype != np.uint8


@attack(("zero", 0.0), ("negative", -1.0), ("text", "1"))
def a_scale_that_is_none(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, Any]) -> Halves:
    path = shards(folder)
    remanifest(path, lambda value: value.update(scale=variant[1]))
    yield "wrong fields", lambda: read_all(path)
    unguarded(patch)
    with np.errstate(all="ignore"):
        if variant[0] == "text":
            yield succeeds(lambda: Reader(path).values(np.arange(12)) / variant[1], TypeError)
        values = Reader(path).values(np.arange(12))
    yield bool(not np.isfinite(values).all() or values.min() < 0)


@attack(("beyond the classes", 7), ("that ask for all memory", 1 << 40), ("negative", -100))
def labels_of_our_shards(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, int]) -> Halves:
    path = shards(folder)
    labels = np.array([0, 1, variant[1], *[2] * 9], "<i8")
    replace(path, "train-labels.npy", written_npy(labels))
    yield "other labels than the numbers of its 3 classes", lambda: read_all(path)
    found = np.load(path / "train-labels.npy")
    if variant[1] == 7:
        yield succeeds(lambda: np.eye(3)[found], IndexError)
    if variant[1] < 0:  # as torch's cross entropy does, silently
        yield bool((found != -100).sum() == 11)
    yield succeeds(lambda: np.bincount(found[found >= 0]), MemoryError)


@attack("labels", "keys", "mean", "index")
def too_few_of(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    (folder / "in").mkdir()
    for number in range(4):
        (folder / "in" / f"{number}.txt").write_bytes(b"text %d" % number)
    path = ingested("text", folder / "in", folder / "shards").folder if what == "keys" else shards(folder)
    name = {"labels": "train-labels.npy", "mean": "train-mean.npy"}.get(what, "train-00000.index.npy")
    if what == "keys":
        replace(path, "train-00000.keys.jsonl", b'"0.txt"\n"1.txt"\n')
    else:
        replace(path, name, npy(np.load(path / name)[:2]))
    yield "is no array of|is no list of 4|size of train-00000.index.npy", lambda: read_all(path)
    if what == "keys":
        yield len((path / "train-00000.keys.jsonl").read_text().splitlines()) == 2
    yield len(np.load(path / name)) == 2


@attack(("no JSON", b"x\n"), ("numbers", b"1\n2\n3\n4\n"), ("deep", b"[" * 100_000 + b"\n"))
def keys_that_are_none(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, bytes]) -> Halves:
    path = shards(folder)
    replace(path, "train-00000.keys.jsonl", variant[1])
    yield "is no JSON|is no list of 4", lambda: read_all(path)
    if variant[0] == "numbers":
        yield [json.loads(line) for line in variant[1].splitlines()] == [1, 2, 3, 4]
    yield succeeds(lambda: json.loads(variant[1]), ValueError, RecursionError)


@attack()
def copies_of_samples_that_are_not_there(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    replace(path, "duplicates.npy", written_npy(np.array([[11, -3]], "<i8")))
    remanifest(path, lambda value: value.update(num_duplicates=1))
    yield "other numbers than those of 12 samples", lambda: read_all(path)
    yield bool(Reader(path).labels()[np.load(path / "duplicates.npy")[0, 1]] == 0)  # sample 9, which nobody named


@attack()
def a_text_that_is_no_utf8_in_our_shards(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = texts(folder)
    whole, index = (path / "train-00000.tar").read_bytes(), np.load(path / "train-00000.index.npy")
    replace(path, "train-00000.tar", whole.replace(b"two", b"t\xffo"))
    index["crc32"][1] = __import__("zlib").crc32(b"t\xffo")
    index["digest"][1] = np.frombuffer(bytes.fromhex(durable.digest_bytes(b"t\xffo"))[:16], np.uint8)
    replace(path, "train-00000.index.npy", written_npy(index))
    yield "a text is not UTF-8", lambda: read_all(path)
    yield b"t\xffo".decode(errors="replace") == "t\ufffdo"


@attack("deep", "of another format", "of no fields", "a list", "not a number")
def a_manifest_that_is_none(folder: Path, patch: pytest.MonkeyPatch, variant: str) -> Halves:
    path = shards(folder)
    if variant in ("deep", "a list", "not a number"):
        content = {"deep": b"[" * 100_000, "a list": b"[]", "not a number": b'{"format": 2, "scale": NaN}'}[variant]
        (path / "manifest.json").write_bytes(content)
        yield "no JSON|expected format 2|wrong fields|its own digest", lambda: Manifest.load(path)
        if variant == "not a number":
            yield json.loads(content)["scale"] != json.loads(content)["scale"]
        yield succeeds(lambda: json.loads(content)["sets"], RecursionError, TypeError)
    change = {"of another format": {"format": 1}, "of no fields": {"sets": 3}}[variant]
    remanifest(path, lambda value: value.update(change))
    yield "no JSON|expected format 2|wrong fields|its own digest", lambda: Manifest.load(path)
    if variant == "of no fields":
        yield succeeds(lambda: json.loads((path / "manifest.json").read_bytes())["sets"]["train"], TypeError)
    patch.setattr(data.manifest, "FORMAT", 1)
    yield Manifest.load(path).num_samples == 12  # as if it meant the same


@attack("manifest.json", "train-00000.tar", "train-labels.npy")
def a_pipe_among_our_shards(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Halves:
    path = shards(folder)
    (path / name).unlink()
    os.mkfifo(path / name)
    if name != "manifest.json":  # then its size is right
        remanifest(path, lambda value: value["files"].__setitem__(name, [0, durable.digest_bytes(b"")]))

    def use() -> bool:
        with patience(1.0) as gave_up:
            if name != "manifest.json":
                assert any(finding.file == name and not finding.harmless for finding in verify(path))
            check(path)
        return not gave_up and False

    yield "not a regular file", use
    with patience() as gave_up:
        (path / name).read_bytes()
    yield bool(gave_up)


@attack()
def an_endless_file_among_our_shards(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    (path / "manifest.json").unlink()
    (path / "manifest.json").symlink_to("/dev/zero")
    yield "not a regular file", lambda: Manifest.load(path)
    with (path / "manifest.json").open("rb") as file:
        yield len(file.read(1 << 20)) == 1 << 20


@attack()
def shards_that_say_they_are_a_cache(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    """Then what lies beside them would be evicted to make room, and what is damaged removed."""
    path, mine = shards(folder), folder / "mine" / "train-00000.tar"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    size = sum((path / name).stat().st_size for name in ("train-00000.tar", "train-00000.index.npy"))
    (path / "train-00000.tar").unlink()
    (path / "remote.json").write_text(json.dumps({"address": "memory://a", "bytes": size}))  # room for that shard alone
    yield "train-00000.tar: no such file", lambda: read_all(path)
    patch.setattr(data.shard_cache, "is_cache", Path.is_dir)
    patch.setattr(data.shard_cache, "PAUSES", ())
    with pytest.raises(Exception, match="memory://a"):
        Reader(path).read(np.arange(1))
    yield not mine.exists()
