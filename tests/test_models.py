"""The contract every registered model keeps, run over MODELS by itself; a class is known here by `example()` alone.

Random models are compared with themselves under the same seed; nothing here can fail by chance.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_modules as models
from conf.errors import Damaged
from lightning_modules.interfaces import (
    ComposedModel,
    Effort,
    Encodes,
    Fitted,
    HasChains,
    HasFreeEnergy,
    Hashes,
    HasHiddenLayers,
    HasLogProb,
    HasMonitors,
    IteratedModel,
    Layer,
    Measures,
    Model,
    PhasedModel,
    RankState,
    Samples,
    SamplesHidden,
    StreamingModel,
)

KINDS = sorted(models.MODELS)
SMALL = Effort(num_samples=3, num_chains=4, num_temperatures=20)

# Parameters that no loss of their own model reaches, and why.
WITHOUT_GRADIENT = {
    "classifier": "visible_bias",
    "dec": "visible_bias",
}  # the way back through a stack; they never decode


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def kinds_that(capability: type) -> list[str]:
    return [kind for kind in KINDS if issubclass(models.MODELS[kind], capability)]


def example(kind: str) -> tuple[Any, Any]:
    return models.MODELS[kind].example()


def data(batch: Any) -> Tensor:
    return batch["x"] if isinstance(batch, Mapping) else batch


def noise_for(model: Any, number: int) -> Tensor:
    """Normal noise, cut to the range the model takes."""
    low, high = model.visible_range or (None, None)
    x = torch.randn(number, model.num_visible)
    return x if low is None else x.clamp(low, high)


def repeated(batch: Any, times: int) -> Any:
    if isinstance(batch, Mapping):
        return {name: repeated(values, times) for name, values in batch.items()}
    return batch.repeat(times, *[1] * (batch.ndim - 1))


def objectives(model: Any) -> list[tuple[list[nn.Parameter], Callable[[Any], dict[str, Tensor]]]]:
    """(parameters, losses) of each optimizer."""
    if isinstance(model, PhasedModel):
        return [(list(phase.parameters), phase.losses) for phase in model.phases()]
    return [(list(model.parameters()), model.losses)] if isinstance(model, Model) else []


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ------------------------------------------------------------------------------------------------ axis 1


def test_is_fitted_in_exactly_one_way(kind: str) -> None:
    ways = (Model, PhasedModel, StreamingModel, ComposedModel)
    assert sum(issubclass(models.MODELS[kind], way) for way in ways) == 1


def test_example_is_a_tiny_instance_and_two_samples(kind: str) -> None:
    model, batch = example(kind)
    assert type(model) is models.MODELS[kind]
    assert data(batch).shape == (2, model.num_visible)
    assert sum(p.numel() for p in model.parameters()) < 1000
    if model.visible_range is not None:
        low, high = model.visible_range
        assert data(batch).min() >= low and data(batch).max() <= high


@pytest.mark.parametrize("kind", kinds_that(Model) + kinds_that(PhasedModel))
def test_losses_are_finite_scalars(kind: str) -> None:
    model, batch = example(kind)
    for _, losses in objectives(model):
        values = losses(batch)
        assert values["loss"].requires_grad
        for name, value in values.items():
            assert value.shape == () and value.isfinite(), name


@pytest.mark.parametrize("kind", kinds_that(Model) + kinds_that(PhasedModel))
def test_gradients_reach_all_parameters_of_an_objective_and_no_others(kind: str) -> None:
    model, batch = example(kind)
    with torch.no_grad():
        for parameter in model.parameters():  # away from symmetric starts, at which a gradient can be exactly 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    for parameters, losses in objectives(model):
        model.zero_grad(set_to_none=True)
        losses(batch)["loss"].backward()
        own = {id(parameter) for parameter in parameters}
        for name, parameter in model.named_parameters():
            if id(parameter) not in own:
                assert parameter.grad is None, f"{name} belongs to another optimizer"
            elif not name.endswith(WITHOUT_GRADIENT.get(kind, " ")):
                assert parameter.grad is not None and parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("kind", kinds_that(PhasedModel))
def test_phases_share_all_parameters_out(kind: str) -> None:
    model, _ = example(kind)
    names = [phase.name for phase in model.phases()]
    owned = [id(parameter) for phase in model.phases() for parameter in phase.parameters]
    assert len(set(names)) == len(names) and all(phase.steps >= 1 for phase in model.phases())
    assert sorted(owned) == sorted({id(parameter) for parameter in model.parameters()})


@pytest.mark.parametrize("kind", kinds_that(Model) + kinds_that(PhasedModel))
def test_losses_are_means_over_the_batch(kind: str) -> None:
    """The same samples 500 and 1000 times: the same losses, but for the noise a model draws (below 0.5 nat)."""
    model, batch = example(kind)
    for _, losses in objectives(model):
        few, many = losses(repeated(batch, 500)), losses(repeated(batch, 1000))
        for name in few:
            torch.testing.assert_close(many[name], few[name], rtol=0, atol=0.5, msg=name)


@pytest.mark.parametrize("kind", kinds_that(Model))
def test_a_step_leaves_the_model_finite(kind: str) -> None:
    model, batch = example(kind)
    model.losses(batch)["loss"].backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.after_step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def begun(model: StreamingModel, x: Tensor) -> StreamingModel:
    """Ready for a round, from the same start every time."""
    if isinstance(model, IteratedModel):
        torch.random.default_generator.manual_seed(7)
        model.start(x)
    return model


@pytest.mark.parametrize("kind", kinds_that(StreamingModel))
def test_statistics_of_parts_merge_to_those_of_the_whole(kind: str) -> None:
    spec = models.spec_of(example(kind)[0])
    whole, first, second = (models.build(spec) for _ in range(3))
    assert all(isinstance(model, StreamingModel) for model in (whole, first, second))
    x = noise_for(whole, 60)
    for model in (whole, first, second):
        begun(model, x)
    whole.update(x)
    first.update(x[:7])
    second.update(x[7:40])
    second.update(x[40:])
    first.merge(second.partial())
    facts = whole.finish(), first.finish()
    assert facts[0] == pytest.approx(facts[1], rel=1e-9) and all(
        isinstance(value, float) for value in facts[0].values()
    )
    for name, buffer in whole.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], buffer, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", kinds_that(StreamingModel))
def test_statistics_are_not_saved_and_forgotten_in_the_end(kind: str) -> None:
    model = models.build(models.spec_of(example(kind)[0]))
    assert isinstance(model, StreamingModel) and not list(model.parameters())
    names = model.state_dict().keys()
    x = noise_for(model, model.least_samples + 20)
    begun(model, x).update(x)
    assert model.state_dict().keys() == names
    model.finish()
    fitted = {name: buffer.clone() for name, buffer in model.state_dict().items()}
    with pytest.raises(ValueError, match="samples or more, found 0"):
        model.finish()
    begun(model, x).update(x)
    model.finish()
    assert all(torch.equal(buffer, fitted[name]) for name, buffer in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ axis 2


@pytest.mark.parametrize("kind", kinds_that(Encodes))
def test_codes_are_deterministic_and_in_range(kind: str) -> None:
    model, batch = example(kind)
    codes = model.encode(data(batch))
    assert codes.shape == (2, model.num_hidden) and codes.isfinite().all()
    assert torch.equal(codes, model.encode(data(batch)))
    assert torch.allclose(codes[:1], model.encode(data(batch)[:1]), atol=1e-6)  # no sample depends on its neighbours
    if model.hidden_range is not None:
        low, high = model.hidden_range
        assert codes.min() >= low and codes.max() <= high


@pytest.mark.parametrize("kind", kinds_that(Layer))
def test_the_way_back_is_a_mean_in_the_range_of_the_data(kind: str) -> None:
    model, batch = example(kind)
    codes = model.encode(data(batch))
    means = model.decode(codes)
    assert means.shape == data(batch).shape and means.isfinite().all()
    assert torch.equal(means, model.decode(codes))
    if model.visible_range is not None:
        low, high = model.visible_range
        assert means.min() >= low and means.max() <= high


@pytest.mark.parametrize("kind", kinds_that(SamplesHidden))
def test_hidden_samples_have_the_shape_of_codes(kind: str) -> None:
    model, batch = example(kind)
    assert model.sample_hidden(data(batch)).shape == model.encode(data(batch)).shape


@pytest.mark.parametrize("kind", kinds_that(Samples))
def test_samples_look_like_data(kind: str) -> None:
    model, _ = example(kind)
    samples = model.sample(5, effort=SMALL)
    assert samples.shape == (5, model.num_visible) and samples.isfinite().all() and not samples.requires_grad
    if model.visible_range is not None:
        low, high = model.visible_range
        assert samples.min() >= low and samples.max() <= high


@pytest.mark.parametrize("kind", kinds_that(HasLogProb))
def test_log_prob_says_what_it_promises(kind: str) -> None:
    model, batch = example(kind)
    answer = model.log_prob(data(batch), effort=SMALL)
    assert answer.nats.shape == (2,) and answer.nats.isfinite().all()
    assert answer.kind in ("exact", "lower_bound", "upper_bound", "estimate")
    assert answer.estimator and answer.effort == SMALL
    assert answer.std_error is None or answer.std_error >= 0


@pytest.mark.parametrize("kind", kinds_that(HasFreeEnergy))
def test_free_energies_are_of_each_example_alone(kind: str) -> None:
    model, batch = example(kind)
    found = model.free_energy(data(batch))
    assert found.shape == (2,) and found.isfinite().all()
    assert torch.allclose(found[:1], model.free_energy(data(batch)[:1]), atol=1e-5)


@pytest.mark.parametrize("kind", kinds_that(HasChains))
def test_chains_stay_in_the_range_of_the_data(kind: str) -> None:
    model, batch = example(kind)
    start = data(batch).clone()
    frames = list(islice(model.chains(data(batch)), 3))
    assert len(frames) == 3 and torch.equal(start, data(batch))
    for frame in frames:
        assert frame.shape == start.shape and frame.isfinite().all() and not frame.requires_grad
        low, high = model.visible_range or (-math.inf, math.inf)
        assert frame.min() >= low and frame.max() <= high


@pytest.mark.parametrize("kind", kinds_that(HasHiddenLayers))
def test_hidden_layers_agree_in_their_sizes(kind: str) -> None:
    model, batch = example(kind)
    means, incoming, fields = model.hidden_means(data(batch)), model.incoming_weights(), model.receptive_fields()
    assert means.keys() == incoming.keys() == fields.keys() and min(means) >= 1
    for height, units in means.items():
        assert units.shape[0] == 2 and units.min() >= 0 and units.max() <= 1
        assert fields[height].shape == (units.shape[1], model.num_visible) and len(incoming[height]) == units.shape[1]


@pytest.mark.parametrize("kind", kinds_that(Hashes))
def test_bits_are_boolean_and_of_each_example_alone(kind: str) -> None:
    model, batch = example(kind)
    bits = model.bits(data(batch))
    assert bits.shape == (2, model.num_bits) and bits.dtype == torch.bool
    assert torch.equal(bits, model.bits(data(batch))) and torch.equal(bits[:1], model.bits(data(batch)[:1]))


@pytest.mark.parametrize("kind", kinds_that(Measures))
def test_measures_are_finite_numbers(kind: str) -> None:
    model, batch = example(kind)
    found = model.measure(data(batch))
    assert found and all(isinstance(value, float) and math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("kind", kinds_that(HasMonitors))
def test_monitors_are_finite_and_move_nothing(kind: str) -> None:
    model, batch = example(kind)
    model.train()
    model.losses(batch)  # persistent chains have begun

    def state() -> list[Tensor]:
        chains = model.rank_state().values() if isinstance(model, RankState) else ()
        return [value.clone() for value in (*model.state_dict().values(), *chains)]

    before = state()
    found = model.monitors(batch)
    assert found and all(value.ndim == 0 and value.isfinite() and not value.requires_grad for value in found.values())
    assert all(torch.equal(*pair) for pair in zip(before, state(), strict=True))


@pytest.mark.parametrize("kind", kinds_that(RankState))
def test_chains_can_be_shared_out_and_put_together(kind: str) -> None:
    model, batch = example(kind)
    state = {name: value.clone() for name, value in model.rank_state().items()}
    assert state.keys().isdisjoint(model.state_dict())
    part = {name: value[:1].clone() for name, value in state.items()}
    model.load_rank_state(part)
    assert all(torch.equal(value, part[name]) for name, value in model.rank_state().items())
    model.losses(batch)["loss"].backward()
    assert all(value.shape == part[name].shape for name, value in model.rank_state().items())
    model.load_rank_state(state)
    assert all(torch.equal(value, state[name]) for name, value in model.rank_state().items())


# ------------------------------------------------------------------------------------------------ configuration


def test_constructor_is_keyword_only_and_stored(kind: str) -> None:
    cls = models.MODELS[kind]
    model, _ = example(kind)
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        assert parameter.kind is parameter.KEYWORD_ONLY, f"{kind}.{name}"
        assert hasattr(model, name), f"{kind} does not store its argument {name}"


def test_sizes_below_one_are_refused(kind: str) -> None:
    model, _ = example(kind)
    spec = models.spec_of(model)
    for name in spec["arguments"]:
        if name.startswith("num_"):
            with pytest.raises(ValueError):
                models.build({"kind": kind, "arguments": spec["arguments"] | {name: 0}})


def test_spec_is_json_and_builds_the_same_model(kind: str) -> None:
    model, _ = example(kind)
    spec = models.spec_of(model)
    assert json.loads(json.dumps(spec)) == spec == models.complete(spec)
    built = models.build(spec)
    assert built.spec == spec == models.spec_of(built)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in built.state_dict().items()} == shapes


def test_builds_on_the_meta_device(kind: str) -> None:
    spec = models.spec_of(example(kind)[0])
    with torch.device("meta"):
        model = models.build(spec)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_draws_from_the_default_generator_and_never_seeds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of everything a model does follows the seed outside, and sets none."""

    def everything() -> list[Tensor]:
        torch.random.default_generator.manual_seed(7)
        model, batch = example(kind)
        results = [losses(batch)["loss"].detach() for _, losses in objectives(model)]
        if isinstance(model, Samples):
            results.append(model.sample(2, effort=SMALL))
        if isinstance(model, HasLogProb):
            results.append(model.log_prob(data(batch), effort=SMALL).nats)
        return [*results, torch.rand(1)]

    first = everything()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("a model seeded torch"))
    again = everything()
    assert torch.initial_seed() == 7
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ------------------------------------------------------------------------------------------------ model directories


def test_saved_and_loaded_it_is_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model, batch = example(kind)
    written = models.save(model, tmp_path, {"shards": "abc"})
    state = torch.get_rng_state()
    loaded: Fitted = models.load(tmp_path)
    assert torch.equal(state, torch.get_rng_state()), "loading drew random numbers"
    assert same(model, loaded) and models.spec_of(loaded) == models.spec_of(model)
    assert models.save(loaded, tmp_path / "again", {})["digest"] == written["digest"]
    if isinstance(model, Encodes) and isinstance(loaded, Encodes):
        assert torch.equal(model.encode(data(batch)), loaded.encode(data(batch)))


def test_any_flipped_byte_is_found(kind: str, tmp_path: Path) -> None:
    models.save(example(kind)[0], tmp_path, {})
    for path in (tmp_path / "weights.safetensors", tmp_path / "model.json"):
        whole = path.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 40)):
            damaged = whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]
            path.write_bytes(damaged)
            if path.suffix == ".json" and reads_the_same(whole, damaged):
                continue
            with pytest.raises(Damaged):
                models.load(tmp_path)
        path.write_bytes(whole)
    models.load(tmp_path)


def reads_the_same(whole: bytes, damaged: bytes) -> bool:
    """One kind of white space for another changes nothing that JSON says."""
    try:
        return json.loads(whole) == json.loads(damaged)
    except ValueError:
        return False
