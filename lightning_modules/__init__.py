"""The registry: which kinds of models there are, and how one is checked, built, saved and loaded by its spec.

A *spec* is `{"kind": str, "arguments": {name: value}}` in JSON types; an argument that is itself a model is a spec
again, or a list of them. A kind's arguments are its class's constructor signature and nothing else: the annotations
say what is allowed, the defaults what may be left out. Every class stores its arguments under their own names, so
that `spec_of` reads a model's spec back from the model, however it was put together.

A *model directory* is `weights.safetensors` and, written last, `model.json`, which holds the spec and the digests
of both files. Nothing is pickled. What is NOT here: recipes (`conf`), training (`training.py`), state that belongs to
ranks (`RankState`; it stands in checkpoints and not among the weights).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from conf.errors import Damaged, InputError, show
from data import durable
from lightning_modules.adversarial import GAN
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.belief_nets import DBN
from lightning_modules.boltzmann import RBM
from lightning_modules.boltzmann_machine import BoltzmannMachine
from lightning_modules.classifier import Classifier
from lightning_modules.convolutional import ConvAutoencoder
from lightning_modules.dec import DEC
from lightning_modules.deep_boltzmann import DBM
from lightning_modules.deskew import Deskew
from lightning_modules.interfaces import Encodes, Fitted, HasLogProb, RankState, Samples
from lightning_modules.itq import ITQ
from lightning_modules.kmeans import KMeans
from lightning_modules.labeled import LabeledRBM
from lightning_modules.lista import LISTA
from lightning_modules.mixture_model import GaussianMixture
from lightning_modules.patch_features import PatchFeatures
from lightning_modules.psd import PSD
from lightning_modules.semantic_hashing import SemanticHashing
from lightning_modules.sparse_coding import SparseCoding
from lightning_modules.stack import Stack
from lightning_modules.tfidf import TfIdf
from lightning_modules.topics import LDA
from lightning_modules.unrolled import DeepAutoencoder
from lightning_modules.up_down import UpDown
from lightning_modules.variational import VAE
from lightning_modules.whitening import PCA, Standardize, Whitening

MODELS: dict[str, type[Fitted]] = {
    "rbm": RBM,
    "boltzmann_machine": BoltzmannMachine,
    "autoencoder": Autoencoder,
    "sparse_coding": SparseCoding,
    "conv_autoencoder": ConvAutoencoder,
    "stack": Stack,
    "labeled_rbm": LabeledRBM,
    "dbn": DBN,
    "dbm": DBM,
    "up_down": UpDown,
    "deep_autoencoder": DeepAutoencoder,
    "semantic_hashing": SemanticHashing,
    "vae": VAE,
    "gan": GAN,
    "standardize": Standardize,
    "pca": PCA,
    "whitening": Whitening,
    "deskew": Deskew,
    "kmeans": KMeans,
    "patch_features": PatchFeatures,
    "gaussian_mixture": GaussianMixture,
    "dec": DEC,
    "itq": ITQ,
    "tfidf": TfIdf,
    "lda": LDA,
    "psd": PSD,
    "lista": LISTA,
    "classifier": Classifier,
}

FORMAT = 1  # of a model directory; raised when an older strata could not read a newer one
_WEIGHTS, _MODEL = "weights.safetensors", "model.json"
_REMEDY = "remove the folder and train the stage again, or copy it again from where it came"

Spec = dict[str, Any]
_Annotation = Any  # what typing.get_type_hints returns: a class, a union, a Literal, a parametrised container


# ------------------------------------------------------------------------------------------------ specs


def complete(spec: Mapping[str, Any]) -> Spec:
    """The spec with every default written out, equal for equal models, in JSON types.

    Errors: ValueError, one line naming the kind, the argument and what is allowed (nested specs: with the path to
    them). Ranges are the constructors' own business, see `build`.
    """
    return _complete(spec, path="")


def build(spec: Mapping[str, Any]) -> Fitted:
    """The model a spec describes, freshly initialised, with the completed spec as `model.spec`.

    Works under `torch.device("meta")` too. Errors: ValueError, one line, for a spec that `complete` refuses and for
    arguments out of range.
    """
    return _construct(complete(spec))


def made_of_stack(kind: str) -> bool:
    """Whether models of this kind are put together from a finished stack: their constructor takes one."""
    return "stack" in _parameters(MODELS[kind])


def build_on(stack: Fitted, spec: Mapping[str, Any]) -> Fitted:
    """The model a spec without its stack describes, made of this very stack: as `build`, but for the stack's weights.

    Errors: as `build`.
    """
    completed = complete({**spec, "arguments": spec["arguments"] | {"stack": spec_of(stack)}})
    return _construct(completed, stack=stack)


def spec_of(model: Fitted) -> Spec:
    """The completed spec of a model, read from the constructor arguments it stores under their own names.

    Errors: ValueError for a class that is not in MODELS.
    """
    kind = _kind_of(type(model))
    parameters = _parameters(MODELS[kind])
    forgotten = [name for name in parameters if not hasattr(model, name)]
    if forgotten:
        raise TypeError(f"{kind} must store its constructor's {', '.join(forgotten)} under the same names")
    arguments = {name: _as_spec_value(getattr(model, name)) for name in parameters}
    return complete({"kind": kind, "arguments": arguments})


def revision(spec: Mapping[str, Any]) -> list[list[Any]]:
    """[[kind, revision], …] of the model and all models inside it, depth first: what a stage key adds to the spec."""
    completed = complete(spec)
    revisions = [[completed["kind"], MODELS[completed["kind"]].revision]]
    for value in completed["arguments"].values():
        for inner in _specs_in(value):
            revisions += revision(inner)
    return revisions


def _complete(spec: Any, path: str) -> Spec:
    if not _is_spec(spec):
        raise ValueError(f"{path}a model is {{kind, arguments}}, not {show(repr(spec))}")
    kind, given = spec["kind"], spec.get("arguments", {})
    if not isinstance(kind, str) or kind not in MODELS:
        close = _suggestion(kind, MODELS)
        raise ValueError(f"{path}unknown kind {show(repr(kind))}{close}; known: {', '.join(MODELS)}")
    if not isinstance(given, Mapping):
        raise ValueError(f"{path}{kind}: arguments must be a mapping, not {show(repr(given))}")
    parameters = _parameters(MODELS[kind])
    for name in given:
        if name not in parameters:
            raise ValueError(
                f"{path}{kind} has no argument {show(repr(name))}{_suggestion(name, parameters)}; "
                f"it takes {', '.join(parameters)}"
            )
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    if missing:
        raise ValueError(f"{path}{kind} needs {', '.join(missing)}; it takes {', '.join(parameters)}")
    annotations = get_type_hints(MODELS[kind].__init__)
    arguments = {}
    for name, parameter in parameters.items():
        value = given.get(name, parameter.default)
        arguments[name] = _checked(value, annotations[name], kind, name, path)
    return {"kind": kind, "arguments": arguments}


def _construct(spec: Spec, **given: Fitted) -> Fitted:
    """`given`: models that take the place of those the spec would have built."""
    kind = spec["kind"]
    arguments = {
        name: given[name] if name in given else _constructed(value) for name, value in spec["arguments"].items()
    }
    try:
        model = MODELS[kind](**arguments)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error
    model.spec = spec
    return model


def _constructed(value: Any) -> Any:
    if _is_spec(value):
        return _construct(value)
    if isinstance(value, list):
        return [_constructed(item) for item in value]
    return value


def _as_spec_value(value: Any) -> Any:
    if isinstance(value, Fitted):
        return spec_of(value)
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return [_as_spec_value(item) for item in value]
    return value


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and "kind" in value and set(value) <= {"kind", "arguments"}


def _specs_in(value: Any) -> list[Spec]:
    if isinstance(value, list):
        return [spec for item in value for spec in _specs_in(item)]
    return [value] if _is_spec(value) else []


def _kind_of(cls: type) -> str:
    for kind, known in MODELS.items():
        if known is cls:
            return kind
    raise ValueError(f"{cls.__name__} is not registered in MODELS; known: {', '.join(MODELS)}")


def _parameters(cls: type[Fitted]) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # without self


def _suggestion(name: Any, known: Mapping[str, Any]) -> str:
    close = get_close_matches(str(name), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# ------------------------------------------------------------------------------------------------ types of arguments


def _checked(value: Any, annotation: _Annotation, kind: str, name: str, path: str) -> Any:
    """`value` in JSON types if `annotation` allows it, with nested specs completed; else ValueError."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for option in options:
        if _fits(value, option):
            return _converted(value, option, kind, name, path)
    allowed = " or ".join(_describe(option) for option in options)
    raise ValueError(f"{path}{kind}: {name} must be {allowed}, not {show(repr(value))}")


def _fits(value: Any, annotation: _Annotation) -> bool:
    """Whether `value` is of the annotated type, not looking inside containers and specs."""
    if annotation in (None, NoneType):
        return value is None
    if get_origin(annotation) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(annotation))
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if get_origin(annotation) in (Sequence, list, tuple):
        length = _fixed_length(annotation)
        return isinstance(value, (list, tuple)) and length in (None, len(value))
    if _is_model(annotation):
        return _is_spec(value)
    raise TypeError(f"no rule to check a constructor argument annotated {annotation}")  # a bug in the class


def _converted(value: Any, annotation: _Annotation, kind: str, name: str, path: str) -> Any:
    if annotation is float:
        return float(value)
    if get_origin(annotation) in (Sequence, list, tuple):
        item_types = get_args(annotation) if _fixed_length(annotation) else [get_args(annotation)[0]] * len(value)
        return [
            _checked(item, item_type, kind, f"{name}[{position}]", path)
            for position, (item, item_type) in enumerate(zip(value, item_types, strict=True))
        ]
    if _is_model(annotation):
        inner = _complete(value, f"{path}{kind}.{name}: ")
        if not issubclass(MODELS[inner["kind"]], annotation):
            raise ValueError(f"{path}{kind}: {name} must be {_describe(annotation)}, not {inner['kind']!r}")
        return inner
    return value


def _is_model(annotation: _Annotation) -> bool:
    """A registered class, one of the two axes, or a mix of them such as Layer."""
    return inspect.isclass(annotation) and issubclass(annotation, (Fitted, Encodes, Samples, HasLogProb, RankState))


def _fixed_length(annotation: _Annotation) -> int | None:
    arguments = get_args(annotation)
    return len(arguments) if get_origin(annotation) is tuple and Ellipsis not in arguments else None


def _describe(annotation: _Annotation) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Sequence, list, tuple):
        length = _fixed_length(annotation)
        return f"a list of {length} values" if length else f"a list, each item {_describe(get_args(annotation)[0])}"
    if _is_model(annotation):
        return "a model of kind " + ", ".join(kind for kind, cls in MODELS.items() if issubclass(cls, annotation))
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}
    return names.get(annotation, str(annotation))


# ------------------------------------------------------------------------------------------------ model directories


def save(model: Fitted, folder: Path, about: Mapping[str, Any]) -> dict[str, str]:
    """Writes a model directory; whatever is interrupted, a folder with `model.json` is whole.

    `about` (JSON types: digests of shards and recipe, metrics …) stands beside the model's own fields in
    `model.json`. Returns {"digest": SHA-256 of the spec and the weights}, the same for bit-equal models.
    Errors: ValueError for an `about` that uses our field names or is not JSON; OSError from writing.
    """
    spec = spec_of(model)
    tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in model.state_dict().items()}  # none shared
    weights = tensors_to_bytes(tensors)
    weights_sha256 = durable.digest_bytes(weights)
    document = {
        "format": FORMAT,
        **spec,
        "revision": revision(spec),
        "weights_sha256": weights_sha256,
        "digest": durable.digest_value({"spec": spec, "revision": revision(spec), "weights_sha256": weights_sha256}),
        "versions": {"torch": torch.__version__},
    }
    taken = sorted((document.keys() | {"checksum"}) & about.keys())
    if taken:
        raise ValueError(f"a model's fields cannot be given in `about`: {', '.join(taken)}")
    document |= about
    document["checksum"] = durable.digest_value(document)
    (folder / _MODEL).unlink(missing_ok=True)  # an older model in the same folder stops being one first
    durable.write_bytes(folder / _WEIGHTS, weights)
    durable.write_json(folder / _MODEL, document)
    return {"digest": document["digest"]}


def load(folder: Path) -> Fitted:
    """The model a directory holds, on the CPU, in training mode like any new module; both files verified first.

    Draws nothing from the random generator. Errors: InputError when this is no model directory or one that this
    version of strata cannot build; Damaged when the files do not match their digests.
    """
    document = _read_document(folder)
    weights = _read_weights(folder, document["weights_sha256"])
    spec = {"kind": document["kind"], "arguments": document["arguments"]}
    try:
        with torch.random.fork_rng(devices=[]):
            model = build(spec)
    except ValueError as error:
        raise InputError(f"{show(folder)}: written by another version of strata ({error}); train it again") from error
    _assign(model, weights, folder, written_as=document["revision"])
    return model


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / _MODEL
    try:
        document = durable.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{show(folder)}: expected a model directory, found no {_MODEL} in it; "
            f"give the folder of a finished stage (`model` in the result of strata run --json)"
        ) from None
    except ValueError:
        raise Damaged(f"{show(path)}: expected JSON, found something else; {_REMEDY}") from None
    if not isinstance(document, dict) or "checksum" not in document:
        raise Damaged(f"{show(path)}: expected a mapping with a checksum, found none; {_REMEDY}")
    expected = document.pop("checksum")
    found = durable.digest_value(document)
    if found != expected:
        raise Damaged(f"{show(path)}: expected content with SHA-256 {show(expected)}, found {found}; {_REMEDY}")
    if document["format"] != FORMAT:
        raise InputError(f"{show(path)}: expected format {FORMAT}, found {document['format']}; use a newer strata")
    return document


def _read_weights(folder: Path, expected: str) -> dict[str, Tensor]:
    path = folder / _WEIGHTS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Damaged(f"{show(path)}: expected the weights {_MODEL} speaks of, found no file; {_REMEDY}") from None
    found = durable.digest_bytes(content)
    if found != expected:
        raise Damaged(f"{show(path)}: expected SHA-256 {expected}, found {found}; {_REMEDY}")
    return tensors_from_bytes(content)


def _assign(model: nn.Module, weights: dict[str, Tensor], folder: Path, written_as: list[list[Any]]) -> None:
    own = model.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) + [
        name
        for name in sorted(own.keys() & weights.keys())
        if (own[name].shape, own[name].dtype) != (weights[name].shape, weights[name].dtype)
    ]
    if wrong:
        raise InputError(
            f"{show(folder)}: {', '.join(wrong)} do not fit this version's classes; "
            f"written by revisions {written_as}; train it again"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
