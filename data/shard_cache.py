"""Shards at an fsspec address, read through folders here: small files at opening, shards as they are asked for.

    CACHE/shards/.cache                 says that all below is a cache and may be evicted
    CACHE/shards/DIGEST/remote.json     the address, and how many bytes all shards under CACHE/shards may take
    CACHE/shards/DIGEST/manifest.json   written last; the folder is then like any other, but its shards come and go

DIGEST names address and manifest, so a folder's content never changes. A shard (tar and index) comes whole, equal to
its digests, or not at all; over the budget whole shards make way, those not opened for longest first. Processes share
the folders: who opens or fetches a shard holds its lock, and what is locked is not evicted. Room is taken before a
fetch begins, so that several at once keep to the budget together. What is mapped outlives its file. What is NOT here:
addresses (data/remote.py), reading (data/shards.py).
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from conf.errors import Damaged, InputError, OutputError, show
from data import durable
from data.manifest import NAME, Manifest, Shard
from data.remote import Remote, shown

Result = TypeVar("Result")
MARK = "remote.json"
SHELF = ".cache"  # in the folder of such folders
PAUSES = (0.2, 1.0)  # seconds before the second and the third try
MAX_MANIFEST = 256 << 20  # bytes
ROOM = ".room"  # ends the name of an empty file as large as the shard that somebody fetches
PART = re.compile(r"([a-z]+-\d{5,})\.(?:tar|index\.npy)")
UNFINISHED = re.compile(rf"\.([a-z]+-\d{{5,}})(?:\.(?:tar|index\.npy)\.\d+\.tmp|\{ROOM})")  # durable.writing's, ours


def open_remote(address: str, cache: Path, budget: int) -> Path:
    """The folder here that stands for the shards at an address; its manifest is fetched anew, to be the newest.

    budget: bytes. Errors: InputError (nobody answers, no shards there), Damaged (what is there contradicts itself),
    OutputError (no room here).
    """
    address = address.rstrip("/")
    with _room(cache, address):
        shelf = cache / "shards"
        shelf.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=shelf, prefix=".opening-") as place:
            manifest = _tried(lambda: _fetch_manifest(address, Path(place)))
            folder = folder_of(address, manifest.digest, cache)
            with durable.lock(folder / ".lock", wait=_patient):
                large = {file for shard in manifest.shards for file in shard.files[:2]}
                for name, expected in manifest.files.items():
                    if name not in large and not _is(folder / name, expected[1]):
                        _tried(partial(_fetch, f"{address}/{name}", folder / name, expected))
                durable.write_bytes(shelf / SHELF, b"")
                durable.write_json(folder / MARK, {"address": address, "bytes": budget})
                if not (folder / NAME).exists():
                    durable.write_bytes(folder / NAME, (Path(place) / NAME).read_bytes())
    return folder


def _is(path: Path, digest: str) -> bool:
    return path.exists() and durable.digest_file(path) == digest


def folder_of(address: str, digest: str, cache: Path) -> Path:
    """Where the shards at an address lie here; digest: of their manifest."""
    return cache / "shards" / durable.digest_value([address.rstrip("/"), digest])[:32]


def is_cache(folder: Path) -> bool:
    """Whether shards that are not in this folder can be fetched, and what lies around it is ours to evict.

    A folder that somebody else packed may hold any file, so the one around it must say so, too.
    """
    return (folder / MARK).exists() and (folder.absolute().parent / SHELF).exists()


def require_room(manifest: Manifest, samples: np.ndarray) -> None:
    """Refuses a budget that shards with these samples, all needed again and again, would exceed. Errors: InputError."""
    if not is_cache(manifest.folder):
        return
    owners = np.unique(np.searchsorted([shard.first for shard in manifest.shards], samples, side="right") - 1)
    files = [name for owner in owners.tolist() for name in manifest.shards[owner].files[:2]]
    needed, mark = sum(manifest.files[name][0] for name in files), _mark(manifest.folder)
    if needed > mark["bytes"]:
        raise InputError(
            f"{shown(mark['address'])}: the order goes to and fro over {len(owners)} shards at a time, of {needed:,} "
            f"bytes, but data.cache_gib leaves room for {mark['bytes']:,}; raise it to {needed / 2**30:.3g} or more"
        )


@contextmanager
def at_hand(manifest: Manifest, shard: Shard) -> Iterator[bool]:
    """While the block runs, tar and index of the shard lie in the manifest's folder; whether they had to be fetched.

    Of an ordinary folder nothing is checked. Errors: as `open_remote`.
    """
    folder = manifest.folder
    if not is_cache(folder):
        yield False
        return
    lock = folder / f".{shard.stem}.lock"
    with durable.lock(lock, wait=_patient, shared=True):
        if not _missing(folder, shard):
            _note_use(folder / shard.name)
            yield False
            return
    with durable.lock(lock, wait=_patient):
        mark = _mark(folder)
        with _room(folder, mark["address"]):
            missing = _missing(folder, shard)
            if missing:
                _fetch_shard(manifest, shard, missing, mark)
        _note_use(folder / shard.name)
        yield bool(missing)


def _missing(folder: Path, shard: Shard) -> list[str]:
    return [name for name in shard.files[:2] if not (folder / name).exists()]


def _note_use(tar: Path) -> None:
    """File systems forget to note access; the time of change stays, by it a verified file is known."""
    with suppress(OSError):
        os.utime(tar, ns=(time.time_ns(), tar.stat().st_mtime_ns))


def _fetch_shard(manifest: Manifest, shard: Shard, missing: list[str], mark: dict[str, Any]) -> None:
    folder, address = manifest.folder, mark["address"]
    size = sum(manifest.files[name][0] for name in shard.files[:2])
    if size > mark["bytes"]:
        raise InputError(
            f"{shown(address)}: {shard.name} has {size:,} bytes, but data.cache_gib leaves room for "
            f"{mark['bytes']:,}; raise it"
        )
    with _room_for(folder / f".{shard.stem}{ROOM}", size, mark["bytes"]):
        for name in missing:
            _tried(partial(_fetch, f"{address}/{name}", folder / name, manifest.files[name]))


@contextmanager
def _room_for(place: Path, size: int, budget: int) -> Iterator[None]:
    """While the block runs, so many bytes of the budget are kept for the shard whose lock we hold."""
    shelf = place.parent.parent
    counting = shelf / f"{ROOM}.lock"
    with durable.lock(counting, wait=_patient):
        with place.open("wb") as file:
            file.truncate(size)
        _make_room(shelf, budget)
    try:
        yield
    finally:
        with durable.lock(counting, wait=_patient):  # who counts sees the shard or the room for it
            place.unlink(missing_ok=True)


class _Held(NamedTuple):
    """A shard on the shelf, whole or not."""

    used: int  # nanoseconds
    size: int
    lock: Path
    files: list[Path]


def _make_room(shelf: Path, budget: int) -> None:
    """Evicts until what lies on the shelf takes at most so many bytes, or the rest of it is in use."""
    held = [one for folder in list(shelf.iterdir()) if is_cache(folder) for one in _held(folder)]
    taken = sum(one.size for one in held)
    for one in sorted(held):
        if taken <= budget:
            return
        with suppress(durable.Locked), durable.lock(one.lock):
            for path in one.files:
                path.unlink(missing_ok=True)
            taken -= one.size


def _held(folder: Path) -> Iterator[_Held]:
    """The shards in a folder, after what killed fetches left of them was removed."""
    files: dict[str, list[Path]] = {}
    for path in list(folder.iterdir()):
        if match := PART.fullmatch(path.name) or UNFINISHED.fullmatch(path.name):
            files.setdefault(match[1], []).append(path)
    for stem, parts in files.items():
        lock = folder / f".{stem}.lock"
        if unfinished := [path for path in parts if path.name.startswith(".")]:
            with suppress(durable.Locked), durable.lock(lock):
                for path in unfinished:
                    path.unlink(missing_ok=True)
        found = {}
        for path in parts:
            with suppress(FileNotFoundError):  # it was evicted, or has its final name now
                found[path.name] = path.stat()
        tar, room = found.get(f"{stem}.tar"), found.get(f".{stem}{ROOM}")
        size = room.st_size if room else sum(status.st_size for status in found.values())
        yield _Held(tar.st_atime_ns if tar else 0, size, lock, parts)


def _tried(fetch: Callable[[], Result]) -> Result:
    """Three times, before the failure is believed."""
    for pause in PAUSES:
        try:
            return fetch()
        except (InputError, Damaged):
            time.sleep(pause)
    return fetch()


def _fetch_manifest(address: str, place: Path) -> Manifest:
    _fetch(f"{address}/{NAME}", place / NAME, None)
    try:
        return Manifest.load(place)
    except (Damaged, InputError) as error:
        problem = str(error).removeprefix(f"{show(place / NAME)}: ")
        raise type(error)(f"{shown(address)}/{NAME}: {problem}") from None


def _fetch(address: str, path: Path, expected: tuple[int, str] | None) -> None:
    """One file, whole; expected: its bytes and SHA-256, where they are known."""
    remote = Remote(address)
    status = remote.status()
    size = expected[0] if expected else status.size
    if expected is None and size > MAX_MANIFEST:
        raise InputError(f"{shown(address)}: {size:,} bytes; expected a manifest of at most {MAX_MANIFEST:,}")
    if status.size != size:
        raise Damaged(f"{shown(address)}: {status.size:,} bytes; its manifest says {size:,}; repair it there")
    with durable.writing(path) as file:
        remote.fetch(file, status)
        file.flush()
        found = file.tell()
        if found != size:
            raise Damaged(f"{shown(address)}: {found:,} bytes arrived; its manifest says {size:,}; repair it there")
        file.seek(0)
        if expected and durable.digest_stream(file) != expected[1]:
            raise Damaged(f"{shown(address)}: differs from the digest in its manifest; repair it there")
        file.seek(0, os.SEEK_END)


@contextmanager
def _room(where: Path, address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"{show(where)}: {reason}; expected room for shards of {shown(address)}") from None


def _mark(folder: Path) -> dict[str, Any]:
    try:
        mark = durable.read_json(folder / MARK)
        return {"address": str(mark["address"]), "bytes": int(mark["bytes"])}
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{show(folder / MARK)}: cannot be read; remove the folder, it is only a copy") from None


def _patient(holder: str) -> None:
    """Waits for as long as it takes."""
