"""Stages that differ in their epochs alone become one curve of the report."""

from __future__ import annotations

from typing import Any

from conf import Recipe
from conf.reading import parse
from flows import over_epochs

RECIPE = """\
name: bound
data: {source: {kind: digits}}
stages:
  first: {model: {kind: rbm, num_hidden: 20}, train: {epochs: 5}}
  top0: {on: first, model: {kind: rbm, num_hidden: 9}, train: {epochs: 0}}
  dbn0: {on: top0, model: {kind: dbn}}
  top4: {on: first, model: {kind: rbm, num_hidden: 9}, train: {epochs: 4}}
  dbn4: {on: top4, model: {kind: dbn}}
  top1: {on: first, model: {kind: rbm, num_hidden: 9}, train: {epochs: 1}}
  dbn1: {on: top1, model: {kind: dbn}}
  other: {on: first, model: {kind: rbm, num_hidden: 9}, train: {epochs: 2, learning_rate: 0.1}}
  another: {on: other, model: {kind: dbn}}
"""
NATS = {"first": -7.0, "dbn4": -5.5, "dbn0": -7.0, "dbn1": -9.0, "another": -1.0}


def stages(text: str = RECIPE) -> dict[str, Any]:
    found: dict[str, Any] = Recipe.model_validate(parse(text, "recipe")).model_dump(mode="json")["stages"]
    return found


def found(*left_out: str) -> dict[str, Any]:
    nats = {name: {"nats": nats, "reverse": None} for name, nats in NATS.items() if name not in left_out}
    return nats | {"dbn1": {"nats": -9.0, "reverse": {"nats": -9.5}}} if "dbn1" not in left_out else nats


def test_a_curve_over_the_epochs_and_the_model_below() -> None:
    assert list(over_epochs.curves(stages(), found())) == [
        (
            ["dbn0", "dbn1", "dbn4"],
            {
                "nats": [(0, -7.0), (1, -9.0), (4, -5.5)],
                "log Z from the other side": [(1, -9.5)],
                "first, below": [(0, -7.0), (4, -7.0)],
            },
        )
    ]
    [chart] = over_epochs.charts(stages(), found())
    assert "dbn0 … dbn4" in chart and chart.count("<polyline") == 3


def test_two_stages_or_unlike_ones_make_no_curve() -> None:
    assert over_epochs.charts(stages(), found("dbn1")) == []
    assert over_epochs.charts(stages(RECIPE.replace("{epochs: 1}", "{epochs: 1, schedule: linear}")), found()) == []
