"""Texts → counts of the most frequent words.

A word is two or more letters, digits or underscores (`\\w\\w+`, Unicode), lower-cased; scikit-learn's CountVectorizer
cuts texts the same way. What is NOT here: where texts lie and how they are encoded.
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


@dataclass(frozen=True)
class Vocabulary:
    """The words counted, most frequent first."""

    words: tuple[str, ...]

    @classmethod
    def count(cls, texts: Iterable[str], size: int, stop_words: Literal["none", "english"] = "none") -> Self:
        """The `size` most frequent words of `texts`, ties in alphabetical order; fewer if there are not so many."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(words_of(text))
        if stop_words == "english":
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

            for word in ENGLISH_STOP_WORDS:
                counts.pop(word, None)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls(tuple(word for word, _ in ranked[:size]))

    def counts(self, text: str) -> np.ndarray:
        """(len(words),) uint32: how often each word occurs in a text."""
        result = np.zeros(len(self.words), np.uint32)
        places = self._places
        found = [place for word in words_of(text) if (place := places.get(word)) is not None]
        np.add.at(result, found, 1)
        return result

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}


def words_of(text: str) -> Iterator[str]:
    """The words of a text, in order."""
    return (match.group() for match in WORD.finditer(text.lower()))
