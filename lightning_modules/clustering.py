"""How well clusters agree with classes that were never shown, and what lies in them.

Accuracy is that of the best one-to-one matching of clusters to classes (Kuhn 1955; Xie, Girshick & Farhadi 2016, §5.2);
NMI is the mutual information over the mean of both entropies, ARI the share of pairs treated alike, corrected for
chance (Hubert & Arabie 1985). What is NOT here: models that cluster (`kmeans`, `mixture_model`, `dec`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.interfaces import Clusters, Encodes, Fitted
from lightning_modules.maps import POINTS, Method, plane
from lightning_modules.stack import Stack

AT_A_TIME = 2000  # samples
MOST = 100  # clusters that are matched to classes; more are features, not groups
SHOWN, TYPICAL = 20, 9  # clusters in the picture, and members beside each one's mean


def clusters_in(model: Fitted) -> Clusters | None:
    """What sorts data into groups: the model or, of a stack, its top layer, which sorts codes; None if nothing does."""
    top = model[-1] if isinstance(model, Stack) else model
    return top if isinstance(top, Clusters) else None


def points(model: Fitted, x: Tensor) -> Tensor:
    """What the clusters are groups of, or a model that has none turns data into: codes, (n, width)."""
    top = clusters_in(model)
    if isinstance(model, Stack) and top is not None:
        layers = list(model)[:-1]
    elif isinstance(model, Encodes):
        layers = [model]  # type: ignore[list-item]
    else:
        return x
    for layer in layers:
        x = torch.cat([layer.encode(part) for part in x.split(AT_A_TIME)])
    return x


def assigned(model: Fitted, codes: Tensor, x: Tensor) -> Tensor | None:
    """The cluster of each, (n,), given `points(model, x)`; None where nothing clusters."""
    top = clusters_in(model)
    if top is None:
        return None
    return torch.cat([top.assign(part) for part in (codes if isinstance(model, Stack) else x).split(AT_A_TIME)])


def agreement(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"cluster_accuracy": percent, "nmi", "ari"} of clusters and labels, (n,) each, both from 0."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = confusion(clusters, labels)
    matched = counts[matching(counts)].sum()
    return {
        "cluster_accuracy": 100 * float(matched) / len(labels),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }


def confusion(clusters: np.ndarray, labels: np.ndarray, shape: tuple[int, int] | None = None) -> np.ndarray:
    """(clusters, classes): how many of each cluster are of each class."""
    counts = np.zeros(shape or (clusters.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (clusters, labels), 1)
    return counts


def matching(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which cluster goes with which class, so that most samples are where they belong."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts, maximize=True)
    return rows, columns


@dataclass
class Groups:
    """What an evaluation adds of clusters and of the plane that codes lie in."""

    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)  # of data
    map: dict[str, Tensor] = field(default_factory=dict)  # places (n, 2), labels (n,), −1 where missing


def groups(model: Fitted, x: Tensor, labels: np.ndarray, classes: list[str], method: Method) -> Groups:
    """x: (n, num_visible); labels: (n,), −1 where missing. Numbers that need labels are of labeled samples alone."""
    answer, codes = Groups(), points(model, x)
    if isinstance(model, Encodes):
        few = torch.linspace(0, len(x) - 1, min(POINTS, len(x)), dtype=torch.float64).round().long()
        places, kept = plane(codes[few], method)
        if places is not None:
            answer.map = {"places": places, "labels": torch.from_numpy(labels[few.numpy()])}
            answer.details["map"] = {"method": method, "variance_kept": kept, "classes": classes}
    found, top = assigned(model, codes, x), clusters_in(model)
    if found is None or top is None:
        return answer
    clusters, known = found.cpu().numpy(), labels >= 0
    sizes = np.bincount(clusters, minlength=top.num_clusters)
    answer.metrics = {
        "empty_clusters": float((sizes == 0).sum()),
        "largest_cluster": float(sizes.max() / len(clusters)),
    }
    details: dict[str, Any] = {"num_clusters": top.num_clusters}
    shown = np.argsort(-sizes, kind="stable").tolist()
    if top.num_clusters <= MOST:
        details["sizes"] = sizes.tolist()
        if known.any():
            counts = confusion(clusters[known], labels[known], (top.num_clusters, len(classes)))
            shown = order(counts)
            answer.metrics |= agreement(clusters[known], labels[known])
            details |= {"classes": classes, "confusion": counts.tolist(), "order": shown}
    answer.details["clusters"] = details
    answer.pictures = {"images": _members(found, codes, x, [number for number in shown if sizes[number]][:SHOWN])}
    return answer


def order(counts: np.ndarray) -> list[int]:
    """Clusters in the order of the classes they are matched to, then the others, the largest first."""
    rows, columns = matching(counts)
    matched = rows[np.argsort(columns)].tolist()
    rest = [number for number in np.argsort(-counts.sum(1), kind="stable").tolist() if number not in matched]
    return matched + rest


def _members(found: Tensor, codes: Tensor, x: Tensor, shown: list[int]) -> Tensor:
    """A cluster a row: its members' mean, and the 9 of them nearest to their mean among codes; short rows repeat.

    (rows · 10, num_visible).
    """
    rows = []
    for cluster in shown:
        members = (found == cluster).nonzero()[:, 0]
        far = (codes[members] - codes[members].mean(0)).square().sum(1)
        nearest = members[far.argsort(stable=True)]
        rows += [x[members].mean(0)[None], x[nearest[torch.arange(TYPICAL) % len(nearest)]]]
    return torch.cat(rows)
