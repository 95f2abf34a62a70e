"""Folder trees of pictures, as they should be and as they come."""

from __future__ import annotations

import io
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
from tests.raw_folders import RANDOM, everything, real, refused
from tests.raw_trees import packed


def images(folder: Path, **settings: Any) -> RawSource:
    return open_source(conf.ImagesSource(kind="images", path=str(folder), **settings))


def picture(path: Path, pixels: np.ndarray, **options: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def gray(height: int = 4, width: int = 6) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width), np.uint8)


def test_a_tree_of_images(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    pictures = {key: picture(root / key, gray()) for key in ("dog/ü.png", "cat/b.bmp", "cat/a.png", "cat/tabby/c.png")}
    picture(root / "loose.png", gray())
    picture(root / ".hidden" / "x.png", gray())
    (root / "README.md").write_text("notes")
    (root / "cat" / ".DS_Store").write_bytes(b"\0")
    source = images(root, size=[4, 6])
    description = source.describe()
    assert (description.sets, description.labeled) == ({"train": 5}, {"train": 4})
    assert (description.shape, description.scale, description.classes) == ((4, 6), 255.0, ("cat", "cat/tabby", "dog"))
    keys, values, labels = everything(source)
    assert keys == ["cat/a.png", "cat/b.bmp", "cat/tabby/c.png", "dog/ü.png", "loose.png"]
    assert labels == [0, 0, 1, 2, -1]
    for key, pixels in pictures.items():
        assert np.array_equal(values[keys.index(key)], pixels)
    assert [key for key, _ in source.samples("train", range(1, 3))] == keys[1:3]


def test_sets_of_images(tmp_path: Path) -> None:
    for key in ("train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "val/cat/4.png"):
        picture(tmp_path / key, gray())
    source = images(tmp_path)
    assert source.describe().sets == {"train": 2, "validation": 1, "test": 1}
    assert everything(source, "test")[0] == ["test/dog/3.png"] and everything(source, "test")[2] == [1]
    picture(tmp_path / "extra" / "5.png", gray())
    assert "extra/5.png" in refused(images(tmp_path))


def test_train_may_be_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.png", gray())
    picture(tmp_path / "tram" / "1.png", gray())
    assert images(tmp_path).describe().classes == ("train", "tram")


def test_images_are_resized_turned_and_laid_on_white(tmp_path: Path) -> None:
    left_dark = np.repeat(np.array([[0] * 20 + [255] * 20], np.uint8), 40, axis=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    picture(tmp_path / "turned.png", left_dark, exif=exif)
    picture(tmp_path / "transparent.png", np.zeros((40, 40, 4), np.uint8))
    color = np.zeros((40, 40, 3), np.uint8)
    color[..., 0] = 200
    picture(tmp_path / "red.jpg", color, quality=95)
    keys, values, _ = everything(images(tmp_path, size=[8, 8], channels=1))
    turned = values[keys.index("turned.png")]
    assert turned[0].max() == 0 and turned[-1].min() == 255
    assert values[keys.index("transparent.png")].min() == 255
    keys, values, _ = everything(images(tmp_path, size=[8, 6], channels=3))
    red = values[keys.index("red.jpg")]
    assert values.shape == (3, 3, 8, 6) and red[0].mean() > 190 and red[1:].mean() < 10


def test_images_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in refused(images(tmp_path / "missing"))
    assert "no pictures" in refused(images(tmp_path))
    cases: dict[str, bytes] = {"text.png": b"hello", "empty.jpg": b"", "data.bin": bytes(100)}
    deep, frames = io.BytesIO(), io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 2**16, (4, 4), np.uint16)).save(deep, "PNG")
    first, second = (Image.fromarray(gray()) for _ in range(2))
    first.save(frames, "GIF", save_all=True, append_images=[second])
    tiff = io.BytesIO()
    first.save(tiff, "TIFF")
    cases |= {"deep.png": deep.getvalue(), "frames.gif": frames.getvalue(), "other.tif": tiff.getvalue()}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        assert name in refused(images(tmp_path))
        (tmp_path / name).unlink()


def test_links_in_a_tree(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    picture(root / "cat" / "a.png", gray())
    (root / "cat" / "alias.png").symlink_to("a.png")
    assert images(root).describe().sets == {"train": 2}


def test_an_undecodable_image_ends_ingest_and_keeps_finished_shards(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for number in range(6):
        picture(root / f"{number}.png", gray(32, 32))
    whole = (root / "5.png").read_bytes()
    (root / "5.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="5.png: cannot be decoded"):
        ingest(images(root), tmp_path / "shards", shard_size=2)
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert {"train-00000.tar", "train-00001.tar"} <= names and "manifest.json" not in names
    (root / "5.png").write_bytes(whole)
    manifest = ingest(images(root), tmp_path / "shards", shard_size=2)
    assert list(manifest.keys("train")) == [f"{number}.png" for number in range(6)]


def test_an_image_that_changes_meanwhile(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for number in range(4):
        picture(root / f"{number}.png", gray())
    source = images(root)
    source.describe()
    picture(root / "2.png", gray())
    with pytest.raises(InputError, match="2.png: changed"):
        ingest(source, tmp_path / "shards", shard_size=2)


NAMES = ["space d", "ü", "u\u0308", "%d", "#?", "{a,b}", "[x]", "$HOME;", "'\"", "\\", "a\nb", "-v", "🙂", "x" * 255]


@pytest.mark.parametrize("name", NAMES)
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    picture(tmp_path / name / name / "a.png", gray())
    picture(tmp_path / name / name / "b.png", gray())
    source = images(tmp_path / name)
    manifest = ingest(source, tmp_path / name / ".shards", shard_size=1)
    assert list(manifest.keys("train")) == [f"{name}/a.png", f"{name}/b.png"] and manifest.classes == (name,)
    assert len(Reader(manifest.folder).read(np.arange(2))) == 2


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_packed_images_are_those_of_the_folder(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "tree.folder"
    for key in ("train/cat/1.png", "train/dog/2.png", "test/dog/3.png"):
        picture(root / key, gray())
    (root / "README.md").write_text("notes")
    content = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*")}
    folder, archive = images(root, size=[4, 6]), images(packed(tmp_path, kind, content), size=[4, 6])
    assert archive.describe() == folder.describe()
    for set_name in ("train", "test"):
        found, expected = everything(archive, set_name), everything(folder, set_name)
        assert found[0] == expected[0] and np.array_equal(found[1], expected[1]) and found[2] == expected[2]
    (root / "README.md").write_text("other notes")
    folder.require_unchanged()


def test_another_process_reads_without_describing(tmp_path: Path) -> None:
    for key in ("cat/1.png", "dog/2.png", "dog/3.png"):
        picture(tmp_path / key, gray())
    first, second = images(tmp_path), images(tmp_path)
    second.expect(first.describe(), first.seen)
    assert [key for key, _ in second.samples("train", [0, 2])] == ["cat/1.png", "dog/3.png"]
    assert list(second.keys("train")) == list(first.keys("train"))
    assert second.labels("train").tolist() == [0, 1, 1]
    picture(tmp_path / "dog" / "3.png", gray())
    with pytest.raises(InputError, match="3.png: changed"):
        list(second.samples("train", [2]))
    with pytest.raises(InputError, match="changed while"):
        images(tmp_path).expect(first.describe(), first.seen)


def test_real_photographs_in_a_zip() -> None:
    source = images(real("bsds500_images", "bsds500_train200.zip"), size=[32, 48])
    assert source.describe().sets == {"train": 200} and source.describe().labeled == {"train": 0}
    key, value = next(iter(source.samples("train", [0])))
    assert key == "images/train/100075.jpg" and value.shape == (32, 48) and 50 < value.mean() < 200
