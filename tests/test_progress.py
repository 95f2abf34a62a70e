"""What a long step says where there is no terminal."""

from __future__ import annotations

import math
import re

import pytest

from flows import progress


def test_a_line_says_how_far_a_step_is_in_its_own_unit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.Reporter().bar("evaluate", "rounds") as told:
        told({"stage": "groups"})
        told({"done": 1000, "of": 4000, "loss": math.nan})
        told({"done": 3000, "of": 4000, "loss": 0.25})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "    groups: 1,000 of 4,000 rounds"
    assert re.fullmatch(r"    groups: 3,000 of 4,000 rounds, loss 0.25, [\d,]+ rounds/s, 0 s left", second)


def test_a_short_step_or_a_silent_one_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.Reporter().bar("layer1", "steps") as told:
        told({"done": 1, "of": 2})
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.Reporter(silent=True).bar("layer1", "steps") as told:
        told({"done": 1, "of": 2})
    assert capsys.readouterr().out == ""
