"""What lies under OUT/<run> and OUT/stages, read back: run.json, and each stage's result, journal and figures."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conf import journal
from conf.protocol import Result
from data import durable
from flows import figures
from flows.pictures import Array


@dataclass(frozen=True)
class Stage:
    """One row of run.json and the result in its folder, if there is one."""

    row: dict[str, Any]
    folder: Path
    result: Result | None

    @property
    def name(self) -> str:
        """An evaluation bears the name of the stage it measures."""
        return str(self.row["evaluates"] or self.row["name"])

    @property
    def set(self) -> str:
        """Which samples an evaluation measured: test, validation or train."""
        return str((self.result.details if self.result else {}).get("set", "unnamed"))

    @property
    def likelihoods(self) -> list[dict[str, Any]]:
        """What an evaluation found, each with what it promises."""
        return list(self.result.details.get("likelihoods", [])) if self.result else []

    @property
    def labels(self) -> list[str]:
        """The numbers of labels a fine-tuning was run with, fewest first, `all` last."""
        metrics = self.result.metrics if self.result else {}
        found = [name.partition("@")[2] for name in metrics if re.fullmatch(r"test/error@\w+", name)]
        return sorted(found, key=lambda labels: float(labels) if labels.isdigit() else math.inf)

    def figure(self, name: str) -> dict[str, Array]:
        """The arrays of figures/NAME.npz; {} where there are none."""
        return figures.read(self.folder / "figures" / f"{name}.npz")

    def journal(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics) of every row that training wrote."""
        rows, _ = journal.read(self.folder / "journal.jsonl")
        return [(row["step"], row["metrics"]) for row in rows]


@dataclass(frozen=True)
class Run:
    record: dict[str, Any]
    stages: list[Stage]

    @property
    def evaluations(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.row["flow"] == "evaluate"]


def load(out: Path, run: str) -> Run:
    record = durable.read_json(out / run / "run.json")
    folders = [out / row["folder"] for row in record["stages"]]
    return Run(record, [Stage(row, at, result(at)) for row, at in zip(record["stages"], folders, strict=True)])


def result(folder: Path) -> Result | None:
    """A stage's result; None while there is none (or none that can be read)."""
    try:
        return Result.model_validate_json((folder / "result.json").read_bytes())
    except (OSError, ValidationError):
        return None
