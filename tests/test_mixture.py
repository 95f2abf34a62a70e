"""Several sets in one stream, and labeled samples beside unlabeled ones: exact counts, exact epochs, any rank."""

from __future__ import annotations

import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import conf
from conf.errors import Damaged, InputError
from conf.protocol import Description, PlanJob
from conf.reading import read
from data import durable
from data.loading import Mixed, ShardData, Step
from data.mixture import Mixture, Readers
from data.order import Endless, Order
from data.shards import Reader, ingest
from data.sources import open_source
from lightning_modules.planning import plan
from tests.conftest import Command

SIZES = (601, 40, 90)  # samples of the three folders; values: 1000 × folder + row


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, made = tmp_path_factory.mktemp("mixture"), []
    for number, size in enumerate(SIZES):
        x = np.repeat(1000 * number + np.arange(size, dtype=np.float32)[:, None], 3, axis=1)
        np.savez(folder / f"{number}.npz", x=x, y=np.arange(size) % 4)
        source = open_source(conf.ArraysSource(kind="arrays", path=str(folder / f"{number}.npz")))
        made.append(ingest(source, folder / f"shards-{number}", shard_size=70).folder)
    return made


def numbers(step: Step) -> list[int]:
    return [int(row[0]) for row in step.x]


def mixed(folders: list[Path], weights: tuple[float, ...] = (3.0, 1.0, 0.5), **changes: Any) -> ShardData:
    others = [
        Mixed(folder, np.arange(size), weight)
        for folder, size, weight in zip(folders[1:], SIZES[1:], weights[1:], strict=False)
    ]
    settings: dict[str, Any] = {"batch_size": 50, "epochs": 3, "seed": 5, "samples": np.arange(SIZES[0])}
    return ShardData(shards=folders[0], weight=weights[0], mixed=others, **settings | changes)


def of_rank(data: ShardData, rank: int, ranks: int) -> list[Step]:
    class Trainer:
        global_rank, world_size = rank, ranks

    data.trainer = Trainer()  # type: ignore[assignment]
    return list(data.train_dataloader())


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 0.2), (1, 1, 1), (5, 3, 1.7), (97, 2, 1), (1, 2, 3, 4, 5.5)])
@pytest.mark.parametrize("batch_size", [16, 100, 101])
def test_totals_follow_the_weights_and_never_fall(weights: tuple[float, ...], batch_size: int) -> None:
    if min(weights) / sum(weights) * batch_size < 1:
        with pytest.raises(ValueError, match="no whole sample"):
            Mixture([np.arange(5)] * len(weights), [0] * len(weights), weights, batch_size, 0)
        return
    mixture = Mixture([np.arange(5)] * len(weights), [0] * len(weights), weights, batch_size, 0)
    shares = [Fraction(str(weight)) / sum(Fraction(str(other)) for other in weights) for weight in weights]
    before = [0] * len(weights)
    for step in range(1, 400):
        drawn = mixture.drawn(step)
        assert sum(drawn) == step * batch_size
        for count, share in zip(drawn, shares, strict=True):
            assert abs(count - step * batch_size * share) < 1
        assert all(now >= then for now, then in zip(drawn, before, strict=True))
        before = drawn


def test_a_sequence_without_an_end_is_epoch_after_epoch() -> None:
    samples = np.arange(10, 17)
    whole = np.concatenate([Order(samples, 3, epoch)[:] for epoch in range(6)])
    one = Endless(samples, 3)
    for start, stop in ((0, 0), (0, 7), (3, 5), (3, 12), (5, 30), (0, 42), (13, 14), (14, 21)):
        assert np.array_equal(one[start:stop], whole[start:stop])
        assert np.array_equal(Endless(samples, 3)[start:stop], whole[start:stop])


def test_every_set_runs_through_its_own_epochs(folders: list[Path]) -> None:
    data = mixed(folders)
    assert data.steps_per_epoch == 15 == -(-sum(SIZES) // 50) and data.total_steps == 45
    steps = list(data.train_dataloader())
    assert [len(step.x) for step in steps] == [50] * 45 and {step.label for step in steps} == {None}
    seen = [number for step in steps for number in numbers(step)]
    for number, (size, share) in enumerate(zip(SIZES, (3 / 4.5, 1 / 4.5, 0.5 / 4.5), strict=True)):
        own = [value - 1000 * number for value in seen if value // 1000 == number]
        assert abs(len(own) - 45 * 50 * share) < 1
        for epoch in range(len(own) // size + 1):
            part = own[epoch * size : (epoch + 1) * size]
            assert len(set(part)) == len(part)
            assert part == Order(np.arange(size), 5 + (number << 31), epoch)[: len(part)].tolist()
    assert Counter(value // 1000 for value in seen) == {0: 1500, 1: 500, 2: 250}  # 2.5, 12.5 and 2.8 epochs


def test_ranks_workers_and_starts_change_nothing(folders: list[Path]) -> None:
    whole = [numbers(step) for step in mixed(folders).train_dataloader()]
    for ranks, workers, start in ((1, 2, 7), (2, 0, 0), (3, 1, 20)):
        by_rank = []
        for rank in range(ranks):
            data = mixed(folders, loader_workers=workers)
            data.start_step = start
            by_rank.append(of_rank(data, rank, ranks))
        for expected, *parts in zip(whole[start:], *by_rank, strict=True):
            assert sum((numbers(part) for part in parts), []) == expected
            assert [part.share for part in parts] == [len(part.x) * ranks / 50 for part in parts]
            for part in parts:  # 33, 11 and 6 of 50 are in each rank's piece in proportion
                share = len(part.x) / 50
                counts = Counter(value // 1000 for value in numbers(part))
                assert all(abs(counts[n] - share * of) < 2 for n, of in enumerate((33.3, 11.1, 5.6)))


def test_readers_of_several_folders(folders: list[Path]) -> None:
    readers = Readers([Reader(folder) for folder in folders])
    assert readers.firsts.tolist() == [0, 601, 641]
    found = readers.values(np.array([730, 0, 601, 640, 600, 641, 0]))
    assert found[:, 0].tolist() == [2089, 0, 1000, 1039, 600, 2000, 0] and found.dtype == np.float32


def test_what_does_not_mix(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a share of 0.00980392 is no whole sample in a batch of 50; raise it"):
        mixed(folders, weights=(100.0, 1.0, 1.0))
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((9, 5)))
    source = open_source(conf.ArraysSource(kind="arrays", path=str(tmp_path / "a.npy")))
    other = ingest(source, tmp_path / "shards", shard_size=9).folder
    with pytest.raises(InputError, match=r"samples of one shape, found \[\(3,\), \(5,\)\]"):
        mixed([folders[0], other], (1.0, 1.0))
    with pytest.raises(InputError, match="no samples to train on"):
        ShardData(
            shards=folders[0], samples=np.arange(9), batch_size=4, epochs=1, seed=0,
            mixed=[Mixed(folders[1], np.zeros(0, np.int64), 1.0)],
        )  # fmt: skip


def test_every_folder_is_verified(folders: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders[2], tmp_path / "copy")
    (copy / "train-00001.tar").unlink()
    with pytest.raises(Damaged, match=r"train-00001\.tar"):
        mixed([*folders[:2], copy]).prepare_data()


CHOSEN = np.arange(3, 601, 26)  # 23 labeled samples


def beside(folders: list[Path], **changes: Any) -> ShardData:
    unlabeled = np.setdiff1d(np.arange(601), CHOSEN)
    settings: dict[str, Any] = {"samples": unlabeled, "batch_size": 100, "epochs": 4, "seed": 9}
    settings |= {"labeled_samples": CHOSEN, "labeled_batch_size": 8}
    return ShardData(shards=folders[0], **settings | changes)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_labeled_samples_beside_unlabeled_ones(folders: list[Path], ranks: int, workers: int) -> None:
    """24 steps of 8: the labeled samples' epochs of 23 begin anywhere in the unlabeled ones' of 6 steps."""
    plain = [numbers(step) for step in beside(folders, labeled_samples=None).train_dataloader()]
    for start in (0, 11):
        by_rank = []
        for rank in range(ranks):
            data = beside(folders, loader_workers=workers)
            data.start_step = start
            by_rank.append(of_rank(data, rank, ranks))
        given: list[int] = []
        for number, *parts in zip(range(start, 24), *by_rank, strict=True):
            assert sum((numbers(part) for part in parts), []) == plain[number]
            labeled = [part.labeled for part in parts]
            assert all(part.label is None for part in parts) and all(one is not None for one in labeled)
            sizes = [len(one.x) for one in labeled if one]
            assert sum(sizes) == 8 and max(sizes) - min(sizes) <= 1
            assert [one.share for one in labeled if one] == [size * ranks / 8 for size in sizes]
            for one in labeled:
                assert one is not None and one.label.dtype == torch.int64
                assert one.label.tolist() == [int(row[0]) % 4 for row in one.x]
                given += [int(row[0]) for row in one.x]
        order = np.concatenate([Order(CHOSEN, 9 + (1 << 40), epoch)[:] for epoch in range(9)])
        assert given == order[8 * start : 8 * 24].tolist()
        if start == 0:
            for epoch in range(8):
                assert sorted(given[23 * epoch : 23 * (epoch + 1)]) == CHOSEN.tolist()


def test_few_and_missing_labels(folders: list[Path], tmp_path: Path) -> None:
    data = beside(folders, labeled_batch_size=1000)
    assert {len(step.labeled.x) for step in data.train_dataloader() if step.labeled} == {23}
    with pytest.raises(InputError, match="no labeled samples"):
        beside(folders, labeled_samples=np.zeros(0, np.int64))
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((6, 4)), y=np.array([0, 1, -1, 0, 1, 0]))
    source = open_source(conf.ArraysSource(kind="arrays", path=str(tmp_path / "a.npz")))
    shards = ingest(source, tmp_path / "shards", shard_size=4).folder
    with pytest.raises(InputError, match="1 of 3 samples to train on have no label"):
        ShardData(
            shards=shards, samples=np.arange(6), batch_size=2, epochs=1, seed=0, labeled_samples=np.array([0, 1, 2])
        )


def test_labeled_samples_beside_a_mixture(folders: list[Path]) -> None:
    data = mixed(folders, labeled_samples=CHOSEN, labeled_batch_size=5)
    plain = [numbers(step) for step in mixed(folders).train_dataloader()]
    for step, expected in zip(data.train_dataloader(), plain, strict=True):
        assert numbers(step) == expected and step.labeled is not None
        assert step.labeled.label.tolist() == [int(row[0]) % 4 for row in step.labeled.x]


DATASETS = """\
name: mixed
datasets:
  many: {source: {kind: digits}}
  few: {source: {kind: arrays, path: PATH}, split: {test: 0.0, validation: 0.0}}
train: {threads: 1, epochs: 1, batch_size: 100, log_steps: 5}
evaluate: {num_temperatures: 10, num_chains: 5, gibbs_steps: 5, num_samples: 2, num_examples: 50}
stages:
  layer1: {data: {many: 3, few: 1}, model: {kind: rbm, num_hidden: 16}}
  layer2: {on: layer1, model: {kind: rbm, num_hidden: 8}}
"""


def test_a_stage_of_a_recipe_mixes(tmp_path: Path, strata: Command) -> None:
    np.save(tmp_path / "few.npy", np.random.default_rng(0).random((70, 8, 8), np.float32))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(DATASETS.replace("PATH", str(tmp_path / "few.npy")))
    done = strata("run", recipe, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    about = {
        value["stage"]: value
        for value in (durable.read_json(path) for path in (tmp_path / "out" / "stages").glob("*/model/model.json"))
    }
    for stage in ("layer1", "layer2"):
        (other,) = about[stage]["mixed"]
        assert (about[stage]["weight"], other["weight"]) == (3, 1) and about[stage]["samples"] != other["samples"]
    results = [durable.read_json(path) for path in (tmp_path / "out" / "stages").glob("*/result.json")]
    steps = {result["stage"]: result["steps"] for result in results if result["do"] == "train"}
    run = next((tmp_path / "out").glob("mixed-*/run.json"))
    sizes = {name: entry["sizes"]["train"] for name, entry in durable.read_json(run)["shards"].items()}
    assert sizes["few"] == 70 and steps["layer1"] == steps["layer2"] == -(-sum(sizes.values()) // 100)


@pytest.mark.parametrize(
    "data, problem",
    [
        ("{many: 300, few: 1}", "of a batch of 100, few with its weight 1 gives less than one sample"),
        ("{many: 3, wide: 1}", "mixed data sets must have samples of one shape, found {'many': '8×8', 'wide': '5'}"),
        ("{many: 1, nobody: 1}", "stages.layer1.data names 'nobody'; the data sets are ['many', 'few', 'wide']"),
        ("{many: 1, few: 0}", "stages.layer1.data"),
        ("{}", "'data' names no data set"),
    ],
)
def test_mixtures_that_cannot_be(tmp_path: Path, data: str, problem: str) -> None:
    (tmp_path / "recipe.yaml").write_text(
        DATASETS.replace("{many: 3, few: 1}", data).replace("train:", "  wide: {source: {kind: digits}}\ntrain:", 1)
    )

    def of(shape: list[int], train: int) -> Description:
        sizes = {"train": train, "validation": 0, "test": 9}
        return Description(shape=shape, low=0.0, high=1.0, sizes=sizes, labeled=0, labeled_test=0, num_classes=0)

    with pytest.raises(InputError) as caught:
        known = {"many": of([8, 8], 1000), "few": of([8, 8], 70), "wide": of([5], 80)}
        plan(PlanJob(recipe=read(tmp_path / "recipe.yaml", []), descriptions=known))
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_pass_reads_one_data_set(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(DATASETS.replace("{kind: rbm, num_hidden: 16}", "{kind: standardize}"))
    sizes = {"train": 1000, "validation": 0, "test": 9}
    one = Description(shape=[4], low=0.0, high=1.0, sizes=sizes, labeled=0, labeled_test=0, num_classes=0)
    with pytest.raises(InputError, match=r"in passes over one data set; name it, one of \['many', 'few'\]"):
        plan(PlanJob(recipe=read(recipe, []), descriptions={"many": one, "few": one}))
