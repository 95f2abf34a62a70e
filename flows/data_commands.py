"""`strata ingest`, `verify` and `data`: raw data → shards, are they still what was written, and what is in them?"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import data.ingest
from conf import Source
from conf.errors import Damaged, InputError, show
from conf.reading import explain, override
from data.manifest import Manifest, plan_shards
from data.sources import RawSource, open_source
from data.tar import ArrayLayout, layout_of
from data.verification import verify as findings_in
from flows import data_lines, data_page
from flows.contents import Contents
from flows.places import refuse_foreign, refuse_unwritable, require_readable
from flows.progress import Reporter

ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")  # the first of the settings where a path may stand


def ingest(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes a folder of shards; with --dry-run only says what it would hold."""
    for name in ("shard_size", "workers", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    settings = _settings(arguments)
    require_readable(settings, arguments.out)
    refuse_unwritable(arguments.out)
    refuse_foreign(arguments.out)
    source = open_source(settings, arguments.limit)
    if arguments.dry_run:
        return _would_write(source, arguments)
    reporter = Reporter(silent=arguments.json)
    with reporter.bar("ingest", "samples") as progress:
        manifest = data.ingest.ingest(
            source,
            arguments.out,
            shard_size=arguments.shard_size,
            workers=arguments.workers,
            progress=lambda done, of: progress({"done": done, "of": of}),
        )
    sets = {name: found.samples for name, found in manifest.sets.items()}
    copies = f"{manifest.num_duplicates:,} of them copies of earlier ones, " if manifest.num_duplicates else ""
    counts = ", ".join(f"{number:,} {name}" for name, number in sets.items())
    samples = manifest.samples_digest[:12]
    reporter.line(f"{arguments.out}: {counts}, {copies}{len(manifest.shards)} shards, samples {samples}")
    return {
        "out": str(arguments.out), "sets": sets, "duplicates": manifest.num_duplicates,
        "samples_digest": manifest.samples_digest,
    }  # fmt: skip


def _settings(arguments: argparse.Namespace) -> Any:
    """The source that kind, path and key=value on the command line describe."""
    path, settings = arguments.path, arguments.settings
    if path and ASSIGNMENT.match(path) and not os.path.exists(path):  # of a source without a path
        path, settings = None, [path, *settings]
    tree: dict[str, Any] = {"kind": arguments.kind} | ({} if path is None else {"path": path})
    for assignment in settings:
        override(tree, assignment)
    if path is not None and tree["kind"] == "digits":
        raise InputError(f"ingest: the source digits takes no path, found '{show(path)}'")
    if path is not None and tree["kind"] == "patches":
        of = "'of={kind: images, path: PATH, size: [HEIGHT, WIDTH]}'"
        raise InputError(f"ingest: patches are cut from another source, {of}, and take no path, found '{show(path)}'")
    try:
        return TypeAdapter(Source).validate_python(tree)
    except ValidationError as error:
        raise InputError(f"ingest: {explain(error, tree, Source)}") from None


def _would_write(source: RawSource, arguments: argparse.Namespace) -> dict[str, Any]:
    found = source.describe()
    layout = layout_of(found.shape, found.dtype)
    shards = list(plan_shards(found.sets, arguments.shard_size))
    number = sum(found.sets.values())
    size = sum(layout.shard_size(shard.count) for shard in shards) if isinstance(layout, ArrayLayout) else None
    if not arguments.json:
        what = f"{found.dtype} of {'×'.join(map(str, found.shape))}" if found.shape else "texts"
        print(f"{number:,} samples, {what}, values in [{found.low:g}, {found.high:g}]")
        for name, count in found.sets.items():
            print(f"  {name:<12} {count:>12,} samples, {found.labeled[name]:,} labeled")
        if found.classes:
            print(f"  {len(found.classes)} classes: {show(', '.join(found.classes))}")
        mib = f", {size / 2**20:,.1f} MiB" if size else ""
        print(f"{len(shards)} shards{mib} would go to {show(arguments.out, 4096)}")
    return found.to_json() | {"shards": len(shards), "bytes": size}


def verify(folder: Path, *, silent: bool) -> dict[str, Any]:
    """Checks every byte and says which samples are affected. Errors: Damaged."""
    findings = findings_in(folder)
    harmful = [finding for finding in findings if not finding.harmless]
    if not silent:
        for finding in findings:
            print(finding)
    if harmful:
        lost = len({number for finding in harmful for number in finding.samples})
        raise Damaged(
            f"{show(folder)}: {len(harmful)} of its files are damaged, {lost} samples affected; "
            f"ingest the source again into this folder to mend it"
        )
    number = Manifest.load(folder).num_samples
    if not silent:
        print(f"{show(folder, 4096)}: {number:,} samples, every byte as written")
    return {"samples": number, "findings": [str(finding) for finding in findings]}


def data_in(folder: Path, page: Path | None, *, silent: bool) -> dict[str, Any]:
    """Says what is in a folder of shards, and draws it as a page where one is asked for. Errors: OutputError."""
    contents = Contents(folder)
    if not silent:
        for line in data_lines.lines(contents):
            print(line)
    answer = contents.to_json() | {"page": None}
    if page is not None:
        data_page.write(contents, page)
        answer["page"] = str(page)
        if not silent:
            print(f"\npage      {show(page, 4096)}")
    return answer
