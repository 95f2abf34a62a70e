"""A tree of pictures; a picture's class is the path of its folder, and none if it lies at the top.

A tree whose top folders are named like sets (`train`, `validation`, `test`) has those sets; then classes are the
folders inside them. Every file that lies here is hashed and its header checked before anything is written; that it can
be decoded shows during ingest, as does all that is wrong with pictures at an address. What is NOT here: walking trees
(data/files.py), decoding (data/sources/pictures.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

import conf
from conf.errors import InputError
from data import durable
from data.files import Entry, divide, number_classes, open_tree
from data.sources import Description, RawSource
from data.sources.pictures import FORMATS, MAX_BYTES, check_header, decode, picture_shape


class Images(RawSource):
    """Samples (height, width) for one channel, (3, height, width) for three, uint8."""

    def __init__(self, source: conf.ImagesSource) -> None:
        super().__init__(source)
        self.tree = open_tree(source.path)
        self.size, self.channels = (source.size[0], source.size[1]), source.channels

    def fingerprint(self) -> str:
        return durable.digest_value([self.tree.fingerprint(_is_picture), self.size, self.channels, self.source.fit])

    def keys(self, set_name: str) -> Iterator[str]:
        return (entry.path for entry, _ in self._pictures[set_name])

    def labels(self, set_name: str) -> np.ndarray:
        return np.array(number_classes(self._pictures)[0][set_name], np.int64)

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        pictures = self._pictures[set_name]
        for entry, _ in (pictures[row] for row in rows):
            content = self.tree.read(entry, MAX_BYTES)
            where, crop = self.tree.where(entry), self.source.fit == "crop"
            yield entry.path, decode(content, where, size=self.size, channels=self.channels, crop=crop)

    def _describe(self) -> Description:
        numbers, classes = number_classes(self._pictures)
        shape = picture_shape(self.size, self.channels)
        content = hashlib.sha256()
        for pictures in self._pictures.values():
            for entry, _ in pictures:
                data = self.tree.read(entry, MAX_BYTES) if self.tree.by_content else b""
                if self.tree.by_content:
                    check_header(data, self.tree.where(entry))
                content.update(durable.canonical([entry.path, self.tree.digest(entry, data)]))
        about = {"shape": list(shape), "files": content.hexdigest(), "revision": self.revision}
        about |= {"fit": "crop"} if self.source.fit == "crop" else {}
        return Description(
            kind="images",
            sets={name: len(pictures) for name, pictures in self._pictures.items()},
            labeled={name: sum(number >= 0 for number in numbers[name]) for name in numbers},
            shape=shape,
            dtype="uint8",
            scale=255.0,
            low=0.0,
            high=1.0,
            classes=classes,
            content=durable.digest_value(about),
        )

    @cached_property
    def _pictures(self) -> dict[str, list[tuple[Entry, str]]]:
        """Set → its (picture, class), by path. Errors: InputError, if there are none or if sets and classes mix."""
        pictures = [entry for entry in self.tree.entries() if _is_picture(entry)]
        if not pictures:
            raise InputError(f"{self.tree.name}: no pictures in this folder; expected {', '.join(FORMATS)} files")
        return divide(pictures, self.tree.name)


def _is_picture(entry: Entry) -> bool:
    return not entry.is_note
