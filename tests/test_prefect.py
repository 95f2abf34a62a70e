"""Prefect shows and schedules runs, and a Prefect that is away, silent or killed costs seconds and one line."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from data import durable
from tests.conftest import DIGITS, NOBODY, PLAIN, Command, ask, trained, until

pytestmark = pytest.mark.alone

ONE = "  layer1: {model: {kind: rbm, num_hidden: 8}}\n"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []
        threading.Thread(target=lambda: _accept(server, held), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _accept(server: socket.socket, held: list[socket.socket]) -> None:
    while True:
        try:
            held.append(server.accept()[0])
        except OSError:
            return


def test_a_configured_prefect_or_mlflow_that_never_answers_costs_seconds_and_a_line(
    strata: Command, recipe: Callable[..., Path], silent: str
) -> None:
    """Both side by side, so that the machine is as busy for one as for the other."""
    path = recipe(ONE)
    hanging = {"PREFECT_API_URL": f"{silent}/api", "MLFLOW_TRACKING_URI": silent}
    with ThreadPoolExecutor() as threads:
        refused, hung = threads.map(
            lambda out, environment: strata("run", path, "evaluate=null", "--out", out, environment=environment),
            ("refused", "hung"), (PLAIN, hanging),
        )  # fmt: skip
    assert refused.status == hung.status == 0 and refused.err == hung.err == ""
    for ended, address in ((refused, NOBODY), (hung, silent)):
        assert [line for line in ended.out.splitlines() if f"Prefect at {address}/api did not answer" in line]
        assert [line for line in ended.out.splitlines() if f"MLflow at {address} " in line and "strata sync" in line]
        assert ended.out.count("without it") == 1 and ended.out.count("sends the rest") == 1
    assert hung.seconds < refused.seconds + 15


def test_a_prefect_server_killed_in_mid_run_costs_seconds_and_a_line(
    strata: Command, recipe: Callable[..., Path], migrated: Callable[[Path], None], tmp_path: Path
) -> None:
    migrated(tmp_path / "out")
    command = ("run", recipe(ONE), "train.epochs=40", "evaluate=null", "--out", "out")
    process = strata.start(*command, environment={"MLFLOW_TRACKING_URI": NOBODY})
    until(trained(tmp_path / "out", "layer1", 10), 90)
    for number, command in strata.alive().items():
        if "prefect server start" in command:
            os.kill(number, signal.SIGKILL)
    until(lambda: list(tmp_path.glob("out/stages/*/result.json")), 90)
    done = time.monotonic()
    written, said = process.communicate(timeout=90)
    assert process.returncode == 0 and said == "", (said, written)
    assert time.monotonic() - done < 30  # seconds, not the minutes of Prefect's own patience
    assert [line for line in written.splitlines() if line.startswith("Prefect stopped answering")]
    record = durable.read_json(next(tmp_path.glob("out/digits-*/run.json")))
    assert record["status"] == "finished" and {row["status"] for row in record["stages"]} == {"finished"}
    strata.await_quiet(2)


def page(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as response:
        return str(response.read().decode())


def serve(strata: Command, out: Path) -> tuple[subprocess.Popen[str], str, str]:
    """`strata ui` at free ports → process, Prefect's and MLflow's addresses."""
    process = strata.start("ui", "--out", out, "--prefect-port", "0", "--mlflow-port", "0", environment={})
    assert process.stdout is not None
    said = {line.split()[0]: line.split()[1] for line in (process.stdout.readline() for _ in range(2))}
    return process, said["Prefect"], said["MLflow"]


def _answers(address: str) -> bool:
    try:
        return bool(page(address))
    except OSError:
        return False


def test_the_pages_of_both_servers_and_a_scheduled_run(
    strata: Command, recipe: Callable[..., Path], migrated: Callable[[Path], None], tmp_path: Path
) -> None:
    """Every minute, on the server of `strata ui`, by a real worker; the first run is seen to the end. Then Ctrl-C."""
    out = tmp_path / "out"
    migrated(out)
    ui, prefect, mlflow = serve(strata, out)
    assert "<title>Prefect" in page(prefect) and f"{prefect}/api" in page(f"{prefect}/ui-settings")
    assert durable.read_json(out / "server.json")["api"] == f"{prefect}/api"
    environment = {"MLFLOW_TRACKING_URI": NOBODY}
    np.save(tmp_path / "raw.npy", (load_digits().data[:300] / 16).astype(np.float32))  # named from where we deploy
    path = recipe(ONE, DIGITS.replace("{kind: digits}", "{kind: arrays, path: raw.npy}"))
    deployed = strata("deploy", path, "evaluate=null", "--out", out, "--cron", "* * * * *", "--json",
                      environment=environment)  # fmt: skip
    assert deployed.status == 0 and deployed.err == "", deployed
    line = deployed.answer["worker"]
    assert f"PREFECT_API_URL={prefect}/api" in line and line.endswith("prefect worker start --pool strata")
    worker_environment = {**os.environ, "MLFLOW_TRACKING_URI": NOBODY, "STRATA_TEST_MARK": strata.mark}
    (tmp_path / "elsewhere").mkdir()
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(["bash", "-c", f"exec env {line}"], env=worker_environment, stdout=log, stderr=log,
                         cwd=tmp_path / "elsewhere")  # fmt: skip
    wrong = strata("deploy", path, "evaluate=null", "--out", out, "--cron", "whenever", environment=environment)
    assert wrong.status == 2 and wrong.err.startswith("error: --cron whenever: "), wrong
    until(lambda: _completed(out), 200, lambda: (tmp_path / "worker.log").read_text()[-3000:])
    record = durable.read_json(next(out.glob("digits-*/run.json")))
    assert record["status"] == "finished" and record["closed"]
    assert not list((tmp_path / "elsewhere").iterdir())
    until(lambda: _answers(f"{mlflow}/health"), 30)
    assert "MLflow" in page(mlflow)
    until(lambda: not _children(worker.pid), 90)  # told to stop while a run's process ends, Prefect's worker may hang
    worker.terminate()
    worker.wait(30)
    ui.send_signal(signal.SIGINT)
    assert ui.wait(20) == 0 and ui.communicate()[1] == ""
    strata.await_quiet(2)
    assert not (out / "server.json").exists()


def _children(process: int) -> list[str]:
    return [number for file in Path(f"/proc/{process}/task").glob("*/children") for number in file.read_text().split()]


def _completed(out: Path) -> bool:
    query = "select count(*) from flow_run where deployment_id is not null and state_type = 'COMPLETED'"
    try:
        return bool(ask(out / "prefect" / "prefect.db", query)[0][0])
    except sqlite3.OperationalError:  # locked for a moment
        return False
