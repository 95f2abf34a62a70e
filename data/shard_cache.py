"""Shards at an fsspec address, read through folders here: small files at opening, shards as they are asked for.

    CACHE/shards/.cache                 says that all below is a cache and may be evicted
    CACHE/shards/DIGEST/remote.json     the address, and how many bytes all shards under CACHE/shards may take
    CACHE/shards/DIGEST/manifest.json   written last; the folder is then like any other, but its shards come and go

DIGEST names address and manifest, so a folder's content never changes. A shard (tar and index) comes whole, equal to
its digests, or not at all; over the budget whole shards make way, those not opened for longest first. Processes share
the folders: who opens or fetches a shard holds its lock, and what is locked is not evicted. What is mapped outlives its
file. What is NOT here: addresses (data/remote.py), reading (data/shards.py).
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
LEFTOVER = re.compile(r"\.([a-z]+-\d{5,})\.(?:tar|index\.npy)\.\d+\.tmp")  # durable.writing's temporary files


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
    needed = sum(manifest.files[name][0] for name in missing)
    if needed > mark["bytes"]:
        raise InputError(
            f"{shown(address)}: {shard.name} has {needed:,} bytes, but data.cache_gib leaves room for "
            f"{mark['bytes']:,}; raise it"
        )
    _make_room(folder.parent, mark["bytes"] - needed)
    for name in missing:
        _tried(partial(_fetch, f"{address}/{name}", folder / name, manifest.files[name]))


class _Held(NamedTuple):
    used: int  # nanoseconds
    size: int
    tar: Path


def _make_room(shelf: Path, left: int) -> None:
    """Evicts until what lies on the shelf takes at most `left` bytes, or all of it is in use."""
    with durable.lock(shelf / ".room.lock", wait=_patient):
        taken, held = 0, []
        for path in shelf.glob("*/*"):
            if not is_cache(path.parent):
                continue
            unfinished = LEFTOVER.fullmatch(path.name)
            if not unfinished and not path.name.endswith((".tar", ".index.npy")):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                taken += status.st_size
                if path.suffix == ".tar":
                    held.append(_Held(status.st_atime_ns, status.st_size, path))
                elif unfinished:  # of a fetch under way, or of one that was killed
                    with suppress(durable.Locked), durable.lock(path.with_name(f".{unfinished[1]}.lock")):
                        path.unlink()
                        taken -= status.st_size
        for candidate in sorted(held):
            if taken <= left:
                return
            tar, index = candidate.tar, candidate.tar.with_suffix(".index.npy")
            with suppress(durable.Locked), durable.lock(tar.with_name(f".{tar.stem}.lock")):
                taken -= candidate.size + (index.stat().st_size if index.exists() else 0)
                tar.unlink(missing_ok=True)
                index.unlink(missing_ok=True)


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
