"""A recipe is read as it is written, or refused in one line that says where and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf import Recipe
from conf.errors import InputError
from conf.reading import parse, read

SMALL = """\
name: small
data: {source: {kind: digits}}
stages:
  layer1: {model: {kind: rbm, num_hidden: 4}}
"""


def load(tmp_path: Path, text: str = SMALL, *overrides: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return read(path, list(overrides))


def refused(tmp_path: Path, text: str = SMALL, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"recipe {tmp_path / 'r.yaml'}: ")


def test_defaults_are_written_out(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.stages["layer1"].train.epochs == 10
    assert recipe.origins == {"data": recipe.data}
    assert recipe.origin("layer1") == "data"


@pytest.mark.parametrize("path", sorted(Path("conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert read(path, []).name == path.stem


def test_a_recipe_survives_json(tmp_path: Path) -> None:
    text = SMALL + "  few: {on: layer1, finetune: {labels: [10, all], seeds: {10: 3, all: 1}}}\n"
    recipe = load(tmp_path, text)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.stages["few"].finetune is not None
    assert recipe.stages["few"].finetune.per_labels("seeds", 10) == 3


# --- YAML's traps ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("true", True),
        ("1e-3", 1e-3),
        ("-2E+4", -2e4),
        ("1.5", 1.5),
        (".5", 0.5),
        ("10", 10),
        ("~", None),
        ("a: {on: layer1}", {"a": {"on": "layer1"}}),
        ("2e", "2e"),
    ],
)
def test_words_and_numbers_mean_what_they_look_like(text: str, value: Any) -> None:
    found = parse(text, "text")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [1, 2\n", "not readable as YAML"),
        ("{1: 2}: 3\n", "not readable as YAML"),
        ("? [a]\n: 1\n", "not readable as YAML"),
        ("- a list\n", "expected a mapping of name, data, stages"),
        ("", "expected a mapping"),
    ],
    ids=["open", "mapping key", "list key", "list", "empty"],
)
def test_text_that_is_no_recipe(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, text)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read(tmp_path / "r.yaml", [])
    with pytest.raises(InputError, match="No such file or directory"):
        read(tmp_path / "other.yaml", [])


# --- what a wrong value is answered ---


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sead=1", "unknown key 'sead'; did you mean 'seed'?"),
        ("train.epoch=1", "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("stages.layer1.train.lr=1", "unknown key 'stages.layer1.train.lr'; known keys here: accelerator, batch_size,"),
        ("data.source.pth=/x", "unknown key 'data.source.pth'; known keys here: kind"),
        ("data.source={kind: idx, pth: /x}", "data.source.path is missing"),
        ("data.source={kind: idx, path: /x, pth: 1}", "unknown key 'data.source.pth'; did you mean 'path'?"),
        ("data.source.kind=mnist", "data.source: unknown kind 'mnist'; expected one of digits, idx, arrays, "),
        (
            "data.source.kind=digit",
            "data.source: unknown kind 'digit' (did you mean 'digits'?); expected one of digits,",
        ),
        ("data.source={path: x}", "data.source: kind is missing; expected one of digits, idx, arrays,"),
        ("data.source=digits", "data.source: expected a mapping, found 'digits'"),
        ("data.source={kind: idx, path: ''}", "data.source.path: is empty; expected a path"),
        ('data.source={kind: idx, path: "a\\0b"}', "data.source.path: holds a NUL character, which no path has"),
        ("data={shards: ''}", "data.shards: is empty; expected a path"),
        ("train.epochs=ten", "train.epochs: Input should be a valid integer, found 'ten'"),
        ("train.epochs=true", "train.epochs: Input should be a valid integer, found True"),
        ("train.epochs=1.0", "train.epochs: Input should be a valid integer, found 1.0"),
        ("train.epochs='1'", "train.epochs: Input should be a valid integer, found '1'"),
        ("train.learning_rate=-1", "train.learning_rate: Input should be greater than 0, found -1"),
        ("train.learning_rate=.nan", "train.learning_rate: Input should be"),
        ("train.momentum=1", "train.momentum: Input should be less than 1, found 1"),
        ("train.optimizer=sdg", "train.optimizer: Input should be 'sgd' or 'adam', found 'sdg'"),
        ("train=3", "train: expected a mapping, found 3"),
        ("seed=-1", "seed: Input should be greater than or equal to 0, found -1"),
        ("name=../x", "name: expected a letter and then letters, digits, _ or -, at most 64 in all, found"),
        ("stages={}", "stages: Dictionary should have at least 1 item"),
        ("stages.layer1.model.kind=[1]", "stages.layer1.model.kind: Input should be a valid string, found [1]"),
        ("stages.layer1={}", "stages.layer1: needs exactly one of 'model' and 'finetune'"),
        ("stages.layer1.on=layer1", "stages.layer1.on names 'layer1', which is a later stage; earlier ones: []"),
        ("stages.layer1.on=top", "stages.layer1.on names 'top', which is no stage; earlier ones: []"),
        ("stages.few={finetune: {labels: [10]}}", "stages.few: 'finetune' needs 'on'"),
        ("stages.few={on: layer1, finetune: {labels: [1, 1]}}", "names the same number of labels twice"),
        ("stages.few={on: layer1, finetune: {labels: [0]}}", "stages.few.finetune.labels.0: Input should be"),
        (
            "stages.few={on: layer1, finetune: {labels: [5], seeds: {6: 1}}}",
            "'seeds' must give one value for each of labels [5], found those of [6]",
        ),
        ("datasets={a: {source: {kind: digits}}}", "needs exactly one of 'data' and 'datasets'"),
        ("data.shards=/x", "data: needs exactly one of 'source' and 'shards'"),
        ("stages.layer1.data=b", "stages.layer1.data names 'b'; the data sets are ['data']"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path: Path, override: str, expected: str) -> None:
    message = refused(tmp_path, SMALL, override)
    assert message.startswith(expected) or expected in message.split(": ", 1)[-1]
    assert "the recipe" not in message


def test_a_mistake_in_inherited_defaults_is_told_once(tmp_path: Path) -> None:
    text = SMALL + "  layer2: {on: layer1, model: {kind: rbm, num_hidden: 4}}\n"
    assert refused(tmp_path, text, "train.epoch=1") == "unknown key 'train.epoch'; did you mean 'epochs'?"
    assert refused(tmp_path, text, "train.epoch=1", "sead=3").endswith("(and 1 more)")


def test_nothing_stands_on_a_finetuning(tmp_path: Path) -> None:
    text = SMALL + "  few: {on: layer1, finetune: {labels: [10]}}\n  more: {on: few, model: {kind: rbm}}\n"
    assert "a fine-tuning; nothing can stand on one" in refused(tmp_path, text)


def test_hostile_names_stay_on_one_printable_line(tmp_path: Path) -> None:
    message = refused(tmp_path, SMALL + '"\\e[2J\\nerror: all is well": 1\n')
    assert message.isprintable() and "\\x1b" in message


# --- overrides and inheritance ---


def test_overrides_reach_any_field(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        SMALL,
        "seed=3",
        "stages.layer1.train.epochs=1",
        "stages.layer1.model.gibbs_steps=5",
        "data.split={test: 0.5}",
        "evaluate=null",
        "stages.layer2={on: layer1, model: {kind: rbm, num_hidden: 2}}",
    )
    layer1 = recipe.stages["layer1"]
    assert (recipe.seed, layer1.train.epochs, recipe.evaluate) == (3, 1, None)
    assert layer1.model is not None and layer1.model.arguments == {"num_hidden": 4, "gibbs_steps": 5}
    assert recipe.data is not None and recipe.data.split.test == 0.5
    assert recipe.chain("layer2") == ["layer1"]


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seed", "override 'seed': expected key=value"),
        ("=1", "override '=1': expected key=value"),
        ("name.first=1", "override name.first: 'name' is no mapping"),
        ("seed=[1", "override seed: not readable as YAML"),
        ("seed=*x", "override seed: not readable as YAML"),
    ],
)
def test_overrides_that_cannot_be_set(tmp_path: Path, assignment: str, expected: str) -> None:
    assert refused(tmp_path, SMALL, assignment).startswith(expected)


def test_a_stage_inherits_the_settings_it_does_not_give(tmp_path: Path) -> None:
    text = SMALL.replace("stages:", "train: {epochs: 7, batch_size: 20}\nstages:")
    text = text.replace("num_hidden: 4}}", "num_hidden: 4}, train: {batch_size: 30}}")
    train = load(tmp_path, text, "train.learning_rate=1e-3").stages["layer1"].train
    assert (train.epochs, train.batch_size, train.learning_rate) == (7, 30, 1e-3)


def test_precision_may_be_written_as_a_number(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL, "train.precision=32").train.precision == "32"
