"""How fast data move, beside what others take for the same: printed by `make bench`, one process, one thread.

Samples are MNIST's size (784 uint8). Everything that is compared is run in turns, so that a busy machine slows all
alike, and what is judged is the median of the ratios. Bounds in samples per second hold for the machine on which the
peers ran at QUOTED; here they are scaled by what the same peer reaches in the same turn:

    ours / peer ≥ bound / QUOTED[peer]
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import conf
from data.loading import ShardData
from data.shards import Manifest, check, ingest, verify
from data.sources import RawSource, open_source
from tests.benchmarks import mnist_sized
from tests.benchmarks.turns import TURNS, in_turns, ratio, told

pytestmark = pytest.mark.slow

QUOTED = {"in-memory tensor": 740_000, "bare ShardWriter": 7_000}  # samples/s
READING, INGESTING = 300_000, 25_000  # samples/s wanted there
SHARD = 10_000
SMALL, LARGE, HUGE = 60_000, 600_000, 3_000_000
SIZE = (28, 28)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for gigabytes, which pytest would keep for three more runs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rates")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def samples(place: Path) -> Callable[[int], Path]:
    """So many samples as a .npy file."""

    def made(number: int) -> Path:
        path = place / f"{number}.npy"
        return path if path.exists() else mnist_sized.write(path, number)

    return made


@pytest.fixture(scope="module")
def shards(place: Path, samples: Callable[[int], Path]) -> Callable[[int], Path]:
    """The same as shards."""

    def made(number: int) -> Path:
        folder = place / f"shards-{number}"
        return folder if folder.exists() else _ingest(samples(number), folder).folder

    return made


def arrays(path: Path) -> RawSource:
    return open_source(conf.ArraysSource(kind="arrays", path=str(path)))


def _ingest(path: Path, folder: Path) -> Manifest:
    shutil.rmtree(folder, ignore_errors=True)
    return ingest(arrays(path), folder, shard_size=SHARD)


def judged(rates: dict[str, list[float]], ours: str, peer: str, bound: float) -> None:
    """Prints and asserts the scaled bound."""
    found, wanted = ratio(rates, ours, peer), bound / QUOTED[peer]
    scale = median(rates[peer]) / QUOTED[peer]
    print(
        f"  {ours}: {found:.2f} × {peer}; wanted {bound:,} samples/s where that runs at {QUOTED[peer]:,}: "
        f"{wanted:.2f} ×, {bound * scale:,.0f} samples/s here"
    )
    assert found >= wanted


def opened(folder: Path, batch_size: int) -> ShardData:
    """All samples, as training reads them, by a reader that has touched none."""
    samples = np.arange(Manifest.load(folder).num_samples)
    return ShardData(shards=folder, samples=samples, batch_size=batch_size, epochs=1, seed=0)


def one_pass(data: ShardData) -> int:
    return sum(len(step.x) for step in data.train_dataloader())


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [100, 1000])
def test_reading_shuffled_batches(shards: Callable[[int], Path], batch_size: int) -> None:
    """float32 batches of 600,000 samples in random order; `first pass` checks every sample's CRC-32 in the pass."""
    folder = shards(LARGE)
    assert check(folder).num_samples == LARGE
    touched = opened(folder, batch_size)
    stored = torch.from_numpy(touched.reader.read(np.arange(LARGE)).reshape(LARGE, 784))

    def tensor() -> int:
        order = torch.randperm(LARGE)
        return sum(len(stored[part].float().div_(255)) for part in order.split(batch_size))

    def torch_loader() -> int:
        part = TensorDataset(stored[:100_000])
        return sum(len(x.float().div_(255)) for (x,) in DataLoader(part, batch_size=batch_size, shuffle=True))

    def webdataset() -> int:
        import webdataset as wds

        paths = [str(path) for path in sorted(folder.glob("*.tar"))[:1]]
        stock = wds.WebDataset(paths, shardshuffle=False).shuffle(1000).decode().to_tuple("npy").batched(batch_size)
        return sum(len(torch.from_numpy(np.asarray(x)).float().div_(255)) for (x,) in stock)

    rates = in_turns(
        {
            "shards, first pass": lambda: one_pass(opened(folder, batch_size)),
            "shards, later passes": lambda: one_pass(touched),
            "in-memory tensor": tensor,
            "torch DataLoader over a tensor": torch_loader,
            "stock WebDataset": webdataset,
        }
    )
    told(f"reading shuffled batches of {batch_size}", rates)
    judged(rates, "shards, first pass", "in-memory tensor", READING)
    judged(rates, "shards, later passes", "in-memory tensor", READING)


# --- ingest --------------------------------------------------------------------------------------------------------


def test_ingest_of_npy_samples(samples: Callable[[int], Path], place: Path) -> None:
    """From the open .npy file to the manifest: read twice, checked, checksummed, fsynced; one process."""
    path = samples(SMALL)
    stored = np.load(path, mmap_mode="r")

    def ours() -> int:
        return _ingest(path, place / "out").num_samples

    def shard_writer() -> int:
        import webdataset as wds

        shutil.rmtree(place / "wds", ignore_errors=True)
        (place / "wds").mkdir()
        with wds.ShardWriter(str(place / "wds" / "%05d.tar"), maxcount=SHARD, verbose=0) as writer:
            for number, sample in enumerate(stored[:SHARD]):
                writer.write({"__key__": f"{number:08d}", "npy": sample})
        return SHARD

    rates = in_turns({"ingest": ours, "bare ShardWriter": shard_writer})
    told("ingest of .npy samples", rates)
    judged(rates, "ingest", "bare ShardWriter", INGESTING)


def test_first_pass_over_pictures(place: Path) -> None:
    """Pictures on disk → samples of 28×28, beside a loop that opens, decodes, turns gray and resizes.

    `decoding` is the source's part, which reads each file once, checks it and decodes it. `ingest` is all from the
    listing to the manifest: it reads each file twice, since everything is hashed before anything is written.
    """
    for name, ingest_bound in (("photographs, JPEG", 1.2), ("photographs, PNG", 1.2), ("digits, PNG", None)):
        folder = _pictures(place / "pictures", name)
        files = sorted((folder / "class").iterdir())

        def bare(files: list[Path] = files) -> int:
            for file in files:
                with Image.open(file) as image:
                    gray = image.convert("L")
                    np.asarray(gray if gray.size == SIZE else gray.resize(SIZE, Image.Resampling.BILINEAR))
            return len(files)

        def source(folder: Path = folder) -> RawSource:
            return open_source(conf.ImagesSource(kind="images", path=str(folder), size=SIZE))

        described = source()
        described.describe()

        def decoding(described: RawSource = described) -> int:
            return sum(1 for _ in described.samples("train", range(described.sets["train"])))

        def whole(source: Callable[[], RawSource] = source) -> int:
            shutil.rmtree(place / "out", ignore_errors=True)
            return ingest(source(), place / "out", shard_size=SHARD).num_samples

        rates = in_turns({"bare decoding": bare, "decoding": decoding, "ingest": whole}, 7)
        told(f"{len(files)} pictures: {name}", rates, "pictures/s")
        times = {rival: ratio(rates, "bare decoding", rival) for rival in ("decoding", "ingest")}
        limit = f"limit {ingest_bound}" if ingest_bound else "no limit: two reads of so small a file outweigh it"
        print(f"  time: decoding {times['decoding']:.2f} × bare, limit 1.2; ingest {times['ingest']:.2f} ×, {limit}")
        assert times["decoding"] <= 1.2
        assert ingest_bound is None or times["ingest"] <= ingest_bound


def _pictures(root: Path, name: str) -> Path:
    """BSDS500's photographs six times each if STRATA_DATA names them, else noise of their size; or MNIST's digits."""
    subject, kind = name.split(", ")
    folder = root / kind.lower() / subject
    (folder / "class").mkdir(parents=True, exist_ok=True)
    archive = Path(os.environ.get("STRATA_DATA", "")) / "bsds500_images" / "bsds500_train200.zip"
    if subject == "digits":
        path = mnist_sized.write(root / "digits.npy", SMALL)
        images = [Image.fromarray(values.reshape(SIZE)) for values in np.load(path)[:2000]]
    elif "STRATA_DATA" in os.environ and archive.exists():
        with zipfile.ZipFile(archive) as packed:
            names = [member for member in packed.namelist() if member.endswith(".jpg")] * 6
            if kind == "JPEG":
                for number, member in enumerate(names):
                    (folder / "class" / f"{number:05d}.jpeg").write_bytes(packed.read(member))
                return folder
            images = [Image.open(packed.open(member)) for member in names[:200]]
    else:
        random = np.random.default_rng(0)
        small = random.integers(0, 256, (1200 if kind == "JPEG" else 200, 40, 60, 3), np.uint8)
        images = [Image.fromarray(values).resize((481, 321), Image.Resampling.BICUBIC) for values in small]
    for number, image in enumerate(images):
        image.save(folder / "class" / f"{number:05d}.{kind.lower()}")
    return folder


# --- verification --------------------------------------------------------------------------------------------------


def test_verification_is_as_fast_as_sha256(shards: Callable[[int], Path]) -> None:
    folder = shards(LARGE)
    manifest = Manifest.load(folder)
    size = sum(size for size, _ in manifest.files.values()) >> 20

    def sha256() -> int:
        for name in manifest.files:
            with (folder / name).open("rb") as file:
                hashlib.file_digest(file, "sha256")
        return size

    def checked() -> int:
        check(folder)
        return size

    def verified() -> int:
        assert verify(folder) == []
        return size

    rates = in_turns({"SHA-256 of the files": sha256, "check": checked, "verify": verified})
    told(f"verification of {size} MiB", rates, "MiB/s")
    for name in ("check", "verify"):
        found = ratio(rates, name, "SHA-256 of the files")
        print(f"  {name}: {found:.2f} × SHA-256, limit 0.80")
        assert found >= 0.8


# --- growth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["ingest", "train", "encode"])
def test_memory_does_not_grow_with_the_data(
    what: str, samples: Callable[[int], Path], shards: Callable[[int], Path], place: Path, tmp_path: Path
) -> None:
    """Peak anonymous memory of a fresh process at 60,000 and at 600,000 samples."""
    peaks = {}
    for number in (SMALL, LARGE):
        source = samples(number) if what == "ingest" else shards(number)
        arguments = [source, tmp_path if what == "train" else tmp_path / str(number)]
        command = [sys.executable, "-m", "tests.benchmarks.peak_memory", what, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[number] = int(done.stdout.splitlines()[-1])
        if what == "ingest":
            shutil.rmtree(tmp_path / str(number))
    growth = peaks[LARGE] / peaks[SMALL]
    print(
        f"\npeak anonymous memory, {what}: {peaks[SMALL] / 1024:.0f} MiB at {SMALL:,}, "
        f"{peaks[LARGE] / 1024:.0f} MiB at {LARGE:,}: {growth:.2f} ×, limit 1.10"
    )
    assert growth <= 1.1


def test_time_per_sample_does_not_grow_with_the_data(
    samples: Callable[[int], Path], shards: Callable[[int], Path], place: Path
) -> None:
    """Ingest, and a first pass of batches of 1,000, at 60,000 and at 3,000,000 samples.

    Work takes a minute a turn here, so that a busy machine is not equally busy for all: then only the processor's time
    is judged.
    """

    def ingested(number: int, times: int = 1) -> Callable[[], int]:
        return lambda: sum(_ingest(samples(number), place / f"shards-{number}").num_samples for _ in range(times))

    def passed(number: int, times: int = 1) -> Callable[[], int]:
        return lambda: sum(one_pass(opened(shards(number), 1000)) for _ in range(times))

    for number in (SMALL, HUGE):
        samples(number)
    _growth("ingest", {"60,000": ingested(SMALL, 10), "3,000,000": ingested(HUGE)}, 2)
    _growth("reading", {"60,000": passed(SMALL, 20), "3,000,000": passed(HUGE)}, TURNS)


def _growth(what: str, rivals: dict[str, Callable[[], int]], turns: int) -> None:
    processor: dict[str, list[float]] = {}
    clock = in_turns(rivals, turns, processor)
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    told(f"{what} by number of samples", clock)
    small, large = rivals
    by_clock, by_processor = ratio(clock, small, large), ratio(processor, small, large)
    print(
        f"  {what}: time per sample at {large} is {by_clock:.2f} × that at {small}, the processor's "
        f"{by_processor:.2f} ×, limit 1.25{' (too busy to judge the first)' if busy else ''}"
    )
    assert by_processor <= 1.25
    assert busy or by_clock <= 1.25
