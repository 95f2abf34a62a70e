"""Word counts as weights that say how much a word tells of its document (Salton & Buckley 1988, IP&M 24).

Symbols: x_i how often word i stands in a document, d_i the documents that contain it, N all documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.interfaces import Batch, Layer, StreamingModel


class TfIdf(StreamingModel, Layer):
    """h ∝ log(1 + x_i) (1 + log((1 + N) / (1 + d_i))), of mean square 1 over the words; one pass counts the d_i.

    A document without words is all 0. The way back gives shares of words, for a document's length is lost.
    """

    def __init__(self, *, num_visible: int) -> None:
        super().__init__()
        if num_visible < 1:
            raise ValueError(f"num_visible must be at least 1, not {num_visible}")
        self.num_visible = self.num_hidden = num_visible
        self.idf: Tensor
        self.register_buffer("idf", torch.ones(num_visible))
        self._gathered: dict[str, Tensor] = {}

    @property
    def visible_range(self) -> tuple[float, float] | None:
        return (0.0, float("inf"))

    @property
    def reads_counts(self) -> bool:
        return True

    def update(self, batch: Batch) -> None:
        assert isinstance(batch, Tensor)  # (batch, num_visible)
        containing = (batch > 0).sum(0).double().cpu()
        self.merge({"documents": torch.tensor(float(len(batch)), dtype=torch.float64), "containing": containing})

    def partial(self) -> dict[str, Tensor]:
        empty = {"documents": torch.zeros((), dtype=torch.float64)}
        return self._gathered or empty | {"containing": torch.zeros(self.num_visible, dtype=torch.float64)}

    def merge(self, partial: Mapping[str, Tensor]) -> None:
        known = self.partial()
        self._gathered = {name: known[name] + partial[name] for name in known}

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        gathered = self.partial()
        documents, containing = gathered["documents"], gathered["containing"]
        if documents < self.least_samples:
            raise ValueError(f"needs {self.least_samples} samples or more, found {int(documents)}")
        self.idf.copy_(1 + ((1 + documents) / (1 + containing)).log())
        self._gathered = {}
        return {"samples": float(documents), "words_unseen": float((containing == 0).sum())}

    def encode(self, v: Tensor) -> Tensor:
        return F.normalize(v.log1p() * self.idf, dim=1) * self.num_visible**0.5

    def decode(self, h: Tensor) -> Tensor:
        shares = (h.clamp(min=0) / self.idf).expm1()
        return F.normalize(shares, p=1, dim=1)

    def rescaled(self, filters: Tensor) -> Tensor:
        """(n, num_hidden) filters of codes → (n, num_visible) filters of data."""
        return filters * self.idf

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        model = cls(num_visible=6)
        x = torch.tensor([[2.0, 0, 1, 0, 0, 3], [0, 1, 1, 0, 4, 0]])
        model.update(x)
        model.finish()
        return model, x
