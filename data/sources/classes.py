"""Labels as they come, chunk by chunk → class numbers; only the different values are kept as Python objects.

Labels are whole numbers or texts; a source whose every label is written like a whole number (`3`, `-1`, `3.0`) has
numbers, in numerical order, any other texts, in the order of their characters. Empty, null and NaN mean: no label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from conf.errors import InputError, show

MAX_CLASSES = 100_000
WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,15})(\.0*)?")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]*[1-9][0-9]*")
Value = str | int | float | None


class Classes:
    """Collects the labels of a source's sets."""

    def __init__(self, where: str, *, minus_one_is_missing: bool) -> None:
        self.where, self.minus_one_is_missing = where, minus_one_is_missing
        self._numbers: dict[str, int] = {}  # label as text → number in order of appearance
        self._parts: list[np.ndarray] = []

    def add(self, values: Sequence[Value], places: np.ndarray) -> None:
        """The next samples have the labels values[places]; places (n,) integers, −1: no label. Errors: InputError."""
        numbers = np.full(len(values) + 1, -1, np.int32)  # the last is that of place −1
        for place, value in enumerate(values):
            text = _text(value, self.where)
            if text:
                numbers[place] = self._numbers.setdefault(text, len(self._numbers))
        if len(self._numbers) > MAX_CLASSES:
            raise InputError(f"{self.where}: more than {MAX_CLASSES} different labels; are these class labels?")
        self._parts.append(numbers[places])

    def finish(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """(n,) int64 class numbers of all samples, −1 where missing, and the classes' names. Errors: InputError."""
        texts = list(self._numbers)
        names: list[str | None] = list(texts)
        if all(WHOLE.fullmatch(text) for text in texts):
            whole = [int(text.partition(".")[0]) for text in texts]
            names = [None if self.minus_one_is_missing and number == -1 else str(number) for number in whole]
            classes = [str(number) for number in sorted({int(name) for name in names if name is not None})]
            if self.minus_one_is_missing and classes and int(classes[0]) < -1:
                raise InputError(
                    f"{self.where}: a label is {classes[0]}; expected 0 or more, or −1 where it is missing"
                )
        else:
            odd = next((text for text in texts if FRACTION.fullmatch(text)), None)
            if odd is not None and all(NUMBER.fullmatch(text) for text in texts):
                raise InputError(f"{self.where}: a label is {show(odd)}; expected whole numbers or text")
            classes = sorted(texts)
        places = {name: place for place, name in enumerate(classes)}
        table = np.array([-1 if name is None else places[name] for name in names] + [-1], np.int64)
        labels, end = np.empty(sum(map(len, self._parts)), np.int64), 0
        for part in self._parts:
            labels[end : end + len(part)] = table[part]
            end += len(part)
        return labels, tuple(classes)


def _text(value: Value, where: str) -> str:
    """A label as text, empty where it is missing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float):
        if value != value:
            return ""
        if not value.is_integer() or abs(value) > 2**53:
            raise InputError(f"{where}: a label is {show(value)}; expected whole numbers or text")
    return str(int(value))
