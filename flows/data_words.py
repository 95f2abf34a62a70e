"""What is in a folder of shards, in the words that its lines and its page share. Plain text, one line each."""

from __future__ import annotations

from conf.errors import show
from flows.contents import Contents, Histogram
from flows.wording import listed, size


def headline(contents: Contents) -> str:
    """`70,000 samples of 28×28, uint8 / 255, from an idx source, in 7 shards, 96.1 MiB`."""
    manifest = contents.manifest
    several = "s" * (manifest.num_samples != 1)
    if manifest.holds_texts:
        what = f"text{several}"
    else:
        scaled = f" / {manifest.scale:g}" if manifest.scale != 1 else ""
        values = "" if manifest.image_shape else " values"
        what = f"sample{several} of {'×'.join(map(str, manifest.shape))}{values}, {manifest.dtype}{scaled}"
    shards = f"{len(manifest.shards):,} shard{'s' * (len(manifest.shards) != 1)}"
    whence = f"from a source of kind {show(manifest.source)}"
    return f"{manifest.num_samples:,} {what}, {whence}, in {shards}, {size(contents.num_bytes)}"


def copies(contents: Contents) -> str:
    """One sentence on exact duplicates."""
    number = contents.manifest.num_duplicates
    if not number:
        return "No two samples have the same content."
    said = [
        f"{n:,} within {copy}" if copy == first else f"{n:,} in {copy} of samples in {first}"
        for (copy, first), n in contents.copies.items()
    ]
    across = f"{contents.num_crossing:,} of them across sets" if contents.num_crossing else "none of them across sets"
    other = f", {contents.num_relabeled:,} with another label" if contents.num_relabeled else ""
    what = "sample is a copy of an earlier one" if number == 1 else "samples are copies of earlier ones"
    return f"{number:,} {what}, {across}{other}: {listed(said)}."


def drawn(contents: Contents) -> str:
    """Which samples a histogram rests on."""
    if contents.manifest.holds_texts:
        return f"all {contents.manifest.num_samples:,} texts"
    number, total = len(contents.drawn), contents.manifest.num_samples
    return f"all {total:,} samples" if number == total else f"{number:,} of {total:,} samples, drawn evenly"


def values_of(contents: Contents) -> str:
    """What a histogram shows, as a heading."""
    if contents.manifest.holds_texts:
        return f"Lengths in bytes of {drawn(contents)}."
    zeros = f"{percent(contents.share_of_zeros)} are 0" + (" (not in this histogram)" if contents.zeros_apart else "")
    same = f"{contents.num_constant:,} of a sample's {contents.manifest.num_values:,} are the same in each of these"
    return f"Values of {drawn(contents)}: {zeros}{f'; {same}' if contents.num_constant else ''}."


def percent(share: float) -> str:
    """`12.3%`; neither none nor all is said of what is only nearly so."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 < share < 1 else f"{share:.1%}"


def bin_names(histogram: Histogram, lengths: bool) -> list[str]:
    """`0.05 to 0.1` for every bin, its value where it has only one, `100 to 199` for whole numbers."""
    if histogram.at is not None:
        return [f"{value:.4g}" for value in histogram.at]
    pairs = zip(histogram.edges[:-1].tolist(), histogram.edges[1:].tolist(), strict=True)
    if lengths:
        return [f"{low:,} to {high - 1:,}" if high - low > 1 else f"{low:,}" for low, high in pairs]
    return [f"{low:.4g} to {high:.4g}" for low, high in pairs]
