"""Every shipped recipe of a data set whose shape is known here has a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf import ArraysSource, IdxSource
from conf.protocol import Description, PlanJob
from conf.reading import read
from lightning_modules.planning import plan

DATA = {  # shape; training, validation and test samples; classes of the labels, 0 where there are none
    "mnist": ([28, 28], (60_000, 0, 10_000), 10),
    "dna": ([180], (1_400, 600, 1_186), 0),
    "mushrooms": ([112], (2_000, 500, 5_624), 0),
}


def described(name: str) -> Description:
    shape, (train, validation, test), num_classes = DATA[name]
    return Description(
        shape=shape, low=0.0, high=1.0, sizes={"train": train, "validation": validation, "test": test},
        labeled=train if num_classes else 0, labeled_test=test if num_classes else 0, num_classes=num_classes,
    )  # fmt: skip


def known() -> list[Any]:
    found = []
    for path in sorted(Path("conf").glob("*.yaml")):
        source = recipe.data.source if (recipe := read(path, [])).data else None
        if isinstance(source, (IdxSource, ArraysSource)) and (name := Path(source.path).stem) in DATA:
            found.append(pytest.param(recipe, name, id=path.stem))
    return found


@pytest.mark.parametrize(("recipe", "name"), known())
def test_a_shipped_recipe_has_a_plan(recipe: Any, name: str) -> None:
    found = plan(PlanJob(recipe=recipe, descriptions={"data": described(name)}))
    assert [stage.name for stage in found.stages] == list(recipe.stages)
