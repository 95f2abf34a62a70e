"""An RBM that starts as the one below it, upside down (Hinton, Osindero & Teh 2006, Neural Comput. 18, §4)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightning_modules.units import Units


class Machine(Protocol):
    """What is copied of an RBM."""

    num_visible: int
    num_hidden: int

    @property
    def weights(self) -> Tensor: ...
    @property
    def visible_bias(self) -> Tensor: ...
    @property
    def hidden_bias(self) -> Tensor: ...
    @property
    def visible_units(self) -> Units: ...
    @property
    def hidden_units(self) -> Units: ...


@torch.no_grad()
def copy_upside_down(below: Machine, above: Machine) -> None:
    """W = W_belowᵀ, b = c_below, c = b_below, and the units' own parameters. ValueError where the two do not mirror."""
    mirrored = (below.num_hidden, below.num_visible)
    if (above.num_visible, above.num_hidden) != mirrored:
        raise ValueError(
            f"start: tied mirrors the rbm below, {below.num_visible} → {below.num_hidden}: "
            f"num_hidden must be {below.num_visible}, not {above.num_hidden}"
        )
    ours, theirs = (above.visible_units, above.hidden_units), (below.hidden_units, below.visible_units)
    if [type(units) for units in ours] != [type(units) for units in theirs]:
        names = " and ".join(type(units).__name__ for units in theirs)
        raise ValueError(f"start: tied mirrors the rbm below: its visible and hidden units must be {names}")
    above.weights.copy_(below.weights.t())
    above.visible_bias.copy_(below.hidden_bias)
    above.hidden_bias.copy_(below.visible_bias)
    for own, mirrored_units in zip(ours, theirs, strict=True):
        own.load_state_dict(mirrored_units.state_dict())
