"""MLflow receives every row once, whatever dies when; nothing that is down or hangs holds a run up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.journal import Journal
from data import durable
from flows import follower, sent, tracking
from tests.conftest import ask
from tests.finished_run import RECIPE, RUN, STAGES, build, key, layer1, record, stage

LAYER1 = [row for row in STAGES if row["name"] in ("data", "layer1")]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new MLflow database: migrating one takes seconds, copying it none."""
    out = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in tracking.ENVIRONMENT.items():
            patch.setenv(name, value)
        with tracking._unsynced():  # kills are of processes here, not of machines
            tracking.prepare(out)
            yield out / "mlflow.db"


@pytest.fixture
def out(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return output(tmp_path / "my runs", migrated)


def output(folder: Path, migrated: Path) -> Path:
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    return folder


def history(out: Path) -> list[tuple[Any, ...]]:
    """Every metric MLflow has: run, name, step, time, value."""
    return ask(
        out / "mlflow.db",
        "select name, key, step, timestamp, value, is_nan from metrics join runs using (run_uuid) order by 1, 2, 3, 4",
    )


def runs(out: Path) -> dict[str, str]:
    found = ask(out / "mlflow.db", "select name, status from runs")
    assert len(found) == len(dict(found)), "a run was created twice"
    return dict(found)


def tags(out: Path, run: str) -> dict[str, str]:
    return dict(ask(out / "mlflow.db", f"select key, value from tags join runs using (run_uuid) where name = '{run}'"))


def versions(out: Path) -> list[tuple[Any, ...]]:
    return ask(out / "mlflow.db", "select name, version, source, run_id from model_versions order by name, version")


def small(out: Path, **fields: Any) -> dict[str, Any]:
    """A run of one finished layer and its evaluation."""
    layer1(out)
    stage(out, "layer1-evaluate", "evaluate", "rbm", metrics={"test/log_prob": -21.4}, details={"likelihoods": []})
    return record(out, [*LAYER1, {"name": "layer1", "flow": "evaluate", "kind": "rbm"}], **fields)


def complete(out: Path) -> None:
    assert [(answer[2], answer[3]) for answer in tracking.sync(out)] == [(True, None)]


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_a_finished_run_arrives_whole(out: Path) -> None:
    build(out)
    ((run, rows, whole, error),) = tracking.sync(out)
    assert (run, rows, whole, error) == (RUN, 165, True, None)

    children = {"data/ingest", "layer1", "layer2", "vae", "gan", "classify"}
    assert runs(out) == {name: "FINISHED" for name in children | {RUN}}
    parent = json.loads((out / RUN / "tracking.json").read_text())["run_id"]
    assert all(tags(out, child)["mlflow.parentRunId"] == parent for child in children)
    assert tags(out, RUN)["strata.shards.data.samples_digest"] == "5a" * 32
    assert "paired gain" in tags(out, RUN)["mlflow.note.content"]
    assert follower.url(out, RUN) == f"http://127.0.0.1:5000/#/experiments/1/runs/{parent}"

    found = history(out)
    assert len({row[:3] for row in found}) == len(found), "a step was logged twice"
    journaled = [row for row in found if row[0] == "layer1" and row[1] == "train/reconstruction_error"]
    assert [step for _, _, step, *_ in journaled] == list(range(10, 401, 10))
    summary = {name: value for run, name, _, _, value, _ in found if run == RUN}
    assert summary["classify/test/error_at_100"] == pytest.approx(11.7, abs=0.1)
    assert summary["vae/test/log_prob"] == -19.87
    seeds = [
        (step, name) for run, name, step, *_ in found if run == "classify" and name.startswith("test/error_at_100")
    ]
    assert {(4, "test/error_at_100"), (0, "test/error_at_100/mean")} <= set(seeds)
    assert ("layer1", "test/log_prob") in {row[:2] for row in found}  # an evaluation's numbers stand with its stage

    params = dict(ask(out / "mlflow.db", f"select key, value from params where run_uuid = '{parent}'"))
    assert params["stages.layer1.train.epochs"] == "20"
    artifacts = {path.name for path in (out / "mlartifacts").rglob("*")}
    expected = {"recipe.yaml", "report.html", "filters_layer2.png", "samples.png", "100-4.json", "weights.safetensors"}
    expected |= {"chains.png", "chains_moving.png", "activity_layer1_units.svg", "weights_layer2.svg"}
    assert expected <= artifacts
    [back] = [words for name, words in tags(out, "layer1").items() if "reverse AIS" in name]
    assert "nats -21.61" in back and "effective_sample_size 55.0" in back

    # Every model is registered, once.
    names = [f"strata-digits-{name}" for name in ("gan", "layer1", "layer2", "vae")]
    assert [version[:2] for version in versions(out)] == [(name, 1) for name in names]
    assert all(source == f"runs:/{run}/model" for _, _, source, run in versions(out))
    alias = ask(out / "mlflow.db", "select alias, version from registered_model_aliases")
    assert set(alias) == {(tracking.ALIAS, 1)}
    noted = dict(ask(out / "mlflow.db", "select key, value from model_version_tags where name = 'strata-digits-vae'"))
    weights = out / "stages" / key("vae") / "model" / "weights.safetensors"
    assert noted["strata.weights_sha256"] == durable.digest_file(weights)

    (out / RUN / "tracking.json").unlink()  # even a state that is lost creates nothing anew
    before = history(out), runs(out), versions(out)
    complete(out)
    assert (history(out), runs(out), versions(out)) == before


def test_a_second_look_touches_nothing_and_imports_no_mlflow(out: Path) -> None:
    small(out)
    complete(out)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name[-4:] != "lock"}
    program = "from pathlib import Path; from flows import tracking; print(tracking.sync(Path(sys.argv[1])));"
    program += "print([name for name in ('mlflow', 'torch', 'webdataset', 'matplotlib') if name in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", f"import sys; {program}", out], capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines() == [f"[('{RUN}', 0, True, None)]", "[]"]
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_no_password_leaves_the_output(out: Path) -> None:
    address = "https://me:hunter2@data.example/digits"
    recipe = {"stages": {"layer1": {}}, "data": {"source": {"path": address}}}
    text = RECIPE + f"# from {address}\n"
    small(out, recipe=recipe, recipe_text=text, overrides=[f"data.source.path={address}"], error=f"no {address}")
    complete(out)
    for path in [out / "mlflow.db", out / RUN / "tracking.json", *(out / "mlartifacts").rglob("*")]:
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    assert b"data.example" in (out / "mlflow.db").read_bytes()


# --- one run, however often it was begun -----------------------------------------------------------------------------


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(out: Path) -> None:
    unfinished = [LAYER1[0], LAYER1[1] | {"status": "running"}]
    layer1(out, finished=False)
    record(out, unfinished, status="interrupted", error="SIGTERM")
    complete(out)
    assert runs(out) == {RUN: "KILLED", "layer1": "KILLED", "data/ingest": "FINISHED"}
    first = ask(out / "mlflow.db", "select run_uuid from runs order by 1")

    record(out, unfinished, status="running")
    with durable.lock(out / RUN / ".lock"):  # alive
        tracking.sync(out)
    assert runs(out) == {RUN: "RUNNING", "layer1": "RUNNING", "data/ingest": "FINISHED"}
    small(out)
    complete(out)
    assert set(runs(out).values()) == {"FINISHED"}
    assert ask(out / "mlflow.db", "select run_uuid from runs order by 1") == first
    assert len({row[:3] for row in history(out)}) == len(history(out))


def test_a_run_that_was_killed_is_marked(out: Path) -> None:
    layer1(out, finished=False)
    record(out, [LAYER1[0], LAYER1[1] | {"status": "running"}], status="running")
    complete(out)  # nobody holds its lock
    assert runs(out)[RUN] == runs(out)["layer1"] == "KILLED"


def test_a_cached_rerun_makes_no_run_and_no_child(out: Path) -> None:
    small(out)
    complete(out)
    before = (out / "mlflow.db").read_bytes()
    cached = [row | {"cached": True} for row in [*LAYER1, {"name": "layer1", "flow": "evaluate", "kind": "rbm"}]]
    record(out, cached, seconds=1.0)
    complete(out)
    assert (out / "mlflow.db").read_bytes() == before


def test_a_stage_another_run_computed_is_a_tag(out: Path) -> None:
    small(out)
    complete(out)
    record(out, [row | {"cached": True} for row in LAYER1], run="digits-ffffffff")
    assert all(whole for _, _, whole, _ in tracking.sync(out))
    assert set(runs(out)) == {RUN, "digits-ffffffff", "layer1", "data/ingest"}
    assert tags(out, "digits-ffffffff")["strata.stage.layer1"] == f"cached {key('layer1')}"
    assert len(versions(out)) == 1  # the same digest


def test_a_failed_run_registers_nothing(out: Path) -> None:
    layer1(out)
    layer2 = {"name": "layer2", "flow": "pretrain", "kind": "rbm", "status": "failed"}
    stage(out, "layer2", "train", "rbm", metrics={}, curves={"train/loss": (1, 2)}, finished=False)
    record(out, [*LAYER1, layer2], status="failed", error="layer2: the loss became NaN at step 410")
    complete(out)
    assert runs(out) == {RUN: "FAILED", "data/ingest": "FINISHED", "layer1": "FINISHED", "layer2": "FAILED"}
    assert versions(out) == []
    assert tags(out, RUN)["mlflow.note.content"].startswith("layer2: the loss became NaN at step 410")


def test_numbers_that_are_not_finite_and_names_mlflow_refuses(out: Path) -> None:
    folder = out / "stages" / key("layer1")
    layer1(out)
    journal = Journal(folder / "journal.jsonl")
    journal.append(10, {"train/loss": float("inf"), "test/error@100": 1.5})
    journal.close()
    record(out, LAYER1)
    complete(out)
    found = {row[1]: row[4:] for row in history(out) if row[0] == "layer1" and row[2] == 10}
    assert found["train/loss"][1] == 1 and found["test/error_at_100"] == (1.5, 0)


# --- kills -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


class Dying:
    """An MLflow client whose process ends right after its n-th call has arrived."""

    def __init__(self, client: Any, calls: int) -> None:
        self.client, self.left = client, calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            answer = getattr(self.client, name)(*arguments, **named)
            self.left -= 1
            if self.left == 0:
                raise Killed
            return answer

        return call


def test_killed_after_any_call_the_history_is_the_same(
    out: Path, tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(out)
    template = tmp_path / "template"
    shutil.copytree(out, template, ignore=shutil.ignore_patterns("mlflow.db"))
    client = tracking._client
    counting = Dying(client(tracking.location(out)), 10**9)
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_client", lambda uri: counting)
        complete(out)
    expected = history(out), sorted(runs(out)), [version[:2] for version in versions(out)]
    calls = 10**9 - counting.left
    assert calls > 25
    for number in range(1, calls + 1, 3):
        again = tmp_path / f"killed-{number}"
        shutil.copytree(template, again, copy_function=shutil.copy2)
        shutil.copy(migrated, again / "mlflow.db")
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(tracking, "_client", lambda uri, number=number: Dying(client(uri), number))
            tracking.sync(again)
        complete(again)
        assert (history(again), sorted(runs(again)), [version[:2] for version in versions(again)]) == expected, number
        assert set(runs(again).values()) == {"FINISHED"}


def test_the_follower_killed_in_the_middle_and_a_run_that_goes_on(out: Path) -> None:
    folder = layer1(out, finished=False)
    position = folder / "checkpoint" / "position.json"
    rows = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    durable.write_json(position, {"step": 200, "journal": sum(map(len, rows[:20]))})
    running = [LAYER1[0], LAYER1[1] | {"status": "running"}]
    record(out, running, status="running")

    process = follower.start(out, RUN)
    wait(lambda: sent.Sent(out, RUN).rows == 20)
    process.kill()
    process.wait()
    assert max(step for run, _, step, *_ in history(out) if run == "layer1") == 200  # nothing behind the checkpoint

    process = follower.start(out, RUN)
    small(out, status="running")  # the stage finishes under the follower's eyes, then the run
    wait(lambda: sent.Sent(out, RUN).rows == 40)
    small(out)
    began = time.monotonic()
    assert follower.await_end(process, out, RUN, 10) is None
    assert time.monotonic() - began < 8
    found = history(out)
    assert len({row[:3] for row in found}) == len(found)
    loss = [row for row in found if row[:2] == ("layer1", "train/loss")]
    assert [step for _, _, step, *_ in loss] == list(range(10, 401, 10))
    assert runs(out) == {RUN: "FINISHED", "layer1": "FINISHED", "data/ingest": "FINISHED"}


def test_a_journal_cut_back_behind_what_was_sent_repeats_no_step(tmp_path: Path) -> None:
    folder = layer1(tmp_path, finished=False)
    rows, length = sent.new_rows(folder, {"journal": 0, "step": -1}, final=True)
    mine = {"journal": length, "step": rows[-1]["step"]}
    assert sent.new_rows(folder, mine, final=True) == ([], length)
    journal = Journal(folder / "journal.jsonl")
    for step in range(10, 501, 10):
        journal.append(step, {"train/loss": 1.0})
    journal.close()
    rows, length = sent.new_rows(folder, mine, final=True)
    assert [row["step"] for row in rows] == list(range(410, 501, 10)) and length == journal.length


def wait(ready: Callable[[], bool], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.1)


# --- MLflow away -----------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_said_in_one_line_and_gets_everything_later(
    out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small(out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
    began = time.monotonic()
    ((_, rows, whole, error),) = tracking.sync(out)
    assert (rows, whole) == (0, False) and time.monotonic() - began < 2
    assert error is not None and "cannot be reached" in error and "hunter2" not in error and "\n" not in error
    assert capfd.readouterr() == ("", "")  # `strata sync` says it, once
    assert follower.url(out, RUN) is None
    record(out, [row | {"cached": True} for row in LAYER1])  # the next run finds everything done
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    complete(out)
    assert "layer1" in runs(out)  # still ours, not a cached stage
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")  # another one, which has nothing
    assert [whole for _, _, whole, _ in tracking.sync(out)] == [False]


def test_a_server_that_hangs_costs_the_run_seconds(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(out)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        problem = follower.await_end(follower.start(out, RUN), out, RUN, 14)
    assert time.monotonic() - began < 12
    assert problem is not None and "does not answer within 5 s" in problem and "strata sync" in problem


Server = tuple[Path, str, subprocess.Popen[bytes]]


@pytest.fixture
def server(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A real MLflow server over another output, started as `strata ui` starts it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    theirs = output(tmp_path / "server", migrated)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment, address = tracking.server(theirs, port)
    log = (theirs / "log").open("wb")
    process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait(lambda: answers(address), 60)
        yield theirs, address, process
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{address}/health", timeout=2).status == 200)
    except OSError:
        return False


def test_a_real_server_that_hangs_for_a_while(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, address, process = server
    ours = tmp_path / "ours"
    layer1(ours, finished=False)
    record(ours, [LAYER1[0], LAYER1[1] | {"status": "running"}], status="running")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    state = sent.Sent(ours, RUN)
    sender = tracking.update(state, patience=5)
    assert state.rows == 40

    os.killpg(process.pid, signal.SIGSTOP)
    small(ours)
    began = time.monotonic()
    with pytest.raises(sent.Unreachable):
        tracking.update(state, patience=2, sender=sender)
    assert time.monotonic() - began < 5
    os.killpg(process.pid, signal.SIGCONT)

    complete(ours)
    assert runs(theirs) == {RUN: "FINISHED", "layer1": "FINISHED", "data/ingest": "FINISHED"}
    found = history(theirs)
    assert len({row[:3] for row in found}) == len(found)
    assert [row[:2] for row in versions(theirs)] == [("strata-digits-layer1", 1)]
    assert (follower.url(ours, RUN) or "").startswith(f"{address}/#/experiments/1/runs/")
    assert not (ours / "mlflow.db").exists() and list((theirs / "mlartifacts").rglob("weights.safetensors"))


def test_processes_that_open_a_new_database_together(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    program = "import sys; from pathlib import Path; from flows import tracking; tracking.prepare(Path(sys.argv[1]))"
    processes = [subprocess.Popen([sys.executable, "-c", program, tmp_path], stderr=subprocess.PIPE) for _ in "ab"]
    assert [process.communicate(timeout=120)[1] for process in processes] == [b"", b""]  # MLflow's INFO lines
    assert [process.returncode for process in processes] == [0, 0]
    schema = "select * from alembic_version"
    assert ask(tmp_path / "mlflow.db", schema) == ask(migrated, schema)
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.lock"}
