"""Texts: a tree of files, one text each (class = folder), or one file with a text a line.

A text is kept as it is, control characters included, as UTF-8; only a byte order mark before it is none of it. With
`vocabulary` a sample is instead how often each of the train set's most frequent words occurs in it. Bytes that are not
of the encoding are refused, never replaced. What is NOT here: trees (data/files.py), lines, words (files beside this).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

import conf
from conf.errors import InputError, show
from data import durable
from data.files import Entry, divide, is_archive, number_classes, open_tree
from data.remote import is_remote, local_path
from data.sources import Description, RawSource
from data.sources.lines import MAX_TEXT, Lines
from data.sources.words import TextSamples

LINE_FILES = (".txt", ".txt.gz", ".text", ".lines")  # at an address, where a folder cannot be told from a file
MARK = b"\xef\xbb\xbf"
HEADER, EMPTY_LINE = re.compile(rb"[!-9;-~]+:"), re.compile(rb"\r?\n[ \t]*\r?\n")


class Collection(Protocol):
    """Texts where they lie, as bytes in their own encoding."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str: ...

    def sizes(self) -> dict[str, int]: ...

    def keys(self, set_name: str) -> Iterator[str]: ...

    def labels(self, set_name: str) -> np.ndarray: ...

    def classes(self) -> tuple[str, ...]: ...

    def read(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, str, int, bytes]]:
        """(key, file in a message, place of the text in it, bytes)."""
        ...


class Texts(RawSource):
    """Samples (n,) uint8, a text's UTF-8; or (words,) uint16, uint32 where a text has a word more than 65,535 times."""

    def __init__(self, source: conf.TextSource) -> None:
        super().__init__(source)
        self.collection: Collection = _Lines(source.path) if _is_file(source.path) else _Files(source.path)
        if source.headers == "drop" and isinstance(self.collection, _Lines):
            raise InputError(f"{show(source.path)}: a text a line has no header; leave headers: drop out")

    def fingerprint(self) -> str:
        return durable.digest_value([self.collection.fingerprint(), self._settings])

    def keys(self, set_name: str) -> Iterator[str]:
        return self.collection.keys(set_name)

    def labels(self, set_name: str) -> np.ndarray:
        return self.collection.labels(set_name)

    def samples(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        description, samples = self.describe(), TextSamples(self.source)
        for key, text in self._texts(set_name, rows):
            yield key, samples.stored(text, description, show(key))

    def _texts(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        for key, where, place, content in self.collection.read(set_name, rows):
            text = to_utf8(content, self.source.encoding, where, place)
            yield key, text if self.source.headers == "keep" else without_header(text)

    def _describe(self) -> Description:
        sizes, samples, content = self.collection.sizes(), TextSamples(self.source), hashlib.sha256()
        for set_name, count in sizes.items():
            for key, text in self._texts(set_name, range(count)):
                content.update(durable.canonical([set_name, key, len(text)]) + text)
                samples.add(text, counted=set_name == "train")
        schema = samples.schema(self.collection.name)
        words = list(schema.get("features", ()))
        about = {"texts": content.hexdigest(), "words": words, "revision": self.revision}
        return Description(
            kind="text",
            sets=sizes,
            labeled={name: int((self.labels(name) >= 0).sum()) for name in sizes},
            classes=self.collection.classes(),
            content=durable.digest_value(about),
            **schema,
        )

    @property
    def _settings(self) -> list[object]:
        source = self.source
        return [source.encoding, source.vocabulary, source.stop_words, source.headers]


def without_header(text: bytes) -> bytes:
    """What follows the first empty line of a text that begins like an e-mail; any other is left as it is."""
    return EMPTY_LINE.split(text, maxsplit=1)[-1] if HEADER.match(text) and EMPTY_LINE.search(text) else text


def to_utf8(content: bytes, encoding: str, where: str, place: int = 0) -> bytes:
    """A text of an encoding as UTF-8. `place`: of its first byte in the file. Errors: InputError, naming the byte."""
    if encoding != "utf-8":
        return content.decode(encoding).encode()  # latin-1: every byte is a character
    if place == 0:
        place, content = (len(MARK), content[len(MARK) :]) if content.startswith(MARK) else (0, content)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte {place + error.start} (0x{content[error.start]:02x}) is not UTF-8; "
            "mend it, or set encoding: latin-1 if that is what the file is written in"
        ) from None
    return content


def _is_file(path: str) -> bool:
    if is_archive(path):
        return False
    return path.partition("?")[0].lower().endswith(LINE_FILES) if is_remote(path) else not local_path(path).is_dir()


class _Lines:
    """One set, `train`; a key is a line's number, from 1."""

    def __init__(self, path: str) -> None:
        self._lines = Lines(path)
        self.name = self._lines.name

    def fingerprint(self) -> str:
        return self._lines.fingerprint()

    def sizes(self) -> dict[str, int]:
        return {"train": len(self._lines)}

    def keys(self, set_name: str) -> Iterator[str]:
        return map(str, self._lines.numbers())

    def labels(self, set_name: str) -> np.ndarray:
        return np.broadcast_to(np.int64(-1), (len(self._lines),))  # takes no memory

    def classes(self) -> tuple[str, ...]:
        return ()

    def read(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, str, int, bytes]]:
        for number, place, content in self._lines.read(rows):
            yield str(number), f"{self.name}: line {number}", place, content


class _Files:
    """Sets and classes by the folders; every visible file is a text, and its path the key."""

    def __init__(self, path: str) -> None:
        self._tree = open_tree(path)
        self.name = self._tree.name

    def fingerprint(self) -> str:
        return self._tree.fingerprint()

    @cached_property
    def _texts(self) -> dict[str, list[tuple[Entry, str]]]:
        entries = self._tree.entries()
        if not entries:
            raise InputError(f"{self.name}: no files in it; expected a tree of texts, one a file")
        return divide(entries, self.name)

    def sizes(self) -> dict[str, int]:
        return {name: len(pairs) for name, pairs in self._texts.items()}

    def keys(self, set_name: str) -> Iterator[str]:
        return (entry.path for entry, _ in self._texts[set_name])

    def labels(self, set_name: str) -> np.ndarray:
        return np.array(number_classes(self._texts)[0][set_name], np.int64)

    def classes(self) -> tuple[str, ...]:
        return number_classes(self._texts)[1]

    def read(self, set_name: str, rows: Sequence[int]) -> Iterator[tuple[str, str, int, bytes]]:
        texts = self._texts[set_name]
        for entry, _ in (texts[row] for row in rows):
            if entry.size == 0:
                raise InputError(f"{self._tree.where(entry)}: empty; expected a text, or no file")
            yield entry.path, self._tree.where(entry), 0, self._tree.read(entry, MAX_TEXT)
