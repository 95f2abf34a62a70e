"""Multilayer perceptrons: affine maps with a nonlinearity between them (Rumelhart, Hinton & Williams 1986)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

Nonlinearity = Literal["relu", "leaky_relu", "tanh"]

_SLOPE = 0.2  # of leaky rectifiers below 0, as in Radford, Metz & Chintala 2016


def perceptron(widths: Sequence[int], nonlinearity: Nonlinearity) -> nn.Sequential:
    """Maps (…, widths[0]) → (…, widths[-1]), affine at the output, with hidden layers of the widths between.

    Biases start at 0, weights at N(0, gain² / fan_in): gain² = 2 / (1 + slope²) above rectifiers (He et al. 2015,
    eq. 15), 1 above the data and above tanh, so that signals keep their size on the way up.
    """
    net = nn.Sequential()
    for num_inputs, num_outputs in pairwise(widths):
        follows_rectifier = len(net) > 0 and nonlinearity != "tanh"
        if len(net):
            net.append(_module(nonlinearity))
        affine = nn.Linear(num_inputs, num_outputs)
        slope = _SLOPE if nonlinearity == "leaky_relu" else 0.0
        nn.init.kaiming_normal_(affine.weight, a=slope if follows_rectifier else 1.0)  # a = 1 is a gain of 1
        nn.init.zeros_(affine.bias)
        net.append(affine)
    return net


def _module(nonlinearity: Nonlinearity) -> nn.Module:
    match nonlinearity:
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(_SLOPE)
        case "tanh":
            return nn.Tanh()
