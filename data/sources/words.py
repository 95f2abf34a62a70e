"""Texts as samples: as they are, or as counts of the most frequent words.

A word is two or more letters, digits or underscores (`\\w\\w+`, Unicode), lower-cased; scikit-learn's CountVectorizer
cuts texts the same way. Memory while counting grows with the number of different words, not with that of texts. What
is NOT here: where texts lie and how they are encoded.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

import conf
from conf.errors import InputError
from data.sources import Description

WORD = re.compile(r"\w\w+")
StopWords = Literal["none", "english"]


@dataclass(frozen=True)
class Vocabulary:
    """The words that are counted, most frequent first."""

    words: tuple[str, ...]

    def counts(self, text: str) -> np.ndarray:
        """(len(words),) uint32: how often each word occurs in a text."""
        places = self._places
        found = [place for word in words_of(text) if (place := places.get(word)) is not None]
        return np.bincount(np.array(found, np.int64), minlength=len(self.words)).astype(np.uint32)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}


class Tally:
    """Words counted while texts pass by: how often in those that count, and how often at most in any one text."""

    def __init__(self) -> None:
        self._total: Counter[str] = Counter()
        self._most: dict[str, int] = {}  # of the words that some text holds more than once

    def add(self, text: str, counted: bool = True) -> None:
        """counted: whether the text has a say in which words are frequent (those of the train set do)."""
        counts = Counter(words_of(text))
        if counted:
            self._total.update(counts)
        for word, count in counts.items():
            if count > 1 and count > self._most.get(word, 1):
                self._most[word] = count

    def frequent(self, size: int, stop_words: StopWords = "none") -> tuple[str, ...]:
        """The `size` most frequent words, or all, ties in alphabetical order; stop words are scikit-learn's."""
        left_out: frozenset[str] = frozenset()
        if stop_words == "english":
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

            left_out = ENGLISH_STOP_WORDS
        ranked = sorted((-count, word) for word, count in self._total.items() if word not in left_out)
        return tuple(word for _, word in ranked[:size])

    def highest(self, words: Iterable[str]) -> int:
        """The largest count that one of these words has in one text; at least 1."""
        return max((self._most.get(word, 1) for word in words), default=1)


class TextSamples:
    """What a source of texts holds, as its recipe says: `add` sees every text once, and `schema` then says it."""

    def __init__(self, settings: conf.Words) -> None:
        self.settings = settings
        self._tally, self._shortest, self._longest = Tally(), math.inf, 0
        self._vocabulary: Vocabulary | None = None

    def add(self, text: bytes, counted: bool) -> None:
        """A text in UTF-8; counted: as in `Tally.add`."""
        self._shortest, self._longest = min(self._shortest, len(text)), max(self._longest, len(text))
        if self.settings.vocabulary is not None:
            self._tally.add(text.decode(), counted)

    def schema(self, where: str) -> dict[str, Any]:
        """The fields of a Description that follow from the texts. Errors: InputError if there are no words to count."""
        if self.settings.vocabulary is None:
            low, high = float(self._shortest), float(self._longest)
            return {"shape": (), "dtype": "text", "scale": 1.0, "low": low, "high": high}
        words = self._tally.frequent(self.settings.vocabulary, self.settings.stop_words)
        if not words:
            raise InputError(f"{where}: no words in its train set, so there is no vocabulary to count")
        highest = self._tally.highest(words)
        schema = {"shape": (len(words),), "dtype": count_dtype(highest), "features": words}
        return schema | {"scale": 1.0, "low": 0.0, "high": float(highest)}

    def stored(self, text: bytes, description: Description, where: str) -> np.ndarray:
        """A text as the sample that `description` says. Errors: InputError if it has more of a word than any had."""
        if description.dtype == "text":
            return np.frombuffer(text, np.uint8)
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(description.features)
        counts = self._vocabulary.counts(text.decode())
        if counts.max(initial=0) > np.iinfo(description.dtype).max:
            raise InputError(f"{where}: holds a word more often than when its source was described; run again")
        return counts.astype(description.dtype)


def count_dtype(highest: int) -> str:
    """The smallest of uint16 and uint32 that holds such a count."""
    return "uint16" if highest <= np.iinfo(np.uint16).max else "uint32"


def words_of(text: str) -> Iterator[str]:
    """The words of a text, in order."""
    return (match.group() for match in WORD.finditer(text.lower()))
