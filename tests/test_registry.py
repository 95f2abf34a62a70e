"""Specs and model directories: what is refused, in which words, and what a directory promises. Deterministic."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_modules as models
from conf.errors import Damaged, InputError
from data import durable
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.interfaces import ComposedModel, Fitted
from lightning_modules.stack import Stack

AUTOENCODER: dict[str, Any] = {"kind": "autoencoder", "arguments": {"num_visible": 6, "num_hidden": 4}}
STACK: dict[str, Any] = {
    "kind": "stack",
    "arguments": {"layers": [AUTOENCODER, {"kind": "autoencoder", "arguments": {"num_visible": 4, "num_hidden": 3}}]},
}


def changed(**arguments: Any) -> dict[str, Any]:
    return {"kind": "autoencoder", "arguments": AUTOENCODER["arguments"] | arguments}


# ------------------------------------------------------------------------------------------------ specs


def test_complete_fills_in_defaults_at_every_depth() -> None:
    arguments = models.complete(STACK)["arguments"]["layers"][1]["arguments"]
    assert arguments == {
        "num_visible": 4, "num_hidden": 3, "activation": "sigmoid", "tied": True, "noise": "none", "noise_level": 0.0,
        "loss": "cross_entropy", "num_active": None, "sparsity_target": None, "sparsity_cost": 1.0, "contraction": 0.0,
    }  # fmt: skip
    assert models.complete(models.complete(STACK)) == models.complete(STACK)


def test_equal_models_have_equal_specs() -> None:
    """1 and 1.0 for a float, a tuple and a list: one spec, one stage key."""
    as_int: dict[str, Any] = {
        "kind": "vae",
        "arguments": {"num_visible": 4, "num_latent": 2, "hidden": (3,), "likelihood": "gaussian"},
    }
    as_float = {"kind": "vae", "arguments": as_int["arguments"] | {"hidden": [3]}}
    as_int["arguments"] |= {"visible_std": 1}
    as_float["arguments"] |= {"visible_std": 1.0}
    assert durable.canonical(models.complete(as_int)) == durable.canonical(models.complete(as_float))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "rmb", "arguments": {}}, ["unknown kind 'rmb'", "did you mean 'rbm'", "autoencoder", "classifier"]),
        ({"kind": 3}, ["unknown kind 3"]),
        ("rbm", ["a model is {kind, arguments}", "'rbm'"]),
        ({"kind": "rbm", "arguments": [1]}, ["rbm: arguments must be a mapping"]),
        ({"kind": "autoencoder", "arguments": {"num_visible": 3}}, ["autoencoder needs num_hidden"]),
        (
            changed(num_hiden=3),
            [
                "autoencoder has no argument 'num_hiden'",
                "did you mean 'num_hidden'",
                "it takes num_visible, num_hidden",
            ],
        ),
        (changed(num_hidden="4"), ["autoencoder: num_hidden must be an integer, not '4'"]),
        (changed(num_hidden=4.0), ["num_hidden must be an integer, not 4.0"]),
        (changed(num_hidden=True), ["num_hidden must be an integer, not True"]),
        (changed(tied=1), ["tied must be true or false, not 1"]),
        (changed(noise_level=float("nan")), ["noise_level must be a finite number, not nan"]),
        (changed(noise_level="0.1"), ["noise_level must be a finite number"]),
        (changed(noise="mask"), ["noise must be one of 'none', 'masking', 'gaussian', 'salt_and_pepper', not 'mask'"]),
        ({"kind": "stack", "arguments": {"layers": AUTOENCODER}}, ["stack: layers must be a list"]),
        ({"kind": "stack", "arguments": {"layers": [4]}}, ["stack: layers[0] must be a model of kind", "not 4"]),
        (
            {"kind": "stack", "arguments": {"layers": [AUTOENCODER, changed(num_hiden=3)]}},
            ["stack.layers[1]: autoencoder has no argument 'num_hiden'"],
        ),
        (
            {
                "kind": "stack",
                "arguments": {"layers": [{"kind": "gan", "arguments": {"num_visible": 3, "num_latent": 2}}]},
            },
            ["stack: layers[0] must be a model of kind", "not 'gan'"],
        ),
        (
            {"kind": "classifier", "arguments": {"stack": AUTOENCODER, "num_classes": 3}},
            ["classifier: stack must be a model of kind stack, not 'autoencoder'"],
        ),
        (
            {"kind": "vae", "arguments": {"num_visible": 3, "num_latent": 2, "hidden": [3, 2.5]}},
            ["vae: hidden[1] must be an integer, not 2.5"],
        ),
        (
            {"kind": "vae", "arguments": {"num_visible": 3, "num_latent": 2, "visible_std": "x"}},
            ["vae: visible_std must be a finite number or null, not 'x'"],
        ),
    ],
)
def test_a_wrong_spec_is_one_line_that_says_what_is_allowed(spec: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        models.complete(spec)
    message = str(caught.value)
    assert "\n" not in message
    for part in words:
        assert part in message, message


def test_a_strange_name_stays_on_one_line() -> None:
    with pytest.raises(ValueError) as caught:
        models.complete(changed(**{"a\nb\x1b[31m" + "c" * 500: 1}))
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and len(str(caught.value)) < 400


def test_out_of_range_arguments_name_the_kind() -> None:
    with pytest.raises(ValueError, match="^autoencoder: num_visible and num_hidden must be at least 1"):
        models.build(changed(num_hidden=0))


def test_build_sets_specs_at_every_depth() -> None:
    stack = models.build(STACK)
    assert isinstance(stack, Stack)
    assert stack.spec == models.complete(STACK)
    assert [layer.spec for layer in stack.layers] == stack.spec["arguments"]["layers"]


def test_spec_is_read_from_the_model_however_it_was_put_together() -> None:
    by_hand = Stack(
        layers=[Autoencoder(num_visible=6, num_hidden=4), Autoencoder(num_visible=4, num_hidden=3)],
    )
    assert models.spec_of(by_hand) == models.complete(STACK)


def test_revision_lists_every_model_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Autoencoder, "revision", 7)
    spec = {"kind": "classifier", "arguments": {"stack": STACK, "num_classes": 3}}
    assert models.revision(spec) == [["classifier", 1], ["stack", 1], ["autoencoder", 7], ["autoencoder", 7]]


def test_an_unregistered_class_has_no_spec() -> None:
    class Unknown(Autoencoder):
        pass

    with pytest.raises(ValueError, match="Unknown is not registered"):
        models.spec_of(Unknown(num_visible=2, num_hidden=2))


# ------------------------------------------------------------------------------------------------ model directories


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.save(models.build(AUTOENCODER), tmp_path / "model", {"recipe": "digest", "metrics": {"test/error": 0.5}})
    return tmp_path / "model"


def test_a_model_directory_is_two_files(folder: Path) -> None:
    document = json.loads((folder / "model.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]
    assert {k: document[k] for k in ("kind", "arguments")} == models.complete(AUTOENCODER)
    assert document["format"] == 1 and document["recipe"] == "digest"
    assert document["versions"]["torch"] == torch.__version__
    assert document["weights_sha256"] == durable.digest_file(folder / "weights.safetensors")


def test_the_digest_is_of_spec_and_weights_alone(tmp_path: Path) -> None:
    model = models.build(AUTOENCODER)
    first = models.save(model, tmp_path / "a", {"run": 1})
    assert models.save(model, tmp_path / "b", {"run": 2}) == first
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert models.save(model, tmp_path / "c", {"run": 1}) != first


@pytest.mark.parametrize("name", ["kind", "weights_sha256", "checksum"])
def test_about_cannot_hide_the_models_own_fields(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        models.save(models.build(AUTOENCODER), tmp_path, {name: "x"})
    assert not list(tmp_path.iterdir())


def test_two_valid_models_with_swapped_files_are_refused(tmp_path: Path, folder: Path) -> None:
    models.save(models.build(AUTOENCODER), tmp_path / "other", {})
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    (tmp_path / "other" / "weights.safetensors").write_bytes(weights)
    for path in (folder, tmp_path / "other"):
        with pytest.raises(Damaged, match="expected SHA-256 .* found .*; remove the folder"):
            models.load(path)


def test_damage_is_named(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(Damaged, match="weights.safetensors: .* found no file"):
        models.load(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(Damaged, match="model.json: expected JSON"):
        models.load(folder)
    (folder / "model.json").write_text("[]")
    with pytest.raises(Damaged, match="expected a mapping with a checksum"):
        models.load(folder)


def test_a_folder_without_model_json_is_no_model(folder: Path, tmp_path: Path) -> None:
    (folder / "model.json").unlink()
    for path in (folder, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="expected a model directory, found no model.json"):
            models.load(path)


def rewritten(folder: Path, **fields: Any) -> None:
    """A whole, valid model.json of another content: what another version of strata might have written."""
    document = json.loads((folder / "model.json").read_text()) | fields
    del document["checksum"]
    durable.write_json(folder / "model.json", document | {"checksum": durable.digest_value(document)})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": 2}, "expected format 1, found 2"),
        ({"kind": "perceiver"}, "another version of strata .unknown kind 'perceiver'"),
        ({"arguments": {"num_visible": 6, "num_hidden": 5}}, "hidden_bias, weights do not fit"),
        ({"arguments": {"num_visible": 6, "num_hidden": 4, "tied": False}}, "decoder_weights do not fit"),
    ],
)
def test_another_versions_model_is_an_input_error(folder: Path, fields: dict[str, Any], words: str) -> None:
    rewritten(folder, **fields)
    with pytest.raises(InputError, match=words):
        models.load(folder)


def test_an_interrupted_save_leaves_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        models.save(models.build(AUTOENCODER), folder, {})
    with pytest.raises(InputError):
        models.load(folder)


class TwoNames(ComposedModel):
    """Two names for one parameter, and a buffer that is a view of another."""

    def __init__(self, *, num_visible: int) -> None:
        super().__init__()
        self.num_visible = num_visible
        self.first = nn.Linear(num_visible, num_visible)
        self.second = self.first
        whole = torch.zeros(2, num_visible)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[1])

    @classmethod
    def example(cls) -> tuple[Fitted, torch.Tensor]:  # type: ignore[override]
        return cls(num_visible=3), torch.zeros(2, 3)


def test_shared_tensors_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "two_names", TwoNames)
    model = TwoNames(num_visible=3)
    with torch.no_grad():
        model.get_buffer("part").fill_(5.0)
    models.save(model, tmp_path, {})
    loaded = models.load(tmp_path)
    assert isinstance(loaded, TwoNames) and loaded.first is loaded.second
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_nothing_is_unpickled_here() -> None:
    """RELIABILITY T05: the modules that store and load models know no pickle and no torch.load."""
    source = Path(models.__file__).read_text()
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    calls = {
        f"{n.value.id}.{n.attr}"
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }
    assert not names & {"pickle", "joblib", "dill", "cloudpickle"}
    assert not calls & {"torch.load", "torch.save"}
