"""Where output may go and raw data may come from, asked of the file system before anything is written or read."""

from __future__ import annotations

import os
from pathlib import Path

from conf import PatchesSource, Source
from conf.errors import InputError, OutputError, show
from data.manifest import NAME, PLAN
from data.remote import is_remote, local_path
from data.sources import unreadable


def refuse_unwritable(out: Path, option: str = "--out") -> None:
    """Fails early where an output folder cannot be. option: that named it. Errors: OutputError."""
    try:
        place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    except OSError as error:
        raise OutputError(
            f"{option} {show(out)}: {(error.strerror or str(error)).lower()}; choose another place"
        ) from None
    if out.is_symlink() and not out.exists():
        found = "is a link to nothing"
    elif not place.is_dir():
        found = "is a file" if place == out.absolute() else f"{show(place)} is a file"
    elif not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        found = f"{show(place)} is a folder we may not write to"
    else:
        return
    raise OutputError(f"{option} {show(out)}: {found}; choose another place")


def refuse_foreign(out: Path) -> None:
    """Refuses a folder for shards where other files lie. Errors: InputError."""
    try:
        names = {entry.name for entry in os.scandir(out)}
    except OSError:  # there is none yet
        return
    others = sorted(name for name in names if not name.startswith("."))
    if others and not names & {NAME, PLAN}:
        raise InputError(
            f"--out {show(out)}: holds other files, such as {show(others[0])}; choose a new or empty folder"
        )


def require_readable(source: Source, out: Path | None) -> None:
    """Refuses raw data that are not there, and an output inside the folder that is read. Errors: InputError."""
    if isinstance(source, PatchesSource):
        return require_readable(source.of, out)
    path = getattr(source, "path", None)
    if path is None or is_remote(path):
        return
    folder = local_path(path)
    try:
        os.stat(folder)
    except OSError as error:
        raise unreadable(folder, error) from None
    if out is None or source.kind == "idx" or not folder.is_dir():  # of an idx folder only files of certain names count
        return
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"--out {show(out)}: lies inside the source {show(path)}; choose a place outside of it")
