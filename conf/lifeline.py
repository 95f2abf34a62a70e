"""A process that must not outlive the one that started it, nor leave anything behind. Standard library only.

`command(COMMAND)` is COMMAND tied to this process: the kernel ends it when we end, however that happens (Linux;
elsewhere only an orderly end takes it along), and a guard beside it then ends whatever it has started in its process
group: MLflow's server is a child of `mlflow server`, a loader worker one of its rank. To be started in a session of its
own. The tie is made before COMMAND loads anything, so that a kill during seconds of imports leaves no orphan either.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(tied: list[str]) -> list[str]:
    """The command line that runs `tied` for as long as this process lives.

    By this file's path and without `site`: that takes 20 ms, where `-m conf.lifeline` would import all of `conf`.
    """
    return [sys.executable, "-S", __file__, str(os.getpid()), *tied]


def _tie(parent: int, number: int) -> None:
    """Asks the kernel for a signal on the parent's death; raises it at once if that has already happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _guard(leader: int) -> None:
    """Waits for the leader's death and ends its process group, us included; a signal to the group is not for us."""
    signal.signal(signal.SIGUSR1, lambda number, frame: os.killpg(leader, signal.SIGKILL))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in range(3):
        os.close(descriptor)
    _tie(leader, signal.SIGUSR1)
    while True:
        signal.pause()


if __name__ == "__main__":
    _tie(int(sys.argv[1]), signal.SIGKILL)
    leader = os.getpid()
    if os.getpgid(0) == leader and os.fork() == 0:
        _guard(leader)
    os.execvp(sys.argv[2], sys.argv[2:])
