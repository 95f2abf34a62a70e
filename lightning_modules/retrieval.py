"""How well bits find what is alike: samples of the evaluated set look for training samples of their class.

Items are ranked by the number of bits that differ; precision is exact where they tie (`ranking`). Beside the codes
stand searches without learned ones: of documents by the cosine of tf-idf weights ("raw") and by the signs of latent
semantic analysis (Deerwester et al. 1990) about their medians ("lsa"); of anything else by squared distance ("raw"),
the signs of principal components ("pca") and of iterative quantization ("itq"). "shortlist" is what people do with
codes: raw search among the few items that they find nearest (Salakhutdinov & Hinton 2009). Of both kinds of weights
each document search has those it did better with on 20 Newsgroups: raw search those of `tfidf`, LSA scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conf import Retrieval
from data.selection import Selection
from data.shards import Reader
from data.splits import some
from lightning_modules import figures
from lightning_modules.hashing import hasher
from lightning_modules.interfaces import Fitted, Hashes
from lightning_modules.itq import ITQ
from lightning_modules.ranking import Ranking
from lightning_modules.stack import Stack
from lightning_modules.tfidf import TfIdf

QUERIES_AT_A_TIME, EXAMPLES_AT_A_TIME = 50, 2000
RANK = 10
SHORTLIST = 100  # items whose data is looked at
RECALLS = np.geomspace(0.001, 1, 31)  # ten a factor of ten: 0.1 %, 1 %, 10 % among them

Search = Callable[[slice], Ranking]  # some of the queries, by place → how the database is ranked
Distances = Callable[[slice], Tensor]  # some of the queries → how far from each the items are, (queries, database)


@dataclass(frozen=True)
class Retrieved:
    """What there is to tell; nothing of a model that gives no bits, or without labels."""

    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Tensor] = field(default_factory=dict)  # "recall" and precision there, by search


def retrieved(model: Fitted, reader: Reader, parts: dict[str, Selection], name: str, asked: Retrieval) -> Retrieved:
    """name: the set of the queries. Classes that no item has, and samples without a label, take no part."""
    top = model[-1] if isinstance(model, Stack) else model
    if not isinstance(top, Hashes) or not asked.num_queries or name == "train":
        return Retrieved()
    labels = reader.labels()
    items, queries = parts["train"][:], parts[name][:]
    items = some(Selection.of(items[labels[items] >= 0]), asked.num_items, "retrieval items")
    queries = queries[np.isin(labels[queries], np.unique(labels[items]))]
    if not len(queries):
        return Retrieved()
    queries = some(Selection.of(queries), asked.num_queries, "retrieval queries")
    compared = _Comparison(reader, queries, items, labels, documents=figures.reads_counts(model))
    made = hasher(model)
    assert made is not None
    bits = [torch.cat([made[1](part) for part in x.split(EXAMPLES_AT_A_TIME)]) for x in (compared.x, compared.database)]
    raw = compared.cosine() if compared.documents else compared.squared()
    shortlist = shortlisted(differing(*bits), raw)
    searches = {"": compared.by_bits(*bits), "raw": compared.by(raw), "shortlist": compared.by(shortlist)}
    searches |= compared.of_documents(top.num_bits) if compared.documents else compared.of_others(top)
    metrics: dict[str, float] = {}
    curves = {"recall": torch.from_numpy(RECALLS)}
    for search, rank in searches.items():
        found = _measure(rank, len(queries))
        metrics |= {f"{quantity}/{search}".rstrip("/"): value for quantity, value in found[0].items()}
        curves[search or "code"] = found[1]
    on = bits[0].double().mean(0)
    metrics |= {"bits_on_lowest": float(on.min()), "bits_on_highest": float(on.max())}
    details: dict[str, Any] = {"num_queries": len(queries), "num_items": len(items), "num_bits": top.num_bits}
    details["searches"] = {
        search or "code": {"what": compared.what(search), "bytes": compared.bytes_of(search, top.num_bits)}
        for search in searches
    }
    return Retrieved(metrics, {"retrieval": details}, curves)


def _measure(search: Search, num_queries: int) -> tuple[dict[str, float], Tensor]:
    """Means over queries: measures by name, and the curve of precision over `RECALLS`."""
    at_rank, average, curve = [], [], []
    for start in range(0, num_queries, QUERIES_AT_A_TIME):
        ranking = search(slice(start, start + QUERIES_AT_A_TIME))
        at_rank.append(ranking.precision_at(RANK))
        average.append(ranking.average_precision())
        curve.append(ranking.precision_at_recall(torch.from_numpy(RECALLS)))
    metrics = {f"precision@{RANK}": torch.cat(at_rank), "mean_average_precision": torch.cat(average)}
    return {name: float(values.mean()) for name, values in metrics.items()}, torch.cat(curve).mean(0)


def differing(x: Tensor, database: Tensor) -> Distances:
    """How many bits differ: (queries, num_bits) and (database, num_bits) bool."""
    signs = [2 * bits.float() - 1 for bits in (x, database)]
    return lambda part: ((x.shape[1] - signs[0][part] @ signs[1].T) / 2).round().long()


def shortlisted(coarse: Distances, fine: Distances) -> Distances:
    """The items `coarse` finds nearest, `SHORTLIST` and those as near as the last, by `fine`; behind them all others.

    coarse: numbers from 0 on.
    """

    def distances(part: slice) -> Tensor:
        near, exact = coarse(part), fine(part).double()
        radius = near.kthvalue(min(SHORTLIST, near.shape[1]), dim=1, keepdim=True).values
        return torch.where(near <= radius, exact - exact.amax(1, keepdim=True) - 1, near.double())

    return distances


class _Comparison:
    """Queries and database, and the searches among them."""

    def __init__(
        self, reader: Reader, queries: np.ndarray, items: np.ndarray, labels: np.ndarray, *, documents: bool
    ) -> None:
        self.documents = documents
        self.x, self.database = (torch.from_numpy(reader.values(samples)) for samples in (queries, items))
        self.labels, self.sought = torch.from_numpy(labels[items]), torch.from_numpy(labels[queries])
        self.bytes_a_value = np.dtype(reader.manifest.dtype).itemsize

    def by_bits(self, x: Tensor, database: Tensor) -> Search:
        """(n, num_bits) bool each."""
        distances = differing(x, database)
        return lambda part: Ranking.by_bits(distances(part), self._relevant(part), x.shape[1])

    def by(self, distances: Distances) -> Search:
        return lambda part: Ranking.by_distance(distances(part), self._relevant(part))

    def cosine(self) -> Distances:
        """Of tf-idf weights."""
        weights = TfIdf(num_visible=self.database.shape[1])
        weights.update(self.database)
        weights.finish()
        x, database = weights.encode(self.x), weights.encode(self.database)
        return lambda part: -(x[part] @ database.T)

    def squared(self) -> Distances:
        """Less ‖x‖², which is the same for all items."""
        squares = self.database.square().sum(1)
        return lambda part: squares - 2 * self.x[part] @ self.database.T

    def of_documents(self, num_bits: int) -> dict[str, Search]:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfTransformer

        if num_bits >= min(self.database.shape):
            return {}
        lsa, svd = TfidfTransformer(), TruncatedSVD(num_bits, random_state=0)
        topics = svd.fit_transform(lsa.fit_transform(self.database.numpy()))
        middle = np.median(topics, axis=0)
        sought = svd.transform(lsa.transform(self.x.numpy()))
        return {"lsa": self.by_bits(torch.from_numpy(sought > middle), torch.from_numpy(topics > middle))}

    def of_others(self, top: Hashes) -> dict[str, Search]:
        try:
            itq = ITQ(num_visible=self.database.shape[1], num_hidden=top.num_bits)
        except ValueError:  # more bits than values, or too many of either
            return {}
        if isinstance(top, ITQ) or len(self.database) < itq.least_samples:
            return {}
        itq.update(self.database)
        itq.finish()
        coded = {"pca": itq.pca.encode, "itq": itq.encode}
        return {name: self.by_bits(encode(self.x) > 0, encode(self.database) > 0) for name, encode in coded.items()}

    def what(self, search: str) -> str:
        words = {"": "these bits", "lsa": "LSA, signs", "pca": "PCA, signs", "itq": "ITQ"}
        raw = "tf-idf, cosine" if self.documents else "raw data, distance"
        return words.get(search, f"{SHORTLIST} by these bits, then {raw}" if search == "shortlist" else raw)

    def bytes_of(self, search: str, num_bits: int) -> float:
        """Of an item: its bits; its values; of documents, the number and the weight of each word, 8 bytes."""
        if search not in ("raw", "shortlist"):
            return num_bits / 8
        if search == "shortlist":
            return num_bits / 8 + self.bytes_of("raw", num_bits)
        if self.documents:
            return float(8 * (self.database != 0).sum(1).double().mean())
        return float(self.bytes_a_value * self.database.shape[1])

    def _relevant(self, part: slice) -> Tensor:
        return self.sought[part, None] == self.labels
