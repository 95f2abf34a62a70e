"""How binary values are drawn: units, and data that are binarized anew at every step."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 10_000  # values of a call, below which a number each is quicker than what saves bits


def bernoulli(mean: Tensor) -> Tensor:
    """Draws that are 1 with probability `mean` in [0, 1], to 2^−24, and 0 else; in float32 where `mean` is narrower.

    Random bits are most of the cost. Of many values each gets 16, and a call 8 finer ones for all: half the time of 24
    bits a value, an eighth of that of `torch.bernoulli`, on a processor. The law of a value is the same; two of them
    have a covariance of at most 2^−34.
    """
    dtype = torch.promote_types(mean.dtype, torch.float32)  # in bfloat16 a uniform number is 0 once in 400 times
    if (count := mean.numel()) < FEW:
        return torch.rand_like(mean, dtype=dtype).lt_(mean)
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=mean.device).random_(-(2**63), None)
    finer = torch.randint(256, (), dtype=dtype, device=mean.device)
    return _on(words.view(torch.int16)[:count].view(mean.shape), finer, mean.to(dtype))


def _on(bits: Tensor, finer: Tensor, mean: Tensor) -> Tensor:
    """Whether (2^15 + bits + finer / 2^8) / 2^16, uniform on [0, 1), is below `mean`."""
    threshold = torch.add(-(2**15) - finer / 2**8, mean, alpha=2**16)
    return torch.lt(bits, threshold, out=threshold)
