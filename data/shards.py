"""The door to shards: write (`ingest`), verify (`check`, `verify`), describe (`Manifest`), read (`Reader`). No torch.

The reader memory-maps the tars and slices arrays, members of one size, a batch at a time. Each sample's CRC-32 is
checked the first time a process touches it; an index, a label file or a list of keys is checked against its SHA-256 as
it is opened. A file that somebody cuts short while it is mapped kills the process (SIGBUS): ours are only ever replaced
whole. What is NOT here: order, batches and tensors (data/loading.py).
"""

from __future__ import annotations

import mmap
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from conf.errors import Damaged, show
from data.ingest import ingest
from data.manifest import REPAIR, Manifest, Shard
from data.tar import INDEX, ArrayLayout
from data.verification import Finding, check, verify

__all__ = ["Finding", "Manifest", "Reader", "Shard", "check", "ingest", "verify"]

MAX_OPEN = 256  # shards mapped at a time: a process may open 1,024 files by default


class Reader:
    """Random access to the samples of a finished folder, by global sample number.

    Cheap to open, cheap to send to another process (which maps and checks for itself). Errors, at opening and reading:
    InputError (no finished shards), Damaged (naming shard and sample).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self._firsts = np.array([shard.first for shard in self.manifest.shards])
        self._unchecked = np.ones(self.manifest.num_samples, bool)
        self._num_unchecked = self.manifest.num_samples
        self._maps: OrderedDict[int, tuple[mmap.mmap, Sequence[np.ndarray]]] = OrderedDict()
        self._indexes: OrderedDict[int, np.ndarray] = OrderedDict()

    def __reduce__(self) -> tuple[type[Reader], tuple[Path]]:
        return Reader, (self.folder,)

    def __len__(self) -> int:
        return self.manifest.num_samples

    def read(self, indices: np.ndarray) -> np.ndarray:
        """(n, *shape) samples as stored, in the order of `indices` (n,), global sample numbers; repeats allowed.

        TypeError for texts, see `texts`.
        """
        layout = self.manifest.layout
        if not isinstance(layout, ArrayLayout):
            raise TypeError("texts are no arrays of one shape; read them with texts()")
        result = np.empty((len(indices), *layout.shape), layout.dtype)
        for places, rows, samples in self._by_shard(indices):
            result[places] = samples[rows]  # type: ignore[call-overload]
        return result

    def texts(self, indices: np.ndarray) -> list[str]:
        """The texts of these samples, in their order. TypeError for arrays."""
        if not self.manifest.holds_texts:
            raise TypeError("these samples are arrays; read them with read()")
        result = [""] * len(indices)
        for places, rows, samples in self._by_shard(indices):
            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                result[place] = samples[row].tobytes().decode()
        return result

    def _by_shard(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, Sequence[np.ndarray]]]:
        """Positions in `indices`, rows of their shard and that shard's samples, checked; a shard at a time."""
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"sample numbers must lie in 0 … {len(self) - 1}")
        owners = np.searchsorted(self._firsts, indices, side="right") - 1
        order = np.argsort(owners, kind="stable")
        cuts = np.flatnonzero(np.diff(owners[order])) + 1
        for places in np.split(order, cuts) if len(order) else []:
            owner = int(owners[places[0]])
            samples = self._open(owner)[1]
            if self._num_unchecked:
                self._check(owner, indices[places])
            yield places, indices[places] - self._firsts[owner], samples

    def values(self, indices: np.ndarray) -> np.ndarray:
        """(n, num_values) float32 = stored / scale."""
        stored = self.read(indices).reshape(len(indices), self.manifest.num_values)
        return np.divide(stored, np.float32(self.manifest.scale), dtype=np.float32, casting="unsafe")

    def labels(self, set_name: str | None = None) -> np.ndarray:
        """(n,) int64 class numbers of a set, or of all samples by global number; −1 where missing."""
        if set_name is not None:
            return self.manifest.labels(set_name)
        return self._all_labels

    def keys(self, set_name: str) -> list[str]:
        """The source keys of a set's samples."""
        return list(self.manifest.keys(set_name))

    @cached_property
    def _all_labels(self) -> np.ndarray:
        return np.concatenate([self.manifest.labels(name) for name in self.manifest.sets])

    def _open(self, owner: int) -> tuple[mmap.mmap, Sequence[np.ndarray]]:
        """A shard's bytes and its samples, mapped: an array (n, *shape), or a list of texts' bytes."""
        if owner in self._maps:
            self._maps.move_to_end(owner)
            return self._maps[owner]
        shard = self.manifest.shards[owner]
        path = self.folder / shard.name
        expected = self.manifest.files[shard.name][0]
        try:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = "is empty" if isinstance(error, ValueError) else (error.strerror or str(error)).lower()
            raise Damaged(f"{show(path)}: {reason}; {REPAIR}") from None
        if len(content) != expected:
            raise Damaged(f"{show(path)}: expected {expected} bytes, found {len(content)}; {REPAIR}")
        if len(self._maps) >= MAX_OPEN:
            self._maps.popitem(last=False)
        index = self._index(owner)
        if not self.manifest.layout.plausible(index, expected):
            raise Damaged(f"{show(self.folder / shard.index_name)}: does not fit its shard; {REPAIR}")
        self._maps[owner] = content, self.manifest.layout.decode(np.frombuffer(content, np.uint8), index)
        return self._maps[owner]

    def _check(self, owner: int, indices: np.ndarray) -> None:
        """Compares the CRC of members this process has not touched yet with the index."""
        fresh = np.unique(indices[self._unchecked[indices]])
        if not len(fresh):
            return
        shard = self.manifest.shards[owner]
        rows = self._index(owner)[fresh - shard.first]
        content = memoryview(self._maps[owner][0])
        places = zip(rows["offset"].tolist(), rows["length"].tolist(), strict=True)
        found = [zlib.crc32(content[offset : offset + length]) for offset, length in places]
        wrong = fresh[rows["crc32"] != found]
        if len(wrong):
            raise Damaged(
                f"{show(self.folder / shard.name)}: sample {wrong[0]:08d} differs from its checksum; {REPAIR}"
            )
        self._unchecked[fresh] = False
        self._num_unchecked -= len(fresh)

    def _index(self, owner: int) -> np.ndarray:
        """A shard's index, checked against its digest and then mapped; the newest few are kept."""
        if owner not in self._indexes:
            if len(self._indexes) >= MAX_OPEN:
                self._indexes.popitem(last=False)
            shard = self.manifest.shards[owner]
            start = len(self.manifest.read(shard.index_name)) - shard.count * INDEX.itemsize
            self._indexes[owner] = np.memmap(self.folder / shard.index_name, INDEX, "r", start, (shard.count,))
        return self._indexes[owner]
