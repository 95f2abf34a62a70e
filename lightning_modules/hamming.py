"""Nearest packed codes by Hamming distance, the number of bits in which two differ: the only place that imports faiss.

`flat` compares a query with every code. `tables` look codes up by their parts, exactly and, within a small radius, in
a time that hardly depends on their number (Norouzi, Punjani & Fleet 2012; faiss's IndexBinaryMultiHash). `buckets` sort
codes by the nearest of √N learned centers, and a query is compared with those of the nearest `probed` centers alone;
how many these are is chosen as the index is built, by the share of true neighbours found (Jégou, Douze & Schmid 2011;
IndexBinaryIVF). `exact` lookups probe all buckets.

A saved index is a folder: index.faiss and, written last, index.json with its digest, the codes', the model's and the
shards'. Codes whose number of bits is no multiple of 8 have spare bits of 0, which add nothing to any distance.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from conf.errors import Damaged, InputError, show
from data import durable
from data.codes import Codes, checked, claimed, require_names

Kind = Literal["flat", "tables", "buckets"]
Near = tuple[np.ndarray, np.ndarray]  # distances, numbers
FORMAT, NAME, FILE = 1, "index.json", "index.faiss"
REPAIR = "build the index again with strata search CODES --build, or restore the folder from a copy"
PER_CENTER = 64  # codes that a center is learned from; faiss wants at least 39
ROUNDS = 10  # of k-means
NEIGHBOURS, QUERIES = 10, 1000  # that `probed` is chosen by
AT_A_TIME = 1 << 20  # codes
PART_BITS, LEAST_TABLES = 32, 4  # of a part of a code; one look-up in each of 4 tables finds all within radius 3
PER_LOOKUP = 256  # codes that may be compared in the time of one look-up in a table, about
WORKING_MEMORY = 1 << 28  # bytes for the counting of distances


def set_threads(number: int) -> None:
    """faiss has an OpenMP of its own beside torch's: each is told how many threads it may use."""
    faiss.omp_set_num_threads(number)


@dataclass(frozen=True)
class About:
    """What index.json says beside the file's digest. model, shards, lay: see data.codes.Codes."""

    kind: Kind
    num_bits: int
    num_codes: int
    codes: str  # digest
    model: str
    shards: str
    lay: dict[str, str]
    tables: int = 0
    centers: int = 0
    probed: int = 0
    recall: float = 1.0  # of the NEIGHBOURS nearest, measured on indexed codes, themselves left out


class Index(ABC):
    """Numbers are those of the codes, from 0; distances those of whole codes, sorted, equal ones by number."""

    def __init__(self, about: About, index: Any) -> None:
        self.about, self._index = about, index

    def __len__(self) -> int:
        return self.about.num_codes

    @abstractmethod
    def code(self, number: int) -> np.ndarray:
        """(num_bytes,) uint8."""

    @abstractmethod
    def nearest(self, queries: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(n, num_bytes) → distances (n, k) int64, numbers (n, k); k at most the number of codes.

        exact: all that a kind which only looks into a part of the codes would leave out. Where that part is smaller
        than k, the last numbers are −1.
        """

    @abstractmethod
    def within(self, queries: np.ndarray, radius: int, *, exact: bool = False) -> list[Near]:
        """(n, num_bytes) → of each query, distances and numbers of all codes at most `radius` away."""


class Flat(Index):
    """Every code is compared."""

    def code(self, number: int) -> np.ndarray:
        code: np.ndarray = self._index.reconstruct(number)
        return code

    def nearest(self, queries: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        return _compared(self._index, queries, k)

    def within(self, queries: np.ndarray, radius: int, *, exact: bool = False) -> list[Near]:
        return _in_range(self._index, queries, radius)


class Tables(Index):
    """Of t parts of a code, each with a table of its own, two codes at most r bits apart share one to ⌊r / t⌋ bits.

    So few entries of each table hold all codes within a small radius, whatever the number of codes, and the nearest are
    found by radii that grow. Where that would take too many look-ups, every code is compared.
    """

    def code(self, number: int) -> np.ndarray:
        code: np.ndarray = self._index.storage.reconstruct(number)
        return code

    def nearest(self, queries: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, len(self))
        distances, numbers = (np.empty((len(queries), k), np.int64) for _ in range(2))
        left, flips = np.arange(len(queries)), 0
        while len(left) and self._affords(flips):
            reach = self.about.tables * (flips + 1) - 1
            answers = self.within(queries[left], reach)
            for row, (near, who) in zip(left, answers, strict=True):
                if len(near) >= k:
                    distances[row], numbers[row] = near[:k], who[:k]
            left, flips = left[[len(near) < k for near, _ in answers]], flips + 1
        if len(left):
            distances[left], numbers[left] = _compared(self._index.storage, queries[left], k)
        return distances, numbers

    def within(self, queries: np.ndarray, radius: int, *, exact: bool = False) -> list[Near]:
        flips = radius // self.about.tables
        if not self._affords(flips):
            return _in_range(self._index.storage, queries, radius)
        self._index.nflip = flips
        return _in_range(self._index, queries, radius)

    def _affords(self, flips: int) -> bool:
        """Whether entries at most so many bits away are few beside the codes."""
        entries = sum(math.comb(self._index.b, bits) for bits in range(flips + 1))
        return flips == 0 or (flips <= self._index.b and self.about.tables * entries <= len(self) // PER_LOOKUP)


class Buckets(Index):
    """Codes lie with the learned center they are nearest to, and the nearest `probed` centers' are compared."""

    _knows_places = False  # which bucket each code lies in, to be asked by number

    def code(self, number: int) -> np.ndarray:
        if not self._knows_places:
            self._index.make_direct_map()
            self._knows_places = True
        code: np.ndarray = self._index.reconstruct(number)
        return code

    def nearest(self, queries: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        self._probe(exact)
        distances, numbers = _compared(self._index, queries, k)
        distances[numbers < 0] = self._index.d + 1
        order = np.lexsort((numbers, distances))
        distances, numbers = np.take_along_axis(distances, order, 1), np.take_along_axis(numbers, order, 1)
        if exact:  # any of those at the last distance were kept
            for last in np.unique(distances[:, -1]).tolist():
                rows = np.flatnonzero(distances[:, -1] == last)
                for row, (_, found) in zip(rows, self.within(queries[rows], last, exact=True), strict=True):
                    numbers[row] = found[: numbers.shape[1]]
        return distances, numbers

    def within(self, queries: np.ndarray, radius: int, *, exact: bool = False) -> list[Near]:
        self._probe(exact)
        return _in_range(self._index, queries, radius)

    def _probe(self, exact: bool) -> None:
        self._index.nprobe = self.about.centers if exact else self.about.probed


def _compared(index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, by an index of faiss."""
    if isinstance(index, faiss.IndexBinaryFlat):
        # Distances are counted instead: of codes equally far those of the lowest numbers are kept.
        index.use_heap = False  # type: ignore[attr-defined]
    k = min(k, index.ntotal)
    step = max(1, WORKING_MEMORY // (8 * k * (index.d + 1)))
    parts = [index.search(queries[start : start + step], k) for start in range(0, len(queries), step)]
    distances = np.concatenate([distances for distances, _ in parts]).astype(np.int64)
    return distances, np.concatenate([numbers for _, numbers in parts])


def _in_range(index: Any, queries: np.ndarray, radius: int) -> list[Near]:
    """As `within`, by an index of faiss."""
    limits, distances, numbers = index.range_search(queries, min(radius, index.d) + 1)
    found = []
    for start, stop in zip(limits[:-1].tolist(), limits[1:].tolist(), strict=True):
        near, who = distances[start:stop].astype(np.int64), numbers[start:stop]
        order = np.lexsort((who, near))
        found.append((near[order], who[order]))
    return found


KINDS: dict[Kind, tuple[type[Index], type]] = {
    "flat": (Flat, faiss.IndexBinaryFlat),
    "tables": (Tables, faiss.IndexBinaryMultiHash),
    "buckets": (Buckets, faiss.IndexBinaryIVF),
}


def of_codes(codes: Codes) -> Index:
    """A flat index in memory. Errors: InputError of codes that are no bits, Damaged."""
    index = faiss.IndexBinaryFlat(8 * codes.num_bytes)
    _add(index, _rows(codes))
    return Flat(_about(codes, "flat"), index)


def build(codes: Codes, out: Path, kind: Kind, *, recall: float) -> Index:
    """Builds an index and saves it. recall: of the NEIGHBOURS nearest, that `buckets` are to find, in (0, 1].

    Errors: InputError, Damaged (of the codes), Busy, OSError.
    """
    with claimed(out, NAME, re.compile(re.escape(FILE))):
        built = (
            {"flat": of_codes, "tables": _in_tables}[kind](codes) if kind != "buckets" else _in_buckets(codes, recall)
        )
        with durable.writing(out / FILE) as file:
            faiss.write_index_binary(built._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        content = vars(built.about) | {"format": FORMAT, "file": durable.digest_file(out / FILE)}
        durable.write_json(out / NAME, content | {"checksum": durable.digest_value(content)})
    return built


def load(folder: Path) -> Index:
    """Errors: InputError if there is no finished index; Damaged if a byte is not as it was written."""
    path = folder / NAME
    try:
        content = durable.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{show(folder)}: expected an index (with {NAME}), found none; --build writes one") from None
    except ValueError:
        raise Damaged(f"{show(path)}: is no JSON any more; {REPAIR}") from None
    expected, about = checked(content, path, FORMAT, REPAIR, _parsed)
    return KINDS[about.kind][0](about, _read(folder / FILE, expected, about))


def _parsed(content: dict[str, Any]) -> tuple[str, About]:
    """The digest of the file and what else index.json says. ValueError, KeyError, TypeError for what we never write."""
    file, about = str(content.pop("file")), About(**content)
    counts = about.num_bits, about.num_codes, about.tables, about.centers, about.probed
    if not all(type(count) is int and count >= 0 for count in counts) or not isinstance(about.recall, (int, float)):
        raise ValueError("numbers")
    if about.kind not in list(KINDS) or about.probed > about.centers:
        raise ValueError("kind or probed")
    require_names(content)
    return file, about


def _read(path: Path, expected: str, about: About) -> Any:
    try:
        if durable.digest_file(path) != expected:
            raise Damaged(f"{show(path)}: differs from the digest in {NAME}; {REPAIR}")
        index = faiss.read_index_binary(str(path))
    except OSError as error:
        raise Damaged(f"{show(path)}: {(error.strerror or str(error)).lower()}; {REPAIR}") from None
    except RuntimeError as error:
        raise Damaged(f"{show(path)}: right digest, but faiss cannot read it ({show(error)}); {REPAIR}") from None
    wanted = (KINDS[about.kind][1], 8 * -(-about.num_bits // 8), about.num_codes, about.tables, about.centers)
    if (type(index), index.d, index.ntotal, getattr(index, "nhash", 0), getattr(index, "nlist", 0)) != wanted:
        raise Damaged(f"{show(path)}: right digest, but another index than {NAME} says; {REPAIR}")
    return index


def _about(codes: Codes, kind: Kind, **more: Any) -> About:
    named: Mapping[str, Any] = {"codes": codes.digest, "model": codes.model, "shards": codes.shards, "lay": codes.lay}
    return About(kind, codes.width, codes.num_samples, **named, **more)


def _rows(codes: Codes) -> list[np.ndarray]:
    """The packed codes, set after set, verified."""
    if not codes.bits:
        raise InputError(f"{show(codes.folder)}: holds codes of numbers; strata encode --bits writes what is searched")
    if not codes.num_samples:
        raise InputError(f"{show(codes.folder)}: holds no codes")
    return [codes.rows(name) for name in codes.files]


def _add(index: Any, rows: list[np.ndarray]) -> None:
    for part in rows:
        for start in range(0, len(part), AT_A_TIME):
            index.add(np.ascontiguousarray(part[start : start + AT_A_TIME]))


def _in_tables(codes: Codes) -> Index:
    tables = min(codes.width, max(LEAST_TABLES, -(-codes.width // PART_BITS)))
    index = faiss.IndexBinaryMultiHash(8 * codes.num_bytes, tables, codes.width // tables)  # spare bits tell nothing
    _add(index, _rows(codes))
    return Tables(_about(codes, "tables", tables=tables), index)


def _in_buckets(codes: Codes, recall: float) -> Index:
    rows, total, bits = _rows(codes), codes.num_samples, 8 * codes.num_bytes
    centers = max(1, min(math.isqrt(total), total // PER_CENTER))
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, centers)
    index.cp.niter = ROUNDS
    index.train(_some(rows, min(total, centers * PER_CENTER)))
    _add(index, rows)

    queries, k = _some(rows, min(total, QUERIES)), min(NEIGHBOURS + 1, total)  # a code finds itself, too
    found: Index = Buckets(_about(codes, "buckets", centers=centers, probed=centers), index)
    furthest = found.nearest(queries, k)[0][:, -1:]
    for probed in (*(1 << power for power in range(centers.bit_length()) if 1 << power < centers), centers):
        found = Buckets(replace(found.about, probed=probed), index)
        reached = _recall(found.nearest(queries, k)[0], furthest)
        if reached >= recall:
            break
    return Buckets(replace(found.about, recall=reached), index)


def _recall(distances: np.ndarray, furthest: np.ndarray) -> float:
    """Share of the neighbours found, the query itself left out, that are as near as the true ones."""
    others = distances.shape[1] - 1
    return float(((distances <= furthest).sum(axis=1) - 1).mean() / others) if others else 1.0


def _some(rows: list[np.ndarray], number: int) -> np.ndarray:
    """(number, num_bytes) drawn evenly from all codes, the same every time."""
    ends = np.cumsum([len(part) for part in rows])
    chosen = np.sort(np.random.default_rng(0).choice(int(ends[-1]), number, replace=False))
    pieces = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return np.concatenate(
        [part[piece - (end - len(part))] for part, piece, end in zip(rows, pieces, ends, strict=True)]
    )
