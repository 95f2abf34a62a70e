"""What every test of a raw source asks of it, and where real data sets lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from conf.errors import InputError
from data.sources import RawSource, open_source

RANDOM = np.random.default_rng(0)


def everything(source: RawSource, set_name: str = "train") -> tuple[list[str], np.ndarray, list[int]]:
    keys, values = zip(*source.samples(set_name, range(source.sets[set_name])), strict=True)
    assert list(source.keys(set_name)) == list(keys)
    return list(keys), np.stack(values), source.labels(set_name).tolist()


def colleague(source: RawSource) -> RawSource:
    """The same source in a process that was only told what to expect."""
    other = open_source(source.source)
    other.expect(source.describe(), source.fingerprint())
    return other


def refused(source: RawSource) -> str:
    """The one line a bad source is refused with."""
    with pytest.raises(InputError) as caught:
        source.describe()
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500
    return message


def real(*parts: str) -> Path:
    folder = os.environ.get("STRATA_DATA")
    if folder is None:
        pytest.skip("STRATA_DATA does not name the folder with real data sets")
    path = Path(folder).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not in the folder that STRATA_DATA names")
    return path
