"""A process that must not outlive the one that started it. Standard library only.

`python -m conf.lifeline PARENT -- COMMAND …` ties itself to PARENT and becomes COMMAND; a Python program of ours
calls `die_with(parent)` first thing. The kernel then ends it when its parent ends, however that ends (Linux; elsewhere
the tie is not made and only an orderly end takes the children along).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Asks the kernel for SIGKILL on the parent's death; exits at once if that has already happened."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[3], sys.argv[3:])
