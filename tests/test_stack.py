"""What a stack does to codes, widths, weights and filters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Layer
from lightning_modules.stack import Stack


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Affine(nn.Module, Layer):
    """A layer without stochastic units and without filters of its own: h = W v, v̂ = Wᵀ h + 1."""

    def __init__(self, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.weights = nn.Parameter(torch.randn(num_hidden, num_visible))

    def encode(self, v: Tensor) -> Tensor:
        return v @ self.weights.t()

    def decode(self, h: Tensor) -> Tensor:
        return h @ self.weights + 1


def rbm(num_visible: int, num_hidden: int) -> RBM:
    return RBM(num_visible=num_visible, num_hidden=num_hidden, weight_std=1.0)


def test_codes_go_through_all_layers_and_back() -> None:
    first, second, third = rbm(6, 5), Affine(5, 4), Affine(4, 3)
    stack = Stack(layers=[first, second, third])
    v, h = torch.rand(2, 6), torch.rand(2, 3)
    torch.testing.assert_close(stack.encode(v), third.encode(second.encode(first.encode(v))))
    torch.testing.assert_close(stack.decode(h), first.decode(second.decode(third.decode(h))))
    assert (stack.num_visible, stack.num_hidden, len(stack)) == (6, 3, 3)
    assert list(stack) == [first, second, third] and stack[-1] is third


def test_ranges_are_those_of_the_outer_layers() -> None:
    gaussian = RBM(num_visible=6, num_hidden=4, visible="gaussian")
    stack = Stack(layers=[gaussian, rbm(4, 3)])
    assert stack.visible_range is None and stack.hidden_range == (0, 1)
    assert Stack(layers=[rbm(6, 4), Affine(4, 3)]).hidden_range is None


def test_layers_that_do_not_fit_are_refused() -> None:
    message = "layer 2 expects 600 visible units but layer 1 below it has 500 hidden units"
    with pytest.raises(ValueError, match=message):
        Stack(layers=[rbm(784, 500), rbm(600, 100)])
    with pytest.raises(ValueError, match="layer 3 expects 5 visible units but layer 2 below it has 3 hidden units"):
        Stack(layers=[rbm(6, 4), rbm(4, 3), rbm(5, 2)])
    with pytest.raises(ValueError, match="at least one layer"):
        Stack(layers=[])


def test_means_are_handed_up_without_noise_or_gradient() -> None:
    stack = Stack(layers=[rbm(6, 5), Affine(5, 4)])
    v = torch.rand(3, 6)
    handed = stack.hand_up(v, sample=False)
    assert torch.equal(handed, stack.encode(v)) and not handed.requires_grad


def test_samples_are_drawn_in_every_layer() -> None:
    """The second layer copies its input's binary state, but would round its mean.

    Five means at 4.5 s.e. of 20,000 draws: false alarm 3 in 100,000 runs.
    """
    first, copy = rbm(6, 5), rbm(5, 5)
    with torch.no_grad():
        copy.weights.copy_(200 * torch.eye(5))
        copy.hidden_bias.fill_(-100.0)
    stack = Stack(layers=[first, copy])
    v = torch.rand(1, 6)
    mean = first.encode(v)[0].detach()
    handed = stack.hand_up(v.expand(20_000, -1), sample=True)
    assert set(handed.unique().tolist()) == {0.0, 1.0}
    assert ((handed.mean(0) - mean).abs() < 4.5 * (mean * (1 - mean) / 20_000).sqrt()).all()
    assert (stack.encode(v)[0] - mean).abs().max() > 0.1


def test_samples_of_a_layer_without_stochastic_units_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 2 \(Affine\) has no stochastic hidden units"):
        Stack(layers=[rbm(6, 5), Affine(5, 4)]).hand_up(torch.rand(2, 6), sample=True)


def test_twin_has_glorot_weights_and_no_biases() -> None:
    """The largest of 4,800 uniform draws is below 0.99 of the limit once in 10²¹ runs."""
    layer = rbm(80, 60)
    with torch.no_grad():
        layer.hidden_bias.normal_()
    stack = Stack(layers=[layer, Affine(60, 5)])
    stack.randomize()
    limit = 4 * math.sqrt(6 / (80 + 60))  # sigmoid codes
    assert 0.99 * limit < layer.weights.abs().max() <= limit
    assert abs(layer.weights.std().item() - limit / math.sqrt(3)) < 0.05 * limit
    assert layer.hidden_bias.count_nonzero() == layer.visible_bias.count_nonzero() == 0
    assert stack[1].weights.abs().max() <= 4 * math.sqrt(6 / 65)  # type: ignore[attr-defined]
    assert all(parameter.requires_grad for parameter in stack.parameters())


def test_twin_of_a_net_on_a_learned_variance_reads_the_data_on_their_scale() -> None:
    layer = RBM(num_visible=3, num_hidden=2, visible="learned_gaussian")
    layer.start_from_data(torch.tensor([[10.0, 1.0, -3.0], [14.0, 1.2, 3.0]]))
    kept = {name: value.clone() for name, value in layer.visible_units.state_dict().items()}
    Stack(layers=[layer]).randomize()
    assert layer.weights.count_nonzero() == 6
    torch.testing.assert_close(layer.visible_units.state_dict(), kept)
    torch.testing.assert_close(kept["log_std"].exp(), torch.tensor([2.0, 0.1, 3.0]))


def test_filters_are_projected_down_to_the_data() -> None:
    first, second, third = rbm(6, 5), rbm(5, 4), rbm(4, 2)
    filters = Stack(layers=[first, second, third]).filters()
    assert [tuple(f.shape) for f in filters] == [(5, 6), (4, 6), (2, 6)]
    assert torch.equal(filters[0], first.weights.t())
    torch.testing.assert_close(filters[2], (first.weights @ second.weights @ third.weights).t())


def test_filters_of_other_layers_are_their_decoders_answers() -> None:
    first, second = Affine(6, 5), rbm(5, 4)
    filters = Stack(layers=[first, second]).filters()
    torch.testing.assert_close(filters[0], first.weights)
    torch.testing.assert_close(filters[1], second.weights.t() @ first.weights)
