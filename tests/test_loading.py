"""Every sample exactly once, in the same order, whatever reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import conf
from conf.errors import Damaged, InputError
from data.loading import Batches, ShardData, Step, piece
from data.order import Epochs, Order
from data.shards import Reader, ingest
from data.sources import open_source

SAMPLES = np.arange(3, 103)  # 100 of the digits: some batch sizes below do not divide it


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = open_source(conf.DigitsSource(kind="digits"))
    return ingest(source, tmp_path_factory.mktemp("loading") / "shards", shard_size=60).folder


@pytest.fixture(scope="module")
def number_of(shards: Path) -> dict[bytes, int]:
    """A sample's number by its values; no two of these hundred digits are equal."""
    values = Reader(shards).values(SAMPLES)
    numbers = {row.tobytes(): int(number) for row, number in zip(values, SAMPLES, strict=True)}
    assert len(numbers) == len(SAMPLES)
    return numbers


def steps(
    shards: Path, *, batch_size: int, start: int = 0, epochs: int = 2, workers: int = 0, rank: int = 0, ranks: int = 1
) -> list[Step]:
    batches = Batches(
        reader=Reader(shards),
        drawn=Epochs(SAMPLES, batch_size, 7),
        start_step=start,
        total_steps=epochs * -(-len(SAMPLES) // batch_size),
        rank=rank,
        world_size=ranks,
        labels=Reader(shards).labels(),
    )
    return list(DataLoader(batches, batch_size=None, num_workers=workers))


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100])
def test_every_epoch_is_every_sample_once(shards: Path, number_of: dict[bytes, int], batch_size: int) -> None:
    found = steps(shards, batch_size=batch_size)
    per_epoch = len(found) // 2
    assert per_epoch == -(-100 // batch_size)
    epochs = []
    for epoch in range(2):
        part = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [len(step.x) for step in part[:-1]] == [batch_size] * (per_epoch - 1)
        epochs.append([number_of[row.numpy().tobytes()] for step in part for row in step.x])
        assert sorted(epochs[-1]) == SAMPLES.tolist()
        assert epochs[-1] == Order(SAMPLES, 7, epoch)[:].tolist()
    assert epochs[0] != epochs[1]
    assert [step.number for step in found] == list(range(2 * per_epoch))
    assert {step.share for step in found} == {1.0}


def test_labels_stay_with_their_samples(shards: Path, number_of: dict[bytes, int]) -> None:
    labels = Reader(shards).labels("train")
    for step in steps(shards, batch_size=7):
        assert step.label is not None and step.label.dtype == torch.int64
        assert step.label.tolist() == [labels[number_of[row.numpy().tobytes()]] for row in step.x]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_workers_ranks_and_starts_change_nothing(shards: Path, workers: int, ranks: int) -> None:
    for batch_size, start in ((32, 0), (32, 5), (7, 16), (2, 97)):
        expected = steps(shards, batch_size=batch_size)[start:]
        by_rank = [
            steps(shards, batch_size=batch_size, start=start, workers=workers, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        for together in zip(expected, *by_rank, strict=True):
            one, parts = together[0], together[1:]
            assert {part.number for part in parts} == {one.number}
            assert torch.equal(torch.cat([part.x for part in parts]), one.x)
            assert torch.equal(torch.cat([part.label for part in parts]), one.label)
            sizes = [len(part.x) for part in parts]
            assert max(sizes) - min(sizes) <= 1
            assert [part.share for part in parts] == [size * ranks / len(one.x) for size in sizes]


def test_shares_make_the_mean_over_ranks_the_mean_over_the_batch(shards: Path) -> None:
    by_rank = [steps(shards, batch_size=7, rank=rank, ranks=4) for rank in range(4)]
    for one, *parts in zip(steps(shards, batch_size=7), *by_rank, strict=True):
        means = [part.x.mean().item() * part.share if part.share > 0 else 0.0 for part in parts]
        assert sum(means) / 4 == pytest.approx(one.x.mean().item(), abs=1e-6)


@pytest.mark.parametrize("ranks", range(1, 9))
def test_pieces(ranks: int) -> None:
    for size in range(20):
        pieces = [piece(np.arange(size), rank, ranks) for rank in range(ranks)]
        assert np.concatenate(pieces).tolist() == list(range(size))
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): tuple(Order(np.arange(60), seed, epoch)[:]) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    assert all(tuple(Order(np.arange(60), *key)[:]) == order for key, order in orders.items())


def data(shards: Path, **changes: Any) -> ShardData:
    settings: dict[str, Any] = {"samples": SAMPLES, "batch_size": 32, "epochs": 3, "seed": 7}
    return ShardData(shards=shards, **settings | changes)


def test_the_data_module(shards: Path, number_of: dict[bytes, int]) -> None:
    module = data(shards)
    assert (module.steps_per_epoch, module.total_steps, module.start_step) == (4, 12, 0)
    assert [step.label for step in module.train_dataloader()] == [None] * 12
    module.start_step = 9
    assert [step.number for step in module.train_dataloader()] == [9, 10, 11]
    module.start_step = 12
    assert list(module.train_dataloader()) == []
    assert data(shards, batch_size=1000).batch_size == 100 and data(shards, batch_size=1000).total_steps == 3
    shuffled = data(shards, samples=SAMPLES[::-1])
    assert all(
        torch.equal(a.x, b.x) for a, b in zip(shuffled.train_dataloader(), data(shards).train_dataloader(), strict=True)
    )
    few = module.examples(np.array([9, 4, 5]), limit=2)
    assert few.dtype == torch.float32 and [number_of[row.numpy().tobytes()] for row in few] == [9, 4]


@pytest.mark.parametrize("num_samples", [1, 2, 31, 32, 33])
def test_few_samples_still_train(shards: Path, num_samples: int) -> None:
    found = list(data(shards, samples=SAMPLES[:num_samples]).train_dataloader())
    assert sum(len(step.x) for step in found) == 3 * num_samples


def test_nothing_to_train_on(shards: Path) -> None:
    with pytest.raises(InputError, match="no samples to train on; samples per set of the source: train 1797"):
        data(shards, samples=np.zeros(0, np.int64))


def test_a_missing_label_is_never_handed_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((6, 4)), y=np.array([0, 1, -1, 0, 1, 0]))
    source = open_source(conf.ArraysSource(kind="arrays", path=str(tmp_path / "a.npz"), image_shape=None))
    ingest(source, tmp_path / "shards", shard_size=4)
    with pytest.raises(InputError, match="1 of 6 samples to train on have no label"):
        data(tmp_path / "shards", samples=np.arange(6), labeled=True)
    steps_of = data(tmp_path / "shards", samples=np.array([0, 1, 3]), labeled=True).train_dataloader()
    assert all(step.label is not None and step.label.min() >= 0 for step in steps_of)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_one_line_wherever_it_is_read(shards: Path, tmp_path: Path, workers: int) -> None:
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    content = bytearray((damaged / "train-00001.tar").read_bytes())
    content[5 * 1024 + 700] ^= 1
    (damaged / "train-00001.tar").write_bytes(content)
    with pytest.raises(Damaged) as caught:
        list(data(damaged, loader_workers=workers).train_dataloader())
    line = str(caught.value)
    assert line.startswith(f"{damaged / 'train-00001.tar'}: sample 00000065 differs") and "\n" not in line


class Recorder(pl.LightningModule):
    """Counts what Lightning hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def training_step(self, step: Step, index: int) -> torch.Tensor:
        self.seen.append(step.number)
        return (self.weight - step.x.mean()) ** 2 * step.share

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_gets_every_step_and_verified_shards(shards: Path, tmp_path: Path) -> None:
    model = Recorder()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, enable_model_summary=False, **quiet)
    resumed = data(shards, loader_workers=2, remembered=tmp_path / "checked.json")
    resumed.start_step = 5
    trainer.fit(model, datamodule=resumed)
    assert model.seen == list(range(5, 12))

    damaged = shutil.copytree(shards, tmp_path / "damaged")
    (damaged / "train-00029.tar").unlink()  # holds none of the samples: still no training on damaged data
    with pytest.raises(Damaged, match=r"train-00029\.tar"):
        data(damaged).prepare_data()
