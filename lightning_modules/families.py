"""The names that families of units have in recipes, and which of them may stand opposite each other in an RBM."""

from __future__ import annotations

from lightning_modules.categorical import ReplicatedSoftmax, Softmax
from lightning_modules.doubled import DoubledBernoulli
from lightning_modules.gaussian import Gaussian
from lightning_modules.rectified import NoisyRectified
from lightning_modules.units import Bernoulli, Units

VISIBLE = ("bernoulli", "gaussian", "learned_gaussian", "relu", "softmax", "replicated_softmax")
HIDDEN = ("bernoulli", "gaussian", "relu")


def visible_family(name: str, num_units: int, num_states: int | None = None, *, doubled: bool = False) -> Units:
    """Visible units by name. num_states: of each group of softmax units, and of no others. ValueError."""
    if name not in VISIBLE:
        raise ValueError(f"visible must be one of {', '.join(VISIBLE)}, not {name!r}")
    if doubled and name != "bernoulli":
        raise ValueError(f"only bernoulli units can be doubled, not {name} ones")
    if name == "softmax":
        if num_states is None:
            raise ValueError("softmax units need num_states, the number of states of each")
        return Softmax(num_units, num_states)
    if num_states is not None:
        raise ValueError(f"num_states is for softmax units, {name} ones have none")
    if name in ("gaussian", "learned_gaussian"):
        return Gaussian(num_units, learned=name == "learned_gaussian")
    if name == "relu":
        return NoisyRectified()
    if name == "replicated_softmax":
        return ReplicatedSoftmax()
    return DoubledBernoulli() if doubled else Bernoulli()


def hidden_family(name: str, num_units: int, *, above: str, doubled: bool = False) -> Units:
    """Hidden units by name, above visible ones of the family `above`. ValueError.

    Gaussian hidden units over unbounded visible ones are refused: E has no minimum once the weights are large.
    """
    if name not in HIDDEN:
        raise ValueError(f"hidden must be one of {', '.join(HIDDEN)}, not {name!r}")
    if doubled and name != "bernoulli":
        raise ValueError(f"only bernoulli units can be doubled, not {name} ones")
    if name == "gaussian":
        if above in ("gaussian", "learned_gaussian", "relu"):
            raise ValueError(f"gaussian hidden units over {above} ones have no least energy; choose bernoulli or relu")
        return Gaussian(num_units)
    if name == "relu":
        return NoisyRectified()
    return DoubledBernoulli() if doubled else Bernoulli()
