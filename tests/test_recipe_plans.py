"""Every shipped recipe of a data set whose shape is known here has a plan; none does that says what changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf import ArraysSource, IdxSource, Recipe
from conf.errors import InputError
from conf.protocol import Description, Plan, PlanJob
from conf.reading import parse, read
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


def planned(stages: str, **changed: Any) -> Plan:
    recipe = Recipe.model_validate(parse(f"name: r\ndata: {{source: {{kind: digits}}}}\nstages:\n{stages}", "recipe"))
    description = described("mnist").model_copy(update=changed)
    return plan(PlanJob(recipe=recipe, descriptions={"data": description}))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("rbm, num_chains: 100", "num_chains changes nothing about this rbm: it needs algorithm: pcd or fast_pcd or"),
        ("rbm, algorithm: exact, gibbs_steps: 1", "gibbs_steps changes nothing about this rbm: it needs algorithm: cd"),
        ("rbm, algorithm: pcd, num_temperatures: 9", "num_temperatures changes nothing about this rbm: it needs"),
        ("rbm, algorithm: pcd, fast_learning_rate: 0.1", "needs algorithm: fast_pcd; say so, or leave"),
        ("rbm, sparsity_cost: 1.0", "sparsity_cost changes nothing about this rbm: it needs a sparsity_target; say so"),
        (
            "autoencoder, sparsity_cost: 1.0",
            "sparsity_cost changes nothing about this autoencoder: it needs a sparsity",
        ),
        (
            "kmeans, batch_size: 100, tolerance: 0.1",
            "tolerance changes nothing about this kmeans: it needs rounds over",
        ),
        ("labeled_rbm, num_chains: 50", "num_chains changes nothing about this labeled_rbm: it needs algorithm: pcd"),
    ],
)
def test_an_argument_that_changes_nothing_is_refused(model: str, expected: str) -> None:
    with pytest.raises(InputError, match=f"^stage one: .*{expected}"):
        planned(f"  one: {{model: {{num_hidden: 9, kind: {model}}}}}\n")


@pytest.mark.parametrize(
    "model",
    [
        "rbm, gibbs_steps: 3",
        "rbm, algorithm: parallel_tempering, num_chains: 5, num_temperatures: 5",
        "rbm, sparsity_target: 0.1, sparsity_cost: 1.0",
        "rbm, algorithm: fast_pcd, num_chains: 50, fast_learning_rate: 0.1",
        "labeled_rbm, algorithm: pcd, num_chains: 50",
        "autoencoder, sparsity_target: 0.1, sparsity_cost: 2.0",
        "kmeans, tolerance: 0.1",
    ],
)
def test_an_argument_that_is_used_is_not(model: str) -> None:
    planned(f"  one: {{model: {{num_hidden: 9, kind: {model}}}}}\n")


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ("  one: {model: {kind: pca, num_hidden: 9}, train: {epochs: 3}}", "in passes over the data, so train.epochs"),
        (
            "  one: {model: {kind: kmeans, num_hidden: 9}, train: {batch_size: 50}}",
            "so train.batch_size changes nothing",
        ),
        (
            "  low: {model: {kind: rbm, num_hidden: 9}}\n"
            "  one: {on: low, model: {kind: dbn}, train: {learning_rate: 0.1}}",
            "a dbn is made of what is there, so train.learning_rate changes nothing; leave it out of this stage",
        ),
        (
            "  low: {model: {kind: rbm, num_hidden: 9}}\n  one: {on: low, finetune: {labels: [9]}, train: {epochs: 3}}",
            "a fine-tuning learns as its finetune says, so train.epochs changes nothing",
        ),
    ],
)
def test_a_stage_may_not_set_what_changes_nothing_about_it(stages: str, expected: str) -> None:
    with pytest.raises(InputError, match=f"^stage one: .*{expected}"):
        planned(stages)


def test_a_stage_may_set_what_is_used_and_defaults_for_all_stages() -> None:
    planned("  one: {model: {kind: kmeans, num_hidden: 9}, train: {binarize: sample, threads: 1}}\ntrain: {epochs: 3}")


@pytest.mark.parametrize("model", ["lda", "tfidf", "rbm, visible: replicated_softmax, num_hidden: 9"])
def test_word_models_do_not_read_pictures(model: str) -> None:
    with pytest.raises(
        InputError, match=r"reads counts of words, but a sample has 784 values \(28×28\); ingest counts"
    ):
        planned(f"  one: {{model: {{kind: {model}}}}}\n")
    planned(f"  one: {{model: {{kind: {model}}}}}\n", shape=[784])


def test_progress_is_counted_in_what_a_stage_does_again_and_again() -> None:
    found = planned(
        "  white: {model: {kind: whitening, num_hidden: 30}}\n"
        "  groups: {on: white, model: {kind: kmeans, num_hidden: 10}}\n"
        "  code: {on: white, model: {kind: autoencoder, loss: squared_error, num_hidden: 9}}\n"
        "  few: {on: code, finetune: {labels: [10]}}\n"
    )
    assert [stage.counted for stage in found.stages] == ["batches", "rounds", "steps", "steps"]
