"""Centered gradients: learning as if means were subtracted from all units (Montavon & Müller 2012, in "Neural Networks:
Tricks of the Trade"; Cho, Raiko & Ilin 2011, ICML, the enhanced gradient; Melchior, Fischer & Wiskott 2016, JMLR 17).

With offsets μ of the visible and λ of the hidden statistics, the same machine can be written

    E(v, h) = −(T(v) − μ)ᵀ W (T(h) − λ) − b'·T(v) − c'·T(h),      b = b' − Wλ,      c = c' − Wᵀμ

A step down the gradient of (W, b', c') is, in the parameters (W, b, c), a step along

    ΔW = ∇W − μ ∇cᵀ − ∇b λᵀ,        Δb = ∇b − ΔW λ,        Δc = ∇c − ΔWᵀ μ

so that the offsets may move at any time and the machine is stored as any other. Offsets of zero leave the gradient as
it is. Those halfway between the means of data and model make ΔW the difference of two covariances: the enhanced
gradient. Here they are moving averages over the data, which do not move with the noise of the chains (ibid., §5).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_modules.bipartite import Bipartite

RATE = 0.01  # the weight of a batch in the moving averages (Melchior, Fischer & Wiskott 2016)


class Centering(nn.Module):
    """Offsets that follow the data. On several ranks they are averaged, see `interfaces.MovingAverages`."""

    visible_offset: Tensor
    hidden_offset: Tensor

    def __init__(self, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        self.register_buffer("visible_offset", torch.zeros(num_visible))
        self.register_buffer("hidden_offset", torch.zeros(num_hidden))

    @torch.no_grad()
    def start(self, machine: Bipartite, mean: Tensor) -> None:
        """At the data's mean, (num_visible,), and at the hidden means given it."""
        self.visible_offset.copy_(machine.visible_units.statistic(mean))
        self.hidden_offset.copy_(machine.hidden_units.statistic(machine.hidden_mean(mean[None]))[0])

    @torch.no_grad()
    def move(self, visible: Tensor, hidden: Tensor) -> None:
        """Towards the mean statistics of a batch, (batch, num_visible) and (batch, num_hidden)."""
        self.visible_offset.lerp_(visible.mean(0).to(self.visible_offset), RATE)
        self.hidden_offset.lerp_(hidden.mean(0).to(self.hidden_offset), RATE)

    def forward(self, weights: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W, b and c as they are; what comes back through them is (ΔW, Δb, Δc) instead of the gradient."""
        # The offsets move before the way back: it must see those of now.
        offsets = self.visible_offset.clone(), self.hidden_offset.clone()
        centered: tuple[Tensor, Tensor, Tensor] = _Centered.apply(weights, visible_bias, hidden_bias, *offsets)
        return centered


class _Centered(torch.autograd.Function):
    """The identity, with the direction of the module's docstring on the way back."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        weights: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        visible_offset: Tensor,
        hidden_offset: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(visible_offset, hidden_offset)
        return weights.view_as(weights), visible_bias.view_as(visible_bias), hidden_bias.view_as(hidden_bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: Any, weights: Tensor, visible_bias: Tensor, hidden_bias: Tensor
    ) -> tuple[Tensor | None, ...]:
        visible_offset, hidden_offset = ctx.saved_tensors
        weights = torch.addr(weights, visible_offset, hidden_bias, alpha=-1).addr_(
            visible_bias, hidden_offset, alpha=-1
        )
        return (
            weights,
            torch.addmv(visible_bias, weights, hidden_offset, alpha=-1),
            torch.addmv(hidden_bias, weights.t(), visible_offset, alpha=-1),
            None,
            None,
        )
