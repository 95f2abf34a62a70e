"""`strata search`: builds an index of packed codes, and shows what is nearest: a table, a picture, a page."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from conf.errors import InputError, OutputError, show
from conf.protocol import IndexJob, Query, SearchJob
from data import durable
from flows import markup, pictures, search_page
from flows.items import Item, Items
from flows.places import refuse_unwritable
from flows.progress import MAX_LINE, Reporter
from flows.search_page import Nearest, quoted, searched
from flows.search_server import Server
from flows.searcher import Searcher
from flows.stage import run_jobs

MAX_WITHIN = 1000  # of a radius, unless -k says more
COLUMNS = 8  # of a picture of one answer
ELSEWHERE = {  # options that say nothing about what is asked
    "build": ("k", "radius", "exact", "out", "crop", "model", "shards", "texts", "port"),
    "serve": ("k", "radius", "exact", "out", "crop", "kind", "recall"),
    "item": ("kind", "recall", "port", "crop"),
    "text": ("kind", "recall", "port", "crop"),
    "text_file": ("kind", "recall", "port", "crop"),
    "picture": ("kind", "recall", "port"),
    "codes": ("kind", "recall", "port", "crop"),
}


def search(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line asks for."""
    if not any((arguments.folder / name).exists() for name in ("codes.json", "index.json")):
        raise InputError(
            f"{show(arguments.folder)}: expected packed codes (strata encode --bits) or an index of them "
            "(strata search --build), found neither"
        )
    asked = next(name for name in ELSEWHERE if getattr(arguments, name) not in (None, False))
    for name in ELSEWHERE[asked]:
        if getattr(arguments, name) not in (None, False):
            option = "-k" if name == "k" else f"--{name}"
            raise InputError(f"{option} goes with another question than --{asked.replace('_', '-')}; leave it out")
    if arguments.build is not None:
        kind, recall = arguments.kind or "flat", 0.99 if arguments.recall is None else arguments.recall
        return build(arguments.folder, arguments.build, kind, recall, silent=arguments.json)
    job = SearchJob(
        folder=str(arguments.folder.absolute()),
        model=None if arguments.model is None else str(arguments.model.absolute()),
        shards=None if arguments.shards is None else str(arguments.shards.absolute()),
    )
    if arguments.serve:
        serve(job, arguments.port or 0, arguments.texts, debug=arguments.debug)
    query = _query(arguments)
    return look(
        job, query, arguments.item or [], arguments.out, arguments.texts, silent=arguments.json, debug=arguments.debug
    )


def _query(arguments: argparse.Namespace) -> Query:
    """What is looked for. Errors: InputError."""
    text = arguments.text
    if arguments.text_file is not None:
        try:
            text = durable.read_bytes(arguments.text_file).decode("utf-8", "replace")
        except OSError as error:
            raise InputError(f"--text-file {show(arguments.text_file)}: {(error.strerror or '').lower()}") from None
    default = 10 if arguments.radius is None else MAX_WITHIN
    picture, codes = (None if path is None else str(path.absolute()) for path in (arguments.picture, arguments.codes))
    try:
        return Query(
            text=text,
            picture=picture,
            codes=codes,
            k=default if arguments.k is None else arguments.k,
            radius=arguments.radius,
            exact=arguments.exact,
            crop=arguments.crop,
        )
    except ValidationError as error:
        said = error.errors()[0]
        name = "-k" if said["loc"] == ("k",) else "--radius"
        raise InputError(f"{name} {said['input']}: {said['msg'].lower()}") from None


def build(codes: Path, out: Path, kind: str, recall: float, *, silent: bool) -> dict[str, Any]:
    """An index of packed codes into OUT."""
    refuse_unwritable(out, "--build")
    if out.resolve() == codes.resolve():
        raise InputError(f"--build {show(out)}: holds the codes themselves; choose a folder for the index alone")
    try:
        job = IndexJob(codes=str(codes.absolute()), out=str(out.absolute()), kind=kind, recall=recall)  # type: ignore[arg-type]
    except ValidationError as error:
        raise InputError(f"--recall {recall:g}: {error.errors()[0]['msg'].lower()}") from None
    with tempfile.TemporaryDirectory(prefix="strata-") as folder, Reporter(silent=silent).bar("search", "codes") as bar:
        answer = run_jobs("search", [job], Path(folder) / "request.json", Path(folder) / "log.txt", bar)
    if not silent:
        print(searched(answer))
        for path in answer["written"]:
            print(path)
    return answer


def look(
    job: SearchJob,
    query: Query,
    items: Sequence[str],
    out: Path | None,
    texts: Path | None,
    *,
    silent: bool,
    debug: bool,
) -> dict[str, Any]:
    """Asks one query and shows the answer. items: as they were typed, in place of the query's."""
    if out is not None:
        refuse_unwritable(out)
        if out.suffix not in (".png", ".html"):
            raise InputError(f"--out {show(out)}: expected a name that ends in .png or .html")
    with Searcher(job, debug=debug) as searcher:
        about = searcher.about
        known, problem = _known(job, about, texts)
        if items:
            query = query.model_copy(update={"items": [_number(each, known) for each in items]})
        answers = searcher.ask(query)
    item = known.item if known else Item
    asked = [item(number) for number in query.items] if query.items is not None else [None] * len(answers)
    found = [
        Nearest(
            _asked(query, row, one),
            one,
            [(d, item(n)) for d, n in zip(answer["distances"], answer["numbers"], strict=True)],
            answer["within"],
        )
        for row, (one, answer) in enumerate(zip(asked, answers, strict=True))
    ]
    if not silent:
        for line in [searched(about), *([problem] if problem else []), *(li for each in found for li in _lines(each))]:
            print(show(line, MAX_LINE))
    if out is not None:
        _draw(out, about, found, known)
        if not silent:
            print(show(out, MAX_LINE))
    nearest = [
        {
            "query": each.asked,
            "within": each.within,
            "nearest": [{"distance": distance} | asdict(one) for distance, one in each.found],
        }
        for each in found
    ]
    return {"index": about, "answers": nearest, "written": [str(out)] if out else []}


def serve(job: SearchJob, port: int, texts: Path | None, *, debug: bool) -> None:
    """The page, until Ctrl-C. Errors: InputError where the shards are not at hand."""
    with Searcher(job, debug=debug) as searcher:
        known, problem = _known(job, searcher.about, texts)
        if known is None:
            raise InputError(problem)
        server = Server(searcher, known, port)
        try:
            print(f"{searched(searcher.about)}\n{server.address}   Ctrl-C ends it", flush=True)
            server.serve_forever()
        finally:
            server.server_close()


def _known(job: SearchJob, about: dict[str, Any], texts: Path | None) -> tuple[Items | None, str]:
    """The items behind the codes; or none, and why."""
    shards = job.shards or about["lay"].get("shards")
    if shards is None or (job.shards is None and not Path(shards).is_dir()):
        where = show(shards or "the shards", 4096)
        return None, f"{where}: no longer there, so items have numbers alone; name the shards by --shards"
    return Items(Path(shards), about["shards"], texts), ""


def _number(typed: str, known: Items | None) -> int:
    if known is not None:
        return known.number(typed)
    if not typed.isdecimal() or len(typed) > 18:
        raise InputError(f"--item {show(typed)}: expected a number")
    return int(typed)


def _asked(query: Query, row: int, item: Item | None) -> str:
    """What was looked for, in words."""
    if item is not None:
        return f"item {item.place or item.number}"
    if query.text is not None:
        return quoted(query.text)
    return f"code {row} of {show(query.codes)}" if query.codes is not None else show(query.picture)


def _lines(nearest: Nearest) -> list[str]:
    """A table."""
    said = [nearest.item.label, nearest.item.key, nearest.item.title] if nearest.item else []
    lines = ["", " · ".join([f"nearest to {nearest.asked}", *filter(None, said)]), nearest.headline()]
    rows = [("rank", "bits apart", "item", "class", "key", "title or words")]
    for rank, (distance, item) in enumerate(nearest.found, start=1):
        rows.append((str(rank), str(distance), item.place or str(item.number), item.label, item.key, item.title))
    shown = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in shown]
    if not nearest.found:
        return lines
    return lines + [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*shown, strict=True)
    ]


def _draw(out: Path, about: dict[str, Any], found: Sequence[Nearest], known: Items | None) -> None:
    """The answers as one picture, a row each where there are several, or as a page. Errors: InputError, OSError."""
    drawn = known if known is not None and known.are_pictures else None
    if out.suffix == ".html":

        def picture(item: Item) -> str:
            return markup.image(pictures.png(drawn.pictures([item.number])[0]), item.place) if drawn else ""

        body = search_page.answers(found, picture)
        return _write(out, search_page.page(about, body).encode("utf-8", "replace"))
    if drawn is None:
        raise InputError(f"--out {show(out)}: these items are no pictures; choose a name that ends in .html")
    rows = [[one for one in (each.item, *(item for _, item in each.found)) if one is not None] for each in found]
    width = max(map(len, rows))
    if not width:
        raise InputError(f"--out {show(out)}: nothing was found, so there is nothing to draw")
    blank = 0 * drawn.pictures([0]) + 255
    tiles = [list(drawn.pictures([item.number for item in row])) if row else [] for row in rows]
    if len(rows) > 1:
        tiles = [row + [blank[0]] * (width - len(row)) for row in tiles]
    columns = width if len(rows) > 1 else COLUMNS
    _write(out, pictures.grid(np.stack([tile for row in tiles for tile in row]), columns))


def _write(out: Path, content: bytes) -> None:
    try:
        durable.write_bytes(out, content)
    except OSError as error:
        raise OutputError(f"--out {show(out)}: {(error.strerror or str(error)).lower()}; choose another") from None
