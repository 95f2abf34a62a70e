"""What is in a folder of shards, as lines for a terminal of 100 columns.

Histograms are drawn in eighths of a character, pictures in five shades. Whatever a data set says of itself (texts,
keys, names of classes and columns) is printed without its control characters.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np

from conf.errors import show
from flows.contents import Contents
from flows.data_words import bin_names, copies, headline, percent, values_of
from flows.wording import size

WIDTH = 100  # columns
NUM_CLASSES = 30  # printed
NUM_FEATURES = 12
NUM_TEXTS = 10
NUM_VECTORS = 5
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"
_SHADES = np.array(list(" ░▒▓█"))
_PICTURE = 20, 10  # columns and lines of one picture, at most


def lines(contents: Contents) -> Iterator[str]:
    """The whole answer of `strata data`, a section after another."""
    yield show(contents.manifest.folder, 4096)
    yield from textwrap.wrap(headline(contents), WIDTH)
    for part in (_sets, _classes, _copies, _values, _features, _samples, _digests):
        if found := list(part(contents)):
            yield from ("", *found)


# --- the sections ----------------------------------------------------------------------------------------------------


def _sets(contents: Contents) -> Iterator[str]:
    manifest = contents.manifest
    mean = "mean length" if manifest.holds_texts else "mean"
    rows = [["set", "samples", "labeled", "shards", "bytes", mean, "std", "range"]]
    for name, found in manifest.sets.items():
        number, total = contents.shards_of(name)
        rows.append([
            name, f"{found.samples:,}", f"{found.labeled:,}", f"{number:,}", size(total), f"{found.mean:.4g}",
            f"{found.std:.4g}", f"{found.low:g} to {found.high:g}",
        ])  # fmt: skip
    yield from _table(rows)


def _classes(contents: Contents) -> Iterator[str]:
    classes, sets, totals = contents.manifest.classes, contents.labels, contents.class_sizes
    if not totals.any():
        return
    columns = [name for name in sets if sets[name].any()]
    rows = [[f"{len(classes):,} classes", *columns]]
    rows += [[contents.class_name(i), *(f"{sets[name][i]:,}" for name in columns)] for i in range(len(classes))]
    shown = list(_table(rows[: NUM_CLASSES + 1], widest=40))
    yield shown[0]
    room = WIDTH - max(map(_width, shown)) - 3
    for line, total in zip(shown[1:], totals, strict=False):
        yield f"{line}  {_bar(total / max(totals), min(room, 40))}".rstrip()
    if len(classes) > NUM_CLASSES:
        rest = int(totals[NUM_CLASSES:].sum())
        yield f"… and {len(classes) - NUM_CLASSES:,} more classes with {rest:,} samples"


def _copies(contents: Contents) -> Iterator[str]:
    yield from textwrap.wrap(copies(contents), WIDTH)


def _values(contents: Contents) -> Iterator[str]:
    yield from textwrap.wrap(values_of(contents), WIDTH)
    histogram = contents.shown_histogram
    names = bin_names(histogram, contents.manifest.holds_texts)
    widest, most = max(map(len, names)), max(histogram.shares)
    for name, share in zip(names, histogram.shares, strict=True):
        yield f"{name:>{widest}}  {_bar(share / most, 50):<50} {percent(share):>7}"


def _features(contents: Contents) -> Iterator[str]:
    if len(contents.manifest.shape) != 1:
        return
    found = contents.features[:NUM_FEATURES]
    rows = [["value", "mean", "std", "lowest", "highest", "histogram"]]
    for each in found:
        shares = each.histogram.shares
        marks = "".join(_LEVELS[int(np.ceil(8 * share))] for share in shares / max(shares))
        rows.append([each.name, *(f"{number:.4g}" for number in (each.mean, each.std, each.low, each.high)), marks])
    yield from _table(rows, widest=40, left=(0, 5))
    rest = contents.manifest.num_values - len(found)
    if rest:
        yield f"… and {rest:,} more values"


def _samples(contents: Contents) -> Iterator[str]:
    manifest = contents.manifest
    if manifest.holds_texts:
        number = min(NUM_TEXTS, len(contents.drawn))
        rows = (np.arange(number) * len(contents.drawn) // number).tolist()
        for row in rows:
            set_name, class_name, key = contents.of(int(contents.drawn[row]))
            where = _fit(" ".join(filter(None, (set_name, class_name, key))), 36)
            yield _fit(f"{where}{' ' * (36 - _width(where))}  {' '.join(contents.texts[row].split())}", WIDTH)
        return
    for name in manifest.sets:
        if manifest.image_shape:
            rows_drawn = contents.rows_of(name, WIDTH // (_PICTURE[0] + 3))
            yield from _pictures(contents, rows_drawn)
            continue
        for row in contents.rows_of(name, NUM_VECTORS).tolist():
            set_name, class_name, key = contents.of(int(contents.drawn[row]))
            values = " ".join(f"{value:.3g}" for value in contents.values(np.array([row]))[0].reshape(-1)[:40])
            where = _fit(" ".join(filter(None, (set_name, class_name, key))), 28)
            yield _fit(f"{where}{' ' * (28 - _width(where))}  {values}", WIDTH)


def _digests(contents: Contents) -> Iterator[str]:
    manifest = contents.manifest
    yield f"samples   {manifest.samples_digest}"
    yield f"labels    {manifest.labels_digest}"
    yield f"manifest  {manifest.digest}"


# --- pieces ----------------------------------------------------------------------------------------------------------


def _pictures(contents: Contents, rows: np.ndarray) -> Iterator[str]:
    """Pictures side by side, with set and class beneath."""
    drawings, width = [], 0
    for picture in contents.pictures(rows):
        columns = min(_PICTURE[0], 2 * picture.shape[1])
        height = min(_PICTURE[1], max(1, round(picture.shape[0] / picture.shape[1] * columns / 2)))
        gray = _resized(picture.mean(axis=-1) if picture.ndim == 3 else picture, height, columns)
        shades = _SHADES[(gray.clip(0, 1) * (len(_SHADES) - 1)).round().astype(int)]
        drawings.append(["".join(line) for line in shades])
        width = columns
    for line in zip_longest(*drawings, fillvalue=""):
        yield "   ".join(f"{part:<{width}}" for part in line).rstrip()
    names = [contents.of(int(number)) for number in contents.drawn[rows]]
    captions = (_fit(f"{set_name} {class_name or key}", width) for set_name, class_name, key in names)
    yield "   ".join(f"{caption}{' ' * (width - _width(caption))}" for caption in captions).rstrip()


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Means over the pixels under each character."""
    for axis, number in ((0, height), (1, width)):
        length = picture.shape[axis]
        starts = np.arange(number) * length // number
        ends = np.maximum(starts + 1, (np.arange(number) + 1) * length // number)
        parts = [picture.take(range(start, end), axis).mean(axis) for start, end in zip(starts, ends, strict=True)]
        picture = np.stack(parts, axis)
    return picture


def _bar(share: float, width: int) -> str:
    """A bar of `share` of the width; anything above 0 is seen."""
    eighths = max(int(share > 0), round(share * width * 8))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _table(rows: Sequence[Sequence[str]], widest: int = WIDTH, left: Sequence[int] = (0,)) -> Iterator[str]:
    """Columns side by side, numbers to the right; the first is cut to `widest` columns."""
    shown = [[_fit(row[0], widest), *row[1:]] for row in rows]
    widths = [max(_width(row[column]) for row in shown) for column in range(len(shown[0]))]
    for row in shown:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(cell + space if column in left else space + cell)
        yield _fit("  ".join(cells).rstrip(), WIDTH)


def _fit(text: str, columns: int) -> str:
    """Printable, on one line, at most so many columns wide."""
    printable = show(text, 4 * WIDTH)
    if _width(printable) <= columns:
        return printable
    kept, used = [], 0
    for character in printable:
        used += _width(character)
        if used > columns - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _width(text: str) -> int:
    """Columns of a terminal: East Asian wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
