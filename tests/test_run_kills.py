"""A whole run, Prefect's server, MLflow's tracker and two ranks included, killed at five moments and run again.

The reference is the same recipe in another folder, left alone. What must be equal: weights to the byte, metrics,
journals, and what MLflow and Prefect say happened. What must not be: anything alive two seconds after a kill.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import durable
from tests.conftest import DIGITS, PLAIN, Command, Ended, ask, contents, reached, resume_point, stage, trained, until
from tests.stage_kills import outcome

pytestmark = pytest.mark.alone

STAGES = """\
  layer1:
    model: {kind: rbm, num_hidden: 16, algorithm: pcd, num_chains: 21}
    train: {devices: 2, accelerator: cpu, epochs: 40, checkpoint_steps: 60}
  gan:
    model: {kind: gan, num_latent: 4}
    train: {epochs: 20, checkpoint_steps: 40, optimizer: adam, learning_rate: 1e-3}
  classify: {on: layer1, finetune: {labels: [10], seeds: 4, epochs: 20}}
"""


def when(process: subprocess.Popen[str], seen: Callable[[], Any]) -> None:
    """Waits for a moment of a running command."""
    until(lambda: seen() or process.poll() is not None, 120)
    assert process.poll() is None, process.communicate()


def flow_runs(out: Path) -> dict[str, list[str]]:
    """States of the flow runs Prefect knows, by the flow; those without a parent stand under `run`."""
    query = (
        "select flow.name, flow_run.state_type, parent_task_run_id is null from flow_run join flow on flow.id = flow_id"
        " order by flow_run.start_time"
    )
    found: dict[str, list[str]] = {}
    for name, state, top in ask(out / "prefect" / "prefect.db", query):
        assert top == (name == "run")
        found.setdefault(name, []).append(state)
    return found


def metrics(out: Path) -> list[tuple[Any, ...]]:
    """(run's name, metric, step, value) of everything MLflow has, each once."""
    query = "select runs.name, key, step, value, is_nan from metrics join runs using (run_uuid)"
    return sorted(row for row in ask(out / "mlflow.db", query) if not str(row[1]).endswith("seconds"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(DIGITS + STAGES)
    command = Command(folder)
    ended = command("run", "recipe.yaml", "--out", "out", "--json", environment={})
    assert ended.status == 0 and ended.err == "", ended
    command.await_quiet(2)
    return folder, ended


def test_one_flow_run_and_one_subflow_a_flow_also_with_two_ranks(whole: tuple[Path, Ended]) -> None:
    out = whole[0] / "out"
    once = ["COMPLETED"]
    assert flow_runs(out) == {name: once for name in ("run", "ingest", "pretrain", "train", "finetune", "evaluate")}
    parents = ask(out / "mlflow.db", "select count(*) from runs where run_uuid not in "
                  "(select run_uuid from tags where key = 'mlflow.parentRunId')")  # fmt: skip
    assert parents == [(1,)]
    assert len(list((out / "shards").glob("*/manifest.json"))) == 1
    assert not (out / "server.json").exists()


def test_a_cached_run_starts_no_server_and_no_stage(whole: tuple[Path, Ended]) -> None:
    folder, first = whole
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.log")}
    before |= {path: path.stat().st_mtime_ns for path in (folder / "out").glob("stages/*/log.txt")}
    command = Command(folder)
    process = command.start("run", "recipe.yaml", "--out", "out", "--json", environment={})
    seen: set[str] = set()
    while process.poll() is None:
        seen |= {line for line in command.alive().values() if "flows.cli" not in line}
        time.sleep(0.01)
    again = json.loads(process.communicate()[0])
    assert not seen and all(stage["cached"] for stage in again["stages"].values())
    assert again["run"] == first.answer["run"] and {path: path.stat().st_mtime_ns for path in before} == before


def test_killed_at_five_moments_the_run_is_the_same(
    whole: tuple[Path, Ended], migrated: Callable[[Path], None], strata: Command, tmp_path: Path
) -> None:
    reference = whole[0] / "out"
    (tmp_path / "recipe.yaml").write_bytes((whole[0] / "recipe.yaml").read_bytes())
    out = tmp_path / "out"
    migrated(out)
    without = {"PREFECT_API_URL": PLAIN["PREFECT_API_URL"]}

    def one_is_trained(folder: Path) -> bool:
        return (folder / "runs/10-1-pretrained/run.json").exists()

    moments: list[tuple[str, Callable[[], Any], bool, dict[str, str]]] = [
        # What is under way, how to see it, whether all are killed or strata alone, with Prefect or without.
        ("Prefect's server starts", lambda: "prefect server start" in " ".join(strata.alive().values()), True, {}),
        ("two ranks train", trained(out, "layer1", 120), False, {}),
        ("one process trains", trained(out, "gan", 80), True, without),
        ("between two classifiers", reached(out, "classify", one_is_trained), False, {}),
        ("everything is measured", lambda: len(list(out.glob("stages/*/figures/samples.npz"))) == 2, True, without),
    ]
    kept: dict[Path, int] = {}
    for what, seen, everybody, environment in moments:
        process = strata.start("run", "recipe.yaml", "--out", "out", "--json", environment=environment)
        when(process, seen)
        strata.kill_all() if everybody else process.kill()
        assert process.wait(10) == -signal.SIGKILL
        process.communicate()
        strata.await_quiet(2)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept, f"done again when killed as {what}"
        kept = {path: path.stat().st_mtime_ns for path in out.glob("stages/*/result.json")}

    ended = strata("run", "recipe.yaml", "--out", "out", "--json", environment={})
    assert ended.status == 0 and ended.err == "", ended
    strata.await_quiet(2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    answer, expected = ended.answer, whole[1].answer
    assert {name: found["metrics"] for name, found in answer["stages"].items()} == {
        name: found["metrics"] for name, found in expected["stages"].items()
    }
    assert contents(out / "stages", "*.safetensors") == contents(reference / "stages", "*.safetensors")
    for name in ("layer1", "gan", "classify"):
        assert outcome(stage(out, name)) == outcome(stage(reference, name))

    record = durable.read_json(Path(answer["report"]).with_name("run.json"))
    assert record["status"] == "finished" and record["closed"]
    assert {row["status"] for row in record["stages"]} == {"finished"}
    assert not any(row["cached"] for row in record["stages"])

    assert metrics(out) == metrics(reference) and len(set(metrics(out))) == len(metrics(out)) > 100
    names = "select name, status from runs order by name"
    assert ask(out / "mlflow.db", names) == ask(reference / "mlflow.db", names)
    states = flow_runs(out)
    assert states["run"] == ["CRASHED"] * 2 + ["COMPLETED"]
    assert all("RUNNING" not in found for found in states.values())


def test_sigterm_ends_prefect_and_all_within_seconds(
    strata: Command, recipe: Callable[..., Path], migrated: Callable[[Path], None], tmp_path: Path
) -> None:
    path, out = recipe(STAGES), tmp_path / "out"
    migrated(out)
    process = strata.start("run", path, "stages.layer1.train.epochs=400", "--out", out, environment={})
    until(trained(out, "layer1", 120), 120, lambda: str(process.poll()))
    assert any("prefect server" in command for command in strata.alive().values())
    process.terminate()
    written, said = process.communicate(timeout=12)
    assert process.returncode == 143
    assert said == "error: stopped by SIGTERM; run the same command again to go on\n"
    strata.await_quiet(2)
    record = durable.read_json(next(out.glob("digits-*/run.json")))
    assert record["status"] == "interrupted" and record["closed"]
    assert resume_point(stage(out, "layer1"))["step"] > 120
    assert not (out / "server.json").exists()
