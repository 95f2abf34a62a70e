"""The `strata` command: what it prints, what it refuses with which status, and that a refusal leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.cli import main
from tests.conftest import DIGITS, LAYER, Command, Ended, Say, contents, error, tree, until

COMMANDS = (
    "run",
    "check",
    "ingest",
    "verify",
    "data",
    "evaluate",
    "sample",
    "encode",
    "search",
    "sync",
    "ui",
    "deploy",
)
FEW = "  classify: {on: layer1, finetune: {labels: [10], seeds: 2, epochs: 1}}\n"


# --- the recipe, the command line or the data are wrong: status 2, one line, no trace ---


def idx_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + (5).to_bytes(4, "big") + b"cut off")
    return folder


@pytest.mark.parametrize(
    ("stages", "overrides", "expected"),
    [
        (LAYER, ["train.epoch=3"], "unknown key 'train.epoch'; did you mean 'epochs'?"),
        (LAYER, ["train.epochs=many"], "train.epochs: Input should be a valid integer, found 'many'"),
        (LAYER, ["train.learning_rate=-0.1"], "train.learning_rate: Input should be greater than 0, found -0.1"),
        (LAYER, ["stages.layer1.on=layer2"], "stages.layer1.on names 'layer2', which is no stage"),
        (
            "  layer2: {on: layer1, model: {kind: rbm, num_hidden: 4}}\n" + LAYER,
            [],
            "stages.layer2.on names 'layer1', which is a later stage",
        ),
        (LAYER, ["train.epochs"], "override 'train.epochs': expected key=value"),
        (LAYER, ["name.x=1"], "override name.x: 'name' is no mapping"),
        (LAYER, ["data.source={kind: idx, path: /no/such}"], "/no/such: no such file or directory"),
        (LAYER, ["data.source={kind: idx, path: IDX}"], "train-images-idx3-ubyte"),
        (LAYER, ["data.source={kind: arrays, path: missing.npy}"], "missing.npy"),
        (LAYER, ["data={shards: /no/such}"], "/no/such"),
        (LAYER, ["data={shards: .}"], "expected a folder of finished shards"),
        # From here on torch is asked.
        (
            LAYER + "  layer2: {on: layer1, model: {kind: rbm, num_visible: 600, num_hidden: 4}}\n",
            [],
            "layer2 expects 600 visible units but layer1 below it has 16 hidden units",
        ),
        (LAYER, ["stages.layer1.model.num_visible=63"], "layer1 expects 63 visible units but a sample has 64 values"),
        (LAYER, ["stages.layer1.model.kind=rmb"], "stage layer1: unknown kind 'rmb' (did you mean 'rbm'?)"),
        (LAYER, ["stages.layer1.model.num_hiden=3"], "rbm has no argument 'num_hiden' (did you mean 'num_hidden'?)"),
        (
            LAYER + FEW,
            ["stages.classify.finetune.labels=[10, 2000]"],
            "asks for 2000 labels, but there are 1300",
        ),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_trace(
    say: Say, recipe: Callable[..., Path], tmp_path: Path, stages: str, overrides: list[str], expected: str
) -> None:
    idx_folder(tmp_path / "IDX")
    path = recipe(stages)
    before = tree(tmp_path)
    assert expected in error(say("run", path, *overrides, "--out", "out"))
    assert tree(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "the following arguments are required: recipe"),
        (["rum", "r.yaml"], "invalid choice: 'rum'"),
        (["run", "missing.yaml"], "recipe missing.yaml: No such file or directory"),
        (["run", "r.yaml", "--uot", "x"], "unrecognized arguments: --uot"),
        (["check", "."], "Is a directory"),
        (["ingest", "idx", "--out", "s"], "path is missing"),
        (["ingest", "mnist", "--out", "s"], "unknown kind 'mnist'; expected one of digits, idx"),
        (["ingest", "digits", "size=3", "--out", "s"], "unknown key 'size'"),
        (["ingest", "digits", "--out", "s", "--shard-size", "0"], "--shard-size 0: expected at least 1"),
        (["verify", "missing"], "missing"),
        (["evaluate", "missing", "--shards", "s"], "missing: expected a model directory"),
        (
            ["evaluate", "missing", "--shards", "s", "num_chians=3"],
            "'num_chians'; did you mean 'num_chains'?",
        ),
        (["sample", "missing", "--out", "x.npy"], "missing: expected a model directory"),
        (["encode", "missing", "--shards", "s", "--out", "c"], "missing: expected a model directory"),
        (["search", "missing", "--item", "3"], "missing: expected packed codes (strata encode --bits) or an index"),
        (["search", "missing"], "one of the arguments --build --item --text"),
        (["ui", "--out", "missing"], "--out missing: there is no such folder"),
        (["sync", "--out", "missing"], "--out missing: there is no such folder"),
        (["deploy", "r.yaml", "--cron", "0 3 * * *"], "recipe r.yaml: No such file"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_leaves_no_trace(
    say: Say, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    assert expected in error(say(*arguments))
    assert not list(tmp_path.iterdir())


def test_a_refusal_loads_neither_prefect_nor_mlflow_nor_torch(recipe: Callable[..., Path], tmp_path: Path) -> None:
    program = (
        "import sys; from flows.cli import main; print(main(sys.argv[1:]), "
        "[name for name in ('prefect', 'mlflow', 'torch', 'webdataset', 'matplotlib') if name in sys.modules])"
    )
    for arguments in (["check", str(recipe())], ["run", str(recipe()), "stages.layer1.model.num_hidden=x"]):
        process = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path
        )
        assert process.stdout.splitlines()[-1] == f"{0 if arguments[0] == 'check' else 2} []", process


def test_the_flow_process_loads_neither_torch_nor_webdataset() -> None:
    program = (
        "import sys, flows.cli, flows.pipeline, flows.tracking, flows.model_commands; "
        "print([name for name in ('torch', 'webdataset', 'pytorch_lightning', 'mlflow') if name in sys.modules])"
    )
    environment = os.environ | {"PREFECT_HOME": os.devnull}
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert process.stdout.strip() == "[]", process


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example:\n  strata {command}" in capsys.readouterr().out


def test_debug_shows_the_traceback_above_the_line(say: Say) -> None:
    lines = say("run", "missing.yaml", "--debug").err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("error: recipe missing.yaml")


@pytest.mark.parametrize("out", ["FILE", "FILE/inside", "/proc/strata"])
def test_an_output_that_cannot_be_written_is_status_6(
    say: Say, recipe: Callable[..., Path], tmp_path: Path, out: str
) -> None:
    (tmp_path / "FILE").write_text("in the way")
    assert f"--out {tmp_path / out}" in error(say("run", recipe(), "--out", tmp_path / out), 6)
    assert (tmp_path / "FILE").read_text() == "in the way"


# --- check and ingest ---


def test_check_prints_the_plan_and_writes_nothing(say: Say, recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe(LAYER + FEW)
    before = tree(tmp_path)
    ended = say("check", path)
    assert ended.status == 0 and ended.err == ""
    assert "1,300 train, 155 validation, 342 test; 1,300 labeled" in ended.out
    assert [line.split()[:3] for line in ended.out.splitlines()[2:]] == [
        ["layer1", "pretrain", "rbm"],
        ["classify", "finetune", "classifier"],
    ]
    plan = say("check", path, "--json").answer
    assert plan["stages"][0] | {"shape": "64 → 16", "parameters": 64 * 16 + 64 + 16, "steps": 13} == plan["stages"][0]
    assert tree(tmp_path) == before


def test_ingest_verify_and_what_damage_is_answered(say: Say, tmp_path: Path) -> None:
    ended = say("ingest", "digits", "--out", "shards", "--json")
    assert ended.status == 0 and ended.answer["sets"] == {"train": 1797}
    again = say("ingest", "digits", "--out", "shards", "--json")
    assert again.answer == ended.answer
    assert say("verify", "shards").out.endswith("1,797 samples, every byte as written\n")
    assert say("verify", "shards", "--json").answer == {"samples": 1797, "findings": []}

    shard = next(Path("shards").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[650] ^= 1  # in the first sample
    shard.write_bytes(content)
    assert "1 of its files are damaged, 1 samples affected" in error(say("verify", "shards"), 4)
    assert say("ingest", "digits", "--out", "shards").status == 0
    assert say("verify", "shards").status == 0


# --- a run, and what can be done with its models ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One finished run by the real command, and what --json said of it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(DIGITS + LAYER + FEW)
    ended = Command(folder)("run", "recipe.yaml", "--out", "out", "--json")
    assert ended.status == 0 and ended.err == "" and ended.out.count("\n") == 1, ended
    return folder, ended.answer


def test_the_answer_of_a_run_names_models_and_numbers(finished: tuple[Path, Any]) -> None:
    folder, answer = finished
    assert set(answer) == {"run", "out", "report", "shards", "stages"} and answer["out"] == str(folder / "out")
    assert Path(answer["report"]).stat().st_size > 10_000
    assert (Path(answer["shards"]["data"]) / "manifest.json").exists()
    layer1, classify = answer["stages"]["layer1"], answer["stages"]["classify"]
    assert (Path(layer1["model"]) / "weights.safetensors").exists()
    assert str(Path(layer1["model"]).relative_to(folder / "out")) in Path(answer["report"]).read_text()
    assert {"train/loss", "validation/loss", "test/log_prob", "test/squared_error"} <= set(layer1["metrics"])
    assert layer1["cached"] is False and layer1["seconds"] > 0
    assert classify["model"] is None
    assert {"test/error@10", "test/error@10/supervised"} <= set(classify["metrics"])
    runs = {(run["labels"], run["seed"], run["pretrained"]) for run in classify["models"]}
    assert runs == {(10, seed, side) for seed in (0, 1) for side in (True, False)}
    assert all((Path(run["path"]) / "model.json").exists() for run in classify["models"])
    record = json.loads((Path(answer["report"]).parent / "run.json").read_text())
    assert record["status"] == "finished" and record["closed"] and record["error"] is None


def test_a_second_run_is_cached_and_starts_no_stage(finished: tuple[Path, Any], say: Say) -> None:
    folder, answer = finished
    before = contents(folder / "out" / "stages", "*")
    again = say("run", folder / "recipe.yaml", "--out", folder / "out", "--json").answer
    assert {name: stage.pop("cached") for name, stage in again["stages"].items()} == {"layer1": True, "classify": True}
    expected = {name: {k: v for k, v in stage.items() if k != "cached"} for name, stage in answer["stages"].items()}
    assert again == answer | {"stages": expected}
    assert contents(folder / "out" / "stages", "*") == before


def test_evaluate_sample_and_encode(finished: tuple[Path, Any], strata: Command, tmp_path: Path) -> None:
    folder, answer = finished
    model = answer["stages"]["layer1"]["model"]
    shards = next((folder / "out" / "shards").glob("*/manifest.json")).parent
    effort = ("num_temperatures=10", "num_chains=5", "gibbs_steps=5", "num_examples=50")

    measured = strata("evaluate", model, "--shards", shards, *effort)
    assert measured.status == 0 and measured.err == ""
    assert "binarization: sample, 50 samples" in measured.out and "nats, exact" in measured.out

    drawn = strata("sample", model, "-n", 9, "--out", "some", "--json").answer
    assert drawn["written"] == ["some.npy", "some.png"]
    assert np.load(tmp_path / "some.npy").shape == (9, 64)

    coded = strata("encode", model, "--shards", shards, "--out", "codes", "--json").answer
    assert coded["num_hidden"] == 16
    codes = np.load(tmp_path / "codes" / "train.npy")
    assert codes.shape == (1797, 16) and codes.min() >= 0 and codes.max() <= 1


def test_evaluate_tells_a_classifiers_errors(strata: Command, recipe: Callable[..., Path]) -> None:
    stages = LAYER + "  classify: {on: layer1, finetune: {labels: [100], seeds: 1, epochs: 2}}\n"
    answer = strata("run", recipe(stages), "--out", "out", "--json").answer
    stage = answer["stages"]["classify"]
    path = next(each["path"] for each in stage["models"] if each["pretrained"])
    shards = next((strata.folder / "out" / "shards").glob("*/manifest.json")).parent
    measured = strata("evaluate", path, "--shards", shards, "--json").answer
    assert measured["metrics"]["test/error"] == pytest.approx(stage["metrics"]["test/error@100"])
    said = strata("evaluate", path, "--shards", shards).out
    assert "test set: 20% of the samples by the hash of their keys" in said and "test/error " in said


def test_a_damaged_model_is_status_4(finished: tuple[Path, Any], say: Say, tmp_path: Path) -> None:
    folder, answer = finished
    shutil.copytree(answer["stages"]["layer1"]["model"], tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert f"{weights}: expected SHA-256" in error(say("sample", "model", "--out", "x.npy"), 4)
    assert not (tmp_path / "x.npy").exists()


def test_samples_that_cannot_be_written_are_status_6(finished: tuple[Path, Any], say: Say, tmp_path: Path) -> None:
    (tmp_path / "FILE").write_text("in the way")
    model = finished[1]["stages"]["layer1"]["model"]
    assert "FILE" in error(say("sample", model, "-n", 2, "--out", "FILE/x.npy"), 6)
    assert "-n 0: expected at least 1" in error(say("sample", model, "-n", 0, "--out", "x.npy"))


def test_a_loss_that_is_no_number_ends_the_run_with_status_5(
    say: Say, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe("  wild: {model: {kind: rbm, visible: gaussian, num_hidden: 16}, train: {learning_rate: 1e30}}\n")
    message = error(say("run", path, "--out", "out"), 5)
    assert message.startswith("stage wild: loss is not finite at step ") and "lower train.learning_rate" in message
    assert not list((tmp_path / "out" / "stages").rglob("result.json"))
    assert not list((tmp_path / "out" / "stages").rglob("model.json"))
    record = json.loads(next((tmp_path / "out").glob("digits-*/run.json")).read_text())
    assert record["status"] == "failed" and record["error"] == message


def test_the_same_run_twice_at_once_is_status_3(
    strata: Command, say: Say, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe()
    first = strata.start("run", path, "train.epochs=100000", "--out", "out")
    until(lambda: list(tmp_path.glob("out/stages/*/journal.jsonl")), 60, lambda: str(first.poll()))
    message = error(say("run", path, "train.epochs=100000", "--out", "out"), 3)
    assert f"process {first.pid} on " in message and "is running it" in message
    first.terminate()
    assert first.wait(20) == 143
    assert (
        error(Ended(143, *first.communicate(), 0.0), 143) == "stopped by SIGTERM; run the same command again to go on"
    )
    strata.await_quiet(2)
