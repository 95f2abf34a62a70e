"""Where MLflow is, whether it answers, and what it has received of a run (OUT/<run>/tracking.json).

Looking must be cheap: the follower does it twice a second, and a run that was found finished must cost no import of
mlflow. So this asks files and sockets only. What is NOT here: MLflow itself (flows/tracking.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conf import journal
from conf.errors import show
from conf.protocol import Result
from data import durable
from flows.wording import public

PATIENCE_SECONDS = 5  # for one answer of a server, and for a failing MLflow after the run's end
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

Row = dict[str, Any]
Metric = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


class Unreachable(Exception):
    """MLflow cannot be used right now; the message is one line."""


class Refused(Unreachable):
    """MLflow answers, but did not take what was sent."""


def location(out: Path) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else the database of this output."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').absolute()}"


def output_id(out: Path) -> str:
    """Tells apart the same recipe's runs in different outputs on one MLflow server."""
    path = out / "mlflow.id"
    with durable.lock(out / "mlflow.lock", wait=lambda holder: None):
        if not path.exists():
            durable.write_bytes(path, uuid.uuid4().hex[:12].encode())
    return path.read_text()


def probe(uri: str) -> None:
    """Does somebody answer at this address within 5 s? MLflow itself would try for minutes. Errors: Unreachable."""
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind not in PORTS or not parts.hostname:
        return
    where = f"MLflow at {show(public(uri))}"
    try:
        if kind in ("http", "https"):
            address = f"{kind}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
            urllib.request.urlopen(address, timeout=PATIENCE_SECONDS).close()  # noqa: S310 - http(s) only
        else:
            socket.create_connection((parts.hostname, parts.port or PORTS[kind]), PATIENCE_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise Unreachable(f"{where} answers with status {error.code}") from None
    except TimeoutError:
        raise Unreachable(f"{where} does not answer within {PATIENCE_SECONDS} s") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise Unreachable(f"{where} does not answer within {PATIENCE_SECONDS} s") from None
        raise Unreachable(f"{where} cannot be reached ({show(reason)})") from None


def read_run(folder: Path, *, check: bool = False) -> Row:
    """run.json; a run that has none yet is about to write it.

    With `check`, a run that is not closed though nobody holds its lock was killed.
    """
    try:
        record: Row = durable.read_json(folder / "run.json")
    except FileNotFoundError:
        return {"status": "running", "stages": []}
    if check and not closed(record):
        with contextlib.suppress(durable.Locked), durable.lock(folder / ".lock"):
            status = "interrupted" if record["status"] == "running" else record["status"]
            record |= {"status": status, "closed": True, "stale": True}
    return record


def closed(record: Row) -> bool:
    """Has the run ended, report included?"""
    return record["status"] != "running" and bool(record.get("closed", True))


def label(row: Row) -> str:
    """A stage's own name; its evaluation and a data set's ingestion may bear the same and are told apart."""
    return row["name"] if row["flow"] not in ("ingest", "evaluate") else f"{row['name']}/{row['flow']}"


def note(row: Row) -> str:
    """What `noted` remembers of a finished stage: that the parent run knows its numbers."""
    return f"{label(row)} {row['key']}"


class Sent:
    """What MLflow has; every change is on disk before the next thing is sent."""

    def __init__(self, out: Path, run: str) -> None:
        self.out, self.run, self.folder = out, run, out / run
        self._path = self.folder / "tracking.json"
        self.uri: str | None = None  # without user and password
        self.experiment_id: str | None = None
        self.run_id: str | None = None  # of the parent run
        self.url: str | None = None
        self.status: str | None = None  # of the parent run, as MLflow was told
        self.stages: dict[str, Row] = {}  # that this run computed: key, run_id, journal (bytes), step, finished
        self.rows = 0  # journal rows, all stages together
        self.noted: list[str] = []  # stages the parent run knows, and "recipe"
        self.registered: dict[str, str] = {}  # registered model → digest
        self.complete = False
        self.error: str | None = None
        self._kept = [name for name in vars(self) if name not in ("out", "run", "folder", "_path")]
        self._written: Row = {}
        self.read()

    def read(self) -> None:
        """What is on disk, perhaps by another process."""
        with contextlib.suppress(FileNotFoundError):
            self._written = durable.read_json(self._path)
            vars(self).update({name: self._written[name] for name in self._kept if name in self._written})

    def save(self, **changes: Any) -> None:
        """Puts the state on disk if it differs, so that a run that is merely watched touches nothing."""
        vars(self).update(changes)
        content = {name: getattr(self, name) for name in self._kept}
        if content != self._written:
            durable.write_json(self._path, content)
            self._written = durable.read_json(self._path)

    @contextlib.contextmanager
    def locked(self, *, wait: bool) -> Iterator[None]:
        """One process sends a run at a time. Errors: durable.Locked unless `wait`."""
        with durable.lock(self.folder / ".tracking.lock", wait=(lambda holder: None) if wait else None):
            self.read()
            yield

    def forget(self, uri: str) -> None:
        """Another MLflow, or one that lost the run: everything is to be sent again. Which stages are ours stays."""
        for stage in self.stages.values():
            stage.update(run_id=None, journal=0, step=-1, finished=False)
        self.save(uri=uri, experiment_id=None, run_id=None, url=None, status=None, noted=[], registered={},
                  complete=False)  # fmt: skip

    def own(self, record: Row) -> None:
        """Remembers which stages this run computes, also while MLflow is away; a new key is a new stage."""
        for row in record["stages"]:
            known = self.stages.get(label(row))
            if row["status"] != "waiting" and not row["cached"] and (known is None or known["key"] != row["key"]):
                fresh = {"run_id": None, "journal": 0, "step": -1, "finished": False}
                self.stages[label(row)] = {"key": row["key"]} | fresh
                self.complete = False
        self.save()

    def mine(self, row: Row) -> Row | None:
        """The state of a stage this run computed (now or before a kill); None for one that was found."""
        known = self.stages.get(label(row))
        return known if known and known["key"] == row["key"] else None

    def missing(self, record: Row, uri: str) -> bool:
        """Is there anything MLflow at `uri` should have and has not?"""
        self.own(record)
        database = Path(uri.removeprefix("sqlite:///"))
        if self.run_id is None or self.uri != uri or (uri.startswith("sqlite:///") and not database.exists()):
            return True
        if closed(record):
            return not self.complete or self.status != STATUS[record["status"]]
        at_work = any(mine and not mine["finished"] for mine in map(self.mine, record["stages"]))
        return at_work or any(r["status"] == "finished" and note(r) not in self.noted for r in record["stages"])


def new_rows(folder: Path, mine: Row, *, final: bool) -> tuple[list[Row], int]:
    """Journal rows MLflow has not: those behind the last checkpoint, or all of a finished stage; the length so far."""
    path, end = folder / "journal.jsonl", None
    if not final:
        try:
            end = int(durable.read_json(folder / "checkpoint" / "position.json")["journal"])
        except (OSError, ValueError, KeyError):
            return [], mine["journal"]
    rows, length = journal.read(path, mine["journal"], end)
    if not rows and path.exists() and mine["journal"] != (path.stat().st_size if end is None else end):
        # Cut back behind what had been sent (a damaged checkpoint) and written anew, not with the same lengths.
        rows, length = journal.read(path, 0, end)
        rows = [row for row in rows if row["step"] > mine["step"]]
    return rows, length


def new_metrics(folder: Path, found: Result) -> list[Metric]:
    """A result's metrics without those whose last value stands in the journal, which has their history.

    A fine-tuning's journal has a row a seed; its result's mean is then called NAME/mean.
    """
    rows, _ = journal.read(folder / "journal.jsonl")
    known = {name: value for row in rows for name, value in row["metrics"].items()}
    when = rows[-1]["time"] if rows else int((folder / "result.json").stat().st_mtime * 1000)
    named = {f"{name}/mean" if name in known else name: value for name, value in found.metrics.items()
             if known.get(name) != value}  # fmt: skip
    return [(name, value, when, found.steps) for name, value in named.items()]


def flat(tree: Row, path: str = "") -> Iterator[tuple[str, Any]]:
    """A recipe's settings under dotted names, those that are set."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        elif value is not None:
            yield f"{path}{key}", value
