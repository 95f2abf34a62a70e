"""A dictionary's atoms: its rows, directions of length 1 (Olshausen & Field 1996, Nature 381).

Without that a penalty on codes would make atoms long and codes small.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def random_atoms(num_hidden: int, num_visible: int) -> Tensor:
    """(num_hidden, num_visible): directions drawn uniformly."""
    return F.normalize(torch.randn(num_hidden, num_visible))


@torch.no_grad()
def to_unit_length(dictionary: Tensor) -> None:
    """In place; an atom of length 0 stays so."""
    dictionary.copy_(F.normalize(dictionary))
