"""Semantic hashing: its gradients, its bits on real digits, documents through their weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.autoencoders import Autoencoder
from lightning_modules.boltzmann import RBM
from lightning_modules.convolutional import ConvAutoencoder
from lightning_modules.ranking import Ranking
from lightning_modules.semantic_hashing import SemanticHashing
from lightning_modules.stack import Stack
from lightning_modules.tfidf import TfIdf
from lightning_modules.whitening import PCA
from tests.trained_on_digits import small_digits, trained


def tiny(dtype: torch.dtype = torch.float64, **arguments: object) -> tuple[SemanticHashing, Tensor]:
    torch.manual_seed(1)
    layers = [Autoencoder(num_visible=6, num_hidden=5), Autoencoder(num_visible=5, num_hidden=4)]
    model = SemanticHashing(stack=Stack(layers=layers), **arguments).to(dtype)  # type: ignore[arg-type]
    return model, torch.rand(8, 6, dtype=dtype)


def test_gradients_under_noise_on_the_code_are_those_of_differences() -> None:
    """Every parameter of a smooth code; the noise is the same at both ends."""
    model, x = tiny(code_noise=0.7)

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model.losses(x)["loss"]

    loss().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        flat, step = parameter.data.view(-1), 1e-6
        for place in range(0, len(flat), 3):
            before = flat[place].item()
            ends = []
            for side in (1, -1):
                flat[place] = before + side * step
                ends.append(loss().item())
            flat[place] = before
            difference = (ends[0] - ends[1]) / (2 * step)
            assert parameter.grad.view(-1)[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-7), name


def test_straight_through_gives_fields_the_gradient_of_the_probabilities() -> None:
    """dL/dz = dL/db σ'(z − μ) by hand, μ the batch's mean; the loss itself is that of the bits."""
    model, x = tiny()
    first, top = model.net.stack
    assert isinstance(top, Autoencoder)
    z = top.hidden_field(first.encode(x)).detach().requires_grad_()
    q = torch.sigmoid(z - z.mean(0))
    b = (q > 0.5).double().detach().requires_grad_()
    loss = F.binary_cross_entropy_with_logits(model.net.output_field(b), x, reduction="none").sum(1).mean()
    loss.backward()
    assert b.grad is not None
    q.backward(b.grad)
    assert z.grad is not None
    found = model.losses(x)
    found["loss"].backward()
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    assert top.hidden_bias.grad is not None
    torch.testing.assert_close(top.hidden_bias.grad, z.grad.sum(0), rtol=1e-9, atol=1e-12)
    assert top.weights.grad is not None
    torch.testing.assert_close(top.weights.grad, first.encode(x).detach().T @ z.grad, rtol=1e-9, atol=1e-12)


def test_it_begins_as_the_stack_and_keeps_it() -> None:
    torch.manual_seed(0)
    stack = Stack(layers=[RBM(num_visible=6, num_hidden=5), RBM(num_visible=5, num_hidden=4)])
    x = (torch.rand(20, 6) < 0.5).float()
    code = stack.encode(x)
    model = SemanticHashing(stack=stack).eval()
    torch.testing.assert_close(model.encode(x), code)
    assert torch.equal(model.bits(x), code > 0.5)
    assert torch.equal(model.decode(code), model.net.decode(code))
    assert model.stack[0] is stack[0] and model.stack.num_visible == 6
    twin = SemanticHashing(stack=Stack(layers=list(stack)), start="random")
    assert not twin.net.stack[0].weights.equal(torch.zeros(6, 5))  # type: ignore[attr-defined]
    assert twin.net.stack[0].weights.abs().max() <= 6**-0.5  # type: ignore[attr-defined]


def test_bits_of_digits_are_balanced_and_find_the_class() -> None:
    """One seed: bits on for shares in [0.2, 0.8], and more of the class among the nearest than by signs of PCA."""
    from sklearn.datasets import load_digits

    x, held_out = small_digits()
    torch.manual_seed(0)
    layers = [
        Autoencoder(num_visible=64, num_hidden=100, activation="relu"),
        Autoencoder(num_visible=100, num_hidden=32),
    ]
    model = trained(SemanticHashing(stack=Stack(layers=layers), start="random", code_noise=1.0), x, epochs=15)
    pca = PCA(num_visible=64, num_hidden=32)
    pca.update(x)
    pca.finish()
    labels = torch.from_numpy(load_digits().target)
    test = torch.arange(len(labels)) % 5 == 0
    found = {}
    for name, bits in (("hash", model.bits), ("pca", lambda v: pca.encode(v) > 0)):
        distances = (bits(held_out)[:, None] != bits(x)).sum(2)
        ranking = Ranking.by_bits(distances, labels[test][:, None] == labels[~test], 32)
        found[name] = ranking.precision_at(10).mean().item()
    on = model.bits(held_out).double().mean(0)
    assert model.bits(held_out).dtype == torch.bool and on.min() >= 0.2 and on.max() <= 0.8
    assert found["hash"] > found["pca"] + 0.05


def test_documents_come_back_as_shares_of_words() -> None:
    """The loss of one document by hand: its weights against the log of a softmax."""
    torch.manual_seed(0)
    weights = TfIdf(num_visible=6)
    x = torch.tensor([[3.0, 0, 1, 0, 0, 0], [0, 2, 0, 0, 1, 0], [0, 0, 0, 4, 0, 1]])
    weights.update(x)
    weights.finish()
    layers = [weights, Autoencoder(num_visible=6, num_hidden=3, loss="squared_error")]
    model = SemanticHashing(stack=Stack(layers=layers), loss="softmax").eval()  # type: ignore[arg-type]
    shares = model.decode(model.bits(x).float())
    torch.testing.assert_close(shares.sum(1), torch.ones(3))
    expected = -(weights.encode(x) * shares.log()).sum(1).mean()
    assert model.losses(x)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.reads_counts and not list(weights.parameters())


def test_weights_of_words_are_scikit_learns() -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    x = torch.poisson(torch.full((40, 12), 0.4), generator=torch.Generator().manual_seed(0))
    x[3] = 0
    weights = TfIdf(num_visible=12)
    for part in x.split(11):
        weights.update(part)
    weights.finish()
    expected = TfidfTransformer().fit(x.numpy())
    torch.testing.assert_close(weights.idf, torch.from_numpy(expected.idf_).float())
    again = torch.from_numpy(TfidfTransformer().fit(x.numpy()).transform(x.log1p().numpy()).toarray()).float()
    torch.testing.assert_close(weights.encode(x), again * 12**0.5)
    assert weights.encode(x)[3].abs().max() == 0
    shares = weights.decode(weights.encode(x))
    assert torch.equal(shares > 0, x > 0)
    torch.testing.assert_close(shares.sum(1), (x.sum(1) > 0).float())


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([PCA(num_visible=6, num_hidden=3)], "no layer to learn"),
        ([Autoencoder(num_visible=6, num_hidden=4, tied=False)], "untied"),
        ([ConvAutoencoder.example()[0]], "unrolls RBMs and tied autoencoders"),
    ],
)
def test_stacks_it_cannot_be_made_of(layers: list[object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SemanticHashing(stack=Stack(layers=layers))  # type: ignore[arg-type]
