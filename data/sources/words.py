"""Texts → counts of the most frequent words.

A word is two or more letters, digits or underscores (`\\w\\w+`, Unicode), lower-cased; scikit-learn's CountVectorizer
cuts texts the same way. Memory while counting grows with the number of different words, not with that of texts. What
is NOT here: where texts lie and how they are encoded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np

WORD = re.compile(r"\w\w+")
StopWords = Literal["none", "english"]


@dataclass(frozen=True)
class Vocabulary:
    """The words that are counted, most frequent first."""

    words: tuple[str, ...]

    @classmethod
    def count(cls, texts: Iterable[str], size: int, stop_words: StopWords = "none") -> Self:
        """The `size` most frequent words of `texts`, ties in alphabetical order; fewer if there are not so many."""
        tally = Tally()
        for text in texts:
            tally.add(text)
        return cls(tally.frequent(size, stop_words))

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
        """The `size` most frequent words, ties in alphabetical order, without scikit-learn's stop words if asked."""
        left_out: frozenset[str] = frozenset()
        if stop_words == "english":
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

            left_out = ENGLISH_STOP_WORDS
        ranked = sorted((-count, word) for word, count in self._total.items() if word not in left_out)
        return tuple(word for _, word in ranked[:size])

    def highest(self, words: Iterable[str]) -> int:
        """The largest count that one of these words has in one text; at least 1."""
        return max((self._most.get(word, 1) for word in words), default=1)


def count_dtype(highest: int) -> str:
    """The smallest of uint16 and uint32 that holds such a count."""
    return "uint16" if highest <= np.iinfo(np.uint16).max else "uint32"


def words_of(text: str) -> Iterator[str]:
    """The words of a text, in order."""
    return (match.group() for match in WORD.finditer(text.lower()))
