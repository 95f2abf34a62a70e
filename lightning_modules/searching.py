"""`strata search` in its stage process: builds indexes of packed codes, and turns what is asked into codes and looks.

A text becomes word counts over the shards' vocabulary and a picture the array that ingest would have made of it; the
model the codes are of makes bits of either. What is NOT here: distances (hamming.py), what a person sees (flows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

import lightning_modules as registry
from conf.errors import InputError, StrataError, show
from conf.protocol import IndexJob, Query, SearchJob
from data import durable
from data.codes import NAME as CODES
from data.codes import Codes, packed
from data.shards import Manifest
from data.sources.pictures import MAX_BYTES, decode
from data.sources.words import Vocabulary
from lightning_modules import hamming
from lightning_modules.hashing import Coder, hasher

Tell = Callable[[dict[str, Any]], None]
MAX_QUERIES = 10_000  # of a file
COUNTS = ("uint16", "uint32")  # how word counts are stored


def index(job: IndexJob) -> dict[str, Any]:
    """Builds an index of packed codes → what was built."""
    hamming.set_threads(torch.get_num_threads())
    built = hamming.build(Codes.load(Path(job.codes)), Path(job.out), job.kind, recall=job.recall)
    return {"written": [str(Path(job.out) / name) for name in (hamming.FILE, hamming.NAME)]} | vars(built.about)


def search(job: SearchJob, lines: Iterable[str], tell: Tell) -> None:
    """Answers query after query."""
    hamming.set_threads(torch.get_num_threads())
    finder = Finder(Path(job.folder), job.model, job.shards)
    tell({"answer": vars(finder.index.about)})
    for line in lines:
        try:
            tell({"answer": finder.answer(Query.model_validate_json(line))})
        except StrataError as error:
            tell({"error": {"status": error.status, "message": str(error)}})
        except ValidationError as error:
            said = error.errors()[0]
            where = ".".join(map(str, said["loc"]))
            tell({"error": {"status": InputError.status, "message": f"query: {where}: {said['msg']}"}})


class Finder:
    """Codes or an index of them, and the model that makes codes of anything else, loaded when it is first needed."""

    def __init__(self, folder: Path, model: str | None, shards: str | None) -> None:
        self.index = hamming.of_codes(Codes.load(folder)) if (folder / CODES).exists() else hamming.load(folder)
        about = self.index.about
        self._model_at = Path(model or about.lay.get("model", ""))
        self._shards_at = Path(shards or about.lay.get("shards", ""))

    def answer(self, query: Query) -> dict[str, Any]:
        """{"found": [{"numbers", "distances", "within"} a query, nearest first]}; within: how many, of a radius."""
        codes = self._codes(query)
        spare = [] if query.items is None else query.items  # a code is its own nearest
        k = query.k + bool(spare)
        found = []
        if query.radius is None:
            distances, numbers = self.index.nearest(codes, k, exact=query.exact)
            pairs = [(near[who >= 0], who[who >= 0]) for near, who in zip(distances, numbers, strict=True)]
        else:
            pairs = self.index.within(codes, query.radius, exact=query.exact)
        for row, (near, who) in enumerate(pairs):
            if spare:
                near, who = near[who != spare[row]], who[who != spare[row]]
            within = None if query.radius is None else len(who)
            numbers, distances = who[: query.k].tolist(), near[: query.k].tolist()
            found.append({"numbers": numbers, "distances": distances, "within": within})
        return {"found": found}

    def _codes(self, query: Query) -> np.ndarray:
        """(n, num_bytes) of what is asked for."""
        if query.items is not None:
            for number in query.items:
                if not 0 <= number < len(self.index):
                    raise InputError(f"item {number}: expected a number from 0 to {len(self.index) - 1:,}")
            return np.stack([self.index.code(number) for number in query.items])
        if query.text is not None:
            return self._encoded(self._counts(query.text))
        if query.picture is not None:
            return self._encoded(self._pixels(Path(query.picture), query.crop))
        if query.codes is not None:
            return self._read(Path(query.codes))
        raise InputError("query: expected items, a text, a picture or codes, found none")

    def _encoded(self, values: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            bits = self._hasher(torch.from_numpy(values[None]))
        return packed(bits.numpy())

    def _counts(self, text: str) -> np.ndarray:
        words = self._vocabulary
        counts = words.counts(text)
        if not counts.any():
            raise InputError(f"text: has none of the {len(words.words):,} words that are counted; try others")
        return counts.astype(np.float32) / np.float32(self._manifest.scale)

    def _pixels(self, path: Path, crop: bool) -> np.ndarray:
        manifest = self._manifest
        shape = manifest.image_shape
        colours = shape is None or len(shape) == 2 or shape[0] == 3
        if shape is None or not colours or manifest.low < 0 or manifest.high > 1:
            raise InputError(f"{show(self._shards_at)}: these samples are no pictures, so none can be looked for")
        try:
            with durable.opened(path) as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"{show(path)}: {(error.strerror or str(error)).lower()}") from None
        if len(content) > MAX_BYTES:
            raise InputError(f"{show(path)}: more than {MAX_BYTES >> 20} MiB; make it smaller")
        size, channels = (shape[-2], shape[-1]), 1 if len(shape) == 2 else 3
        pixels = decode(content, show(path), size=size, channels=channels, crop=crop)
        return (pixels / np.float32(255)).astype(np.float32).reshape(-1)

    def _read(self, path: Path) -> np.ndarray:
        num_bits = self.index.about.num_bits
        num_bytes = -(-num_bits // 8)
        try:
            codes = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = (getattr(error, "strerror", None) or "no .npy file").lower()
            raise InputError(f"{show(path)}: {reason}; expected packed codes, (n, {num_bytes}) uint8") from None
        found = f"{codes.dtype} of shape {codes.shape}" if isinstance(codes, np.ndarray) else "several arrays"
        if found != f"uint8 of shape {(len(codes), num_bytes)}":
            raise InputError(f"{show(path)}: expected packed codes, (n, {num_bytes}) uint8, found {found}")
        if not 1 <= len(codes) <= MAX_QUERIES:
            raise InputError(f"{show(path)}: expected 1 to {MAX_QUERIES:,} codes, found {len(codes):,}")
        spare = packed(np.ones((1, num_bits), bool))
        if (codes & ~spare).any():
            raise InputError(f"{show(path)}: has codes of more than {num_bits} bits; expected spare bits of 0")
        return np.ascontiguousarray(codes)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        words = self._manifest.features()
        if not words or self._manifest.dtype not in COUNTS:
            raise InputError(f"{show(self._shards_at)}: a text has to become word counts, but these samples are none")
        return Vocabulary(words)

    @cached_property
    def _manifest(self) -> Manifest:
        """The shards', of the very samples the codes are of."""
        manifest, expected = Manifest.load(self._shards_at), self.index.about.shards
        if manifest.samples_digest != expected:
            raise InputError(
                f"{show(self._shards_at)}: holds other samples than the codes are of (expected {expected[:12]}…, found "
                f"{manifest.samples_digest[:12]}…); name theirs by --shards, or encode these"
            )
        return manifest

    @cached_property
    def _hasher(self) -> Coder:
        """What gives bits, of the very model the codes are of."""
        model, expected = registry.load(self._model_at).eval(), self.index.about.model
        found = str(durable.read_json(self._model_at / "model.json")["digest"])
        if found != expected:
            raise InputError(
                f"{show(self._model_at)}: another model than the codes are of (expected {expected[:12]}…, found "
                f"{found[:12]}…); name theirs by --model, or encode with this one"
            )
        made = hasher(model)
        assert made is not None  # it made the codes
        return made[1]
