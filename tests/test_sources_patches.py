"""Patches of pictures: where they come from, what they are called, and that they stay with their picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import conf
from data.ingest import ingest
from data.shards import Reader
from data.sources import RawSource, open_source
from data.splits import partition
from tests.raw_folders import RANDOM, everything, real, refused

PICTURES = RANDOM.integers(0, 256, (6, 20, 30), np.uint8)


def patches(folder: Path, size: list[int], number: int, pictures: np.ndarray = PICTURES) -> RawSource:
    np.savez(folder / "p.npz", x_train=pictures[:5], x_test=pictures[5:], y_train=np.arange(5) % 2)
    of = conf.ArraysSource(kind="arrays", path=str(folder / "p.npz"))
    return open_source(conf.PatchesSource(kind="patches", of=of, size=size, per_picture=number))


def test_patches_lie_in_their_pictures(tmp_path: Path) -> None:
    source = patches(tmp_path, [7, 9], 40)
    described = source.describe()
    assert described.sets == {"train": 200, "test": 40} and described.labeled == {"train": 200, "test": 0}
    assert (described.shape, described.dtype, described.scale) == ((7, 9), "uint8", 255.0)
    keys, values, labels = everything(source)
    assert (
        keys[:2] == ["0#0", "0#1"]
        and keys[-1] == "4#39"
        and labels == [0] * 40 + [1] * 40 + [0] * 40 + [1] * 40 + [0] * 40
    )
    places = set()
    for key, patch in zip(keys, values, strict=True):
        views = np.lib.stride_tricks.sliding_window_view(PICTURES[int(key.partition("#")[0])], (7, 9))
        found = np.argwhere((views == patch).all(axis=(2, 3)))
        assert len(found) == 1
        places.add(tuple(found[0].tolist()))
    tops, lefts = zip(*places, strict=True)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 13, 0, 21)  # 200 draws of 14 and 22: corners are met
    some = [3, 4, 77, 78, 199]
    assert [key for key, _ in source.samples("train", some)] == [keys[row] for row in some]
    assert all(np.array_equal(a, values[row]) for row, (_, a) in zip(some, source.samples("train", some), strict=True))


def test_other_pictures_move_no_patch(tmp_path: Path) -> None:
    first = everything(patches(tmp_path, [5, 5], 3))[1]
    changed = PICTURES.copy()
    changed[4] = 0
    assert np.array_equal(everything(patches(tmp_path, [5, 5], 3, changed))[1][:12], first[:12])


def test_patches_stay_with_their_picture(tmp_path: Path) -> None:
    of = conf.DigitsSource(kind="digits")
    source = open_source(conf.PatchesSource(kind="patches", of=of, size=[4, 4], per_picture=5), 2000)
    manifest = ingest(source, tmp_path / "shards", shard_size=700)
    parts = partition(Reader(manifest.folder), conf.Split(test=0.3, validation=0.2))
    keys = [key.partition("#")[0] for key in manifest.keys("train")]
    pictures = [{keys[row] for row in rows.tolist()} for rows in parts.values()]
    assert all(pictures) and sum(map(len, pictures)) == len(set(keys))


def test_patches_need_pictures_as_large(tmp_path: Path) -> None:
    assert "are 20×30" in refused(patches(tmp_path, [21, 4], 1))
    assert "are 5" in refused(patches(tmp_path, [2, 2], 1, RANDOM.integers(0, 256, (6, 5), np.uint8)))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (40, 61)])
def test_a_crop_is_the_middle_and_interpolates_nothing(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = RANDOM.integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = open_source(conf.ImagesSource(kind="images", path=str(tmp_path), size=[40, 40], fit="crop"))
    top, left = (shape[0] - 40) // 2, (shape[1] - 40) // 2
    assert np.array_equal(everything(source)[1][0], pixels[top : top + 40, left : left + 40])


def test_patches_of_photographs() -> None:
    pictures = conf.ImagesSource(
        kind="images", path=str(real("bsds500_images") / "bsds500_train200.zip"), size=[321, 321], fit="crop"
    )
    source = open_source(conf.PatchesSource(kind="patches", of=pictures, size=[16, 16], per_picture=4))
    values = np.array(everything(source)[1], np.float64)
    assert values.shape == (800, 16, 16)
    neighbours = np.corrcoef(values[:, 8, 8], values[:, 8, 9])[0, 1]
    assert 0.9 < neighbours < 1  # of natural pictures; of wrongly folded bytes about 0
