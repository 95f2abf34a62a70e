"""One class per exit status: how strata says no.

    StrataError (1)            a bug, or a stage that died
    ├── InputError (2)         the recipe, the command line or any raw input is wrong
    ├── Busy (3)               somebody else is writing the same output
    ├── Damaged (4)            what strata itself wrote (shards, models, checkpoints) no longer matches its digests
    ├── Diverged (5)           a loss stopped being finite
    └── OutputError (6)        our output cannot be written
    Interrupted (128 + n)      signal n, SIGINT or SIGTERM; no StrataError, since nothing is wrong

A message is one line: which file or stage, what was expected, what was found, what to do.
"""

from __future__ import annotations

import signal


class StrataError(Exception):
    """A failure with an exit status; the message is the whole `error:` line."""

    status = 1


class InputError(StrataError):
    """The recipe, the command line or a raw input is wrong."""

    status = 2


class Busy(StrataError):
    """The same recipe already runs in this output, or another ingest writes this folder."""

    status = 3


class Damaged(StrataError):
    """Shards, a model or a checkpoint do not match their recorded digests."""

    status = 4


class Diverged(StrataError):
    """A loss became NaN or infinite."""

    status = 5


class OutputError(StrataError):
    """The output folder cannot be written (full, read-only, a file in the way)."""

    status = 6


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; what is under way saves itself and stops."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


ERRORS = {error.status: error for error in (InputError, Busy, Damaged, Diverged, OutputError)}


def show(text: object, limit: int = 120) -> str:
    """A user's string (file name, key, value) as printable text on one line, at most `limit` characters."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"
