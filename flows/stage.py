"""One stage process: request → `python -m lightning_modules.fit` → result, whatever happens to it.

The process has a session of its own, dies with us, and is ended with its whole group when we leave for any reason.
Its stdout is the protocol (conf.protocol), its stderr goes to the stage's log. What is NOT here: keys, order, caching.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conf import lifeline
from conf.errors import ERRORS, Interrupted, StrataError, show
from conf.protocol import Job, Plan, PlanJob, Request
from data import durable

Progress = Callable[[dict[str, Any]], None]
PATIENCE_SECONDS = 15  # for a stage that was asked to stop and saves its last step
_OURS = ("PREFECT", "MLFLOW", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC")


def environment() -> dict[str, str]:
    """Ours, without what would make a stage talk to Prefect or MLflow or take itself for a rank.

    OpenMP's threads wait asleep: spinning, two of them on a busy 2-core machine made small steps ten times slower.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    sleep = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return sleep | kept | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "true"}


def ask_plan(job: PlanJob) -> Plan:
    """Runs `plan` over a pipe: not a file is written."""
    process = subprocess.run(
        lifeline.command([sys.executable, "-m", "lightning_modules.fit", "-"]),
        input=job.model_dump_json(),
        capture_output=True,
        text=True,
        env=environment(),
    )
    for line in process.stdout.splitlines():
        said = json.loads(line)
        if "error" in said:
            raise _error(said["error"])
        if "answer" in said:
            return Plan.model_validate(said["answer"])
    if process.returncode < 0:
        raise StrataError(f"planning was ended by {_signal_name(-process.returncode)}; run the same command again")
    raise StrataError(f"planning died with status {process.returncode}: {show(process.stderr.strip()[-300:], 300)}")


def run_jobs(
    name: str, jobs: Sequence[Job], request: Path, log: Path, progress: Progress, *, debug: bool = False
) -> dict[str, Any]:
    """Does `jobs` in one process of their own → the last answer it gave.

    Errors: what the stage reported, as the class of its exit status; StrataError (1) when it died without a word.
    """
    durable.write_json(request, Request(jobs=list(jobs), debug=debug).model_dump(mode="json"))
    log.parent.mkdir(parents=True, exist_ok=True)
    answer: dict[str, Any] = {}
    error: Mapping[str, Any] | None = None
    with log.open("ab") as chatter:
        process = subprocess.Popen(
            lifeline.command([sys.executable, "-m", "lightning_modules.fit", str(request)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=chatter,
            env=environment(),
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said = _parse(line)
                if "progress" in said:
                    progress(said["progress"])
                error = error or said.get("error")
                answer = said.get("answer", answer)
            status = process.wait()
        finally:
            end(process)
    if error is not None:
        raise _error(error)
    if status < 0 or status == 128 + signal.SIGKILL:
        number = -status if status < 0 else signal.SIGKILL
        why = " (out of memory?)" if number == signal.SIGKILL else ""
        raise StrataError(
            f"stage {name} was ended by {_signal_name(number)}{why}; "
            f"run the same command again to go on where it stopped, its log is {log}"
        )
    if status:
        raise StrataError(f"stage {name} died with status {status}; its log is {log}")
    return answer


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process, time to save its step, then SIGKILL to its whole group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt, Interrupted):
            process.wait(PATIENCE_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _error(said: Mapping[str, Any]) -> StrataError:
    return ERRORS.get(said["status"], StrataError)(said["message"])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
