"""What tests share: quiet libraries on one thread, the command as a process, and a look at who is still alive."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from data import durable
from flows import servers
from flows.cli import main

if TYPE_CHECKING:
    from conf.protocol import Inputs
    from tests.stage_kills import Stages

QUIET = {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
NOBODY = "http://127.0.0.1:9"  # the discard port: refused at once
PLAIN = {"PREFECT_API_URL": f"{NOBODY}/api", "MLFLOW_TRACKING_URI": NOBODY}  # the engine without its coats
MARK = "STRATA_TEST_MARK"
os.environ.update(QUIET)

DIGITS = """\
name: digits
data: {source: {kind: digits}}
train: {threads: 1, epochs: 1, batch_size: 100, log_steps: 5, checkpoint_steps: 5}
evaluate: {num_temperatures: 10, num_chains: 5, gibbs_steps: 5, num_samples: 2, num_examples: 50}
stages:
"""
LAYER = "  layer1: {model: {kind: rbm, num_hidden: 16}}\n"


def pytest_collection_finish(session: pytest.Session) -> None:
    """One thread in this process too: by now every test module has imported what it needs."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str
    seconds: float

    @property
    def answer(self) -> Any:
        """The JSON object of the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


class Command:
    """`strata …` as processes that bear a mark, so that whatever they leave behind can be found."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex

    def start(self, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Without an environment of its own: no Prefect, no MLflow."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
        own |= QUIET | {MARK: self.mark} | (PLAIN if environment is None else environment)
        command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=own, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *arguments: object, environment: dict[str, str] | None = None, limit: float = 240) -> Ended:
        began = time.monotonic()
        process = self.start(*arguments, environment=environment)
        out, err = process.communicate(timeout=limit)
        return Ended(process.returncode, out, err, time.monotonic() - began)

    def alive(self) -> dict[int, str]:
        """Processes that bear the mark: id → command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has just ended
                continue
        return found

    def await_quiet(self, seconds: float) -> None:
        """Fails if anybody is left after so long."""
        until(lambda: not self.alive(), seconds, lambda: f"still alive: {self.alive()}")

    def kill_all(self) -> None:
        for process in self.alive():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue


def until(true: Callable[[], Any], seconds: float, otherwise: Callable[[], str] = lambda: "") -> Any:
    """Polls until `true()` holds and gives its value."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {otherwise()}")


@pytest.fixture
def strata(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command.kill_all()


Say = Callable[..., Ended]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """The command within this process: no seconds of imports."""

    def call(*arguments: object) -> Ended:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        mask = os.umask(0o022)
        capfd.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        finally:
            os.umask(mask)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Ended(status, *capfd.readouterr(), 0.0)

    monkeypatch.chdir(tmp_path)
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    return call


def error(ended: Ended, status: int = 2) -> str:
    """The one `error:` line a command ended with."""
    assert ended.status == status, ended
    assert ended.err.count("\n") == 1 and ended.err.startswith("error: "), ended.err
    return ended.err.removeprefix("error: ").rstrip()


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe on the digits from the text of its stages."""

    def write(stages: str = LAYER, head: str = DIGITS) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(head + stages)
        return path

    return write


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder and its size; {} if there is no folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def stage(out: Path, name: str) -> Path:
    """The folder of a stage of the run in `out`, as run.json names it."""
    record = durable.read_json(next(out.glob("*/run.json")))
    return out / next(row["folder"] for row in record["stages"] if row["name"] == name and row["flow"] != "evaluate")


def reached(out: Path, name: str, seen: Callable[[Path], Any]) -> Callable[[], bool]:
    """Asks whether something is seen in the folder of a stage."""

    def found() -> bool:
        try:
            return bool(seen(stage(out, name)))
        except (OSError, StopIteration):  # it has not begun
            return False

    return found


def trained(out: Path, name: str, steps: int) -> Callable[[], bool]:
    """Asks whether a stage that is being trained has a resume point at so many steps or later."""
    return reached(out, name, lambda folder: resume_point(folder)["step"] >= steps)


def resume_point(folder: Path) -> dict[str, int]:
    """Of a stage in its folder: step, and length of the journal there."""
    found: dict[str, int] = durable.read_json(folder / "checkpoint" / "position.json")
    return found


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Gives an output folder the database of a Prefect server that has started once, which takes a new one longest."""
    first = tmp_path_factory.mktemp("migrated")
    process, api = servers.spawn_prefect(first, servers.free_port(), pages=False)
    assert servers.await_prefect(process, api)
    servers.end(process)

    def give(out: Path) -> None:
        (out / "prefect").mkdir(parents=True)
        with (
            contextlib.closing(sqlite3.connect(first / "prefect" / "prefect.db")) as known,
            contextlib.closing(sqlite3.connect(out / "prefect" / "prefect.db")) as new,
        ):
            known.backup(new)

    return give


def ask(database: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The digits as shards, for jobs that read them."""
    from tests.stage_kills import inputs  # imports torch, which most sessions of few tests do without

    return inputs(tmp_path_factory.mktemp("digits") / "shards")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    """Forks stage processes."""
    from tests.stage_kills import stages

    with stages(tmp_path_factory.mktemp("template")) as started:
        yield started


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    """The bytes of the files that match, by their place."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(pattern)) if path.is_file()
    }
