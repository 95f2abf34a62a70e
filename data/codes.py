"""Codes of the samples of some shards: a file for each of their sets, as numbers or as packed bits.

    train.npy         float32 (samples, width); or, of bits,
    train.bits.npy    uint8 (samples, ⌈width / 8⌉): bit j is worth 2^(j mod 8) in byte j // 8, spare bits are 0
    codes.json        all files by samples and SHA-256, the model's and the shards' digests, where both lay; its own
                      digest; written last

The rows of a set are its samples in shard order; sets follow each other as in the shards, so that row n of all sets
together is sample n. Somebody killed while writing leaves no codes.json. What is NOT here: who makes codes, who
searches them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np

from conf.errors import Busy, Damaged, InputError, show
from data import durable
from data.sources import SETS
from data.tar import npy_header

FORMAT = 1
NAME = "codes.json"
LOCK = ".lock"
BIT_ORDER: Literal["little"] = "little"  # of numpy's packbits: the first bit is the least significant one
REPAIR = "run strata encode again, or restore the folder from a copy"
LEFTOVER = re.compile(r"\.(.+)\.\d+\.tmp")  # durable.writing's temporary files, after a kill
Parsed = TypeVar("Parsed")
OURS = re.compile(rf"({'|'.join(SETS)})(\.bits)?\.npy")


@dataclass(frozen=True)
class Codes:
    """What a finished folder of codes holds. `files`: name → [samples, SHA-256], sets in the order of the shards.

    width: numbers or bits of a code; model, shards: digests of the model and of the samples; lay: where both did.
    """

    folder: Path
    width: int
    bits: bool
    model: str
    shards: str
    files: dict[str, tuple[int, str]]
    lay: dict[str, str]

    @property
    def num_samples(self) -> int:
        return sum(samples for samples, _ in self.files.values())

    @property
    def num_bytes(self) -> int:
        """Of a packed code."""
        return -(-self.width // 8)

    @property
    def digest(self) -> str:
        """Of the codes and what made them, wherever anything lies."""
        return durable.digest_value({name: item for name, item in self._content().items() if name != "lay"})

    def rows(self, name: str) -> np.ndarray:
        """A listed file's codes, mapped, after every byte was compared with its digest. Errors: Damaged."""
        samples, expected = self.files[name]
        path = self.folder / name
        header = _header(samples, self.width, self.bits)
        try:
            if durable.digest_file(path) != expected:
                raise Damaged(f"{show(path)}: differs from the digest in {NAME}; {REPAIR}")
            with durable.opened(path) as file:
                if file.read(len(header)) != header:
                    raise Damaged(f"{show(path)}: right digest, but other codes than {NAME} says; {REPAIR}")
        except OSError as error:
            raise Damaged(f"{show(path)}: {(error.strerror or str(error)).lower()}; {REPAIR}") from None
        dtype, columns = _stored(self.width, self.bits)
        if not samples:
            return np.empty((0, columns), dtype)
        return np.memmap(path, dtype, "r", len(header), (samples, columns))

    def write(self) -> None:
        """Commits the folder. Errors: OSError."""
        content = self._content()
        durable.write_json(self.folder / NAME, content | {"checksum": durable.digest_value(content)})

    def _content(self) -> dict[str, Any]:
        value = {name: item for name, item in asdict(self).items() if name != "folder"}
        value["files"] = [[name, samples, sha256] for name, (samples, sha256) in self.files.items()]
        return value | {"format": FORMAT, "bit_order": BIT_ORDER}

    @classmethod
    def load(cls, folder: Path) -> Codes:
        """Errors: InputError if there are no finished codes; Damaged if codes.json is not what strata wrote."""
        path = Path(folder) / NAME
        try:
            content = durable.read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{show(folder)}: expected a folder of codes (with {NAME}), found none; strata encode writes it"
            ) from None
        except ValueError:
            raise Damaged(f"{show(path)}: is no JSON any more; {REPAIR}") from None
        return cls(Path(folder), **checked(content, path, FORMAT, REPAIR, cls._parse))

    @staticmethod
    def _parse(content: dict[str, Any]) -> dict[str, Any]:
        if content.pop("bit_order") != BIT_ORDER or not all(OURS.fullmatch(name) for name, _, _ in content["files"]):
            raise ValueError("bit_order or files")
        if type(content["width"]) is not int or content["width"] < 1:
            raise ValueError("width")
        require_names(content)
        files = {name: (int(samples), str(sha256)) for name, samples, sha256 in content["files"]}
        return content | {"files": files}


def require_names(content: Mapping[str, Any]) -> None:
    """ValueError if what names model and shards are no names."""
    lay = content["lay"]
    names = [content["model"], content["shards"], *(lay.values() if isinstance(lay, dict) else [lay])]
    if not all(isinstance(name, str) for name in names) or not isinstance(lay, dict):
        raise ValueError("model, shards or lay")


def checked(content: Any, path: Path, number: int, repair: str, parse: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    """What `parse` makes of a JSON object that bears its own checksum and a format. Errors: Damaged."""
    if not isinstance(content, dict) or content.get("format") != number:
        found = content.get("format") if isinstance(content, dict) else None
        raise Damaged(f"{show(path)}: expected format {number}, found {show(found)}; {repair}")
    try:
        genuine = content.pop("checksum", None) == durable.digest_value(content)
    except ValueError:  # NaN or half a surrogate pair, which we never write
        genuine = False
    if not genuine:
        raise Damaged(f"{show(path)}: does not match its own digest; {repair}")
    del content["format"]
    try:
        return parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{show(path)}: right digest, but wrong fields ({show(error)}); {repair}") from None


def _stored(width: int, bits: bool) -> tuple[np.dtype, int]:
    """How a code is stored: type and number of values."""
    return (np.dtype("u1"), -(-width // 8)) if bits else (np.dtype("<f4"), width)


def _header(samples: int, width: int, bits: bool) -> bytes:
    dtype, columns = _stored(width, bits)
    return npy_header((samples, columns), dtype)


class CodesWriter:
    """Files of codes as they come; `opened_for_writing` makes one."""

    def __init__(self, folder: Path, width: int, bits: bool) -> None:
        self.folder, self.width, self.bits = folder, width, bits
        self.files: dict[str, tuple[int, str]] = {}

    def write(self, set_name: str, samples: int, pieces: Iterator[np.ndarray]) -> None:
        """The codes of a set's samples, (n, width) float32 or bool at a time."""
        name = f"{set_name}.bits.npy" if self.bits else f"{set_name}.npy"
        with durable.writing(self.folder / name) as file:
            file.write(_header(samples, self.width, self.bits))
            for piece in pieces:
                _put(file, packed(piece) if self.bits else piece.astype("<f4"))
        self.files[name] = samples, durable.digest_file(self.folder / name)

    def commit(self, *, model: str, shards: str, lay: Mapping[str, str]) -> Codes:
        codes = Codes(self.folder, self.width, self.bits, model, shards, self.files, dict(lay))
        codes.write()
        return codes


def _put(file: BinaryIO, values: np.ndarray) -> None:
    file.write(np.ascontiguousarray(values).data)


@contextmanager
def opened_for_writing(folder: Path, width: int, bits: bool) -> Iterator[CodesWriter]:
    """The only writer of a folder of codes. Errors: as `claimed`."""
    with claimed(folder, NAME, OURS):
        yield CodesWriter(folder, width, bits)


@contextmanager
def claimed(folder: Path, last: str, ours: re.Pattern[str]) -> Iterator[None]:
    """The only writer of a folder, which is not finished from now on and holds nothing that a killed one left.

    last: the file that says it is finished; ours: names of the others. Errors: InputError where foreign files lie,
    Busy, OSError.
    """
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(name for name in there if not name.startswith("."))
    begun = LOCK in there and any(ours.fullmatch(_lasting(name)) for name in there)
    if others and last not in there and not begun:  # shards have a lock, too
        raise InputError(f"{show(folder)}: holds other files, such as {show(others[0])}; choose a new or empty folder")
    try:
        with durable.lock(folder / LOCK):
            (folder / last).unlink(missing_ok=True)
            for path in folder.iterdir():
                if ours.fullmatch(_lasting(path.name)) and path.is_file():
                    path.unlink()
            yield
    except durable.Locked as holder:
        raise Busy(f"{show(folder)}: {holder} is writing into this folder; wait for it or choose another") from None


def _lasting(name: str) -> str:
    """What a temporary file that a kill left would have been named, or the name itself."""
    leftover = LEFTOVER.fullmatch(name)
    return leftover[1] if leftover else name


def packed(bits: np.ndarray) -> np.ndarray:
    """(n, width) bool → (n, ⌈width / 8⌉) uint8."""
    return np.packbits(bits, axis=1, bitorder=BIT_ORDER)
