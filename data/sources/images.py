"""A folder tree of pictures; a picture's class is the path of its folder, and none if it lies at the top.

A tree whose top folders are named like sets (`train`, `validation`, `test`) has those sets; then classes are the
folders inside them. Every file is hashed and its header checked before anything is written; that it can be decoded
shows during ingest. A picture is turned as its EXIF orientation says, laid on white where it is transparent, converted
to gray or RGB, and resized to the recipe's size (bilinear, antialiased).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import conf
from conf.errors import InputError, show
from data import durable
from data.sources import SETS, Description, RawSource, fingerprint_files, unreadable

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
MAX_PIXELS = 64 << 20
MAX_BYTES = 64 << 20  # of a file
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow modes with more than 8 bits, which it clips on conversion
NOTES = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".html", ".yaml", ".yml", ".pdf", ".db", ".ini")
NOTE_NAMES = ("readme", "license", "licence", "copying")  # files that describe a data set and are no part of it
SET_FOLDERS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}


@dataclass(frozen=True)
class Picture:
    """key: path relative to the source, with slashes; class_name: empty if the picture lies in no folder of its set."""

    set_name: str
    key: str
    class_name: str


class Images(RawSource):
    """Samples (height, width) for one channel, (3, height, width) for three, uint8."""

    def __init__(self, source: conf.ImagesSource) -> None:
        super().__init__(source)
        self.root, self.size, self.channels = Path(source.path), (source.size[0], source.size[1]), source.channels
        self._pictures: dict[str, list[Picture]] = {}
        self._labels: dict[str, np.ndarray] = {}
        self._digests: dict[str, str] = {}

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.size if self.channels == 1 else (3, *self.size)

    def fingerprint(self) -> str:
        files = [self.root / picture.key for pictures in self._list().values() for picture in pictures]
        return fingerprint_files(self.root, files, [self.size, self.channels])

    def keys(self, set_name: str) -> Iterator[str]:
        self.describe()
        return (picture.key for picture in self._pictures[set_name])

    def labels(self, set_name: str) -> np.ndarray:
        self.describe()
        return self._labels[set_name]

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        self.describe()
        for picture in (self._pictures[set_name][row] for row in rows):
            content = self._read(picture)
            if durable.digest_bytes(content) != self._digests[picture.key]:
                raise InputError(f"{self._where(picture)}: changed while the folder was read; run again")
            yield picture.key, self._decode(picture, content)

    def _describe(self) -> Description:
        self._pictures = self._list()
        everything = [picture for pictures in self._pictures.values() for picture in pictures]
        classes = sorted({picture.class_name for picture in everything} - {""})
        numbers = {name: number for number, name in enumerate(classes)} | {"": -1}
        content = hashlib.sha256()
        for picture in everything:
            data = self._read(picture)
            self._open(picture, data)
            self._digests[picture.key] = durable.digest_bytes(data)
            content.update(durable.canonical([picture.key, self._digests[picture.key]]))
        self._labels = {
            name: np.array([numbers[picture.class_name] for picture in pictures], np.int64)
            for name, pictures in self._pictures.items()
        }
        about = {"shape": list(self._shape), "files": content.hexdigest(), "revision": self.revision}
        return Description(
            kind="images",
            sets={name: len(pictures) for name, pictures in self._pictures.items()},
            labeled={name: int((labels >= 0).sum()) for name, labels in self._labels.items()},
            shape=self._shape,
            dtype="uint8",
            scale=255.0,
            low=0.0,
            high=1.0,
            classes=tuple(classes),
            content=durable.digest_value(about),
        )

    # --- the tree ---

    def _list(self) -> dict[str, list[Picture]]:
        """The pictures of every set, by path. Errors: InputError, if there are none or if sets and classes mix."""
        paths = sorted(self._walk(self.root), key=lambda path: path.encode())
        if not paths:
            raise InputError(f"{show(self.root)}: no pictures in this folder; expected {', '.join(FORMATS)} files")
        tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
        named = {top: SET_FOLDERS[top] for top in tops if top in SET_FOLDERS}
        has_sets = tops == set(named) or {"train", "test"} <= set(named)
        if has_sets and (tops != set(named) or len(set(named.values())) < len(named)):
            other = next((path for path in paths if path.partition("/")[0] not in named), "two folders of one set")
            raise InputError(
                f"{show(self.root)}: folders named train and test are the source's sets, but there is also "
                f"{show(other)}; move it into one of them or out of the tree"
            )
        result: dict[str, list[Picture]] = {}
        for path in paths:
            top, _, inside = path.partition("/") if has_sets else ("train", "", path)
            set_name = SET_FOLDERS[top]
            result.setdefault(set_name, []).append(Picture(set_name, path, inside.rpartition("/")[0]))
        return {name: result[name] for name in SETS if name in result}

    def _walk(self, folder: Path, below: str = "") -> Iterator[str]:
        """Relative paths of the regular, visible files that are no notes."""
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise unreadable(folder, error) from None
        for entry in entries:
            path, where = f"{below}{entry.name}", show(self.root / below / entry.name)
            if entry.name.startswith("."):
                continue
            try:
                path.encode()
                status = entry.stat()
            except UnicodeEncodeError:
                raise InputError(f"{where}: its name is not UTF-8; rename it") from None
            except OSError as error:
                raise unreadable(folder / entry.name, error) from None
            if entry.is_symlink() and (stat.S_ISDIR(status.st_mode) or not self._inside(entry)):
                raise InputError(f"{where}: a link out of the tree or to a folder; put the pictures themselves there")
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(folder / entry.name, f"{path}/")
            elif not stat.S_ISREG(status.st_mode):
                raise InputError(f"{where}: neither a file nor a folder; remove it from the tree")
            elif not entry.name.lower().endswith(NOTES) and entry.name.lower() not in NOTE_NAMES:
                yield path

    def _inside(self, entry: os.DirEntry[str]) -> bool:
        return Path(entry.path).resolve().is_relative_to(self.root.resolve())

    # --- one picture ---

    def _where(self, picture: Picture) -> str:
        return show(self.root / picture.key)

    def _read(self, picture: Picture) -> bytes:
        path = self.root / picture.key
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise unreadable(path, error) from None
        if len(content) > MAX_BYTES:
            raise InputError(f"{show(path)}: more than {MAX_BYTES >> 20} MiB, which no picture here may have")
        return content

    def _open(self, picture: Picture, content: bytes) -> Image.Image:
        """The picture with its header read and judged, its pixels not."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # our own limit is below Pillow's
                image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError:
            raise self._too_large(picture) from None
        except (OSError, ValueError, SyntaxError):
            raise InputError(f"{self._where(picture)}: no picture; expected {', '.join(FORMATS)}") from None
        if image.width * image.height > MAX_PIXELS:
            raise self._too_large(picture)
        if image.mode in DEEP:
            raise InputError(f"{self._where(picture)}: more than 8 bits per channel ({image.mode}); convert it to 8")
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise InputError(f"{self._where(picture)}: holds {frames} frames; expected a single picture")
        return image

    def _too_large(self, picture: Picture) -> InputError:
        return InputError(f"{self._where(picture)}: more than {MAX_PIXELS >> 20} Mi pixels; make it smaller")

    def _decode(self, picture: Picture, content: bytes) -> np.ndarray:
        image = self._open(picture, content)
        try:
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if self.channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{self._where(picture)}: cannot be decoded ({show(error)}); replace it") from None
        if image.size != (self.size[1], self.size[0]):
            image = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.uint8)
        return pixels if self.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
