"""Contrastive divergence on a GPU: samples per second, share of the card's peak and what limits it.

    step      the model's losses, their gradient and SGD on tensors that lie ready
    through   from shards in memory through Lightning and the journal

CD-1 has five matrix products, 10 batch · num_visible · num_hidden operations; peak is a large product of the same
precision on this card. `busy` is the part of the clock's time in which kernels run, as CUPTI saw it: far under 1, the
step waits for its kernels to be launched. `memory` is the least time in which the bytes of a step can move, at the rate
of a large copy: weights read for three products, written and read as gradient, read and written by SGD, and about a
dozen passes over each layer's units. Printed by `make bench`; skipped where there is no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from conf import ArraysSource, Train
from data.loading import ShardData
from data.shards import ingest
from data.sources import open_source
from lightning_modules.boltzmann import RBM
from lightning_modules.training import fit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

PRECISIONS = ("float32", "tf32", "bfloat16")
SIZES = ((784, 500, 100), (784, 500, 4096), (4096, 4096, 4096))  # num_visible, num_hidden, batch
STEPS = dict(zip(SIZES, (1200, 120, 24), strict=True))  # through Lightning, at least
SAMPLES = {784: 60_000, 4096: 16_384}
SECONDS = 0.6  # of measuring, each
DEVICE = "cuda"


@contextmanager
def products_in(name: str) -> Iterator[None]:
    """float32 products of full precision, or with TF32's ten bits."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    yield
    torch.set_float32_matmul_precision("highest")


@dataclass(frozen=True)
class Card:
    """What this one reaches at best: operations per second by precision, bytes per second."""

    peak: dict[str, float]
    bandwidth: float


def measure_card() -> Card:
    left, right = torch.randn(2, 8192, 8192, device=DEVICE)
    peak = {}
    for name in PRECISIONS:
        with products_in(name):
            a, b = (left.bfloat16(), right.bfloat16()) if name == "bfloat16" else (left, right)
            peak[name] = 2 * 8192**3 / seconds_each(lambda a=a, b=b: a @ b, 0.3)
    source = torch.randn(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    return Card(peak, 2 * 4 * len(source) / seconds_each(lambda: target.copy_(source), 0.3))


def seconds_each(work: Callable[[], object], seconds: float = SECONDS) -> float:
    """By the clock, after a warm-up, until the GPU has done all of it."""
    for _ in range(10):
        work()
    torch.cuda.synchronize()
    began, number = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        number += 10
    return (time.perf_counter() - began) / number


def kernels(work: Callable[[], object], number: int = 20) -> tuple[float, float]:
    """(kernels a call, seconds a call in which they run)."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(number):
            work()
        torch.cuda.synchronize()
    times = [
        event.time_range.elapsed_us()
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith("Optimizer.")
    ]
    return len(times) / number, sum(times) / number * 1e-6


def training_step(size: tuple[int, int, int], name: str, *, look: bool = False) -> Callable[[], None]:
    """bfloat16 means autocast, as `train.precision: bf16-mixed` has it.

    look: at the value of the loss after each step, as training does to stop at the first that is not finite.
    """
    num_visible, num_hidden, batch = size
    model = RBM(num_visible=num_visible, num_hidden=num_hidden).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    data = (torch.rand(batch, num_visible, device=DEVICE) < 0.2).float()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=name == "bfloat16"):
            loss = model.losses(data)["loss"]
            loss.backward()
        optimizer.step()
        if look:
            loss.item()

    return step


def replay(step: Callable[[], None]) -> Callable[[], None]:
    """The same kernels from a CUDA graph: one launch for all of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def seconds_through(size: tuple[int, int, int], name: str, shards: Path, folder: Path, workers: int = 0) -> float:
    """Seconds a step, from the first row of the journal to the last."""
    num_visible, num_hidden, batch = size
    samples = np.arange(SAMPLES[num_visible])
    epochs = -(-STEPS[size] * batch // len(samples))
    data = ShardData(
        shards=shards, samples=samples, batch_size=batch, epochs=epochs, seed=0, loader_workers=workers
    )  # fmt: skip
    train = Train(
        epochs=epochs,
        batch_size=batch,
        learning_rate=0.01,
        precision="bf16-mixed" if name == "bfloat16" else "32",
    )
    model = RBM(num_visible=num_visible, num_hidden=num_hidden)
    seen: list[tuple[int, float]] = []
    folder.mkdir()
    with products_in(name):
        fit(
            model,
            data,
            train,
            stage="bench",
            seed=0,
            folder=folder,
            progress=lambda done, of, loss: seen.append((done, time.perf_counter())),
        )
    (first, began), (last, ended) = seen[0], seen[-1]
    return (ended - began) / (last - first)


def write_shards(folder: Path, num_visible: int) -> Path:
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (SAMPLES[num_visible], num_visible), np.uint8)
    values[values < 200] = 0
    np.save(folder / f"{num_visible}.npy", values)
    source = open_source(ArraysSource(kind="arrays", path=str(folder / f"{num_visible}.npy")))
    ingest(source, folder / f"shards-{num_visible}", shard_size=10_000)
    return folder / f"shards-{num_visible}"


def least_seconds(size: tuple[int, int, int], name: str, card: Card) -> tuple[float, float]:
    """(of arithmetic, of memory)."""
    num_visible, num_hidden, batch = size
    moved = 7 * num_visible * num_hidden + 12 * batch * (num_visible + num_hidden)
    return 10 * batch * num_visible * num_hidden / card.peak[name], 4 * moved / card.bandwidth


def told(what: str, size: tuple[int, int, int], name: str, each: float, card: Card, more: str = "") -> None:
    num_visible, num_hidden, batch = size
    arithmetic, memory = least_seconds(size, name, card)
    print(
        f"{what:<8} {num_visible}-{num_hidden} batch {batch:<5} {name:<9} {batch / each:>12,.0f} samples/s  "
        f"{each * 1e6:>8,.0f} µs a step, {arithmetic / each:5.1%} of peak (arithmetic {arithmetic * 1e6:,.0f} µs, "
        f"memory {memory * 1e6:,.0f} µs){more}",
        flush=True,
    )


def test_the_step_alone() -> None:
    card = measure_card()
    said = ", ".join(f"{name} {peak / 1e12:.0f} TFLOP/s" for name, peak in card.peak.items())
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}: {said}, copy {card.bandwidth / 1e12:.2f} TB/s")
    for size in SIZES:
        for name in PRECISIONS:
            with products_in(name):
                step = training_step(size, name)
                each = seconds_each(step)
                number, busy = kernels(step)
                looking = seconds_each(training_step(size, name, look=True), SECONDS / 2)
                graph = seconds_each(replay(step), SECONDS / 2)
            told("step", size, name, each, card,
                 f"; {number:.0f} kernels, busy {busy / each:.2f}; looking at the loss {looking * 1e6:,.0f} µs; "
                 f"as one graph {graph * 1e6:,.0f} µs")  # fmt: skip


def test_through_shards_and_lightning(tmp_path: Path) -> None:
    card = measure_card()
    shards = {num_visible: write_shards(tmp_path, num_visible) for num_visible in SAMPLES}
    for size in SIZES:
        for name in PRECISIONS:
            told("through", size, name, seconds_through(size, name, shards[size[0]], tmp_path / f"{size}{name}"), card)
        each = seconds_through(size, "tf32", shards[size[0]], tmp_path / f"{size}workers", workers=4)
        told("through", size, "tf32", each, card, "; 4 processes read")
