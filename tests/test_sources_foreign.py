"""Other people's WebDataset shards, as the library writes them and as nobody should."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import conf
from conf.errors import InputError
from data.ingest import ingest
from data.shards import Reader
from data.sources import RawSource, open_source
from tests.raw_folders import RANDOM, colleague, everything, refused


def shards(path: Path, **given: Any) -> RawSource:
    return open_source(conf.WebDatasetSource(kind="webdataset", path=str(path), **given))


def packed(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def npy(values: Any, **given: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, values, **given)
    return content.getvalue()


def png(shade: int, kind: str = "png") -> bytes:
    content = io.BytesIO()
    Image.new("L", (6, 4), shade).save(content, kind)
    return content.getvalue()


def stock(folder: Path, samples: list[dict[str, Any]], name: str = "a", size: int = 4) -> Path:
    """Shards as webdataset's own ShardWriter makes them."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / f"{name}-%03d.tar"), maxcount=size, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def test_what_the_library_writes(tmp_path: Path) -> None:
    values = RANDOM.normal(size=(10, 3, 2)).astype(np.float32)
    samples = [{"__key__": f"s{row:02}", "npy": values[row], "cls": row % 3, "json": {"a": 1}} for row in range(10)]
    folder = stock(tmp_path / "d", samples)
    source = shards(folder)
    description = source.describe()
    assert (description.sets, description.labeled) == ({"train": 10}, {"train": 10})
    assert (description.shape, description.dtype, description.scale) == ((3, 2), "float32", 1.0)
    keys, found, labels = everything(source)
    assert keys[:5] == ["a-000.tar/s00", "a-000.tar/s01", "a-000.tar/s02", "a-000.tar/s03", "a-001.tar/s04"]
    assert np.array_equal(found, values) and labels == [row % 3 for row in range(10)]
    other = colleague(source)
    assert [key for key, _ in other.samples("train", [2, 3, 4, 9])][2:] == ["a-001.tar/s04", "a-002.tar/s09"]
    assert list(colleague(source).keys("train")) == keys and colleague(source).labels("train").tolist() == labels
    manifest = ingest(source, tmp_path / "shards", shard_size=4)
    assert np.array_equal(Reader(manifest.folder).read(np.arange(10)), values)
    alone = shards(folder / "a-001.tar")
    assert everything(alone)[0] == ["s04", "s05", "s06", "s07"]


def test_pictures_with_labels_that_are_words(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"__key__": f"dir/{row}", "png" if row % 2 else "jpg": png(20 * row, "png" if row % 2 else "jpeg"), "txt": word}
        for row, word in enumerate(["dog", "cat", "dog", "ä"])
    ]
    del samples[2]["txt"]
    source = shards(stock(tmp_path / "d", samples), label="txt", size=[4, 6])
    assert (source.describe().shape, source.describe().dtype, source.describe().scale) == ((4, 6), "uint8", 255.0)
    keys, values, labels = everything(source)
    assert (keys[0], labels, values[:, 0, 0].tolist()) == ("a-000.tar/dir/0", [1, 0, -1, 2], [0, 20, 40, 60])
    assert source.describe().classes == ("cat", "dog", "ä")
    assert "say which with source.field" in refused(shards(tmp_path / "d"))
    assert "the sample 'dir/2' has jpg, but no txt" in refused(shards(tmp_path / "d", field="txt"))


def test_texts_and_sets(tmp_path: Path) -> None:
    words = ["the cat sat", "dog ünder dog", "cat\n", "the end dog cat"]
    samples = [{"__key__": str(row), "txt": word} for row, word in enumerate(words)]
    stock(tmp_path / "d", samples[:3], "news-train")
    stock(tmp_path / "d", samples[3:], "news-test")
    stock(tmp_path / "e" / "train", samples[:3])
    stock(tmp_path / "e" / "test", samples[3:])
    for folder in ("d", "e"):
        source = shards(tmp_path / folder)
        assert (source.describe().sets, source.describe().dtype) == ({"train": 3, "test": 1}, "text")
        assert (source.describe().low, source.describe().high) == (4.0, 15.0)
        assert [bytes(value).decode() for _, value in source.samples("train", range(3))] == words[:3]
        counted = shards(tmp_path / folder, vocabulary=2)
        assert counted.describe().features == ("cat", "dog") and counted.describe().dtype == "uint16"
        assert [value.tolist() for _, value in colleague(counted).samples("test", [0])] == [[1, 1]]
    stock(tmp_path / "d", samples, "more")
    assert "but more-000.tar is not" in refused(shards(tmp_path / "d"))


def test_a_gzipped_shard_and_one_of_another_packer(tmp_path: Path) -> None:
    members = [(f"./{row}.npy", npy(np.arange(3) + row)) for row in range(3)]
    path = packed(tmp_path / "a.tar", *members, ("._0.npy", b"mac"), ("./.DS_Store", b"mac"))
    values = everything(shards(path))[1]
    assert values.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(everything(shards(tmp_path / "b.tar.gz"))[1], values)


X = npy(np.arange(4))


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([("a.npy", X), ("b.npy", X), ("a.NPY", X)], "begins at member 0 and goes on at member 2"),
        ([("a.npy", X), ("b.cls", b"1"), ("c.npy", X)], "the sample 'b' has cls, but no picture, array or text"),
        ([("a.npy", X), ("b.cls", b"1")], "the sample 'b' has cls"),
        ([("a.npy", X), ("a.left.npy", X)], "say which with source.field"),
        ([("a.npy", X), ("d/.npy", X)], "KEY.EXTENSION"),
        ([("a.npy", X), ("README", b"hello")], "KEY.EXTENSION"),
        ([("a.npy", X), ("a.mp4", b"...")], "say with source.field what to read"),
        ([("a.npy", X), ("a.txt.gz", gzip.compress(b"x" * 99))], "say with source.field what to read"),
        (
            [
                (
                    "a.npy",
                    npy(np.array([1.0, 2])),
                ),
                ("b.npy", npy(np.array([1e39, 1]))),
            ],
            "finite 32-bit numbers",
        ),
        ([("a.npy", X), ("b.npy", X[:-1])], "need 160 bytes"),
        ([("a.npy", X), ("b.npy", X + b"0")], "need 160 bytes"),
        ([("a.npy", X), ("b.npy", b"")], "broken header"),
        ([("a.npy", X), ("b.npy", npy(np.array(["x"])))], "b.npy"),
        ([("a.npy", npy(np.float32(3)))], "expected an array with values"),
        ([("a.png", png(1)), ("b.png", b"GIF89a")], "no picture"),
        ([("a.png", png(1)), ("b.npy", X)], "no picture"),
        ([("a.txt", b"fine"), ("b.txt", b"\xff")], "is not UTF-8"),
        ([("a.txt", b"fine"), ("b.txt", b"")], "empty"),
        ([], "no samples in its shards"),
    ],
)
def test_malformed_shards(tmp_path: Path, members: list[tuple[str, bytes]], complaint: str) -> None:
    message = refused(shards(packed(tmp_path / "d" / "a.tar", *members), size=[4, 6]))
    assert complaint in message and "a.tar" in message


def test_fields_that_are_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", ("a.npy", X), ("a.left.npy", npy(np.ones((2, 2)) * [1, 2])), ("a.mp4", b"..."))
    assert shards(path, field="left.npy").describe().shape == (2, 2)
    assert shards(path, field="npy").describe().shape == (4,)
    assert "has npy, left.npy, mp4, but no png" in refused(shards(path, field="png"))
    assert "source.field names .mp4" in refused(shards(path, field="mp4"))


def test_folders_without_shards(tmp_path: Path) -> None:
    assert "no shards in it" in refused(shards(tmp_path))
    assert "no such file" in refused(shards(tmp_path / "missing"))
    assert "no such file" in refused(shards(tmp_path / "missing.tar"))
    (tmp_path / "a.tar").symlink_to("/etc/passwd")
    assert "a link out of the tree" in refused(shards(tmp_path))


# --- damage ---


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return stock(tmp_path, [{"__key__": f"{row}", "npy": np.arange(4) * row, "cls": row} for row in range(8)], size=99)


def test_a_cut_shard_is_never_short(archive: Path) -> None:
    path = archive / "a-000.tar"
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in range(0, end + 1, 512):
        path.write_bytes(whole[:length])
        assert "a-000.tar" in refused(shards(archive))


def test_flipped_bits_in_headers_are_found(archive: Path) -> None:
    path = archive / "a-000.tar"
    whole = path.read_bytes()
    keys, values, labels = everything(shards(path))
    with tarfile.open(path) as tar:
        headers = [member.offset_data - 512 for member in tar]
    silent = 0
    for header in headers:
        for place in RANDOM.integers(0, 512, 25).tolist():
            place += header
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
            try:
                found = everything(shards(path))
            except InputError:
                continue
            silent += (found[0], found[2]) != (keys, labels) or not np.array_equal(found[1], values)
    assert silent == 0


def test_a_shard_that_changes(archive: Path) -> None:
    source = shards(archive)
    other = colleague(source)
    stock(archive, [{"__key__": f"{row}", "npy": np.arange(4) * row, "cls": row} for row in range(9)], size=99)
    with pytest.raises(InputError, match="changed while it was read"):
        list(other.samples("train", range(8)))
    with pytest.raises(InputError, match="changed while"):
        source.require_unchanged()


def test_nothing_here_loads_torch() -> None:
    code = "import sys, data.sources.foreign; print(sorted({'torch', 'webdataset', 'pyarrow'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
