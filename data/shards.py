"""The door to shards: write (`ingest`), verify (`check`, `verify`), describe (`Manifest`), read (`Reader`). No torch.

The reader maps the tars into one range of memory and gathers a batch with one operation, however many shards it comes
from. Each sample's CRC-32 is checked the first time a process touches it, on the very copy that is handed out; an
index, a label file or a list of keys is checked against its SHA-256 as it is opened. A file that somebody cuts short
while it is mapped kills the process (SIGBUS): ours are only ever replaced whole. What is NOT here: order, batches and
tensors (data/loading.py).
"""

from __future__ import annotations

import zlib
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np

from conf.errors import Damaged, show
from data.ingest import ingest
from data.manifest import REPAIR, Manifest, Shard
from data.mapping import Mapping, WrongSize
from data.shard_cache import at_hand
from data.tar import BLOCK, INDEX, ArrayLayout
from data.verification import Finding, check, verify

__all__ = ["Finding", "Manifest", "Reader", "Shard", "check", "ingest", "verify"]

MAX_OPEN = 4096  # shards mapped at a time, two mappings each: a process may have 65,530
CRC_PLACE = dict(INDEX.fields or {})["crc32"][1]  # in an index row
CHUNK_BYTES = 16 << 20  # of samples gathered at a time


class Reader:
    """Random access to the samples of a finished folder, by global sample number.

    Cheap to open, cheap to send to another process (which maps and checks for itself). Errors, at opening and reading:
    InputError (no finished shards), Damaged (naming shard and sample).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        shards, files = self.manifest.shards, self.manifest.files
        self._firsts = np.array([shard.first for shard in shards])
        self._unchecked = np.ones(self.manifest.num_samples, bool)
        self._tars = Mapping([files[shard.name][0] for shard in shards])
        self._indexes = Mapping([files[shard.index_name][0] for shard in shards])
        lengths = [files[shard.index_name][0] - shard.count * INDEX.itemsize for shard in shards]
        self._rows = self._indexes.starts + lengths  # where the rows of each shard's index begin
        self._index_rows = self._indexes.items(INDEX)
        self._crcs = self._indexes.items(np.dtype("V4"))
        self._open = np.zeros(len(shards), bool)
        self._used = np.zeros(len(shards), np.int64)  # when a shard was read last, in calls of `_owners`
        self._clock = 0

    def __reduce__(self) -> tuple[type[Reader], tuple[Path]]:
        return Reader, (self.folder,)

    def __len__(self) -> int:
        return len(self._unchecked)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """(n, *shape) samples as stored, in the order of `indices` (n,), global sample numbers; repeats allowed.

        TypeError for texts, see `texts`.
        """
        layout = self.manifest.layout
        if not isinstance(layout, ArrayLayout):
            raise TypeError("texts are no arrays of one shape; read them with texts()")
        indices = self._numbers(indices)
        step = max(1, min(MAX_OPEN, CHUNK_BYTES // layout.length))
        if len(indices) <= step:
            return self._gather(indices, layout)
        result = np.empty((len(indices), *layout.shape), layout.dtype)
        for start in range(0, len(indices), step):
            result[start : start + step] = self._gather(indices[start : start + step], layout)
        return result

    def texts(self, indices: np.ndarray) -> list[str]:
        """The texts of these samples, in their order. TypeError for arrays."""
        if not self.manifest.holds_texts:
            raise TypeError("these samples are arrays; read them with read()")
        indices, memory = self._numbers(indices), self._tars.memory
        result = []
        for start in range(0, len(indices), MAX_OPEN):
            part = indices[start : start + MAX_OPEN]
            owners = self._owners(part)
            index = self._index_rows[self._row_places(part, owners)]
            begins = (self._tars.starts[owners] + index["offset"].astype(np.int64)).tolist()
            ends = zip(begins, index["length"].tolist(), strict=True)
            members = [bytes(memory[begin : begin + length]) for begin, length in ends]
            self._check(part, index["crc32"] == [zlib.crc32(member) for member in members])
            try:
                result += [member.decode() for member in members]
            except UnicodeDecodeError:
                raise Damaged(f"{show(self.folder)}: right checksums, but a text is not UTF-8; {REPAIR}") from None
        return result

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

    @cached_property
    def _values(self) -> np.ndarray:
        """A sample's values, from any byte of the tars on."""
        layout = self.manifest.layout
        assert isinstance(layout, ArrayLayout)
        return self._tars.items(np.dtype(f"V{layout.length - len(layout.header)}"))

    @cached_property
    def _heads(self) -> np.ndarray:
        """What precedes a sample's values in its .npy file, from any byte of the tars on."""
        layout = self.manifest.layout
        assert isinstance(layout, ArrayLayout)
        return self._tars.items(np.dtype(f"V{len(layout.header)}"))

    # --- where samples lie ---

    def _numbers(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"sample numbers must lie in 0 … {len(self) - 1}")
        return indices

    def _owners(self, indices: np.ndarray) -> np.ndarray:
        """The shard of each of at most MAX_OPEN samples, now open."""
        owners = np.searchsorted(self._firsts, indices, side="right") - 1
        self._clock += 1
        self._used[owners] = self._clock
        if not self._open[owners].all():
            for owner in np.unique(owners[~self._open[owners]]).tolist():
                self._open_shard(owner)
        return owners

    def _row_places(self, indices: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """Where the samples' index rows lie in `_indexes`."""
        return self._rows[owners] + (indices - self._firsts[owners]) * INDEX.itemsize

    def _open_shard(self, owner: int) -> None:
        """Maps a shard and its index, the index after it was compared with its digest and with the tar's size."""
        if self._open.sum() >= MAX_OPEN:
            self._close_shard(int(np.argmin(np.where(self._open, self._used, self._clock + 1))))
        shard = self.manifest.shards[owner]
        with at_hand(self.manifest, shard) as fetched:
            self._map(self._tars, owner, shard.name)
            if not self.manifest.layout.plausible(self.manifest.index(shard), self._tars.sizes[owner]):
                raise Damaged(f"{show(self.folder / shard.index_name)}: does not fit its shard; {REPAIR}")
            self._map(self._indexes, owner, shard.index_name)
        self._open[owner] = True
        if fetched:  # others may have made way, and take room as long as somebody maps them
            for other in np.flatnonzero(self._open & (self._used < self._clock)).tolist():
                if not (self.folder / self.manifest.shards[other].name).exists():
                    self._close_shard(other)

    def _close_shard(self, owner: int) -> None:
        self._open[owner] = False
        self._tars.drop(owner)
        self._indexes.drop(owner)

    def _map(self, mapping: Mapping, owner: int, name: str) -> None:
        path = self.folder / name
        try:
            mapping.add(owner, path)
        except OSError as error:
            raise Damaged(f"{show(path)}: {(error.strerror or str(error)).lower()}; {REPAIR}") from None
        except WrongSize as found:
            expected = mapping.sizes[owner]
            raise Damaged(f"{show(path)}: expected {expected} bytes, found {found}; {REPAIR}") from None

    # --- their bytes ---

    def _gather(self, indices: np.ndarray, layout: ArrayLayout) -> np.ndarray:
        """`read` of at most MAX_OPEN samples."""
        owners = self._owners(indices)
        begins = self._tars.starts[owners] + (indices - self._firsts[owners]) * layout.stride + BLOCK
        raw = self._values[begins + len(layout.header)]
        fresh = np.flatnonzero(self._unchecked[indices])
        if len(fresh):
            values = (raw if len(fresh) == len(raw) else raw[fresh]).tolist()
            found = map(zlib.crc32, values, repeat(zlib.crc32(layout.header)))
            places = self._row_places(indices[fresh], owners[fresh]) + CRC_PLACE
            right = self._crcs[places].view("<u4") == np.fromiter(found, np.uint32, len(fresh))
            heads = self._heads[begins[fresh]].view(np.uint8).reshape(-1, len(layout.header))
            same = heads == np.frombuffer(layout.header, np.uint8)
            self._check(indices[fresh], right if same.all() else right & same.all(axis=1))
        return raw.view(layout.dtype).reshape(len(indices), *layout.shape)

    def _check(self, indices: np.ndarray, right: np.ndarray) -> None:
        """Remembers samples whose members have the CRC that the index says; refuses the first that has not."""
        if not right.all():
            wrong = int(indices[int(np.argmin(right))])
            shard = self.manifest.shards[int(np.searchsorted(self._firsts, wrong, side="right")) - 1]
            raise Damaged(f"{show(self.folder / shard.name)}: sample {wrong:08d} differs from its checksum; {REPAIR}")
        self._unchecked[indices] = False
