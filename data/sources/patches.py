"""Patches of pictures: what the first layer of vision sees (Olshausen & Field 1996, Nature 381).

The places of a picture's patches are drawn uniformly, each for itself, by a generator that its key seeds: they are the
same whatever other pictures there are. A patch's key is `picture#number`, its label the picture's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

import conf
from conf.errors import InputError
from data import durable
from data.sources import Description, RawSource, open_source


class Patches(RawSource):
    """Samples (height, width), or (3, height, width), in the dtype and on the scale of the pictures."""

    source: conf.PatchesSource

    def __init__(self, source: conf.PatchesSource) -> None:
        super().__init__(source)
        self.pictures = open_source(source.of)
        self.number, self.size = source.per_picture, (source.size[0], source.size[1])

    def fingerprint(self) -> str:
        return durable.digest_value([self.pictures.fingerprint(), self.number, self.size])

    def keys(self, set_name: str) -> Iterator[str]:
        for key in self.pictures.keys(set_name):
            yield from (f"{key}#{number}" for number in range(self.number))

    def labels(self, set_name: str) -> np.ndarray:
        return np.repeat(self.pictures.labels(set_name), self.number)

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        wanted = dict.fromkeys(row // self.number for row in rows)
        pictures = zip(wanted, self.pictures.samples(set_name, _as_range(list(wanted))), strict=True)
        held, key, picture, places = -1, "", np.zeros(0), np.zeros((0, 2), np.int64)
        height, width = self.size
        for row in rows:
            if row // self.number != held:
                held, (key, picture) = next(pictures)
                places = self._places(key, picture.shape)
            number = row % self.number
            top, left = places[number]
            yield f"{key}#{number}", np.ascontiguousarray(picture[..., top : top + height, left : left + width])

    def _places(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """(per_picture, 2): the upper left corners of a picture's patches."""
        free = np.array([shape[-2] - self.size[0] + 1, shape[-1] - self.size[1] + 1], np.uint64)
        stream = np.random.Philox(key=int(durable.digest_value(["patches", key])[:32], 16))
        return (stream.random_raw((self.number, 2)) % free).astype(np.int64)

    def _describe(self) -> Description:
        whole = self.pictures.describe()
        height, width = self.size
        if len(whole.shape) < 2 or whole.shape[-2] < height or whole.shape[-1] < width:
            found = "×".join(map(str, whole.shape)) or "text"
            raise InputError(
                f"patches of {height}×{width}: the samples they are cut from are {found}; expected pictures as large"
            )
        return replace(
            whole,
            kind="patches",
            sets={name: number * self.number for name, number in whole.sets.items()},
            labeled={name: number * self.number for name, number in whole.labeled.items()},
            shape=(*whole.shape[:-2], height, width),
            content=durable.digest_value([whole.content, self.number, self.size, self.revision]),
            features=(),
        )


def _as_range(rows: list[int]) -> Sequence[int]:
    """The same rows, as a range where they follow one another: sources read those faster."""
    return range(rows[0], rows[-1] + 1) if rows and rows[-1] - rows[0] + 1 == len(rows) else rows
