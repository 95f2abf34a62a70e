"""Shards: what is written, and how it is read."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import conf
from conf.errors import InputError
from data import tar
from data.shards import Manifest, Reader, check, ingest
from data.sources import open_source
from tests.shard_folders import Given, contents, digits, given


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in five shards; never changed by a test."""
    return ingest(digits(), tmp_path_factory.mktemp("whole") / "shards", shard_size=400).folder


def test_digits_as_shards(whole: Path) -> None:
    manifest, source = Manifest.load(whole), digits()
    assert (manifest.shape, manifest.dtype, manifest.scale, manifest.num_values) == ((8, 8), "uint8", 16.0, 64)
    assert (manifest.low, manifest.high, manifest.image_shape) == (0.0, 1.0, (8, 8))
    assert manifest.content == source.describe().content and manifest.classes == tuple("0123456789")
    expected = np.stack([value for _, value in source.samples("train", range(1797))])
    summary = manifest.sets["train"]
    assert (summary.samples, summary.labeled) == (1797, 1797)
    assert summary.mean == pytest.approx(float((expected / 16).mean()), abs=1e-12)
    assert summary.std == pytest.approx(float((expected / 16).std()), abs=1e-12)
    assert np.allclose(manifest.feature_mean("train"), (expected / 16).mean(axis=0), atol=1e-12)
    reader = Reader(whole)
    assert np.array_equal(reader.read(np.arange(1797)), expected)
    assert np.array_equal(reader.labels("train"), source.labels("train"))
    assert reader.keys("train") == [str(row) for row in range(1797)]
    values = reader.values(np.array([5, 3, 5]))
    assert values.dtype == np.float32 and np.array_equal(values, (expected[[5, 3, 5]] / 16).reshape(3, 64))


def test_tarfile_and_webdataset_read_our_shards(whole: Path) -> None:
    import webdataset as wds

    expected = Reader(whole).read(np.arange(1797))
    with tarfile.open(whole / "train-00001.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [f"{number:08d}.npy" for number in range(400, 800)]
    assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}
    paths = [str(path) for path in sorted(whole.glob("*.tar"))]
    samples = list(wds.WebDataset(paths, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{number:08d}" for number in range(1797)]
    assert np.array_equal(np.stack([sample["npy"] for sample in samples]), expected)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (3, 2), (3, 5, 4), (500,)])
def test_every_layout_is_plain_tar_of_plain_npy(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (4, *shape)).astype(dtype)
    layout = tar.ArrayLayout(shape, np.dtype(dtype).newbyteorder("<"))
    blocks, index = layout.encode(99_999_998, values, 0)  # the names grow to nine digits here
    shard = blocks.tobytes() + bytes(tar.END)
    assert len(shard) == layout.shard_size(4) and layout.values_offset % 64 == 0
    assert layout.plausible(index, len(shard)) and not layout.plausible(index[:3], len(shard))
    (tmp_path / "a.tar").write_bytes(shard)
    with tarfile.open(tmp_path / "a.tar") as archive:
        for row, member in enumerate(archive.getmembers()):
            assert member.name == f"{99_999_998 + row:08d}.npy"
            assert (member.offset_data, member.size) == (index["offset"][row], index["length"][row])
            file = archive.extractfile(member)
            assert file is not None and np.array_equal(np.load(io.BytesIO(file.read())), values[row])
    assert np.array_equal(layout.decode(np.frombuffer(shard, np.uint8), index), values)
    later, rows = layout.encode(100_000_000, values[2:], 2 * layout.stride)
    assert later.tobytes() == shard[2 * layout.stride : -tar.END] and np.array_equal(rows, index[2:])


@pytest.mark.parametrize("texts", [["ä\n\0", "", "x" * 512, "y" * 513, "z"], [""], ["a" * 5000]])
def test_texts_of_any_length_are_plain_tar_of_plain_txt(texts: list[str], tmp_path: Path) -> None:
    samples = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    layout = tar.TextLayout()
    blocks, index = layout.encode(7, samples, 0)
    shard = blocks.tobytes() + bytes(tar.END)
    assert layout.plausible(index, len(shard)) and not layout.plausible(index, len(shard) + 512)
    (tmp_path / "a.tar").write_bytes(shard)
    with tarfile.open(tmp_path / "a.tar") as archive:
        for row, member in enumerate(archive.getmembers()):
            file = archive.extractfile(member)
            assert member.name == f"{7 + row:08d}.txt" and file is not None and file.read().decode() == texts[row]
    decoded = layout.decode(np.frombuffer(shard, np.uint8), index)
    assert [sample.tobytes().decode() for sample in decoded] == texts


def test_keys_labels_and_sets_of_their_own(tmp_path: Path) -> None:
    source = given()
    manifest = ingest(source, tmp_path / "a", shard_size=3)
    assert [shard.name for shard in manifest.shards] == [
        "train-00000.tar", "train-00001.tar", "train-00002.tar", "test-00000.tar", "test-00001.tar"
    ]  # fmt: skip
    assert (manifest.numbers("train"), manifest.numbers("test")) == (range(7), range(7, 11))
    assert manifest.numbers("validation") == range(0)
    reader = Reader(tmp_path / "a")
    assert np.array_equal(reader.read(np.arange(7, 11)), source.tables["test"])
    assert reader.keys("train") == [f"row {row}.é\n" for row in range(7)]
    assert reader.labels().tolist() == [0, 1, -1, 0, 1, 0, 1, 1, 1, 1, 1]
    assert (manifest.sets["train"].labeled, manifest.sets["test"].labeled) == (6, 4)
    index = np.load(tmp_path / "a" / "train-00000.index.npy")
    assert index.dtype == tar.INDEX and len(index) == 3


def test_what_the_digests_depend_on(tmp_path: Path) -> None:
    def manifest(name: str, source: Given, shard_size: int = 3) -> Manifest:
        return ingest(source, tmp_path / name, shard_size=shard_size)

    first, sizes = manifest("first", given()), manifest("sizes", given(), 100)
    relabeled, renamed = manifest("relabeled", given([1] * 7)), manifest("renamed", given(keys="{}"))
    assert first.samples_digest == sizes.samples_digest == relabeled.samples_digest != renamed.samples_digest
    assert first.labels_digest == sizes.labels_digest == renamed.labels_digest != relabeled.labels_digest
    assert first.digest != sizes.digest
    assert contents(first.folder) == contents(manifest("again", given()).folder)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (np.full((3, 2), np.nan, np.float32), "NaN or infinite"),
        (np.full((3, 2), np.inf, np.float32), "NaN or infinite"),
        (np.zeros((3, 3), np.float32), "of shape (3, 3); expected float32 of shape (3, 2)"),
        (np.zeros((3, 2), np.float64), "float64 of shape"),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, value: np.ndarray, complaint: str) -> None:
    source = given()
    source.tables = {name: list(table) for name, table in source.tables.items()}  # type: ignore[misc]
    source.tables["train"][4] = value
    with pytest.raises(InputError) as caught:
        ingest(source, tmp_path / "a", shard_size=2)
    assert "train sample row 4" in str(caught.value) and complaint in str(caught.value)
    assert not (tmp_path / "a" / "manifest.json").exists()


def test_a_source_that_is_still_being_written(tmp_path: Path) -> None:
    class Growing(Given):
        def samples(self, *where: object) -> Iterator[tuple[str, np.ndarray]]:  # type: ignore[override]
            self.mark = "2"
            return super().samples(*where)  # type: ignore[arg-type]

    source = given()
    growing = Growing(source.tables, source.given)
    with pytest.raises(InputError, match="changed while they were read"):
        ingest(growing, tmp_path / "a", shard_size=2)
    ingest(given(), tmp_path / "a", shard_size=2)
    assert contents(tmp_path / "a") == contents(ingest(given(), tmp_path / "b", shard_size=2).folder)


# --- read ----------------------------------------------------------------------------------------------------------


def test_reading_in_any_order(whole: Path) -> None:
    reader = Reader(whole)
    expected = np.stack([value for _, value in digits().samples("train", range(1797))])
    random = np.random.default_rng(0)
    for size in (0, 1, 2, 100, 3000):
        indices = random.integers(0, 1797, size)
        assert np.array_equal(reader.read(indices), expected[indices])
        assert reader.values(indices).shape == (size, 64)
    for bad in (-1, 1797):
        with pytest.raises(IndexError):
            reader.read(np.array([0, bad]))
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301 - what DataLoader does with a worker's data set
    assert np.array_equal(copy.read(np.arange(9)), expected[:9])


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.shards.MAX_OPEN", 3)
    folder = ingest(given(), tmp_path / "a", shard_size=1).folder
    reader, expected = Reader(folder), np.concatenate(list(given().tables.values()))
    for _ in range(3):
        indices = np.random.default_rng(0).permutation(11)
        assert np.array_equal(reader.read(indices), expected[indices])
    assert reader._open.sum() == 3


def test_real_mnist_fast(tmp_path: Path) -> None:
    """Slower than a tenth of what an idle core does is an accident of the code, not of the machine."""
    folder = os.environ.get("STRATA_DATA")
    if folder is None or not (Path(folder) / "mnist").exists():
        pytest.skip("STRATA_DATA does not name a folder with mnist/ in it")
    began = time.perf_counter()
    manifest = ingest(open_source(conf.IdxSource(kind="idx", path=f"{folder}/mnist")), tmp_path, shard_size=10_000)
    written = 70_000 / (time.perf_counter() - began)
    assert manifest.sets["train"].mean == pytest.approx(0.13066, abs=5e-6)
    assert manifest.sets["train"].std == pytest.approx(0.30811, abs=5e-6)
    assert check(tmp_path) == manifest
    reader, order = Reader(tmp_path), np.random.default_rng(0).permutation(70_000).reshape(700, 100)
    reader.read(order.ravel())
    began = time.perf_counter()
    for batch in order:
        reader.read(batch)
    read = 70_000 / (time.perf_counter() - began)
    print(f"ingest {written:,.0f} samples/s, read {read:,.0f} samples/s")
    assert written > 4_000 and read > 60_000
