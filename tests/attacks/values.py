"""Values, shapes and labels that would make a model silently wrong."""

from __future__ import annotations

import csv
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from conf.protocol import Description, PlanJob
from conf.reading import read
from data.shards import ingest
from data.sources import whole
from lightning_modules import planning
from tests.attacks import Halves, attack
from tests.attacks.files import npy, samples, shard, source
from tests.shard_folders import given


def all_finite(values: np.ndarray) -> np.ndarray:
    return np.ones(len(values), bool)


@attack(("NaN", np.nan), ("infinity", np.inf), ("minus infinity", -np.inf), ("too large for 32 bits", 1e39))
def an_array_with(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, float]) -> Halves:
    values = np.arange(12.0).reshape(4, 3)
    values[2, 1] = variant[1]
    np.save(folder / "a.npy", values)
    yield "value 1 of sample 2 is", lambda: samples("arrays", folder / "a.npy")
    patch.setattr(whole, "_check_finite", lambda *_: None)
    with np.errstate(all="ignore"):
        yield not np.isfinite(np.stack(samples("arrays", folder / "a.npy")).astype(np.float32).mean())


@attack(("npy in a foreign shard", "npy"), ("csv", "csv"), ("wav", "wav"))
def a_sample_that_is_no_number(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str]) -> Halves:
    (folder / "in").mkdir()
    if variant[1] == "npy":
        path = shard(folder / "a.tar", ("a.npy", npy([1.0, 2])), ("b.npy", npy([np.nan, 2])))
        yield "NaN", lambda: samples("webdataset", path)
        patch.setattr("data.sources.fields.finite", all_finite)
        yield bool(np.isnan(samples("webdataset", path)[1]).any())
    if variant[1] == "csv":
        (folder / "a.csv").write_text("a,b\n1,2\n3,nan\n")
        yield "row 1, column 'b': expected a finite", lambda: samples("table", folder / "a.csv")
        yield bool(np.isnan(np.genfromtxt(folder / "a.csv", delimiter=",", skip_header=1)).any())
    sound = np.zeros(40_000, "<f4")
    sound[700] = np.nan
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    body += b"data" + struct.pack("<I", sound.nbytes) + sound.tobytes()
    (folder / "in" / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    yield "outside −1 … 1 or NaN", lambda: samples("audio", folder / "in")
    patch.setattr("data.sources.wav.np.abs", lambda values: np.zeros(1))
    yield bool(np.isnan(samples("audio", folder / "in")[0]).any())


@attack(("of another shape", np.zeros((3, 3), np.float32)), ("of another dtype", np.zeros((3, 2))))
def one_sample(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, np.ndarray]) -> Halves:
    opened = given()
    opened.tables = {name: list(table) for name, table in opened.tables.items()}  # type: ignore[misc]
    opened.tables["train"][4] = variant[1]  # type: ignore[index]
    yield "train sample row 4", lambda: ingest(opened, folder / "out" / "a", shard_size=4)
    if variant[1].shape != (3, 2):
        yield np.concatenate([each.ravel() for each in opened.tables["train"]]).size == 7 * 6 + 3  # all shifted
    yield np.stack(list(opened.tables["train"])).dtype == np.float64


@attack("shape", "dtype")
def arrays_of_a_foreign_shard_that_differ_in(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    other = npy([1, 2, 3]) if what == "shape" else npy([1.5, 2.5])
    path = shard(folder / "a.tar", ("a.npy", npy([1, 2])), ("b.npy", other))
    yield "need one shape and dtype", lambda: samples("webdataset", path)
    import webdataset

    found = [sample["npy"] for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode()]
    yield found[0].shape != found[1].shape or np.stack(found).dtype != found[0].dtype


@attack(("too few values", "a,b\n1,2\n3\n"), ("too many values", "a,b\n1,2\n3,4,5\n"))
def a_ragged_table(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str]) -> Halves:
    (folder / "a.csv").write_text(variant[1])
    yield "row 1 has", lambda: samples("table", folder / "a.csv")
    with (folder / "a.csv").open() as file:
        rows: list[Any] = list(csv.DictReader(file))
    yield len(rows) == 2 and (rows[1].get("b") is None or None in rows[1])


@attack(("open to the end", 'a,b\n1,"2\n3,4\n5,6\n'), ("closed too late", 'a,b\n1,"2\n3,"4\n5,6\n'))
def a_quote_that_swallows_rows(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str]) -> Halves:
    (folder / "a.csv").write_text(variant[1])
    yield "a quote|still open", lambda: samples("table", folder / "a.csv", text="b")
    patch.setattr("data.sources.delimited._Quotes._check", lambda *_: None)
    yield source("table", folder / "a.csv", text="b").describe().sets["train"] < 3


@attack("empty cell", "word", "two columns of a name", "a number that would be rounded")
def a_table_that_means_nothing(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    text = {
        "empty cell": "a,b\n1,2\n3,\n",
        "word": "a,b\n1,2\n3,NA\n",
        "two columns of a name": "a,a\n1,2\n3,4\n",
        "a number that would be rounded": "a,b\n1,2\n3,9007199254740993\n",
    }[what]
    (folder / "a.csv").write_text(text)
    yield "expected a number|two columns are called", lambda: samples("table", folder / "a.csv")
    with (folder / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    if what == "two columns of a name":
        yield rows[1] == {"a": "4"}
    if what == "a number that would be rounded":
        yield int(float(rows[1]["b"])) != int(rows[1]["b"])
    yield bool(np.isnan(np.genfromtxt(folder / "a.csv", delimiter=",", skip_header=1)[1, 1]))


@attack(("of -100", [0, 1, -100, 1]), ("of a half", [0, 1, 0.5, 1]), ("too few", [0, 1, 1]), ("one-hot", np.eye(4)))
def labels(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, Any]) -> Halves:
    found = np.array(variant[1])
    np.savez(folder / "a.npz", x=np.arange(8.0).reshape(4, 2), y=found)
    yield "label", lambda: samples("arrays", folder / "a.npz") and source("arrays", folder / "a.npz").labels("train")
    if variant[0] == "of -100":
        loss = functional.cross_entropy(torch.zeros(1, 2), torch.tensor([-100]))
        yield bool(torch.isnan(loss))
    if variant[0] == "of a half":
        yield found.astype(np.int64).tolist() == [0, 1, 0, 1]
    yield len(list(zip(range(4), found.ravel(), strict=False))) == (3 if variant[0] == "too few" else 4)


@attack("-100", "0.5", "not UTF-8", "2 kB")
def a_label_of_a_foreign_shard(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    content = {"not UTF-8": b"\xff", "2 kB": b"x" * 2000}.get(what, what.encode())
    path = shard(folder / "a.tar", ("a.npy", npy([1, 2])), ("a.cls", content))
    yield "a.tar", lambda: samples("webdataset", path)
    if what == "-100":
        yield int(content) == -100 and bool(functional.cross_entropy(torch.zeros(1, 2), torch.tensor([-100])).isnan())
    if what == "0.5":
        yield int(float(content)) == 0
    yield len(content.decode(errors="replace")) in (1, 2000)  # a class of that name


@attack("rbm", "autoencoder", "vae")
def values_outside_of_what_a_model_takes(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    """0 … 255 for Bernoulli units: a loss of less than nothing."""
    arguments = {"rbm": "num_hidden: 4", "autoencoder": "num_hidden: 4", "vae": "num_latent: 2, hidden: [4]"}[kind]
    text = f"name: x\ndata: {{source: {{kind: digits}}}}\nstages:\n  one: {{model: {{kind: {kind}, {arguments}}}}}\n"
    (folder / "recipe.yaml").write_text(text)
    sizes = {"train": 10, "validation": 0, "test": 0}
    found = Description(shape=[8], low=0.0, high=255.0, sizes=sizes, labeled=0, labeled_test=0, num_classes=0)
    job = PlanJob(recipe=read(folder / "recipe.yaml", []), descriptions={"data": found})
    fitting = found.model_copy(update={"high": 1.0})
    planning.plan(job.model_copy(update={"descriptions": {"data": fitting}}))  # so that it is the values alone
    yield "stage one: .*255", lambda: planning.plan(job)
    patch.setattr(planning, "_check_range", lambda *_: None)
    planned = planning.plan(job)
    loss = functional.binary_cross_entropy_with_logits(torch.ones(8), torch.full((8,), 255.0))
    yield len(planned.stages) == 1 and float(loss) < 0


@attack("array", "pictures", "table", "text", "foreign shard", "counts")
def an_empty(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    (folder / "in").mkdir()
    path = folder / "in"
    kind = {"array": "arrays", "pictures": "images", "foreign shard": "webdataset"}.get(what, what)
    if what == "array":
        path = folder / "a.npy"
        np.save(path, np.zeros((0, 3)))
    elif what in ("table", "text", "counts"):
        path = folder / "a.txt"
        path.write_text("a,b\n" if what == "table" else "\n\n")
    elif what == "foreign shard":
        path = shard(folder / "a.tar")
    yield "no |nothing", lambda: samples(kind, path)
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        yield bool(np.isnan(np.zeros((0, 3)).mean()))


@attack("text", "table", "idx", "npy")
def a_file_of_no_bytes(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    path = folder / "in" / {"text": "a", "table": "a.csv", "idx": "train-images-idx3-ubyte", "npy": "a.npy"}[what]
    path.parent.mkdir()
    path.write_bytes(b"")
    kind, place = {"npy": "arrays"}.get(what, what), path.parent if what in ("text", "idx") else path
    yield f"{path.name}: ", lambda: samples(kind, place)
    if what in ("text", "table"):
        yield path.read_text() == "" and not list(csv.DictReader([]))
    yield len(np.fromfile(path, np.uint8)) == 0


@attack("arrays", "table", "foreign shard")
def a_data_set_that_is_constant(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    if what == "arrays":
        path, kind = folder / "a.npy", "arrays"
        np.save(path, np.full((5, 2), 3.0))
    elif what == "table":
        path, kind = folder / "a.csv", "table"
        path.write_text("a,b\n3,3\n3,3\n")
    else:
        path, kind = shard(folder / "a.tar", ("a.npy", npy([3, 3])), ("b.npy", npy([3, 3]))), "webdataset"
    yield "nothing to learn", lambda: samples(kind, path)
    values = np.full((5, 2), 3.0)
    with np.errstate(all="ignore"):
        yield bool(np.isnan((values - values.mean()) / values.std()).all())


@attack("2:-1", "2:0.5", "2:2 2:3", "0:1", "1:4294967296", "1:1 \x1b[2J")
def a_line_of_counts(folder: Path, patch: pytest.MonkeyPatch, line: str) -> Halves:
    (folder / "a.txt").write_text(f"1:1 2:1\n{line}\n")
    yield "a.txt:2: ", lambda: samples("counts", folder / "a.txt")
    vector = np.zeros(4, np.uint32)
    for pair in line.split()[:2]:
        place, _, count = pair.partition(":")
        if count:
            with np.errstate(all="ignore"):
                vector[int(place) - 1] = np.float64(count).astype(np.int64).astype(np.uint32)
    right = {int(pair.split(":")[0]): float(pair.split(":")[1]) for pair in line.split() if ":" in pair}
    yield (
        "\x1b" in line
        or [float(vector[place - 1]) for place in right] != list(right.values())
        or (len(right) < len(line.split()) or 0 in right)
    )


@attack("utf-8", "latin-1 in a table", "utf-16")
def a_text_of_another_encoding(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    content = {"utf-8": "größer".encode("latin-1"), "utf-16": "größer".encode("utf-16")}
    path = folder / ("a.csv" if "table" in what else "a.txt")
    path.write_bytes(content.get(what, b"a,b\n1,gr\xf6\xdfer\n"))
    asked = {"kind": "table", "text": "b"} if "table" in what else {"kind": "text"}
    yield "UTF-8", lambda: samples(path=path, **asked)
    yield "\ufffd" in path.read_text(errors="replace")
