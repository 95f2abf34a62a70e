"""Ingest on a Dask cluster of real processes: the same bytes, one Prefect server, one line when something is wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from conf import ArraysSource, Data
from conf.errors import InputError
from data import sources
from data.ingest import ingest
from data.sources import open_source
from data.workers import Unseen, made_by_processes
from flows import servers
from tests.conftest import DIGITS, LAYER, MARK, NOBODY, Command, ask, until
from tests.shard_folders import contents, digits

pytest.importorskip("prefect_dask")
pytestmark = pytest.mark.alone


class Cluster:
    """A scheduler and workers, a process each, that know of no Prefect server."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.all = Command(folder)
        self.address = f"tcp://127.0.0.1:{servers.free_port()}"
        self._start("scheduler", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2])
        for _ in range(workers):
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
def prefect(tmp_path_factory: pytest.TempPathFactory, migrated: Callable[[Path], None]) -> Iterator[str]:
    """A server of its own, as PREFECT_API_URL names one."""
    out = tmp_path_factory.mktemp("prefect")
    migrated(out)
    process, api = servers.spawn_prefect(out, servers.free_port(), pages=False)
    assert servers.await_prefect(process, api)
    yield api
    servers.end(process)


def head(source: str, shard_size: int) -> str:
    return DIGITS.replace("{source: {kind: digits}}", f"{{source: {source}, shard_size: {shard_size}}}").replace(
        "epochs: 1", "epochs: 0"
    )


@pytest.mark.slow
def test_the_same_bytes_whatever_was_killed_and_one_server(
    strata: Command, recipe: Callable[..., Path], migrated: Callable[[Path], None], tmp_path: Path,
    dask: Cluster, prefect: str,
) -> None:  # fmt: skip
    """Killed, then, on a cluster of its own, stopped; then finished, through another server than before."""
    migrated(tmp_path / "out")
    values = np.random.default_rng(0).integers(0, 255, (24_000, 784), dtype=np.uint8)
    np.save(tmp_path / "raw.npy", values)
    path = recipe(LAYER, head("{kind: arrays, path: raw.npy}", 500))
    command = ("run", path, "data.workers=2", "evaluate=null", "--out", "out")
    there, own = f"data.cluster={dask.address}", "data.cluster=local"
    configured = {"MLFLOW_TRACKING_URI": NOBODY, "PREFECT_API_URL": prefect}
    for number, where in ((signal.SIGKILL, there), (signal.SIGTERM, own)):
        process = strata.start(*command, where, environment=configured)
        _await_more(tmp_path, process)
        process.send_signal(number)
        said = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
        until(lambda: not dask.at_work(), 20)
        strata.await_quiet(20)
        assert _shards(tmp_path) < 48 and not list(tmp_path.glob("out/shards/*/manifest.json"))
    assert said[1].count("\n") == 1 and not list(tmp_path.glob("out/shards/.*.request.json"))

    process = strata.start(*command, there, environment={"MLFLOW_TRACKING_URI": NOBODY})
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
    return [row[0] for row in ask(database, query)]


def test_a_bad_sample_is_one_line(
    strata: Command, recipe: Callable[..., Path], tmp_path: Path, dask: Cluster, prefect: str
) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(30):
        Image.new("L", (32, 32), number).save(tmp_path / "pictures" / f"{number:02}.png")
    whole = (tmp_path / "pictures" / "17.png").read_bytes()
    (tmp_path / "pictures" / "17.png").write_bytes(whole[: len(whole) // 2])
    path = recipe(LAYER, head("{kind: images, path: pictures}", 5))
    here = {"MLFLOW_TRACKING_URI": NOBODY, "PREFECT_API_URL": prefect}
    ended = strata("run", path, f"data.cluster={dask.address}", "evaluate=null", environment=here)
    assert ended.status == 2 and ended.err.startswith("error: pictures/17.png: ") and ended.err.count("\n") == 1, ended
    assert "2 Dask workers" in ended.out
    strata.await_quiet(5)


def test_a_task_learns_that_nobody_waits_for_it(dask: Cluster, tmp_path: Path) -> None:
    """Else workers would go on writing where the next try begins."""
    import distributed

    def watch(said: Path) -> None:
        import time

        from flows.cluster import _wanted

        wanted = _wanted()
        while wanted():
            said.write_text("wanted")
            time.sleep(0.05)
        said.write_text("unwanted")

    said = tmp_path / "said"
    with distributed.Client(dask.address, set_as_default=False) as client:
        future = client.submit(watch, said)
        until(lambda: said.exists() and said.read_text() == "wanted", 60)
        assert future.status == "pending"
    until(lambda: said.read_text() == "unwanted", 20)


# --- no way to a cluster, or to one that is not fit: without Prefect -----------------------------------------------


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Ingests on the cluster of an address that cannot work, and gives the one line that says why."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    from flows import cluster

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "WORKER_SECONDS", 1.0)

    def told(address: str) -> str:
        origin = Data.model_validate({"source": {"kind": "digits"}, "cluster": address})
        with pytest.raises(InputError) as caught:
            makers = cluster.makers(origin, lambda line: None)
            ingest(digits(), tmp_path / "out" / "shards", shard_size=400, makers=makers)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["shards"]  # no request is left beside it
        message = str(caught.value)
        assert message.isprintable() and len(message) < 400
        return message

    yield told


def test_no_scheduler(way: Callable[[str], str]) -> None:
    def greet(server: socket.socket, greeting: bytes) -> None:
        with contextlib.suppress(OSError):
            while True:
                held.append(server.accept()[0])
                held[-1].sendall(greeting)

    held: list[socket.socket] = []
    for greeting in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=greet, args=(server, greeting), daemon=True).start()
            assert "expected the address that `dask scheduler` names" in way(
                f"tcp://127.0.0.1:{server.getsockname()[1]}"
            )
    began = time.monotonic()
    said = way(f"tcp://127.0.0.1:{servers.free_port()}")
    assert "no scheduler answers within 1 s" in said and time.monotonic() - began < 5


def test_a_scheduler_without_workers(way: Callable[[str], str], tmp_path: Path) -> None:
    lonely = Cluster(tmp_path, workers=0)
    try:
        until(lambda: "Scheduler at" in (tmp_path / "scheduler.log").read_text(), 60)
        assert "has no workers; start some: dask worker tcp://127.0.0.1" in way(lonely.address)
    finally:
        lonely.all.kill_all()


def test_without_dask(way: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "shards").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    assert way("local").endswith('pip install "strata[dask]"')


def test_a_worker_that_is_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    from flows.cluster import _problem, _software, _told

    folder, software, api = tmp_path / "shards", _software(), f"{NOBODY}/api"
    folder.mkdir()
    with _told(folder, {}) as token:
        assert "no Prefect at" in str(_problem(str(folder), token, software, api))
        assert "not the same folder" in str(_problem(str(folder), "another", software, api))
        assert "no such file" in str(_problem(str(tmp_path / "elsewhere"), token, software, api))
        other = software | {"numpy": "1.0"}
        assert f"has numpy {np.__version__}, this machine 1.0" in str(_problem(str(folder), token, other, api))
    assert "no such file" in str(_problem(str(folder), token, software, api))


def test_a_source_that_a_worker_sees_otherwise(tmp_path: Path) -> None:
    """Unseen, and no other InputError: then a cluster says which of its machines it was."""
    np.save(tmp_path / "raw.npy", np.random.default_rng(0).random((20, 3), dtype=np.float32))
    found = open_source(ArraysSource(kind="arrays", path="raw.npy"))
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        asked = {"source": sources.request(found), "folder": str(tmp_path / "out"), "shard_size": 5, "recorded": {}}
    finally:
        os.chdir(here)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    made = list(made_by_processes(asked, [0, 3], 1, lambda done: None, folder=str(tmp_path)))
    assert [answer["shard"] for answer in made] == [0, 3]
    with pytest.raises(Unseen, match="raw.npy"):
        list(made_by_processes(asked, [1], 1, lambda done: None, folder=str(tmp_path / "elsewhere")))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8786", "tcp://host", "inproc://a:1", "tcp://user@host:8786", "tcp://a b:1"]
)
def test_what_is_no_address_of_a_cluster(address: str) -> None:
    with pytest.raises(ValidationError, match="cluster"):
        Data.model_validate({"source": {"kind": "digits"}, "cluster": address})
