"""What is in a folder of shards → one self-contained HTML page, in the style of a run's report.

One function a section; a section that has nothing to show is left out. What is NOT here: what is counted
(flows/contents.py), pieces of HTML (flows/markup.py), pixels and charts (flows/pictures.py, flows/charts.py).
"""

from __future__ import annotations

from pathlib import Path

from conf.errors import OutputError, show
from data import durable
from data.manifest import NAME
from flows import charts, data_words, pictures
from flows.contents import Contents
from flows.markup import card, cards, document, image, section, short_digest, table, text
from flows.wording import number, size

NUM_PICTURES = 64  # of each set
NUM_EXAMPLES = 12  # pictures of each class
MIN_ROWS, MAX_ROWS = 16, 64  # vectors of each set: a picture no taller than wide
MAX_COLUMNS = 640  # values of them that are drawn
NUM_CLASSES = 200  # in the table
NUM_ILLUSTRATED = 40  # of them with pictures
TEXT_LENGTH, KEY_LENGTH = 300, 80  # characters shown of a text and of its key


def write(contents: Contents, path: Path) -> None:
    """Draws the page. Errors: OutputError."""
    inside = path.absolute().parent.resolve() == contents.manifest.folder.resolve()
    if inside and path.name in (NAME, *contents.manifest.files):
        raise OutputError(f"--page {show(path)}: a file of the shards themselves; choose another place")
    if not path.name:
        raise OutputError(f"--page {show(path)}: names no file; choose one, such as page.html")
    try:
        durable.write_bytes(path, page(contents).encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"--page {show(path)}: {reason}; choose another place") from None


def page(contents: Contents) -> str:
    parts = (header, sets, samples, classes, duplicates, values, features, provenance)
    body = "\n".join(filter(None, (part(contents) for part in parts)))
    footer = "Drawn by strata from a folder of shards. One file; it loads nothing."
    return document(f"{_name(contents)} · strata data", body, footer)


def _name(contents: Contents) -> str:
    return show(contents.manifest.folder.absolute().name or contents.manifest.folder, 200)


def _number(value: float) -> str:
    """Whole numbers whole, others with four digits."""
    return f"{value:,.0f}".replace("-", "−") if value == round(value) and abs(value) < 1e6 else number(value, 4)


# --- the sections, from top to bottom --------------------------------------------------------------------------------


def header(contents: Contents) -> str:
    where = f"<code>{text(show(contents.manifest.folder.absolute(), 4096))}</code>"
    lead = f"{text(data_words.headline(contents))}. {text(data_words.copies(contents))}"
    title = f"<h1>{text(_name(contents))}</h1>"
    return f'<header>\n{title}\n<p class="about">{where}</p>\n<p class="lead">{lead}</p>\n</header>'


def sets(contents: Contents) -> str:
    manifest = contents.manifest
    of = "length, bytes" if manifest.holds_texts else "value"
    columns = [("set", "tight"), ("samples", "number"), ("labeled", "number"), (f"mean {of}", "number"),
               ("std", "number"), ("lowest", "number"), ("highest", "number"), ("shards", "number"),
               ("bytes", "number")]  # fmt: skip
    rows = []
    for name, found in manifest.sets.items():
        shards, total = contents.shards_of(name)
        numbers = [_number(value) for value in (found.mean, found.std, found.low, found.high)]
        rows.append(("", [f"<b>{text(name)}</b>", f"{found.samples:,}", f"{found.labeled:,}", *numbers,
                          f"{shards:,}", size(total)]))  # fmt: skip
    what = "the lengths of texts" if manifest.holds_texts else "all values of a sample (stored number / scale)"
    note = (
        f"The source's own sets. Mean, standard deviation and range are those of {what}, over all samples. "
        "Where they differ much between sets, what is learned on one may not carry over to the other. "
        "A recipe's <code>split</code> takes validation and test samples out of <code>train</code> where the "
        "source has no such set."
    )
    return section("Sets", table(columns, rows), note)


def samples(contents: Contents) -> str:
    manifest = contents.manifest
    if manifest.holds_texts:
        return _texts(contents)
    shown = []
    for name in manifest.sets:
        if manifest.image_shape:
            rows = contents.rows_of(name, NUM_PICTURES)
            picture = pictures.grid(pictures.gray(contents.pictures(rows)), 8)
        else:
            rows = contents.rows_of(name, min(MAX_ROWS, max(MIN_ROWS, manifest.num_values)))
            picture = pictures.heat(contents.values(rows)[:, :MAX_COLUMNS])
        if len(rows):
            small = f"{len(rows):,} of {manifest.sets[name].samples:,} samples"
            shown.append(card(f"<b>{text(name)}</b>", small, image(picture, f"samples of {name}")))
    if manifest.image_shape:
        mean = pictures.grid(pictures.gray(contents.as_pictures(contents.feature_mean[None])), 1)
        shown.append(card("<b>mean</b>", "over all samples", image(mean, "mean of all samples")))
    if manifest.image_shape:
        note = (
            "Drawn evenly from the whole set, in its order, not chosen. Look for pictures that are empty, turned, cut "
            "or of another kind. The mean shows what all have in common: where it is sharp, pictures are aligned."
        )
    else:
        cut = f" (the first {MAX_COLUMNS} of {manifest.num_values:,})" if manifest.num_values > MAX_COLUMNS else ""
        note = (
            f"One row a sample, one column a value{cut}; red is above zero, blue below, white zero. Drawn evenly from "
            "the whole set. Columns of one colour hardly vary; a few columns that outshine all others ask for "
            "standardization."
        )
    return section("Samples", cards(shown), note)


def _texts(contents: Contents) -> str:
    columns = [("set", "tight"), ("class and key", ""), ("beginning of the text", "text")]
    rows = []
    for sample, content in zip(contents.drawn.tolist(), contents.texts, strict=True):
        beginning = show(" ".join(content[: 2 * TEXT_LENGTH].split()), TEXT_LENGTH)
        set_name, class_name, key = (text(show(part, KEY_LENGTH)) for part in contents.of(sample))
        named = f"<b>{class_name}</b><br>" if class_name else ""
        rows.append(("", [set_name, f"{named}<code>{key}</code>", text(beginning)]))
    note = "Drawn evenly from all sets, in their order, not chosen; white space is folded."
    return section("Samples", table(columns, rows), note)


def classes(contents: Contents) -> str:
    names, counts, totals = contents.manifest.classes, contents.labels, contents.class_sizes
    if not totals.any():
        return ""
    own = [name for name in counts if counts[name].any()]
    illustrated = contents.manifest.image_shape and len(names) <= NUM_ILLUSTRATED
    columns = [("class", ""), *((text(name), "number") for name in own), ("share", "wide")]
    columns += [("samples", "")] if illustrated else []
    rows = []
    for label, total in enumerate(totals[:NUM_CLASSES].tolist()):
        bar = f'<span class="bar" style="width:{100 * total / totals.max():.1f}%" title="{total / totals.sum():.2%}">'
        cells = [f"<b>{text(show(contents.class_name(label)))}</b>", *(f"{counts[name][label]:,}" for name in own)]
        rows.append(("", [*cells, f"{bar}</span>", *([_examples(contents, own[0], label)] if illustrated else [])]))
    more = f"<p>… and {len(totals) - NUM_CLASSES:,} more classes.</p>" if len(totals) > NUM_CLASSES else ""
    unlabeled = contents.manifest.num_samples - int(totals.sum())
    note = (
        f"Samples of each class, counted over all labels; {unlabeled:,} samples have no label. With classes of very "
        "different sizes an error in percent says little: always answering the largest would be wrong for "
        f"{1 - totals.max() / totals.sum():.1%}."
    )
    return section(f"{len(totals):,} classes", table(columns, rows) + more, note)


def _examples(contents: Contents, set_name: str, label: int) -> str:
    rows = contents.rows_of(set_name, NUM_EXAMPLES, label)
    if not len(rows):
        return "–"
    strip = pictures.grid(pictures.gray(contents.pictures(rows)), NUM_EXAMPLES)
    return image(strip, f"samples of class {show(contents.class_name(label))}")


def duplicates(contents: Contents) -> str:
    if not contents.manifest.num_duplicates:
        return ""
    columns = [("copies in", "tight"), ("of samples in", "tight"), ("number", "number"), ("of the set", "number")]
    rows = [
        ("", [text(copy), text(first), f"{n:,}", f"{n / contents.manifest.sets[copy].samples:.2%}"])
        for (copy, first), n in contents.copies.items()
    ]
    note = (
        "Samples whose content, bit for bit, an earlier one has. Copies across sets make a test easier than new data "
        "would be; <code>split: {duplicates: drop}</code> in a recipe leaves copies out."
    )
    if contents.num_relabeled:
        note += f" {contents.num_relabeled:,} copies bear another label than the first sample."
    return section("Copies", table(columns, rows), note)


def values(contents: Contents) -> str:
    texts = contents.manifest.holds_texts
    histogram = contents.shown_histogram
    names = data_words.bin_names(histogram, texts)
    label = "length of a text, bytes" if texts else "value"
    edges = None if histogram.at is not None else [charts.label(float(f"{edge:.3g}")) for edge in histogram.edges]
    chart = charts.bars(names, histogram.shares.tolist(), edges, label, label)
    note = f"{text(data_words.values_of(contents))} Point at a column to see its range and share."
    if contents.num_constant:
        note += " A value that is the same everywhere tells a model nothing."
    return section("Lengths" if texts else "Values", f'<figure class="plot">{chart}</figure>', note)


def features(contents: Contents) -> str:
    if len(contents.manifest.shape) != 1:
        return ""
    columns = [("value", ""), ("mean", "number"), ("std", "number"), ("lowest", "number"), ("highest", "number"),
               ("histogram", "")]  # fmt: skip
    rows = []
    for each in contents.features:
        numbers = [_number(value) for value in (each.mean, each.std, each.low, each.high)]
        line = charts.sparkline(each.histogram.shares.tolist(), f"histogram of {show(each.name)}")
        rows.append(("", [f"<b>{text(show(each.name))}</b>", *numbers, line]))
    total = contents.manifest.num_values
    which = "Every value of a sample" if len(rows) == total else f"The {len(rows)} of {total:,} values that vary most"
    note = (
        f"{which}; the mean is that of all samples, the rest that of {text(data_words.drawn(contents))}. "
        "Each histogram runs from the lowest to the highest."
    )
    return section("Value by value", table(columns, rows), note)


def provenance(contents: Contents) -> str:
    manifest = contents.manifest
    schema = "text" if manifest.holds_texts else f"{manifest.dtype}, {'×'.join(map(str, manifest.shape))}"
    scale = "–" if manifest.holds_texts else f"{manifest.scale:g}"
    digests = (manifest.samples_digest, manifest.labels_digest, manifest.content, manifest.digest)
    columns = [(name, "tight") for name in ("source", "stored as", "scale", "samples per shard", "bytes",
                                            "samples digest", "labels digest", "raw content", "manifest")]  # fmt: skip
    row = [text(show(manifest.source)), text(schema), scale, f"{manifest.shard_size:,}", size(contents.num_bytes)]
    note = (
        "A value is the stored number divided by the scale. Folders with equal digests hold the same samples and the "
        "same labels, whatever they are called and wherever they lie. The samples on this page were compared with "
        "their checksums; <code>strata verify</code> does so for every byte."
    )
    return section("Provenance", table(columns, [("", [*row, *map(short_digest, digests)])]), note)
