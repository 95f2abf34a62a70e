"""An RBM that starts as the one below it, upside down (Hinton, Osindero & Teh 2006, Neural Comput. 18, §4)."""

from __future__ import annotations

import torch

from lightning_modules.bipartite import Bipartite


@torch.no_grad()
def copy_upside_down(below: Bipartite, above: Bipartite) -> None:
    """W = W_belowᵀ, b = c_below, c = b_below, and the units' own parameters. ValueError where the two do not mirror."""
    num_visible, num_hidden = below.weights.shape
    if above.weights.t().shape != below.weights.shape:
        raise ValueError(
            f"start: tied mirrors the rbm below, {num_visible} → {num_hidden}: "
            f"num_hidden must be {num_visible}, not {above.weights.shape[1]}"
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
