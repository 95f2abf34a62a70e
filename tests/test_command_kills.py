"""A stage process that is killed is one line, and the same command goes on where it stopped; without servers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from data import durable
from tests.conftest import Command, resume_point, stage, trained, until


def test_a_killed_stage_is_one_line_and_the_same_command_goes_on(
    strata: Command, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = recipe(), tmp_path / "out"
    process = strata.start("run", path, "train.epochs=3000", "--out", out)
    until(trained(out, "layer1", 50), 60)
    [number] = [number for number, command in strata.alive().items() if "-m lightning_modules.fit" in command
                and "lifeline" not in command]  # fmt: skip
    os.kill(number, signal.SIGKILL)
    written, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.count("\n") == 1 and said.startswith("error: stage layer1 was ended by SIGKILL (out of memory?); run ")
    record = durable.read_json(next(out.glob("digits-*/run.json")))
    assert record["status"] == "failed" and record["error"] == said.removeprefix("error: ").rstrip()
    strata.await_quiet(2)

    folder = stage(out, "layer1")
    kept = resume_point(folder)
    journal = (folder / "journal.jsonl").read_bytes()[: kept["journal"]]
    again = strata.start("run", path, "train.epochs=3000", "--out", out)
    until(trained(out, "layer1", kept["step"] + 5), 60)
    assert (folder / "journal.jsonl").read_bytes().startswith(journal) and journal
    again.send_signal(signal.SIGINT)
    said = again.communicate(timeout=15)[1]
    assert again.returncode == 130 and said.startswith("error: stopped by SIGINT")
    strata.await_quiet(2)
