"""Fine-tuning a whole deep belief net by the up–down algorithm, a contrastive wake-sleep (Hinton, Osindero & Teh 2006,
Neural Comput. 18, §5 and appendix B).

Symbols: h₀ = v the data, h_k the hidden units of layer k, L layers, the top one an undirected RBM over h_{L−1}. Below
it, G_k and b_{k−1} are generative, R_k and c_k recognition weights and biases, no longer tied to each other:

    p(h_{k−1} | h_k) has the field b_{k−1} + G_k h_k,      q(h_k | h_{k−1}) the field c_k + T(h_{k−1}) R_k

Above a document of D words, D c_1 takes the place of c_1; it is dreamt with as many.

Not here: the bound and the samples, which are those of any belief net (`belief_nets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from lightning_modules.belief_nets import BeliefNet, require_belief_net
from lightning_modules.boltzmann import RBM
from lightning_modules.gaussian import Gaussian
from lightning_modules.interfaces import Batch, Losses, Model
from lightning_modules.labeled import LabeledRBM
from lightning_modules.stack import Stack
from lightning_modules.units import Units


@dataclass(frozen=True)
class Untied:
    """A directed layer: down by the weights and visible biases of an RBM, up by weights of its own."""

    rbm: RBM
    recognition: Tensor  # R, (num_visible, num_hidden)

    @property
    def visible_units(self) -> Units:
        return self.rbm.visible_units

    @property
    def hidden_units(self) -> Units:
        return self.rbm.hidden_units

    def hidden_field(self, v: Tensor) -> Tensor:
        """D c + T(v) R, D the words of a document, else 1: (batch, num_visible) → (batch, num_hidden)."""
        return replace(self.rbm.machine(), weights=self.recognition).hidden_field(v)

    def visible_field(self, h: Tensor) -> Tensor:
        """b + G h, (batch, num_hidden) → (batch, num_visible)."""
        return self.rbm.visible_field(h)


class UpDown(BeliefNet, Model):
    """A DBN with untied weights, trained on the sum of three objectives, each over parameters of its own:

    wake   −Σ_k log p(h_{k−1} | h_k) for h ~ q(h | x):              the generative weights and biases
    top    F(h_{L−1}) − F(h̃_{L−1}), h̃ from `gibbs_steps` full sweeps of the top RBM that start at h_{L−1} (and at the
           data's label, where it has label units): contrastive divergence, the top RBM
    sleep  −Σ_k log q(h̃_k | h̃_{k−1}) for a dream, h̃_{L−1} and one pass down from it: the recognition weights and biases

    Every h and h̃ is a draw (the paper gives the dream's v as probabilities) and passes no gradient.

    stack: as for a DBN; its weights are where everything starts, R_k = G_k. It is kept, not copied: its weights and
    visible biases become the generative ones, its hidden biases those of recognition.
    gibbs_steps: at least 1; the paper has 3, later 6 and 10.
    """

    revision: ClassVar[int] = 2

    def __init__(self, *, stack: Stack, gibbs_steps: int = 3) -> None:
        super().__init__()
        require_belief_net(stack)
        if len(stack) < 2:
            raise ValueError("up–down fine-tunes a stack of two layers or more")
        if gibbs_steps < 1:
            raise ValueError(f"gibbs_steps must be at least 1, not {gibbs_steps}")
        self.stack, self.gibbs_steps = stack, gibbs_steps
        self.num_visible, self.num_hidden = stack.num_visible, stack.num_hidden
        self.num_classes = getattr(self.top, "num_classes", None)
        self.recognition = nn.ParameterList(layer.weights.detach().clone() for layer in self._rbms)

    @property
    def directed_layers(self) -> list[Untied]:
        """All layers but the top one, lowest first."""
        return [Untied(rbm, weights) for rbm, weights in zip(self._rbms, self.recognition, strict=True)]

    @property
    def _rbms(self) -> list[RBM]:
        return cast(list[RBM], list(self.stack)[:-1])

    # ---- training

    def losses(self, batch: Batch) -> Losses:
        """{"loss": wake + top + sleep, and each of them}, nats, means over the batch.

        batch: (batch, num_visible), or {"x", "label"} where the top layer has label units. The top's part is a
        difference of free energies and its value, unlike its gradient, means little.
        """
        x, label = (batch, None) if isinstance(batch, Tensor) else (batch["x"], batch["label"])
        hidden = self.infer(x)
        wake = self.wake(x, hidden)
        if isinstance(self.top, LabeledRBM):
            assert label is not None
            joint = self.top.joint
            data = self.top.join(hidden[-1], label)
        else:
            joint, data = self.top, hidden[-1]
        model = data
        for _ in range(self.gibbs_steps):
            model = joint.sample_visible(joint.sample_hidden(model))
        top = joint.free_energy_difference(data, model)
        sleep = self.sleep(self._dream(model[:, : hidden[-1].shape[1]], like=x))
        loss = wake + top + sleep
        return {"loss": loss, "wake": wake.detach(), "top": top.detach(), "sleep": sleep.detach()}

    def wake(self, x: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """−Σ_k log p(h_{k−1} | h_k), the mean over the batch; hidden: h_1 … h_{L−1}."""
        total = x.new_zeros(len(x))
        for layer, below, above in zip(self.directed_layers, [x, *hidden], hidden, strict=False):
            total = total - layer.visible_units.log_prob(below, layer.visible_field(above))
        return total.mean()

    def sleep(self, dream: Sequence[Tensor]) -> Tensor:
        """−Σ_k log q(h_k | h_{k−1}), the mean over the dreams; dream: v, h_1 … h_{L−1}."""
        total = dream[0].new_zeros(len(dream[0]))
        for layer, below, above in zip(self.directed_layers, dream, dream[1:], strict=False):
            total = total - layer.hidden_units.log_prob(above, layer.hidden_field(below))
        return total.mean()

    @torch.no_grad()
    def _dream(self, highest: Tensor, *, like: Tensor) -> list[Tensor]:
        """v, h_1 … h_{L−1}: draws, downwards from the units under the top layer; v of as many words as `like`."""
        lowest, *others = self.directed_layers
        dream = [highest]
        for layer in reversed(others):
            dream.insert(0, layer.visible_units.sample(layer.visible_field(dream[0])))
        v = lowest.visible_units.sample(lowest.visible_field(dream[0]), lowest.visible_units.replicas(like))
        return [v, *dream]

    def after_step(self) -> None:
        """Keeps a learned variance in its range."""
        if isinstance(lowest := self._rbms[0].visible_units, Gaussian):
            lowest.keep_in_range()

    @torch.no_grad()
    def randomize(self) -> None:
        """Makes the untrained twin in place, see `Stack.randomize`; recognition starts at the generative weights."""
        self.stack.randomize()
        for rbm, weights in zip(self._rbms, self.recognition, strict=True):
            weights.copy_(rbm.weights)

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        """Two tiny RBMs, and two binary samples."""
        stack, batch = Stack.example()
        return cls(stack=stack), batch
