"""A process that says how much anonymous memory it took at most: RssAnon, so mapped files apart, sampled every 2 ms.

    python -m tests.benchmarks.peak_memory ingest ARRAYS.npy SHARDS
    python -m tests.benchmarks.peak_memory train SHARDS FOLDER
    python -m tests.benchmarks.peak_memory encode SHARDS CODES
    python -m tests.benchmarks.peak_memory index CODES INDEX

Training is one epoch of a small RBM, batch 1,000, through everything a run trains through.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path

import conf


def main() -> None:
    what, first, second = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    peak = [anonymous()]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    {"ingest": ingest, "train": train, "encode": encode, "index": index}[what](first, second)
    print(max(peak[0], anonymous()))


def anonymous() -> int:
    """KiB of this process's memory that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def ingest(arrays: Path, shards: Path) -> None:
    from data.shards import ingest
    from data.sources import open_source

    ingest(open_source(conf.ArraysSource(kind="arrays", path=str(arrays))), shards, shard_size=10_000)


def train(shards: Path, folder: Path) -> None:
    import numpy as np
    import torch

    from data.loading import ShardData
    from data.shards import Manifest
    from lightning_modules.boltzmann import RBM
    from lightning_modules.training import fit, seed_torch

    torch.set_num_threads(1)
    seed_torch(0, "benchmark")
    manifest = Manifest.load(shards)
    data = ShardData(
        shards=shards,
        samples=np.arange(manifest.num_samples),
        batch_size=1000,
        epochs=1,
        seed=0,
        remembered=folder / "verified.json",
    )
    model = RBM(num_visible=manifest.num_values, num_hidden=16)
    fit(model, data, conf.Train(epochs=1, batch_size=1000), stage="bench", seed=0, folder=folder)


def encode(shards: Path, codes: Path) -> None:
    import torch

    import lightning_modules as registry
    from conf.protocol import EncodeJob
    from data.shards import Manifest
    from lightning_modules.autoencoders import Autoencoder
    from lightning_modules.encoding import encode
    from lightning_modules.stack import Stack

    torch.set_num_threads(1)
    model = codes.with_name("model")
    layer = Autoencoder(num_visible=Manifest.load(shards).num_values, num_hidden=128)
    registry.save(Stack(layers=[layer]), model, {"shape": []})
    encode(EncodeJob(model=str(model), shards=str(shards), out=str(codes), bits=True), lambda line: None)


def index(codes: Path, out: Path) -> None:
    import numpy as np

    from data.codes import Codes
    from lightning_modules import hamming

    hamming.set_threads(1)
    hamming.build(Codes.load(codes), out, "buckets", recall=0.99)
    found = hamming.load(out)
    found.nearest(np.stack([found.code(number) for number in range(1000)]), 10)


if __name__ == "__main__":
    main()
