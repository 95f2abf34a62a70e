"""Attacks and malformed inputs, each with two halves: it is refused, and without the guard it succeeds.

A case is a generator: it plants its files, yields what a victim would do, and then, the guard taken away or replaced by
the library call it stands for, yields whether the attack succeeded. `tests/test_attacks.py` runs them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Halves = Iterator[Any]


@dataclass(frozen=True)
class Attack:
    name: str
    begin: Callable[[Path, pytest.MonkeyPatch], Halves]


ATTACKS: list[Attack] = []


def attack(*variants: Any) -> Callable[[Callable[..., Halves]], Callable[..., Halves]]:
    """Registers a case, or one for each variant, which becomes its last argument; the name is the function's."""

    def register(case: Callable[..., Halves]) -> Callable[..., Halves]:
        words = case.__name__.replace("_", " ").strip()
        for variant in variants:
            text = variant[0] if isinstance(variant, tuple) else variant
            ATTACKS.append(Attack(f"{words}: {text}", functools.partial(_with_variant, case, variant)))
        if not variants:
            ATTACKS.append(Attack(words, case))
        return case

    return register


def _with_variant(case: Callable[..., Halves], variant: Any, folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    return case(folder, patch, variant)
