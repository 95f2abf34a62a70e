"""Deep autoencoders: how they start, what they compute, and their gradients, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_modules.autoencoders import Autoencoder
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Layer
from lightning_modules.stack import Stack
from lightning_modules.unrolled import DeepAutoencoder


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomized(*layers: Layer) -> Stack:
    stack = Stack(layers=layers).double()
    for parameter in stack.parameters():
        nn.init.normal_(parameter)
    return stack


def rbms(visible: str = "bernoulli") -> Stack:
    return randomized(
        RBM(num_visible=6, num_hidden=5, visible=visible),
        RBM(num_visible=5, num_hidden=4),
        RBM(num_visible=4, num_hidden=2),
    )


def rectified(loss: str = "squared_error") -> Stack:
    return randomized(
        Autoencoder(num_visible=6, num_hidden=5, activation="relu", loss=loss),  # type: ignore[arg-type]
        Autoencoder(num_visible=5, num_hidden=4, activation="relu", loss="squared_error"),
        Autoencoder(num_visible=4, num_hidden=2, activation="linear", loss="squared_error"),
    )


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_unrolled_rbms_start_as_their_stack(visible: str) -> None:
    stack, v = rbms(visible), torch.rand(3, 6).double()
    net = DeepAutoencoder(stack=stack, loss="squared_error")
    for layer, weights in zip(stack, net.decoder_weights, strict=True):
        assert isinstance(layer, RBM)
        assert torch.equal(weights, layer.weights.t())
        assert weights.data_ptr() != layer.weights.data_ptr() and weights.is_contiguous()
    torch.testing.assert_close(net.encode(v), stack.encode(v))
    torch.testing.assert_close(net.decode(stack.encode(v)), stack.decode(stack.encode(v)))
    assert net.visible_range == stack.visible_range and net.hidden_range == stack.hidden_range


def test_weights_are_untied_after_the_start() -> None:
    net = DeepAutoencoder(stack=rbms())
    net.losses(torch.rand(3, 6).double())["loss"].backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    for layer, weights in zip(net.stack, net.decoder_weights, strict=True):
        assert isinstance(layer, RBM)
        assert not torch.allclose(weights, layer.weights.t())


def test_the_decoder_mirrors_the_nonlinearities_of_the_codes() -> None:
    """relu, relu, linear upwards; relu, relu and the data's own sigmoid downwards, written out in numpy."""
    net = DeepAutoencoder(stack=rectified("cross_entropy"))
    v = torch.rand(4, 6).double()
    weights, hidden, visible = (
        [layer.get_parameter(name).detach().numpy() for layer in net.stack.layers]
        for name in ("weights", "hidden_bias", "visible_bias")
    )
    h = v.numpy()
    for k, rectify in enumerate((True, True, False)):
        h = h @ weights[k] + hidden[k]
        h = np.maximum(h, 0) if rectify else h
    np.testing.assert_allclose(net.encode(v).detach(), h)
    for k in (2, 1, 0):
        h = h @ weights[k].T + visible[k]
        h = np.maximum(h, 0) if k else 1 / (1 + np.exp(-h))
    np.testing.assert_allclose(net.decode(net.encode(v)).detach(), h)
    squared = ((v.numpy() - h) ** 2).sum(1).mean()
    cross_entropy = -(v.numpy() * np.log(h) + (1 - v.numpy()) * np.log(1 - h)).sum(1).mean()
    losses = net.losses(v)
    assert losses["loss"].item() == pytest.approx(cross_entropy)
    assert losses["reconstruction_error"].item() == pytest.approx(squared)
    halves = DeepAutoencoder(stack=net.stack, loss="squared_error").losses(v)
    assert halves["loss"].item() == pytest.approx(squared / 2)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("stack", [rbms, lambda: rectified("cross_entropy")])
def test_gradients_are_those_of_differences(loss: str, stack: object) -> None:
    """Central differences of every parameter."""
    net = DeepAutoencoder(stack=stack(), loss=loss)  # type: ignore[operator, arg-type]
    v = torch.rand(2, 6).double()
    parameters = dict(net.named_parameters())

    def value(*values: Tensor) -> Tensor:
        found = torch.func.functional_call(net, dict(zip(parameters, values, strict=True)), ("losses", v))
        return found

    net.forward = lambda name, batch: getattr(net, name)(batch)["loss"]  # type: ignore[method-assign]
    assert torch.autograd.gradcheck(value, tuple(parameters.values()))
    gradients = torch.autograd.grad(net.losses(v)["loss"], list(parameters.values()))
    assert len(parameters) == 3 * 4 and all(found.count_nonzero() for found in gradients)


def test_squares_of_data_without_bounds_have_a_linear_output() -> None:
    net = DeepAutoencoder(stack=rectified(), loss="squared_error")
    assert net.visible_range is None and net.decode(100 * torch.randn(50, 2).double()).abs().max() > 1
    with pytest.raises(ValueError, match="cross_entropy needs a lowest layer of binary data; choose loss: squared_err"):
        DeepAutoencoder(stack=rectified())


def test_gaussian_hidden_units_make_a_linear_code() -> None:
    stack = randomized(
        RBM(num_visible=6, num_hidden=4),
        RBM(num_visible=4, num_hidden=2, hidden="gaussian"),
    )
    net, v = DeepAutoencoder(stack=stack), torch.rand(3, 6).double()
    top = stack.layers[1]
    code = stack[0].encode(v) @ top.get_parameter("weights") + top.get_parameter("hidden_bias")
    torch.testing.assert_close(net.encode(v), code)
    torch.testing.assert_close(net.decode(code), stack.decode(code))
    assert net.hidden_range is None


def test_its_twin_starts_tied_again() -> None:
    net = DeepAutoencoder(stack=rectified("cross_entropy"))
    nn.init.normal_(net.decoder_weights[1])
    Stack(layers=[net]).randomize()
    second = net.stack.layers[1].get_parameter("weights")
    assert torch.equal(net.decoder_weights[1], second.t())
    assert second.abs().max() <= (2 * 6 / 9) ** 0.5  # Glorot's limit under rectified codes


def test_a_random_start_forgets_the_stack_and_is_tied() -> None:
    torch.manual_seed(3)
    net = DeepAutoencoder(stack=rectified("cross_entropy"), start="random")
    torch.manual_seed(3)
    twin = DeepAutoencoder(stack=rectified("cross_entropy"))
    twin.randomize()
    found, expected = net.state_dict(), twin.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_cannot_be_unrolled() -> None:
    net = DeepAutoencoder(stack=rbms())
    with pytest.raises(ValueError, match="unrolls RBMs and tied autoencoders, but layer 1 is DeepAutoencoder"):
        DeepAutoencoder(stack=Stack(layers=[net]))
    untied = Autoencoder(num_visible=6, num_hidden=4, tied=False)
    with pytest.raises(ValueError, match="but layer 1 is untied Autoencoder"):
        DeepAutoencoder(stack=Stack(layers=[untied]))
