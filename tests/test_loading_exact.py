"""Whoever reads, however often they are killed: every key exactly once per epoch, in one order."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import conf
import data.loading
import data.order
from conf.errors import Damaged
from data.loading import Batches, ShardData
from data.order import Epochs, Order
from data.selection import Selection
from data.shards import Reader, ingest
from data.sources import open_source

COUNT, EPOCHS, SEED = 601, 2, 11
SAMPLES = np.delete(np.arange(COUNT), np.arange(5, COUNT, 9))  # a part of a set, as training has it: 534 samples
SMALL = partial(Order, block=16, window=5)  # windows of 80, the last block of 6
FEW = ((1, 0), (1, 3), (2, 2), (3, 0), (3, 3))  # ranks, loader workers
OTHERS = [pair for pair in product(range(1, 4), range(4)) if pair not in FEW]  # `make bench` tries them too


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """601 samples whose values say which they are."""
    folder = tmp_path_factory.mktemp("exact")
    np.savez(folder / "a.npz", x=np.repeat(np.arange(COUNT, dtype=np.float32)[:, None], 3, axis=1))
    source = open_source(conf.ArraysSource(kind="arrays", path=str(folder / "a.npz")))
    ingest(source, folder / "shards", shard_size=70)
    return folder / "shards"


def read(
    shards: Path, out: Path, *, batch_size: int, start: int, workers: int, rank: int, ranks: int, dies: int | None
) -> None:
    """Notes a line of sample numbers a step in `out`, from step `start` on; kills its whole group at step `dies`."""
    batches = Batches(
        reader=Reader(shards),
        drawn=Epochs(Selection.of(SAMPLES), batch_size, SEED),
        start_step=start,
        total_steps=EPOCHS * -(-len(SAMPLES) // batch_size),
        rank=rank,
        world_size=ranks,
    )
    with out.open("a") as file:
        for step in DataLoader(batches, batch_size=None, num_workers=workers):
            if step.number == dies:
                os.killpg(0, signal.SIGKILL)
            assert step.share == len(step.x) * ranks / whole_size(step.number, batch_size)
            file.write(" ".join(str(int(row[0])) for row in step.x) + "\n")
            file.flush()


def whole_size(number: int, batch_size: int) -> int:
    per_epoch = -(-len(SAMPLES) // batch_size)
    return min(batch_size, len(SAMPLES) - number % per_epoch * batch_size)


def read_in_a_process(shards: Path, out: Path, **settings: int | None) -> bool:
    """Whether it came to its end."""
    with tempfile.TemporaryDirectory(prefix="killed-") as left:  # what multiprocessing would leave behind
        child = os.fork()
        if not child:
            try:
                os.setpgid(0, 0)
                tempfile.tempdir = left
                read(shards, out, **settings)  # type: ignore[arg-type]
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


def expected(batch_size: int) -> list[list[int]]:
    """Step by step, from the definition alone."""
    steps = []
    for epoch in range(EPOCHS):
        order = SMALL(SAMPLES, SEED, epoch)[:].tolist()
        steps += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return steps


@pytest.mark.parametrize("ranks, workers", [*FEW, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)])
def test_every_key_once_per_epoch_in_one_order(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, ranks: int
) -> None:
    monkeypatch.setattr(data.order, "Order", SMALL)
    moments = random.Random(workers * 10 + ranks)
    for batch_size in (7, 100, 601):
        steps = expected(batch_size)
        for epoch in range(EPOCHS):
            of_epoch = steps[epoch * len(steps) // EPOCHS : (epoch + 1) * len(steps) // EPOCHS]
            assert sorted(sum(of_epoch, [])) == SAMPLES.tolist()
        by_rank, kills = [], 0
        for rank in range(ranks):
            out = tmp_path / f"{batch_size}-{rank}"
            out.touch()
            finished = False
            while not finished:
                done = out.read_text().count("\n")
                dies = moments.randrange(done, len(steps)) if kills < 2 * (rank + 1) else None
                finished = read_in_a_process(
                    shards, out, batch_size=batch_size, start=done, workers=workers, rank=rank, ranks=ranks, dies=dies
                )
                kills += not finished
            by_rank.append([[int(number) for number in line.split()] for line in out.read_text().split("\n")[:-1]])
        assert kills == 2 * ranks
        assert [sum(parts, []) for parts in zip(*by_rank, strict=True)] == steps
        for parts in zip(*by_rank, strict=True):
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_601_samples_on_three_ranks_at_batch_100(shards: Path) -> None:
    """Seven steps; the last holds one sample, which one rank sees and the others wait for, with no weight."""
    found = []
    for rank in range(3):
        batches = Batches(
            reader=Reader(shards), drawn=Epochs(np.arange(601), 100, 0), start_step=0, total_steps=7, rank=rank,
            world_size=3,
        )  # fmt: skip
        found.append(list(batches))
    assert [[len(step.x) for step in steps] for steps in found] == [
        [33] * 6 + [0], [33] * 6 + [0], [34] * 6 + [1]
    ]  # fmt: skip
    assert [[round(step.share * 100) for step in steps] for steps in found] == [
        [99] * 6 + [0], [99] * 6 + [0], [102] * 6 + [300]
    ]  # fmt: skip
    seen = [int(row[0]) for steps in zip(*found, strict=True) for step in steps for row in step.x]
    assert sorted(seen) == list(range(601)) and seen == Order(np.arange(601), 0, 0)[:].tolist()


def test_other_ranks_and_workers_go_on_from_the_same_step(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 20 steps begun on three ranks goes on with two, then with one: still one order."""
    monkeypatch.setattr(data.order, "Order", SMALL)
    steps, seen, start = expected(37), [], 0
    for ranks, stop in ((3, 9), (2, 16), (1, len(steps))):
        readers = [
            Batches(
                reader=Reader(shards), drawn=Epochs(SAMPLES, 37, SEED), start_step=start, total_steps=stop, rank=rank,
                world_size=ranks,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        for parts in zip(*readers, strict=True):
            seen.append([int(row[0]) for part in parts for row in part.x])
        start = stop
    assert seen == steps


def test_training_and_its_parts_hold_bits_not_numbers(shards: Path) -> None:
    chosen = ShardData(shards=shards, samples=SAMPLES, batch_size=10, epochs=1, seed=0).samples
    assert isinstance(chosen, Selection) and chosen[:].tolist() == SAMPLES.tolist()


def test_every_process_checks_what_it_touches_first(shards: Path, tmp_path: Path) -> None:
    """The checksum of a sample is compared again in each process: one that opened the shards before proves nothing."""
    copy = shutil.copytree(shards, tmp_path / "copy")
    here = Reader(copy)
    assert here.values(np.arange(COUNT))[300, 0] == 300
    tar = bytearray((copy / "train-00004.tar").read_bytes())
    place = tar.index(np.full(3, 300, "<f4").tobytes())
    tar[place] ^= 1
    (tmp_path / "new").write_bytes(tar)
    os.replace(tmp_path / "new", copy / "train-00004.tar")  # what is mapped stays as it was
    assert here.values(np.array([300]))[0, 0] == 300
    with pytest.raises(Damaged, match="sample 00000300 differs from its checksum"):
        Reader(copy).read(np.array([300]))
    for workers in (1, 2):
        batches = Batches(
            reader=Reader(copy), drawn=Epochs(np.arange(COUNT), 50, 0), start_step=0, total_steps=13, rank=0,
            world_size=1,
        )  # fmt: skip
        with pytest.raises(Damaged, match="sample 00000300"):
            list(data.loading.StepLoader(batches, workers))
