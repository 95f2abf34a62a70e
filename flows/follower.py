"""The process that tells MLflow of a run while it runs, as the run sees it: started, waited for, asked where it wrote.

What the process does is flows/tracking.py; nothing of MLflow is imported here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flows.sent import Sent
from flows.servers import spawn


def start(out: Path, run: str) -> subprocess.Popen[bytes]:
    """Starts the follower of a run; it dies with us, and its output goes to OUT/<run>/tracking.log."""
    command = [sys.executable, "-m", "flows.tracking", str(out.absolute()), run]
    return spawn(command, {}, out / run / "tracking.log")


def await_end(process: subprocess.Popen[bytes], out: Path, run: str, seconds: float) -> str | None:
    """Waits, at most so long after the run has ended, until all is sent; otherwise one line that says why not."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"MLflow has not taken everything within {seconds:g} s; `strata sync` sends the rest"
    sent = Sent(out, run)
    if process.returncode == 0 and sent.complete:
        return None
    ended = f"the tracking process ended with status {process.returncode}; see {sent.folder / 'tracking.log'}"
    return f"{sent.error or ended}; `strata sync` sends the rest"


def url(out: Path, run: str) -> str | None:
    """The page of the run in MLflow's UI; of a database, where `strata ui` will show it. None if MLflow has no run."""
    return Sent(out, run).url
