"""The 1,797 handwritten digits inside scikit-learn: 8×8 pixels, 0 … 16, ten classes, no test set of their own.

Source: test part of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository (1998).
"""

from __future__ import annotations

from importlib import metadata

import numpy as np

from data import durable
from data.sources.whole import Table, WholeSource


class Digits(WholeSource):
    """scikit-learn is imported only when the digits are really read."""

    scale = 16.0

    def fingerprint(self) -> str:
        return durable.digest_value(["digits", metadata.version("scikit-learn")])

    def _load(self) -> dict[str, Table]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return {"train": Table(bunch.images.astype(np.uint8), bunch.target, "scikit-learn's digits")}
