"""The servers a run or a person needs: Prefect for the time of a run, Prefect and MLflow for `strata ui`.

All bind to loopback, keep their data in the output folder, phone nobody, and die with the command that started them.
A live Prefect server is recorded in OUT/server.json and used by later commands instead of starting another.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from conf import lifeline
from data import durable
from flows.stage import end

HOST = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
ANSWER_SECONDS, START_SECONDS = 5.0, 60.0


def prefect_environment(out: Path) -> dict[str, str]:
    """What Prefect must find set before it is imported: home under OUT, silence, no telemetry, little patience."""
    return {
        "PREFECT_HOME": str(out.absolute() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "1",
        "PREFECT_API_REQUEST_TIMEOUT": "10",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_CLI_PROMPT": "false",
    }


def answers(api: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether a Prefect API says it is healthy within `seconds`."""
    try:
        with urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=seconds) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def known_server(out: Path) -> str | None:
    """The API of a live server recorded in OUT/server.json."""
    try:
        api = str(durable.read_json(out / "server.json")["api"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return api if answers(api, 2.0) else None


def record_server(out: Path, pid: int, api: str) -> None:
    durable.write_json(out / "server.json", {"api": api, "pid": pid})


def forget_server(out: Path, pid: int) -> None:
    """Removes the record if it is of this server: another command may have recorded its own meanwhile."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if durable.read_json(out / "server.json")["pid"] == pid:
            (out / "server.json").unlink()


def free_port(wanted: int = 0) -> int:
    """`wanted` if nobody listens there, else any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError:
            return free_port(0)
        return int(probe.getsockname()[1])


def spawn(command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A server that dies with us (conf.lifeline), in a session of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as chatter:
        return subprocess.Popen(
            lifeline.command(command),
            stdin=subprocess.DEVNULL,
            stdout=chatter,
            stderr=chatter,
            env=os.environ | dict(environment) | {"PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )


def spawn_prefect(out: Path, port: int, *, pages: bool) -> tuple[subprocess.Popen[bytes], str]:
    """A Prefect server over OUT's database, with its pages or the API alone → process, API address."""
    api = f"http://{HOST}:{port}/api"
    environment = prefect_environment(out) | {
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api,
        "PREFECT_UI_ENABLED": str(pages).lower(),
        "PREFECT_UI_STATIC_DIRECTORY": str(out.absolute() / "prefect" / "ui"),  # else it writes beside its own code
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port}",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    return spawn(command, environment, out / "prefect" / "server.log"), api


def await_prefect(process: subprocess.Popen[bytes], api: str, seconds: float = START_SECONDS) -> bool:
    """Waits until a server that was just spawned answers; False when it died or took too long."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.poll() is None:
        if answers(api, 2.0):
            return True
        time.sleep(0.2)
    return False


@contextmanager
def prefect_for_a_run(out: Path) -> Iterator[tuple[str | None, str | None]]:
    """(API address, None) of the configured, the recorded or a temporary server, or (None, why there is none)."""
    configured = os.environ.get("PREFECT_API_URL")
    if configured:
        if answers(configured):
            yield configured, None
        else:
            yield None, f"Prefect at {configured} did not answer within {ANSWER_SECONDS:.0f} s; going on without it"
        return
    recorded = known_server(out)
    if recorded:
        yield recorded, None
        return
    process, api = spawn_prefect(out, free_port(), pages=False)
    try:
        if await_prefect(process, api):
            record_server(out, process.pid, api)
            yield api, None
        else:
            yield None, f"a temporary Prefect server did not start within {START_SECONDS:.0f} s; going on without it"
    finally:
        end(process)
        forget_server(out, process.pid)
