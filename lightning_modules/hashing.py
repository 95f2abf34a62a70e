"""What gives the bits of a model's codes, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_modules.interfaces import Encodes, Fitted, Hashes
from lightning_modules.stack import Stack

Coder = Callable[[Tensor], Tensor]  # (batch, num_visible) → (batch, width)


def hasher(model: Fitted) -> tuple[int, Coder] | None:
    """Number of bits and what gives them, (batch, num_visible) → (batch, num_bits) bool; None of a model without codes.

    What `Hashes` tells, also at the top of a stack; of other codes, whether each lies above the middle of its range,
    or above 0 where it has none.
    """
    if isinstance(model, Hashes):
        return model.num_bits, model.bits
    if isinstance(model, Stack) and isinstance(top := model[-1], Hashes):
        return top.num_bits, lambda v: top.bits(_below_top(model, v))
    if not isinstance(model, Encodes):
        return None
    middle = sum(model.hidden_range) / 2 if model.hidden_range else 0.0
    return model.num_hidden, lambda v: model.encode(v) > middle


def _below_top(stack: Stack, v: Tensor) -> Tensor:
    for layer in list(stack)[:-1]:
        v = layer.encode(v)
    return v
