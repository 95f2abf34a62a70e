"""A classifier on top of a stack: the few labels' part of the pipeline (Hinton, Osindero & Teh 2006, §5; Bengio et al.
2007, §2). All layers go on learning, by back-propagation, from where unsupervised training left them.

What is NOT here: which labels are revealed and the supervised twin (`finetuning.py`; its stack is `Stack.randomize`).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.interfaces import Batch, Classifies, Losses
from lightning_modules.stack import OverStack, Stack


class Classifier(OverStack, Classifies):
    """p(label | x) = softmax(W code(x) + b), the code being the stack's; the loss is − log p(label | x) in nats.

    Batches are {"x": (batch, num_visible), "label": (batch,) integers below num_classes}. Arguments: `dropout` in
    [0, 1) is the share of every layer's outputs set to 0 while training, the rest scaled up to the same mean
    (Srivastava et al. 2014); `input_noise` ≥ 0 the standard deviation of Gaussian noise added to x while training, in
    units of the data. Only `losses` in training mode is noisy: `encode` and `logits` never are.
    W and b start at zero: the loss starts at log num_classes, and the first step moves them alone and leaves the
    pretrained layers as they are. Parameters of the stack that only its decoder uses get no gradient.
    """

    def __init__(self, *, stack: Stack, num_classes: int, dropout: float = 0.0, input_noise: float = 0.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        if input_noise < 0:
            raise ValueError(f"input_noise must be 0 or more, not {input_noise}")
        self.stack, self.num_classes = stack, num_classes
        self.dropout, self.input_noise = dropout, input_noise
        self.num_visible, self.num_hidden = stack.num_visible, stack.num_hidden
        self.output = nn.Linear(stack.num_hidden, num_classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def losses(self, batch: Batch) -> Losses:
        """{"loss": cross-entropy in nats, "error": share of wrong labels}, means over the batch."""
        assert not isinstance(batch, Tensor)
        x, label = batch["x"], batch["label"]
        logits = self.output(self._noisy_code(x)) if self.training else self.logits(x)
        return {
            "loss": F.cross_entropy(logits, label),
            "error": (logits.argmax(1) != label).to(logits.dtype).mean(),
        }

    def logits(self, x: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_classes): log p(label | x) up to a constant per example, no noise."""
        return self.output(self.encode(x))

    @classmethod
    def example(cls) -> tuple[Self, Batch]:
        stack, x = Stack.example()
        return cls(stack=stack, num_classes=3), {"x": x, "label": torch.tensor([2, 0])}

    def _noisy_code(self, x: Tensor) -> Tensor:
        if self.input_noise:
            x = x + self.input_noise * torch.randn_like(x)
        for layer in self.stack:
            x = F.dropout(layer.encode(x), self.dropout)
        return x
