"""Real data for the benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conf import IdxSource
from data.shards import ingest
from data.sources import open_source


@pytest.fixture(scope="session")
def mnist_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST as shards, from the folder STRATA_DATA names."""
    folder = os.environ.get("STRATA_DATA")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("STRATA_DATA names no folder with mnist/ in it")
    shards = tmp_path_factory.mktemp("mnist")
    ingest(open_source(IdxSource(kind="idx", path=str(Path(folder) / "mnist"))), shards, shard_size=10_000)
    return shards
