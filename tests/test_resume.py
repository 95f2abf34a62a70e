"""A stage killed at any step, or between any two files it writes, ends as if nothing had happened: bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from conf.protocol import Inputs
from data import durable
from tests.conftest import until
from tests.stage_kills import Stages, finetune_job, outcome, placed, train_job

TOTAL = 26  # steps: two epochs of 13


@pytest.fixture(scope="module")
def layer1(template: Stages, digits: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished layer to stand on."""
    folder = tmp_path_factory.mktemp("layer1")
    assert template.do(placed(train_job(digits, "rbm", {}, num_visible=64, num_hidden=20), folder)) == 0
    return folder


@pytest.fixture(scope="module")
def layer2(template: Stages, digits: Inputs, layer1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, the upper one with label units."""
    folder = tmp_path_factory.mktemp("layer2")
    job = train_job(digits, "labeled_rbm", {}, layer1, num_visible=20, num_hidden=10, num_classes=10)
    assert template.do(placed(job, folder)) == 0, template.log
    return folder


def jobs(digits: Inputs, layer1: Path, layer2: Path) -> dict[str, Any]:
    adam = {"optimizer": "adam", "learning_rate": 1e-3}
    pcd = {"momentum": 0.5, "weight_decay": 1e-3, "schedule": "linear"}
    return {
        "chains": train_job(digits, "rbm", pcd, num_visible=64, num_hidden=24, algorithm="pcd", num_chains=30),
        "replicas": train_job(
            digits, "rbm", pcd, num_visible=64, num_hidden=9, algorithm="parallel_tempering", num_chains=9,
            num_temperatures=3,
        ),
        "fast weights and moving averages": train_job(
            digits, "rbm", pcd, num_visible=64, num_hidden=9, algorithm="fast_pcd", num_chains=30, centered=True,
            sparsity_target=0.2,
        ),
        "two optimizers": train_job(digits, "gan", adam, num_visible=64, num_latent=4),
        "layer on a stack": train_job(digits, "rbm", {}, layer1, num_visible=20, num_hidden=10),
        "labels and their chains": train_job(
            digits, "labeled_rbm", pcd, num_visible=64, num_hidden=9, num_classes=10, algorithm="pcd", num_chains=30
        ),
        "upside down on draws": train_job(
            digits, "rbm", pcd, layer1, num_visible=20, num_hidden=64, start="tied", algorithm="pcd", num_chains=30
        ),
        "made of a stack": train_job(digits, "deep_autoencoder", adam, layer1),
        "centres of codes": train_job(digits, "dec", adam, layer1, num_clusters=10),
        "up and down": train_job(digits, "up_down", pcd | {"binarize": "sample"}, layer2).model_copy(
            update={"labeled": True}
        ),
        "noise and binarization": train_job(
            digits, "vae", adam | {"binarize": "sample"}, num_visible=64, num_latent=3, hidden=[16]
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["chains", "replicas", "fast weights and moving averages", "two optimizers", "layer on a stack",
     "labels and their chains", "upside down on draws", "made of a stack", "centres of codes", "up and down",
     "noise and binarization"],
)  # fmt: skip
def test_killed_at_any_step_the_rest_is_the_same(
    template: Stages, digits: Inputs, layer1: Path, layer2: Path, tmp_path: Path, name: str
) -> None:
    job = jobs(digits, layer1, layer2)[name]
    assert template.do(placed(job, tmp_path / "whole")) == 0, template.log
    whole = outcome(tmp_path / "whole")
    assert [step for step, metrics in whole["journal"] if "train/learning_rate" in metrics] == [5, 10, 15, 20, 25, 26]
    assert whole["result"]["steps"] == TOTAL and whole["result"]["placement"]["exact"]

    # In the first step, before and behind a checkpoint, at the epoch's boundary, in the last step: one rerun each.
    for step in (1, 8, 14, TOTAL):
        folder = tmp_path / f"killed-{step}"
        assert template.do(placed(job, folder), ("step", step)) == -signal.SIGKILL
        assert not (folder / "result.json").exists()
        assert template.do(placed(job, folder)) == 0, template.log
        assert outcome(folder) == whole, f"killed in step {step}"
        assert not (folder / "checkpoint").exists()

    # Killed again and again, each time a few steps further on.
    folder = tmp_path / "often"
    kills = 0
    while template.do(placed(job, folder), ("step", 9)) == -signal.SIGKILL:
        kills += 1
        assert kills < 10
    assert kills == 3 and outcome(folder) == whole


def test_killed_between_any_two_files_the_rest_is_the_same(template: Stages, digits: Inputs, tmp_path: Path) -> None:
    """Around every rename of a run: the files of each checkpoint, weights, model.json, result.json."""
    job = train_job(digits, "rbm", {"epochs": 1, "checkpoint_steps": 4}, num_visible=64, num_hidden=8, algorithm="pcd")
    kills = template.kill_around_renames(job, tmp_path)
    assert kills == 2 * (3 * 4 + 3)  # three checkpoints of four files, then the model's two and the result


def test_a_finetuning_killed_within_or_between_its_runs(
    template: Stages, digits: Inputs, layer1: Path, tmp_path: Path
) -> None:
    job = finetune_job(digits, layer1)
    assert template.do(placed(job, tmp_path / "whole")) == 0, template.log
    whole = outcome(tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("runs/*/run.json"))) == 8
    said = template.said("progress")
    assert [line["stage"] for line in said if "stage" in line] == ["few", *(f"few {run}/8" for run in range(1, 9))]
    ends = [line["done"] for line in said if line.get("done") == line.get("of", -1)]
    assert ends == 4 * [3] + 4 * [6]  # three epochs of one batch, of two
    for moment in (("step", 2), ("step", 11), ("before rename", 6), ("after rename", 8), ("before rename", 33)):
        folder = tmp_path / "-".join(map(str, moment))
        assert template.do(placed(job, folder), moment) == -signal.SIGKILL
        finished = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}
        assert template.do(placed(job, folder)) == 0, template.log
        assert outcome(folder) == whole, f"killed {moment}"
        assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not done again


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "chains", "description", "format"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    template: Stages, digits: Inputs, tmp_path: Path, damage: str
) -> None:
    job = train_job(digits, "rbm", {}, num_visible=64, num_hidden=8, algorithm="pcd")
    assert template.do(placed(job, tmp_path / "whole")) == 0
    assert template.do(placed(job, tmp_path / "hurt"), ("step", 20)) == -signal.SIGKILL
    checkpoint = tmp_path / "hurt" / "checkpoint"
    assert {path.name for path in checkpoint.glob("*.json")} == {"7.json", "14.json", "position.json"}
    hurt(checkpoint, 14, damage)
    assert template.do(placed(job, tmp_path / "hurt")) == 0, template.log
    lines = [line for line in template.log.splitlines() if line.startswith("strata: ")]
    assert len(lines) == 1 and "14." in lines[0] and lines[0].endswith("trying the resume point before it")
    assert outcome(tmp_path / "hurt") == outcome(tmp_path / "whole")


def test_when_no_checkpoint_is_whole_that_is_said(template: Stages, digits: Inputs, tmp_path: Path) -> None:
    job = placed(train_job(digits, "rbm", {}, num_visible=64, num_hidden=8), tmp_path / "hurt")
    assert template.do(job, ("step", 20)) == -signal.SIGKILL
    for step in (7, 14):
        hurt(tmp_path / "hurt" / "checkpoint", step, "flipped")
    assert template.do(job) == 4
    assert template.error["status"] == 4 and "no other is whole; delete" in template.error["message"]


def hurt(checkpoint: Path, step: int, damage: str) -> None:
    path = checkpoint / {"chains": f"{step}.rank0.pt", "description": f"{step}.json", "format": f"{step}.json"}.get(
        damage, f"{step}.pt"
    )
    content = bytearray(path.read_bytes())
    if damage in ("flipped", "chains"):
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "format":
        content = content.replace(b'"format": 1', b'"format": 9')
    else:
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_under_way(
    template: Stages, digits: Inputs, tmp_path: Path, number: int, status: int
) -> None:
    settings = {"epochs": 60, "checkpoint_steps": 10_000}
    job = train_job(digits, "rbm", settings, num_visible=64, num_hidden=8, algorithm="pcd")
    assert template.do(placed(job, tmp_path / "whole")) == 0
    [process] = template.start(placed(job, tmp_path / "stopped"))
    until(lambda: '"done"' in (template.folder / "said").read_text(), 30)
    os.kill(process, number)
    assert template.wait() == [status], template.log
    checkpoint = tmp_path / "stopped" / "checkpoint"
    assert durable.read_json(checkpoint / "position.json")["step"] >= 5
    assert len(list(checkpoint.glob("*.rank0.pt"))) == 1, "it went on"
    assert template.do(placed(job, tmp_path / "stopped")) == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_killed_at_any_time_by_somebody_else(template: Stages, digits: Inputs, tmp_path: Path) -> None:
    """As the kernel does when memory runs out: at no moment of ours."""
    job = train_job(
        digits, "rbm", {"epochs": 60, "checkpoint_steps": 50}, num_visible=64, num_hidden=8, algorithm="pcd"
    )
    assert template.do(placed(job, tmp_path / "whole")) == 0
    for checkpoints in (1, 3, 6, 10):
        [process] = template.start(placed(job, tmp_path / "killed"))
        reached = tmp_path / "killed" / "checkpoint" / f"{50 * checkpoints}.json"
        until(reached.exists, 30)
        os.kill(process, signal.SIGKILL)
        assert template.wait() == [-signal.SIGKILL]
    assert template.do(placed(job, tmp_path / "killed")) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_other_threads_are_said_not_to_be_exact(template: Stages, digits: Inputs, tmp_path: Path) -> None:
    job = train_job(digits, "rbm", {}, num_visible=64, num_hidden=8)
    assert template.do(placed(job, tmp_path), ("step", 20)) == -signal.SIGKILL
    other = job.model_copy(update={"train": job.train.model_copy(update={"threads": 2})})
    assert template.do(placed(other, tmp_path)) == 0
    assert outcome(tmp_path)["result"]["placement"]["exact"] is False
