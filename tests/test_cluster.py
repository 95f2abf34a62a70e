"""Ingest on a Dask cluster of real processes: the same bytes, one Prefect server, one line when something is wrong."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conf import Data
from data.ingest import ingest
from data.sources import open_source
from flows import servers
from tests.conftest import DIGITS, LAYER, MARK, NOBODY, Command, until
from tests.shard_folders import contents

pytest.importorskip("distributed")


class Cluster:
    """A scheduler and two workers, a process each, that know of no Prefect server."""

    def __init__(self, folder: Path) -> None:
        self.all = Command(folder)
        self.address = f"tcp://127.0.0.1:{servers.free_port()}"
        self._start("scheduler", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2])
        for _ in range(2):
            self._start("worker", self.address, "--no-nanny", "--nthreads", "1", "--local-directory", str(folder))

    def _start(self, what: str, *arguments: str) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
        own |= {MARK: self.all.mark, "HOME": str(self.all.folder)}
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, "--no-dashboard"]
        with (self.all.folder / f"{what}.log").open("ab") as log:
            subprocess.Popen(command, env=own, stdout=log, stderr=log, cwd=self.all.folder)

    def at_work(self) -> list[int]:
        return [process for process, line in self.all.alive().items() if "data.workers" in line]


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("dask"))
    yield found
    found.all.kill_all()


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own, as PREFECT_API_URL names one."""
    out = tmp_path_factory.mktemp("prefect")
    process, api = servers.spawn_prefect(out, servers.free_port(), pages=False)
    assert servers.await_prefect(process, api)
    yield api
    servers.end(process)


def head(source: str, shard_size: int) -> str:
    return DIGITS.replace("{source: {kind: digits}}", f"{{source: {source}, shard_size: {shard_size}}}").replace(
        "epochs: 1", "epochs: 0"
    )


def test_the_same_bytes_whatever_was_killed_and_one_server(
    strata: Command, recipe: Callable[..., Path], tmp_path: Path, dask: Cluster, prefect: str
) -> None:
    """Killed, then stopped, through a configured server; then finished through one of the run's own."""
    values = np.random.default_rng(0).integers(0, 255, (24_000, 784), dtype=np.uint8)
    np.save(tmp_path / "raw.npy", values)
    path = recipe(LAYER, head("{kind: arrays, path: raw.npy}", 500))
    command = ("run", path, f"data.cluster={dask.address}", "evaluate=null", "--out", "out")
    configured = {"MLFLOW_TRACKING_URI": NOBODY, "PREFECT_API_URL": prefect}
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = strata.start(*command, environment=configured)
        _await_more(tmp_path, process)
        process.send_signal(number)
        said = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
        until(lambda: not dask.at_work(), 20)
        strata.await_quiet(20)
        assert _shards(tmp_path) < 48 and not list(tmp_path.glob("out/shards/*/manifest.json"))
    assert said[1].count("\n") == 1 and not list(tmp_path.glob("out/shards/.*.request.json"))

    process = strata.start(*command, environment={"MLFLOW_TRACKING_URI": NOBODY})
    found: dict[int, str] = {}
    while process.poll() is None:
        found |= {number: line for number, line in (strata.alive() | dask.all.alive()).items() if _is_server(line)}
        time.sleep(0.05)
    out, err = process.communicate()
    assert process.returncode == 0 and err == "" and "2 Dask workers" in out, (out, err)
    assert len(found) == 1, found
    states = _rows(
        tmp_path / "out" / "prefect" / "prefect.db", "select state_name from task_run where name like 'shards %'"
    )
    assert states and set(states) == {"Completed"}
    folder = next(path for path in tmp_path.glob("out/shards/*") if path.is_dir())
    here = open_source(Data.model_validate({"source": {"kind": "arrays", "path": str(tmp_path / "raw.npy")}}).source)
    assert contents(folder) == contents(ingest(here, tmp_path / "here", shard_size=500).folder)


def _is_server(line: str) -> bool:
    """Of `prefect server start`, or one that Prefect starts for itself where it knows of none."""
    return ("prefect server start" in line or "prefect.server.api.server" in line) and "lifeline" not in line


def _await_more(folder: Path, process: subprocess.Popen[str]) -> None:
    before = _shards(folder)
    until(lambda: _shards(folder) > before, 200, lambda: str(_said(process)))


def _shards(folder: Path) -> int:
    return len(list(folder.glob("out/shards/*/train-*.index.npy")))


def _said(process: subprocess.Popen[str]) -> Any:
    process.kill()
    return process.communicate()


def _rows(database: Path, query: str) -> list[str]:
    with sqlite3.connect(database) as connection:
        return [row[0] for row in connection.execute(query)]


def test_a_bad_sample_is_one_line(
    strata: Command, recipe: Callable[..., Path], tmp_path: Path, dask: Cluster, prefect: str
) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(30):
        Image.new("L", (32, 32), number).save(tmp_path / "pictures" / f"{number:02}.png")
    whole = (tmp_path / "pictures" / "17.png").read_bytes()
    (tmp_path / "pictures" / "17.png").write_bytes(whole[: len(whole) // 2])
    path = recipe(LAYER, head("{kind: images, path: pictures}", 5))
    environment = {"MLFLOW_TRACKING_URI": NOBODY, "PREFECT_API_URL": prefect}
    local = strata("run", path, "evaluate=null", "--out", "local", environment=environment)
    there = strata(
        "run", path, f"data.cluster={dask.address}", "evaluate=null", "--out", "there", environment=environment
    )
    assert there.status == local.status == 2 and "17.png" in there.err
    assert there.err == local.err and there.err.count("\n") == 1
    assert "2 Dask workers" in there.out
