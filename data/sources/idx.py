"""A folder of IDX files, MNIST's format, gzipped or not.

Format (Y. LeCun, The MNIST database): two zero bytes, a type byte, the number of dimensions, each dimension as a
big-endian 32-bit number, then the values, big-endian. Files are known by name, as in `train-images-idx3-ubyte.gz`,
`t10k-labels.idx1-ubyte`, `emnist-letters-test-images-idx3-ubyte`. Where both `X` and `X.gz` lie there, X is read.
"""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

import conf
from conf.errors import InputError, show
from data.files import open_tree
from data.remote import is_remote, local_file, local_path, shown
from data.sources import SET_WORDS, fingerprint_files, unreadable
from data.sources.rawfile import gunzipping
from data.sources.whole import Table, WholeSource

NAME = re.compile(
    r"^(?:(?P<prefix>.+)[-_.])?(?P<set>train|t10k|test|validation|valid|val)[-_.](?P<role>images|labels)"
    r"[-_.]idx(?P<dimensions>\d)[-_.](?P<type>ubyte|byte|short|int|float|double)(?:\.gz)?$"
)
SETS = SET_WORDS | {"t10k": "test"}
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMENSIONS = 8
MAX_RATIO = 200  # decompressed / compressed bytes; MNIST has 5, and more than this is no data set but a bomb
READ_BYTES = 1 << 20


class Idx(WholeSource):
    """The images of each set, with its labels if there are any."""

    def __init__(self, source: conf.IdxSource) -> None:
        super().__init__(source)
        self.address = source.path
        self.where = shown(source.path)

    def fingerprint(self) -> str:
        files = self._files()
        if is_remote(self.address):
            kept = set(files.values())
            return open_tree(self.address).fingerprint(lambda entry: entry.path in kept)
        folder = local_path(self.address)
        return fingerprint_files(folder, [folder / name for name in files.values()])

    def _load(self) -> dict[str, Table]:
        files = self._files()
        tables = {}
        for (set_name, role), name in files.items():
            if role != "images":
                continue
            file, labels, labels_where = self._fetched(name), None, ""
            if labels_name := files.get((set_name, "labels")):
                labels_file = self._fetched(labels_name)
                labels, labels_where = read_idx(labels_file), show(labels_file)
                if labels.dtype.kind not in "iu":
                    raise InputError(f"{labels_where}: labels of type {labels.dtype}; expected whole numbers")
            tables[set_name] = Table(read_idx(file), labels, show(file), labels_where)
        return tables

    def _fetched(self, name: str) -> Path:
        return local_file(f"{self.address.rstrip('/')}/{name}")

    def _names(self) -> list[str]:
        """Files in the folder itself, sorted: X before X.gz."""
        if is_remote(self.address):
            return [entry.path for entry in open_tree(self.address).entries() if "/" not in entry.path]
        folder = local_path(self.address)
        try:
            return sorted(path.name for path in folder.iterdir() if path.is_file())
        except OSError as error:
            raise unreadable(folder, error) from None

    def _files(self) -> dict[tuple[str, str], str]:
        """The file of every (set, role). Errors: InputError for a folder that holds none or leaves a choice."""
        names = self._names()
        found: dict[tuple[str, str], str] = {}
        for name in names:
            match = NAME.match(name)
            if match is None:
                continue
            place = SETS[match["set"]], match["role"]
            if place not in found:
                found[place] = name
            elif found[place] != name.removesuffix(".gz"):
                raise InputError(
                    f"{self.where}: both {show(found[place])} and {show(name)} could be the {place[0]} "
                    f"{place[1]}; leave one data set in the folder"
                )
        images = [set_name for set_name, role in found if role == "images"]
        if not images:
            listing = f"found {', '.join(names[:5])}" if names else "it is empty"
            raise InputError(f"{self.where}: expected files like train-images-idx3-ubyte.gz, {show(listing)}")
        orphans = [name for (set_name, role), name in found.items() if role == "labels" and set_name not in images]
        if orphans:
            raise InputError(f"{self.where}: {show(orphans[0])} has no images file beside it; add or remove one")
        return found


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, big-endian as stored. Errors: InputError, naming what is wrong with the file."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                return _parse(path, raw, path.stat().st_size, exact=True)
            limit = path.stat().st_size * MAX_RATIO
            with gunzipping(show(path)), gzip.GzipFile(fileobj=raw) as file:
                return _parse(path, file, limit, exact=False)  # type: ignore[arg-type]
    except OSError as error:
        raise unreadable(path, error) from None


def _parse(path: Path, file: BinaryIO, limit: int, exact: bool) -> np.ndarray:
    """`limit`: bytes the whole content has (exact) or may have."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= MAX_DIMENSIONS:
        raise InputError(f"{show(path)}: expected IDX (00 00 type dimensions), found the bytes {magic.hex(' ')}")
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise InputError(f"{show(path)}: cut short inside its header; fetch it again")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    dtype = np.dtype(TYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    whole = 4 + len(header) + expected
    if exact and whole != limit:
        raise InputError(f"{show(path)}: its header says {shape}, {whole} bytes; found {limit} bytes; fetch it again")
    if whole > limit:
        raise InputError(
            f"{show(path)}: its header says {shape}, {whole} bytes, more than {MAX_RATIO} times its compressed size; "
            "it is cut short or no data set"
        )
    content = bytearray()
    while len(content) <= expected:  # one byte too many is asked for: gzip checks its CRC only at the end
        part = file.read(min(READ_BYTES, expected + 1 - len(content)))
        if not part:
            break
        content += part
    if len(content) != expected:
        found = "more" if len(content) > expected else f"{len(content)}"
        raise InputError(f"{show(path)}: its header says {shape}, {expected} bytes of values; found {found}")
    return np.ndarray(shape, dtype, content)
