"""What there is to see of dictionaries: by hand on tiny ones, on planted Gabor functions, and drawn.

Seeds are fixed; the atoms of noise cannot fit by chance, see test_gabor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import lightning_modules as registry
from conf.protocol import Result
from flows import dictionary_figures, report_dictionaries
from flows import figures as drawing
from flows.results import Run, Stage
from lightning_modules import dictionaries, gabor
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.boltzmann import RBM
from lightning_modules.interfaces import Dictionary, HasDictionary, Layer
from lightning_modules.lasso import solve
from lightning_modules.psd import PSD
from lightning_modules.stack import Stack
from lightning_modules.whitening import Standardize, Whitening
from tests.sparse_data import planted

SIDE = 12


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def half_gabors() -> PSD:
    """Six atoms that are Gabor functions, six that are noise."""
    random = np.random.default_rng(0)
    waves = [
        gabor.picture(gabor.Gabor(*random.uniform(4, 7, 2), angle, 1.5, 2.5, 0.2, 1.0, 0.5, 1.0), SIDE, SIDE)
        for angle in np.linspace(0, 2.5, 6)
    ]
    model = PSD(num_visible=SIDE * SIDE, num_hidden=12, penalty=0.1)
    with torch.no_grad():
        atoms = torch.cat([torch.from_numpy(np.stack(waves)).float().flatten(1), torch.randn(6, SIDE * SIDE)])
        model.dictionary.copy_(F.normalize(atoms))
        model.weights.copy_(model.dictionary.t())
    return model


def test_planted_gabors_are_counted_and_atoms_sorted_by_use() -> None:
    model = half_gabors()
    strength = torch.arange(1.0, 13)
    x = torch.randn(500, 12) * strength @ model.dictionary.detach()
    seen = dictionaries.seen(Stack(layers=[model]), x, (SIDE, SIDE))
    assert seen.metrics == {"gabor_share": 0.5}
    assert (seen.numbers["use"].diff() <= 0).all()
    order = model.encode(x).abs().mean(0).argsort(descending=True)
    torch.testing.assert_close(seen.pictures["atoms"], model.dictionary.detach()[order])
    assert torch.equal(seen.numbers["r_squared"] > gabor.FITS, order < 6)
    assert "gabor_share" not in dictionaries.seen(Stack(layers=[model]), x, None).metrics


def test_what_has_no_dictionary_shows_none() -> None:
    nothing = dictionaries.Seen()
    assert dictionaries.seen(Stack(layers=[RBM(num_visible=4, num_hidden=2)]), torch.rand(3, 4), None) == nothing
    assert dictionaries.seen(RBM(num_visible=4, num_hidden=2), torch.rand(3, 4), None) == nothing


def test_atoms_look_the_same_through_either_whitening() -> None:
    """PCA's codes are ZCA's in turned axes; through rescaling atoms stay; through a linear decoder they are decoded."""
    data = torch.randn(200, 6) @ torch.randn(6, 6)
    zca, pca = Whitening(num_visible=6, method="zca"), Whitening(num_visible=6)
    for layer in (zca, pca):
        layer.update(data)
        layer.finish()
    above = PSD(num_visible=6, num_hidden=5)
    atoms = above.dictionary.detach().clone()
    torch.testing.assert_close(dictionaries.pictured(Stack(layers=[Standardize(num_visible=6), zca, above])), atoms)
    turned = (pca.encode(data) @ F.normalize(pca.decoder).float() - zca.encode(data)).abs().max()
    assert turned < 1e-4
    with torch.no_grad():
        above.dictionary.copy_(atoms @ F.normalize(pca.decoder).float().t())
    torch.testing.assert_close(dictionaries.pictured(Stack(layers=[pca, above])), atoms)
    linear = Autoencoder(num_visible=4, num_hidden=6, activation="linear", loss="squared_error")
    with torch.no_grad():
        linear.visible_bias.fill_(3.0)
        found = dictionaries.pictured(Stack(layers=[linear, above]))
        torch.testing.assert_close(found, above.dictionary @ linear.weights.t())


def test_along_the_path_error_falls_as_coefficients_come() -> None:
    v, atoms = planted(200, 16, 32)
    v = v + 2.0
    dictionary = Dictionary(atoms, torch.full((16,), 2.0), 0.2)
    best = solve(v - 2.0, atoms, 0.2, tolerance=1e-6).codes
    found = dictionaries.sparsity(dictionary, v, best)
    torch.testing.assert_close(found["path_penalties"], 0.2 * torch.tensor(dictionaries.PATH))
    assert (found["path_nonzeros"].diff() >= 0).all() and (found["path_errors"].diff() < 0.01).all()
    assert found["path_errors"][0] > 0.9 and found["path_errors"][-1] < 0.01
    own = dictionaries.PATH.index(1.0)
    assert float(found["own_errors"]) == pytest.approx(float(found["path_errors"][own]), rel=0.02)
    assert float(found["own_nonzeros"]) == pytest.approx(float(found["path_nonzeros"][own]), rel=0.02)
    expected = (v - 2.0 - best @ atoms).square().sum() / (v - 2.0).square().sum()
    assert float(found["own_errors"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["psd", "lista", "sparse_coding"])
def test_a_decoded_code_is_the_offset_and_its_atoms(kind: str) -> None:
    """Of every kind whose codes are coefficients; example() alone."""
    model, v = registry.MODELS[kind].example()
    assert isinstance(model, HasDictionary) and isinstance(model, Layer) and isinstance(v, torch.Tensor)
    dictionary, h = model.dictionary_of_codes(), model.encode(v)
    torch.testing.assert_close(model.decode(h), dictionary.offset + h @ dictionary.atoms)
    torch.testing.assert_close(dictionary.atoms.norm(dim=1), torch.ones(model.num_hidden))
    assert dictionary.penalty > 0


def test_histograms_by_hand() -> None:
    found = dictionaries.histograms(torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 2.0]]))
    assert float(found["zeros"]) == 0.5 and found["nonzeros"].tolist() == [2, 1]
    counts = found["counts"].tolist()
    assert sum(counts) == 3 and (counts[0], counts[-1], counts[30]) == (1, 1, 1)
    assert dictionaries.histograms(torch.zeros(4, 3))["counts"].sum() == 0


def test_a_dictionary_in_the_report_and_among_the_files(tmp_path: Path) -> None:
    model = half_gabors()
    seen = dictionaries.seen(Stack(layers=[model]), torch.randn(60, SIDE * SIDE), (SIDE, SIDE))
    (tmp_path / "figures").mkdir()
    contents = {"dictionary": seen.pictures | seen.numbers, "codes": seen.codes, "sparsity": seen.sparsity}
    for name, arrays in contents.items():
        values = {key: value.reshape(-1, SIDE, SIDE) if key == "atoms" else value for key, value in arrays.items()}
        np.savez(tmp_path / "figures" / f"{name}.npz", **{key: value.numpy() for key, value in values.items()})  # type: ignore[arg-type]
    row = {"name": "evaluate-codes", "evaluates": "codes", "flow": "evaluate", "kind": "psd<b>"}
    result = Result(stage="codes", key="k", do="evaluate", kind="psd", digest="d",
                    metrics={"test/energy_ratio": 1.0456}, details={"set": "test"}, seconds=1)  # fmt: skip
    run = Run({}, [Stage(row, tmp_path, result)])
    page, codes = report_dictionaries.dictionaries(run), report_dictionaries.codes(run)
    assert "6 of 12 atoms, 50%, fit: R² > 0.7" in page and "12 atoms, the most used first" in page
    assert page.count("<img") == 1 and page.count("<svg") == 2 and "psd<b>" not in page
    assert "energy 1.05 times the optimum" in codes and codes.count("<svg") == 3
    assert dictionary_figures.FITS == gabor.FITS

    (tmp_path / "drawn").mkdir()
    names = [path.name for path in drawing.write(tmp_path / "figures", tmp_path / "drawn")]
    expected = {"dictionary.png", "gabor_fits.svg", "use_of_atoms.svg", "coefficients.svg", "nonzeros.svg"}
    assert set(names) == expected | {"sparsity.svg"}


def test_a_run_without_dictionaries_has_no_such_sections(tmp_path: Path) -> None:
    run = Run({}, [Stage({"name": "e", "evaluates": "rbm", "flow": "evaluate", "kind": "rbm"}, tmp_path, None)])
    assert report_dictionaries.dictionaries(run) == report_dictionaries.codes(run) == ""
