"""`plan`: everything about a recipe that can be wrong before a file is written or a number computed.

Kinds and arguments against the constructors' signatures, widths from the data up, ranges of values, enough labels;
every model is built on the meta device, so a plan costs no memory. Errors: InputError, one line naming the stage.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

import lightning_modules as registry
from conf import PLACEMENT, Recipe, Stage, Train
from conf.errors import InputError
from conf.protocol import Description, Flow, Plan, PlanJob, StagePlan
from lightning_modules.classifier import Classifier
from lightning_modules.interfaces import (
    Clusters,
    ComposedModel,
    Encodes,
    Fitted,
    IteratedModel,
    Layer,
    Samples,
    SamplesHidden,
    StartsFromBelow,
    StreamingModel,
    labeled,
)
from lightning_modules.maps import require
from lightning_modules.passes import num_batches
from lightning_modules.rounds import num_rounds
from lightning_modules.stack import Stack

SIZES = ("num_hidden", "num_components", "num_centres")  # arguments that say how many samples are needed


def plan(job: PlanJob) -> Plan:
    recipe = job.recipe
    if recipe.evaluate is not None:
        require(recipe.evaluate.map)
    stacks: dict[str, Stack] = {}
    stages = []
    for name, stage in recipe.stages.items():
        description = _description(recipe, name, job.descriptions)
        below = stacks.get(stage.on) if stage.on else None
        if stage.on and below is None:
            raise InputError(
                f"stage {name} stands on {stage.on}, a {recipe.stages[stage.on].model.kind}, which is no layer; "  # type: ignore[union-attr]
                f"a stack is made of layers (rbm, autoencoder, whitening …)"
            )
        if description.sizes["train"] == 0:
            raise InputError(f"stage {name}: there are no training samples (sets: {description.sizes})")
        if below is not None:
            _check_reads(name, stage, description, below)
        if stage.finetune is not None:
            assert below is not None
            stages.append(_plan_finetune(recipe, name, description, below))
            continue
        model, found = _plan_model(recipe, name, stage, description, below)
        stages.append(found)
        if isinstance(model, Layer):
            under: Iterable[Layer] = [] if below is None or registry.made_of_stack(found.kind) else below
            stacks[name] = Stack(layers=[*under, model])
    return Plan(stages=stages)


def _description(recipe: Recipe, name: str, known: dict[str, Description]) -> Description:
    """Of what a stage reads; of a mixture: all that is learned from, but the labels and the test set of the first."""
    weights = recipe.mixture(name)
    first = known[recipe.origin(name)]
    if len(weights) == 1 or recipe.stages[name].finetune is not None:
        return first
    found = {origin: known[origin] for origin in weights}
    shapes = {origin: "×".join(map(str, description.shape)) for origin, description in found.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"stage {name}: mixed data sets must have samples of one shape, found {shapes}")
    if empty := [origin for origin, description in found.items() if not description.sizes["train"]]:
        raise InputError(f"stage {name}: there are no training samples in {empty[0]} (sets: {found[empty[0]].sizes})")
    number = sum(description.sizes["train"] for description in found.values())
    batch = min(recipe.stages[name].train.batch_size, number)
    for origin, weight in weights.items():
        if batch * weight / sum(weights.values()) < 1:
            raise InputError(
                f"stage {name}: of a batch of {batch}, {origin} with its weight {weight:g} gives less than one sample; "
                f"raise the weight or train.batch_size"
            )
    lows, highs = [one.low for one in found.values()], [one.high for one in found.values()]
    return first.model_copy(
        update={
            "sizes": first.sizes | {"train": number},
            "low": None if None in lows else min(low for low in lows if low is not None),
            "high": None if None in highs else max(high for high in highs if high is not None),
        }
    )


def _plan_model(
    recipe: Recipe, name: str, stage: Stage, description: Description, below: Stack | None
) -> tuple[Fitted, StagePlan]:
    assert stage.model is not None
    kind, arguments = stage.model.kind, stage.model.arguments
    width = below.num_hidden if below else _product(description.shape)
    takes = _signature(name, kind)
    shape = description.shape if below is None else list(getattr(below[-1], "hidden_shape", ()))
    known: dict[str, Any] = {"num_visible": width, "num_classes": description.num_classes}
    known |= {"image_shape": shape} if len(shape) > 1 else {}
    filled: dict[str, Any] = {argument: value for argument, value in known.items() if argument in takes} | arguments
    if "num_classes" in takes:
        _check_labels(name, kind, recipe, description)
    if "image_shape" in takes and "image_shape" not in filled:
        raise InputError(
            f"stage {name}: a {kind} takes pictures, but {_source(stage, description, width)}; "
            f"say how they lie, image_shape: [height, width]"
        )
    made_of_stack = registry.made_of_stack(kind)
    if made_of_stack:
        if below is None:
            raise InputError(f"stage {name}: a {kind} is made of a stack; say which one, `on: STAGE`")
        filled["stack"] = registry.spec_of(below)
    try:
        with torch.device("meta"):
            model = registry.build({"kind": kind, "arguments": filled})
    except ValueError as error:
        raise InputError(f"stage {name}: {error}") from None
    for argument, needs in model.idle_arguments().items():
        if argument in arguments:
            raise InputError(
                f"stage {name}: {argument} changes nothing about this {kind}: it needs {needs}; "
                f"say so, or leave {argument} out"
            )
    spec = registry.spec_of(model)  # type: ignore[arg-type]
    if model.num_visible != (below.num_visible if made_of_stack and below else width):
        raise InputError(f"{name} expects {model.num_visible} visible units but {_source(stage, description, width)}")
    if below is not None and not made_of_stack:
        _check_stands_on(name, stage, kind, model, below)
    if isinstance(model, StartsFromBelow):
        try:
            model.start_from_below(below[-1] if below is not None else None)
        except ValueError as error:
            raise InputError(f"stage {name}: {error}") from None
    settings = recipe.stages[name].train
    if not isinstance(model, ComposedModel):
        if not made_of_stack:
            _check_range(name, kind, model, stage, description, below)
        if settings.binarize == "sample" and not _within(_range(description), (0.0, 1.0)):
            raise InputError(f"stage {name}: train.binarize needs data in [0, 1], found {_text(_range(description))}")
    if isinstance(model, StreamingModel) and description.sizes["train"] < model.least_samples:
        raise InputError(
            f"stage {name}: this {kind} needs {model.least_samples} training samples or more, "
            f"found {description.sizes['train']}; lower {next(size for size in SIZES if size in takes)}"
        )
    if isinstance(model, Clusters) and description.sizes["train"] < model.num_clusters:
        raise InputError(
            f"stage {name}: {model.num_clusters} clusters need as many training samples or more, "
            f"found {description.sizes['train']}; lower num_clusters"
        )
    if isinstance(model, StreamingModel) and len(weights := recipe.mixture(name)) > 1:
        raise InputError(
            f"stage {name}: a {kind} is fitted in passes over one data set; name it, one of {list(weights)}"
        )
    if isinstance(model, StreamingModel):
        _check_train(recipe, name, f"a {kind} is fitted in passes over the data", {"binarize"})
    if isinstance(model, ComposedModel):
        _check_train(recipe, name, f"a {kind} is made of what is there", set())
    if labeled(model):
        _check_labels(name, kind, recipe, description, model.num_classes)
    fitted = not isinstance(model, ComposedModel)
    samples = description.labeled if labeled(model) else description.sizes["train"]
    steps = settings.epochs * -(-samples // min(settings.batch_size, samples))
    if isinstance(model, StreamingModel):
        steps = num_rounds(samples, model) if isinstance(model, IteratedModel) else num_batches(samples, model, below)
    return model, StagePlan(
        name=name,
        flow=_flow(model),
        kind=kind,
        spec={"kind": kind, "arguments": {k: v for k, v in spec["arguments"].items() if k != "stack"}},
        revision=registry.revision(spec),
        shape=_shape(model),
        parameters=model.num_parameters,
        samples=samples if fitted else 0,
        steps=steps if fitted else 0,
        one_pass=isinstance(model, StreamingModel),
        rounds=isinstance(model, IteratedModel),
        labeled=labeled(model),
    )


def _plan_finetune(recipe: Recipe, name: str, description: Description, below: Stack) -> StagePlan:
    finetune = recipe.stages[name].finetune
    assert finetune is not None
    _check_train(recipe, name, "a fine-tuning learns as its finetune says", {"precision"})
    if description.num_classes < 2:
        raise InputError(
            f"stage {name}: fine-tuning needs labels of two classes or more, found {description.num_classes}"
        )
    if description.labeled_test == 0:
        raise InputError(
            f"stage {name}: none of the {description.sizes['test']} test samples has a label to measure errors by; "
            f"set data.split.test, or give the source's test set labels"
        )
    for number in finetune.labels:
        if number != "all" and number > description.labeled:
            raise InputError(
                f"stage {name}: finetune.labels asks for {number} labels, "
                f"but there are {description.labeled} labeled training samples"
            )
    with torch.device("meta"):
        classifier = Classifier(stack=below, num_classes=description.num_classes)
    spec = registry.spec_of(classifier)
    runs = sum(finetune.per_labels("seeds", number) for number in finetune.labels) * (2 if finetune.twin else 1)
    steps = sum(
        finetune.per_labels("seeds", number)
        * finetune.per_labels("epochs", number)
        * -(-(description.labeled if number == "all" else number) // finetune.per_labels("batch_size", number))
        for number in finetune.labels
    )
    return StagePlan(
        name=name,
        flow="finetune",
        kind="classifier",
        spec={"kind": "classifier", "arguments": {k: v for k, v in spec["arguments"].items() if k != "stack"}},
        revision=registry.revision(spec),
        shape=f"{_shape(below)} → {description.num_classes} classes",
        parameters=classifier.num_parameters,
        samples=description.labeled,
        steps=steps * (2 if finetune.twin else 1),
        runs=runs,
    )


def _signature(name: str, kind: str) -> list[str]:
    if kind not in registry.MODELS:
        try:
            registry.complete({"kind": kind, "arguments": {}})
        except ValueError as error:
            raise InputError(f"stage {name}: {error}") from None
    return list(inspect.signature(registry.MODELS[kind]).parameters)


def _check_labels(
    name: str, kind: str, recipe: Recipe, description: Description, num_classes: int | None = None
) -> None:
    """`num_classes`: the model's, once it is there."""
    if description.num_classes < 2 or description.labeled == 0:
        raise InputError(
            f"stage {name}: a {kind} learns from labels of two classes or more, "
            f"found {description.labeled} labeled training samples of {description.num_classes}"
        )
    if num_classes not in (None, description.num_classes):
        raise InputError(
            f"stage {name}: this {kind} tells {num_classes} classes, but the data have {description.num_classes}; "
            f"leave num_classes out"
        )
    if len(weights := recipe.mixture(name)) > 1:
        raise InputError(f"stage {name}: a {kind} learns from labels of one data set; name it, one of {list(weights)}")


def _check_train(recipe: Recipe, name: str, why: str, used: set[str]) -> None:
    """No stage may say of its own what changes nothing about it; defaults for all stages are another matter."""
    own, general = recipe.stages[name].train, recipe.train
    for setting in Train.model_fields:
        if setting not in PLACEMENT | used and getattr(own, setting) != getattr(general, setting):
            raise InputError(f"stage {name}: {why}, so train.{setting} changes nothing; leave it out of this stage")


def _check_reads(name: str, stage: Stage, description: Description, below: Stack) -> None:
    """A stage on another reads its data through the whole stack: another data set must fit the stack's lowest layer."""
    width = _product(description.shape)
    if width != below.num_visible:
        raise InputError(
            f"stage {name}: a sample of its data has {width} values, "
            f"but the stack of {stage.on} takes {below.num_visible}"
        )
    if not _within(_range(description), below.visible_range):
        raise InputError(
            f"stage {name}: the stack of {stage.on} takes values in {_text(below.visible_range)}, "
            f"but the data lie in {_text(_range(description))}"
        )


def _check_stands_on(name: str, stage: Stage, kind: str, model: Fitted, below: Stack) -> None:
    if not isinstance(model, Layer):
        raise InputError(
            f"stage {name}: a {kind} cannot stand on {stage.on}; only layers, or models made of a stack (dbn), can"
        )
    if stage.hand_up == "sample" and not all(isinstance(layer, SamplesHidden) for layer in below):
        raise InputError(f"stage {name}: hand_up is sample, but a layer below has no stochastic hidden units; use mean")


def _check_range(
    name: str, kind: str, model: Fitted, stage: Stage, description: Description, below: Stack | None
) -> None:
    if getattr(model, "reads_counts", False) and below is None and len(description.shape) > 1:
        raise InputError(
            f"stage {name}: this {kind} reads counts of words, but {_source(stage, description, model.num_visible)}; "
            f"ingest counts (kind: counts, or text with a vocabulary), or choose another model or other units"
        )
    found = below.hidden_range if below is not None else _range(description)
    source = f"the codes of {stage.on}" if below is not None else "the data"
    if not _within(found, model.visible_range):
        raise InputError(
            f"stage {name}: this {kind} needs values in {_text(model.visible_range)}, "
            f"but {source} lie in {_text(found)}; scale them, or choose Gaussian units "
            f"(visible: gaussian, likelihood: gaussian or loss: squared_error), for counts visible: replicated_softmax"
        )


def _range(description: Description) -> tuple[float, float] | None:
    if description.low is None or description.high is None:
        return None
    return (description.low, description.high)


def _within(found: tuple[float, float] | None, allowed: tuple[float, float] | None) -> bool:
    return allowed is None or (found is not None and allowed[0] <= found[0] and found[1] <= allowed[1])


def _text(interval: tuple[float, float] | None) -> str:
    return "no known bounds" if interval is None else f"[{interval[0]:g}, {interval[1]:g}]"


def _source(stage: Stage, description: Description, width: int) -> str:
    if stage.on:
        return f"{stage.on} below it has {width} hidden units"
    shape = f" ({'×'.join(map(str, description.shape))})" if len(description.shape) > 1 else ""
    return f"a sample has {width} values{shape}"


def _flow(model: Fitted) -> Flow:
    return "pretrain" if isinstance(model, (Layer, ComposedModel)) else "train"


def _shape(model: Fitted) -> str:
    if isinstance(model, Encodes):
        return " → ".join(map(str, [model.num_visible, *_widths(model)]))
    return f"{getattr(model, 'num_latent', '?')} → {model.num_visible}" if isinstance(model, Samples) else ""


def _widths(model: Encodes) -> list[int]:
    """Of the codes on the way up: of every layer of a stack, and of one that a layer is made of."""
    layers = model if isinstance(model, Stack) else getattr(model, "stack", None)
    if not isinstance(layers, Stack):
        return [model.num_hidden]
    return [width for layer in layers for width in _widths(layer)]


def _product(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
