"""Are shards still what ingest wrote? `check` before training, remembered; `verify` on demand, trusting no memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import Damaged, show
from data import durable
from data.manifest import NAME, REPAIR, Manifest, Shard
from data.shard_cache import is_cache

SETTLED = 2.0  # seconds; a file written more recently is hashed again next time, whatever its time stamp says


@dataclass(frozen=True)
class Finding:
    """One file that is not as the manifest says.

    problem: missing, truncated, longer, altered, swapped or extra; samples: the global numbers of those whose content
    is lost or changed; harmless: nothing that strata reads is affected.
    """

    file: str
    problem: str
    detail: str
    samples: tuple[int, ...] = ()
    harmless: bool = False

    def __str__(self) -> str:
        affected = f"; {_spans(self.samples)}" if self.samples else ""
        return f"{show(self.file)}: {self.problem}: {self.detail}{affected}"


def check(folder: Path, remembered: Path | None = None, without: Collection[str] = ()) -> Manifest:
    """Hashes every file of the folder that is not remembered as good; returns the manifest.

    `remembered` is a small JSON file of (size, mtime_ns, inode) → digest, written here; losing it costs time only.
    `without`: names of shards that nobody will read (data/quarantine.py). Errors: InputError (no finished shards),
    Damaged (listing all bad files in one line).
    """
    manifest = Manifest.load(folder)
    if bad := damaged(manifest, remembered, without):
        raise Damaged(refusal(manifest, bad))
    return manifest


def refusal(manifest: Manifest, bad: dict[str, str]) -> str:
    named = [f"{name} ({problem})" for name, problem in bad.items()]
    more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
    return f"{show(manifest.folder)}: {len(bad)} damaged files: {', '.join(named[:20])}{more}; {REPAIR}"


def damaged(manifest: Manifest, remembered: Path | None, without: Collection[str] = ()) -> dict[str, str]:
    """File → what is wrong with it; see `check`."""
    memory = _recall(remembered)
    root = str(manifest.folder.resolve())
    known = memory.get(root, {})
    skipped = {name for shard in manifest.shards if shard.name in without for name in shard.files}
    cached = {name for shard in manifest.shards for name in shard.files[:2]} if is_cache(manifest.folder) else set()
    bad, good = {}, {}
    for name, (size, sha) in manifest.files.items():
        if name in skipped:
            continue
        path = manifest.folder / name
        if name in cached and not path.exists():
            continue  # it is verified when it is fetched
        try:
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns, status.st_ino, sha]
            if status.st_size != size:
                bad[name] = f"{status.st_size} bytes instead of {size}"
                continue
            if known.get(name) != stamp and durable.digest_file(path) != sha:
                bad[name] = "content differs"
                continue
        except OSError as error:
            bad[name] = (error.strerror or str(error)).lower()
            continue
        if time.time() - status.st_mtime > SETTLED:
            good[name] = stamp
    for name in bad.keys() & cached:  # only a copy: it is fetched anew when it is needed
        (manifest.folder / name).unlink(missing_ok=True)
        del bad[name]
    if remembered is not None and good != known:
        with contextlib.suppress(OSError):  # read-only or full: it costs time only
            durable.write_json(remembered, memory | {root: good})
    return bad


def _recall(remembered: Path | None) -> dict[str, Any]:
    try:
        memory = durable.read_json(remembered) if remembered is not None else {}
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) and all(isinstance(entry, dict) for entry in memory.values()) else {}


def verify(folder: Path) -> list[Finding]:
    """Hashes every file and says of each bad one what is wrong and which samples it costs; empty: all is well.

    Errors: InputError (no finished shards), Damaged (the manifest itself).
    """
    manifest = Manifest.load(folder)
    shards = {shard.name: shard for shard in manifest.shards}
    owners: dict[str, list[str]] = {}
    for name, (_, sha) in manifest.files.items():
        owners.setdefault(sha, []).append(name)
    findings = []
    for name, (size, sha) in manifest.files.items():
        path = manifest.folder / name
        try:
            found_size, found = path.stat().st_size, durable.digest_file(path)
        except OSError as error:
            lost = _all(shards[name]) if name in shards else ()
            findings.append(Finding(name, "missing", (error.strerror or str(error)).lower(), lost))
            continue
        if found == sha:
            continue
        if found in owners:
            lost = _all(shards[name]) if name in shards else ()
            findings.append(Finding(name, "swapped", f"holds the content of {owners[found][0]}", lost))
            continue
        problem = "altered" if found_size == size else "truncated" if found_size < size else "longer"
        sizes = f"{found_size} bytes, SHA-256 {found[:12]}…; expected {size} bytes, {sha[:12]}…"
        samples = _affected(manifest, shards[name]) if name in shards else ()
        if name in shards and not samples:
            sizes += "; every sample in it is whole: only headers or padding are hit"
        findings.append(Finding(name, problem, sizes, samples))
    listed = {NAME, *manifest.files}
    for entry in sorted(os.scandir(manifest.folder), key=lambda entry: entry.name):
        if entry.name not in listed and not entry.name.startswith("."):
            findings.append(Finding(entry.name, "extra", f"not in {NAME}; never read", harmless=True))
    return findings


def _all(shard: Shard) -> tuple[int, ...]:
    return tuple(range(shard.first, shard.first + shard.count))


def _affected(manifest: Manifest, shard: Shard) -> tuple[int, ...]:
    """The samples of a bad shard that differ from their digest in the index; all of them if the index is bad too."""
    try:
        index = manifest.index(shard)
    except Damaged:
        return _all(shard)
    content = np.fromfile(manifest.folder / shard.name, np.uint8).data
    rows = []
    for row, (offset, length) in enumerate(zip(index["offset"].tolist(), index["length"].tolist(), strict=True)):
        member = content[offset : offset + length]
        if len(member) < length or hashlib.sha256(member).digest()[:16] != index["digest"][row].tobytes():
            rows.append(row)
    return tuple(shard.first + row for row in rows)


def _spans(samples: tuple[int, ...]) -> str:
    """`samples 3, 7–9` for a human."""
    numbers = np.array(samples)
    groups = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    texts = [f"{group[0]}" if len(group) == 1 else f"{group[0]}–{group[-1]}" for group in groups]
    shown = ", ".join(texts[:8]) + (", …" if len(texts) > 8 else "")
    return f"{len(samples)} samples affected: {shown}"
