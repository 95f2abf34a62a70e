"""Inputs that unpack to more than anyone has, and headers that lie about what follows."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from scipy.io import loadmat

import data.archives
import data.sources.pictures
from conf.reading import read
from data.sources import arrays, audio, columns, delimited, fields, idx, matlab, tables
from tests.attacks import Halves, attack
from tests.attacks.files import (
    MAT_HEAD,
    forget_peak,
    frames,
    lying_npy,
    mat_array,
    mat_element,
    peak_memory,
    picture,
    png_with,
    samples,
    source,
    succeeds,
)  # fmt: skip
from tests.raw_trees import member, tar_bytes, zip_bytes

LARGE = 20 << 20  # bytes of zeros: 20 KB packed
IHDR = b"\x08\x00\x00\x00\x00"


def peak(use: Callable[[], object]) -> int:
    """Bytes that it takes, whatever comes of it."""
    tracemalloc.start()
    with contextlib.suppress(Exception):
        use()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


# --- archives ------------------------------------------------------------------------------------------------------


@attack(("zip", "text", "a.zip"), ("tar.gz", "text", "a.tar.gz"), ("lines", "text", "a.txt.gz"),
        ("counts", "counts", "a.gz"), ("foreign shard", "webdataset", "a.tar.gz"))  # fmt: skip
def an_archive_of_zeros(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str, str]) -> Halves:
    what, kind, name = variant
    large = (b" " * ((1 << 20) - 1) + b"\n") * 20 + b"x" if what in ("lines", "counts") else bytes(LARGE)
    whole = zip_bytes([("a.txt", large)])
    if what != "zip":
        whole = gzip.compress(large if what in ("lines", "counts") else tar_bytes([(member("a.txt"), large)]))
    (folder / name).write_bytes(whole)
    yield "a bomb", lambda: samples(kind, folder / name)
    patch.setattr(data.archives, "MAX_RATIO", 10_000)
    opened = source(kind, folder / name)
    yield bool(opened.describe().sets) if what != "counts" else len(gzip.decompress(whole)) >= LARGE


@attack()
def a_table_of_zeros(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    (folder / "a.csv.gz").write_bytes(gzip.compress(b"a\n1\n" + (b"0" * (1 << 18) + b"\n") * (LARGE >> 18)))
    yield "more than 500 times its size", lambda: samples("table", folder / "a.csv.gz")
    patch.setattr(delimited, "MAX_RATIO", 10_000)
    yield source("table", folder / "a.csv.gz").describe().sets["train"] > LARGE >> 18


@attack("npz", "mat")
def an_array_of_zeros(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    patch.setattr(matlab, "FREE_BYTES", 1 << 20)  # so that little is enough
    path, values = folder / f"a.{kind}", np.zeros((5, 1 << 20), np.uint8)
    values[0, 0] = 1
    if kind == "npz":
        np.savez_compressed(path, x=values)
    else:
        path.write_bytes(MAT_HEAD + mat_element(15, zlib.compress(mat_array(values.shape, values.tobytes()))))
    yield "a bomb", lambda: samples("arrays", path)
    patch.setattr(matlab, "MAX_RATIO", 10_000)
    yield peak(lambda: samples("arrays", path)) > values.nbytes


@attack()
def an_idx_header_that_lies(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    header = bytes([0, 0, 8, 3]) + np.array([1 << 15, 32, 32], ">u4").tobytes()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(1 << 25)))
    yield "times its compressed size", lambda: samples("idx", folder)
    patch.setattr(idx, "MAX_RATIO", 1 << 40)
    yield peak(lambda: samples("idx", folder)) >= 1 << 25


@attack()
def a_table_of_very_many_columns(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = folder / "a.csv"
    path.write_text(",".join(f"{column:x}" for column in range(70_000)) + "\n" + ",".join("01" * 35_000) + "\n")
    yield "70000 columns; expected at most 65536", lambda: samples("table", path)
    path.write_text(",".join(f"{column:x}" for column in range(15_000)) + "\n" + ",".join("01" * 7_500) + "\n")
    forget_peak()
    before = peak_memory()
    samples("table", path)
    yield peak_memory() - before > 500 * path.stat().st_size  # as it goes on without the limit


@attack("values", "dictionary")
def a_parquet_file_of_one_value(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    path = folder / "a.parquet"
    for module in (columns, tables):
        patch.setattr(module, "FREE_BYTES", 1 << 20)  # so that little is enough
    if what == "values":
        column = pa.array(["a" * (4 << 20)] * 2, pa.large_string())
        parquet.write_table(pa.table({"t": column}), path, compression="zstd", use_dictionary=False)
        yield "no data but a bomb", lambda: samples("table", path, text="t")
        patch.setattr(columns.Parquet, "_require_no_bomb", lambda *_: None)
        patch.setattr(tables, "MAX_RATIO", 1 << 40)
        yield source("table", path, text="t").describe().high == 4 << 20
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["a" * (1 << 17)]))
    parquet.write_table(pa.table({"t": values}), path, compression="zstd", store_schema=False)
    yield "a bomb", lambda: samples("table", path, text="t")
    batch = next(parquet.ParquetFile(path).iter_batches(200))
    yield batch.nbytes > 200 << 17  # of 100,000 rows, in a file of 700 bytes


# --- pictures ------------------------------------------------------------------------------------------------------


def header_of(width: int, height: int) -> bytes:
    return png_with(picture(), b"IHDR", struct.pack(">II", width, height) + IHDR, replace=True)


@attack((10_000, 10_000), (60_000, 60_000), (1, 1 << 30))
def a_picture_of_too_many_pixels(folder: Path, patch: pytest.MonkeyPatch, size: tuple[int, int]) -> Halves:
    (folder / "in").mkdir()
    (folder / "in" / "a.png").write_bytes(header_of(*size))
    yield "Mi pixels", lambda: samples("images", folder / "in")
    patch.setattr(data.sources.pictures, "MAX_PIXELS", 1 << 60)
    patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    yield source("images", folder / "in").describe().sets == {"train": 1}  # and would be decoded


@attack("GIF", "WEBP", "PNG")
def a_picture_that_moves(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    (folder / "in").mkdir()
    (folder / "in" / "a").write_bytes(frames(kind))
    yield "more than one frame", lambda: samples("images", folder / "in", size=[4, 6])
    with Image.open(folder / "in" / "a") as image:
        yield image.n_frames == 3 and image.convert("L").size == (6, 4)  # of which one is taken, silently


@attack()
def a_picture_of_endless_frames(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    whole = frames("GIF", 2)
    first = whole.index(b"\x2c", 13 + 3 * 2 ** ((whole[10] & 7) + 1))
    second = whole[whole.index(b"\x00\x21\xf9", first) + 1 : -1]
    (folder / "in").mkdir()
    (folder / "in" / "a.gif").write_bytes(whole[:-1] + second * 300_000 + b";")
    yield "more than one frame", lambda: samples("images", folder / "in")
    from tests.attacks.files import patience

    with patience(0.5) as gave_up, Image.open(folder / "in" / "a.gif") as image:
        image.n_frames  # noqa: B018
    yield bool(gave_up)


@attack()
def a_picture_whose_comment_is_a_bomb(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    from PIL import PngImagePlugin

    (folder / "in").mkdir()
    chunk = b"a\0\0" + zlib.compress(bytes(LARGE))
    (folder / "in" / "a.png").write_bytes(png_with(picture(), b"zTXt", chunk))
    yield "no picture", lambda: samples("images", folder / "in")
    patch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 40)
    patch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1 << 40)
    yield peak(lambda: samples("images", folder / "in")) > LARGE


@attack("TIFF", "ICO", "TGA", "PCX")
def a_picture_of_a_format_that_nobody_needs(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    (folder / "in").mkdir()
    (folder / "in" / "a.png").write_bytes(picture(kind=kind, size=(16, 16)))
    yield "no picture", lambda: samples("images", folder / "in")
    with Image.open(folder / "in" / "a.png") as image:
        yield image.format == kind


@attack()
def a_picture_of_16_bits(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    content = io.BytesIO()
    Image.fromarray(np.array([[0, 300], [1000, 65535]], np.uint16)).save(content, "PNG")
    (folder / "in").mkdir()
    (folder / "in" / "a.png").write_bytes(content.getvalue())
    yield "more than 8 bits", lambda: samples("images", folder / "in")
    with Image.open(folder / "in" / "a.png") as image:
        yield np.asarray(image.convert("L")).tolist() == [[0, 255], [255, 255]]  # clipped, silently


# --- headers that lie ----------------------------------------------------------------------------------------------


@attack("arrays", "npz", "webdataset")
def an_array_that_says_it_is_huge(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    whole = lying_npy((1 << 40, 8))
    names = {"arrays": "a.npy", "npz": "a.npz", "webdataset": "a.tar"}
    path = folder / names[kind]
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", whole)
    else:
        path.write_bytes(whole if kind == "arrays" else tar_bytes([(member("a.npy"), whole)]))
    yield "need 8796093022", lambda: samples("webdataset" if kind == "webdataset" else "arrays", path)
    for module in (arrays, fields):
        patch.setattr(module, "check_npy", lambda *_: None)
    yield succeeds(lambda: np.load(io.BytesIO(whole)), MemoryError, ValueError)


@attack("a bit more", "cut")
def an_array_of_another_length(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    whole = lying_npy((2, 2), b"\1\2\3\4\5\6" if what == "a bit more" else b"\1\2\3")
    (folder / "a.npy").write_bytes(whole)
    yield "fetch it again", lambda: samples("arrays", folder / "a.npy")
    yield len(np.fromfile(folder / "a.npy", np.uint8, offset=len(whole) % 64 and len(whole) // 64 * 64)) != 4


@attack((1 << 20, 1 << 12), (1 << 30, 1 << 30), (100, 2))
def a_matlab_array_that_says_it_is_larger(folder: Path, patch: pytest.MonkeyPatch, shape: tuple[int, int]) -> Halves:
    path = folder / "a.mat"
    path.write_bytes(MAT_HEAD + mat_element(15, zlib.compress(mat_array(shape, bytes(range(8))))))
    yield "do not fit", lambda: samples("arrays", path)
    asked: list[str] = []
    patch.setattr(matlab.Mat, "_load", lambda self, name, **_: asked.append(name) or np.ones((2, 2)))
    patch.setattr(matlab.Mat, "_require_room", lambda *_: None)
    with contextlib.suppress(Exception):
        samples("arrays", path)
    yield asked == ["X"]  # for all of it


@attack()
def a_sparse_matrix_that_is_huge_once_it_is_none(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    import scipy.sparse
    from scipy.io import savemat

    path = folder / "a.mat"
    savemat(path, {"X": scipy.sparse.csc_matrix(([1.0], ([0], [0])), shape=(1 << 20, 1 << 12))})
    yield "once it is none", lambda: samples("arrays", path)
    matrix = loadmat(path)["X"]
    yield path.stat().st_size < 1 << 20 < matrix.shape[0] * matrix.shape[1] * 8


@attack()
def a_count_whose_id_makes_every_vector_huge(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    (folder / "a.txt").write_text("1:1\n4000000000:1\n")
    yield "the id 4000000000", lambda: samples("counts", folder / "a.txt")
    from data.sources import counts

    patch.setattr(counts, "MAX_IDS", 1 << 40)
    yield source("counts", folder / "a.txt").describe().num_values == 4_000_000_000


@attack()
def a_recording_at_one_sample_a_second(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    sound = bytes(100_000)
    form = struct.pack("<HHIIHH", 1, 1, 1, 1, 1, 8)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(sound)) + sound
    (folder / "in").mkdir()
    (folder / "in" / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    yield "once it is at", lambda: samples("audio", folder / "in")
    patch.setattr(audio, "MAX_SAMPLES", 1 << 60)
    yield source("audio", folder / "in").describe().sets["train"] * 16_000 > 100_000 * 1000


@attack()
def a_recording_that_says_it_is_longer(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    form = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", 1 << 31) + bytes(100)
    (folder / "in").mkdir()
    (folder / "in" / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    yield "cut short", lambda: samples("audio", folder / "in")
    import wave

    with wave.open(str(folder / "in" / "a.wav")) as recording:
        yield recording.getnframes() == 1 << 30 and len(recording.readframes(1 << 10)) == 100


# --- recipes -------------------------------------------------------------------------------------------------------


@attack("aliases", "depth", "length")
def a_recipe_that_is_a_bomb(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    path = folder / "recipe.yaml"
    if what == "aliases":
        path.write_text(
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
        )
        yield "aliases .* are not allowed", lambda: read(path, [])
        tree, total = yaml.safe_load(path.read_text()), 1
        for number in range(11, 0, -1):
            total *= len(tree[f"a{number}"])
        yield total == 9**11  # strings, for whoever walks the tree
    if what == "depth":
        path.write_text("name: " + "[" * 2_000)
        yield "nested more than 50 deep", lambda: read(path, [])
        yield succeeds(lambda: yaml.load(path.read_text(), yaml.SafeLoader), RecursionError)  # noqa: S506
    path.write_text("#" * (2 << 20))
    yield "longer than", lambda: read(path, [])
    yield yaml.load(path.read_text(), yaml.CSafeLoader) is None  # noqa: S506


@attack("outside", "inside")
def a_key_of_a_recipe_that_stands_twice(folder: Path, patch: pytest.MonkeyPatch, where: str) -> Halves:
    path = folder / "recipe.yaml"
    path.write_text("name: a\nname: b\n" if where == "outside" else "name: a\ndata: {cache_gib: 1, cache_gib: 2}\n")
    yield "stands twice", lambda: read(path, [])
    tree: Any = yaml.safe_load(path.read_text())
    yield tree == ({"name": "b"} if where == "outside" else {"name": "a", "data": {"cache_gib": 2}})
