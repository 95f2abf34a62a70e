"""Likelihoods of stages that are alike but for their epochs, as one curve: what more training was worth.

With a constant learning rate such stages are one training looked at on its way, else trainings of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flows.charts import curves as lines
from flows.charts import legend
from flows.markup import card, text

Stages = Mapping[str, Mapping[str, Any]]
Likelihoods = Mapping[str, Mapping[str, Any]]
Points = list[tuple[float, float]]
LEAST = 3  # stages that make a curve


def charts(stages: Stages, found: Likelihoods) -> list[str]:
    """A chart a curve, see `curves`."""
    drawn = []
    for names, series in curves(stages, found):
        picture = lines(series, f"log-likelihood of {names[-1]} over epochs", "epochs", "nats")
        caption = f"<b>{text(names[0])} … {text(names[-1])}</b>"
        drawn.append(card(caption, "", picture + legend(list(series))))
    return drawn


def curves(stages: Stages, found: Likelihoods) -> Iterator[tuple[list[str], dict[str, Points]]]:
    """For every group of stages: their names, and lines of (epochs, nats) by name.

    stages: the recipe's, by name; found: likelihoods, as evaluations have them. Epochs are counted from the stage of
    the group that has fewest; a level line is the highest model below with a likelihood of its own.
    """
    groups: dict[str, dict[int, str]] = {}
    for name in found:
        groups.setdefault(_but_for_epochs(stages, name), {})[_epochs(stages, name)] = name
    for group in groups.values():
        if len(group) < LEAST:
            continue
        names = [group[epochs] for epochs in sorted(group)]
        epochs = [float(one - min(group)) for one in sorted(group)]
        forth = [float(found[name]["nats"]) for name in names]
        reverse = {one: found[name].get("reverse") for one, name in zip(epochs, names, strict=True)}
        series: dict[str, Points] = {"nats": list(zip(epochs, forth, strict=True))}
        if back := [(one, float(entry["nats"])) for one, entry in reverse.items() if entry]:
            series["log Z from the other side"] = back
        if below := next((name for name in reversed(_chain(stages, names[-1])[:-1]) if name in found), None):
            series[f"{below}, below"] = [(one, found[below]["nats"]) for one in (epochs[0], epochs[-1])]
        yield names, series


def _chain(stages: Stages, name: str) -> list[str]:
    """The stage and all it stands on, the lowest first."""
    below = stages[name].get("on")
    return [*(_chain(stages, below) if below else []), name]


def _epochs(stages: Stages, name: str) -> int:
    return sum(int(stages[one]["train"]["epochs"]) for one in _chain(stages, name))


def _but_for_epochs(stages: Stages, name: str) -> str:
    chain = [stages[one] for one in _chain(stages, name)]
    alike = [{**stage, "on": None, "train": {**stage["train"], "epochs": None}} for stage in chain]
    return json.dumps(alike, sort_keys=True)
