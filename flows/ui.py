"""`strata ui`: Prefect's and MLflow's pages over one output folder, on loopback, until Ctrl-C."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from conf.errors import InputError, Interrupted, StrataError, show
from flows import servers, tracking
from flows.stage import end


def serve(out: Path, prefect_port: int | None, mlflow_port: int | None) -> dict[str, Any]:
    """Starts both servers, names their addresses and waits; Ctrl-C ends both."""
    if not out.is_dir():
        raise InputError(f"--out {show(out)}: there is no such folder; `strata run` makes one")
    out = out.absolute()
    processes = []
    answer: dict[str, Any] = {}
    try:
        api = servers.known_server(out)
        if api is None:
            port = prefect_port or servers.free_port(servers.PREFECT_PORT)
            process, api = servers.spawn_prefect(out, port, pages=True)
            processes.append(process)
            if not servers.await_prefect(process, api):
                raise StrataError(f"Prefect's server did not start; its log is {out / 'prefect' / 'server.log'}")
            servers.record_server(out, process.pid, api)
        answer["prefect"] = api.removesuffix("/api")
        command, environment, address = tracking.server(out, mlflow_port or servers.free_port(servers.MLFLOW_PORT))
        if command:
            processes.append(servers.spawn(command, environment, out / "mlflow.log"))
        answer["mlflow"] = address
        print(f"Prefect  {answer['prefect']}\nMLflow   {answer['mlflow']}\nCtrl-C ends both", flush=True)
        while all(process.poll() is None for process in processes):
            time.sleep(0.5)
        raise StrataError(f"a server ended by itself; see mlflow.log and prefect/server.log in {out}")
    except (Interrupted, KeyboardInterrupt) as stop:
        if getattr(stop, "number", signal.SIGINT) != signal.SIGINT:
            raise
    finally:
        for process in processes:
            end(process)
            servers.forget_server(out, process.pid)
    return answer
