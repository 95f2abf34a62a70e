"""Sources that several processes read at once: the same shards, byte for byte; and the same from an address."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from scipy.io import savemat

import conf
from data.ingest import ingest
from data.sources import RawSource, open_source
from data.verification import verify
from tests.raw_folders import RANDOM, colleague
from tests.shard_folders import contents

ROWS = 45
WORDS = [" ".join(RANDOM.choice(["cat", "dog", "ünder", "the", "sat"], 6)) for _ in range(ROWS)]
NUMBERS = RANDOM.normal(size=(ROWS, 3)).astype(np.float32)
SETS = [("train", "test", "train")[row % 3] for row in range(ROWS)]


def _csv(folder: Path) -> Path:
    rows = [f'{a},{b},{c},class {row % 4},{SETS[row]},"{WORDS[row]}"' for row, (a, b, c) in enumerate(NUMBERS.tolist())]
    (folder / "t.csv").write_text("\n".join(["a,b,c,y,part,body", *rows]) + "\n")
    return folder / "t.csv"


def csv(folder: Path) -> RawSource:
    return open_source(
        conf.TableSource(kind="table", path=str(_csv(folder)), columns=["c", "a"], label="y", set="part")
    )


def csv_texts(folder: Path) -> RawSource:
    return open_source(conf.TableSource(kind="table", path=str(_csv(folder)), text="body", label="y", set="part"))


def csv_words(folder: Path) -> RawSource:
    return open_source(conf.TableSource(kind="table", path=str(_csv(folder)), text="body", vocabulary=4))


def csv_pictures(folder: Path) -> RawSource:
    for row in range(ROWS):
        Image.new("L", (4, 4), 5 * row).save(folder / f"{row}.png")
    (folder / "p.csv").write_text("file\n" + "".join(f"{row}.png\n" for row in range(ROWS)))
    return open_source(conf.TableSource(kind="table", path=str(folder / "p.csv"), image="file", size=[4, 4]))


def parquet_numbers(folder: Path) -> RawSource:
    columns = {name: NUMBERS[:, place] for place, name in enumerate("abc")} | {"y": np.arange(ROWS) % 4, "part": SETS}
    parquet.write_table(pa.table(columns), folder / "t.parquet", row_group_size=7)
    return open_source(conf.TableSource(kind="table", path=str(folder / "t.parquet"), label="y", set="part"))


def counts(folder: Path) -> RawSource:
    (folder / "d").mkdir()
    for name in ("train", "test"):
        lines = [f"{row % 3} {row % 5}:1 {5 + row % 7}:{row}\n" if row % 6 else "1 \n" for row in range(ROWS)]
        (folder / "d" / f"{name}.svm").write_text("".join(lines))
    return open_source(conf.CountsSource(kind="counts", path=str(folder / "d"), leading="label", first_id=0))


def foreign(folder: Path) -> RawSource:
    (folder / "w").mkdir()
    for shard in range(3):
        with tarfile.open(folder / "w" / f"train-{shard}.tar", "w") as tar:
            for row in range(shard * 15, shard * 15 + 15):
                content = io.BytesIO()
                np.save(content, NUMBERS[row])
                for name, part in ((f"{row}.npy", content.getvalue()), (f"{row}.cls", b"%d" % (row % 4))):
                    member = tarfile.TarInfo(name)
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    return open_source(conf.WebDatasetSource(kind="webdataset", path=str(folder / "w")))


def matlab(folder: Path) -> RawSource:
    savemat(folder / "a.mat", {"X": NUMBERS, "Y": np.arange(ROWS)[None] % 4}, do_compression=True)
    return open_source(conf.ArraysSource(kind="arrays", path=str(folder / "a.mat")))


def patches(folder: Path) -> RawSource:
    np.save(folder / "pictures.npy", RANDOM.normal(size=(5, 3, 8, 7)))
    of = conf.ArraysSource(kind="arrays", path=str(folder / "pictures.npy"))
    return open_source(conf.PatchesSource(kind="patches", of=of, size=[4, 4], per_picture=9))


MAKERS = [csv, csv_texts, csv_words, csv_pictures, parquet_numbers, counts, foreign, matlab, patches]
Maker = Callable[[Path], RawSource]


@pytest.mark.parametrize("make", MAKERS)
def test_two_processes_write_what_one_writes(tmp_path: Path, make: Maker) -> None:
    source = make(tmp_path)
    alone = ingest(source, tmp_path / "one", shard_size=4)
    ingest(colleague(source), tmp_path / "two", shard_size=4, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert verify(alone.folder) == []


@pytest.mark.parametrize("make", [make for make in MAKERS if make not in (csv_pictures, patches)])
def test_the_same_from_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Maker) -> None:
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    local = make(tmp_path)
    filesystem = fsspec.filesystem("memory")
    root = f"/raw-{make.__name__}"
    filesystem.put(str(tmp_path), root, recursive=True)
    given: dict[str, Any] = local.source.model_dump()
    address = f"memory:/{root}/{Path(given['path']).name}"
    remote = open_source(local.source.__class__(**given | {"path": address}))
    ingest(remote, tmp_path / "far", shard_size=4)
    ingest(local, tmp_path / "near", shard_size=4)
    assert {name: kept for name, kept in contents(tmp_path / "far").items() if name.endswith(("tar", "npy"))} == {
        name: kept for name, kept in contents(tmp_path / "near").items() if name.endswith(("tar", "npy"))
    }
    filesystem.rm(root, recursive=True)
