"""Iterative quantization: an error that never grows, a rotation that is one, and who is kept to find it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_modules.itq import ITQ, quantization_error
from lightning_modules.whitening import PCA
from tests.trained_on_digits import small_digits


def fitted(x: Tensor, parts: int = 1, **arguments: int) -> tuple[ITQ, dict[str, float]]:
    model = ITQ(num_visible=x.shape[1], num_hidden=16, **arguments)
    for part in x.chunk(parts):
        model.update(part)
    return model, model.finish()


def test_every_iteration_lowers_the_quantization_error() -> None:
    x, _ = small_digits()
    model, facts = fitted(x, iterations=20)
    components = model.pca.encode(x).double()
    errors = [quantization_error(components @ rotation) for rotation in model.rotations(components)]
    assert len(errors) == 21 and all(after <= before + 1e-12 for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.99 * errors[0]
    assert facts["quantization_error"] == pytest.approx(errors[-1], rel=1e-4)


def test_the_rotation_is_orthogonal_and_the_way_back_that_of_principal_components() -> None:
    x, held_out = small_digits()
    model, _ = fitted(x)
    identity = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(model.rotation.T @ model.rotation, identity, rtol=0, atol=1e-12)
    pca = PCA(num_visible=64, num_hidden=16)
    pca.update(x)
    pca.finish()
    torch.testing.assert_close(model.decode(model.encode(held_out)), pca.decode(pca.encode(held_out)))


def test_the_samples_kept_do_not_depend_on_their_order() -> None:
    x, _ = small_digits()
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    one, other = fitted(x, num_kept=300)[0], fitted(shuffled, parts=7, num_kept=300)[0]
    torch.testing.assert_close(one.rotation, other.rotation, rtol=0, atol=1e-6)
    assert not torch.allclose(one.rotation, fitted(x)[0].rotation, atol=1e-3)  # those kept have a say


def test_without_iterations_it_is_a_random_rotation() -> None:
    x, held_out = small_digits()
    model, facts = fitted(x, iterations=0)
    assert facts["quantization_error"] == facts["quantization_error_at_start"]
    again, _ = fitted(x[:700], iterations=0)
    assert torch.equal(model.rotation, again.rotation)
    assert (model.encode(held_out) > 0).equal(model.bits(held_out))


@pytest.mark.parametrize("arguments", [{"iterations": -1}, {"num_kept": 0}])
def test_arguments_out_of_range(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ITQ(num_visible=4, num_hidden=2, **arguments)
