"""Codes as points of a plane: along their two principal axes, or by UMAP (McInnes, Healy & Melville 2018).

What is NOT here: which codes (`clustering.points`), colours and the legend (flows/report_clusters.py).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from conf.errors import InputError
from lightning_modules.statistics import Moments, principal

POINTS = 1500  # on a map
Method = Literal["pca", "umap", "none"]


def require(method: Method) -> None:
    """Errors: InputError where the package that a map needs is not installed."""
    if method == "umap" and find_spec("umap") is None:
        raise InputError(
            "evaluate.map: umap needs the package umap-learn, which is not installed; "
            "pip install 'strata[map]', or leave map out for principal components"
        )


def plane(codes: Tensor, method: Method) -> tuple[Tensor | None, float | None]:
    """(n, width) → places (n, 2) and, of PCA, the share of the variance they keep; None of codes without a plane."""
    if method == "none" or codes.shape[1] < 2 or len(codes) < 4:
        return None, None
    if method == "umap":
        require(method)
        import umap

        neighbors = min(15, len(codes) - 1)
        places = umap.UMAP(n_neighbors=neighbors, random_state=0, n_jobs=1).fit_transform(codes.double().cpu().numpy())
        return torch.from_numpy(places), None
    x = codes.double().cpu()
    if x.shape[1] > len(x):  # as many axes as samples hold everything
        x = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        x = x.U * x.S
    moments = Moments(x.shape[1])
    moments.update(x)
    total = float(moments.variance().sum())
    if not total > 0:
        return None, None
    found = principal(moments, 2)
    return (x - moments.mean) @ found.axes.T, float(found.variances.sum()) / total
