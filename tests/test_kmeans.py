"""k-means against scikit-learn's, against itself on ranks and after deaths, and its codes against their formulas."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Rival
from torch import Tensor

import lightning_modules as registry
from conf import Split
from conf.errors import InputError
from conf.protocol import Inputs
from lightning_modules import kmeans, passes, rounds
from lightning_modules.kmeans import KMeans
from tests.pass_jobs import EVERYTHING, learned, measured, read, stored
from tests.shard_folders import Given
from tests.stage_kills import Stages, outcome, placed, train_job


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def digits(digits: Inputs) -> Inputs:
    return digits.model_copy(update={"split": EVERYTHING})


def pixels(digits: Inputs) -> Tensor:
    return torch.from_numpy(stored(digits, 1797))


def fitted(x: Tensor, **arguments: Any) -> KMeans:
    model = KMeans(num_visible=x.shape[1], **arguments)
    model.start(x)
    for _ in range(model.passes):
        model.update(x)
        model.finish()
        if model.settled:
            break
    return model


# ------------------------------------------------------------------------------------------------ fitting


def test_rounds_are_lloyds(digits: Inputs) -> None:
    """From one start scikit-learn's centres, after one round and after seven."""
    x = pixels(digits)
    model = KMeans(num_visible=64, num_hidden=10)
    model.start(x)
    begin = x[torch.randperm(len(x))[:10]] + 0.01 * torch.randn(10, 64)  # between gray levels: no ties
    for number in (1, 7):
        model.centres.copy_(begin)
        for _ in range(number):
            for part in x.split(400):
                model.update(part)
            facts = model.finish()
        rival = Rival(10, init=begin.numpy(), n_init=1, max_iter=number, tol=0).fit(x.numpy())
        torch.testing.assert_close(model.centres, torch.from_numpy(rival.cluster_centers_), rtol=0, atol=2e-5)
    assert facts["samples"] == 1797 and facts["revived"] == 0
    assert model.measure(x)["inertia"] == pytest.approx(rival.inertia_ / 1797, rel=1e-3)


@pytest.mark.parametrize("arguments", [{}, {"batch_size": 200, "passes": 10}])
def test_streamed_from_shards_it_is_as_good_as_lloyd_in_memory(
    digits: Inputs, tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inertia within 2 % of the best of scikit-learn's ten starts, on the same data (row 14)."""
    monkeypatch.setattr(passes, "VALUES_AT_A_TIME", 64 * 300)
    x = pixels(digits).numpy()
    job = train_job(digits, "kmeans", {}, num_visible=64, num_hidden=10, **arguments)
    model, answer = learned(job, tmp_path)
    rival = Rival(10, n_init=10, random_state=0).fit(x)
    found = model[0].measure(torch.from_numpy(x))["inertia"] * 1797
    assert found < 1.02 * rival.inertia_, f"{found / rival.inertia_:.4f} of Lloyd's"
    assert answer["metrics"]["train/rounds"] == answer["steps"] == answer["told"][-1]["progress"]["done"]
    assert answer["metrics"]["train/settled"] == (not arguments)


def test_spherical_centres_are_directions_and_lengths_of_samples_do_not_matter(digits: Inputs) -> None:
    x = pixels(digits)
    model = fitted(x, num_hidden=10, distance="cosine")
    torch.testing.assert_close(model.centres.norm(dim=1), torch.ones(10))
    scaled = x * torch.linspace(0.1, 30, len(x))[:, None]
    assert torch.equal(model.assign(scaled), (x @ model.centres.T).argmax(1))
    members = torch.nn.functional.normalize(x, dim=1)[model.assign(x) == 3]
    assert torch.nn.functional.cosine_similarity(members.mean(0), model.centres[3], dim=0) > 1 - 1e-4


def test_a_centre_without_samples_moves_to_the_farthest_one() -> None:
    """As scikit-learn does: the sample leaves its old cluster."""
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [9, 9], [9, 10], [20, 0]])
    begin = torch.tensor([[0.0, 0], [9, 9], [500, 500]])
    model = KMeans(num_visible=2, num_hidden=3)
    model.centres.copy_(begin)
    model.update(x)
    assert model.finish()["revived"] == 1 and not model.settled
    rival = Rival(3, init=begin.numpy(), n_init=1, max_iter=1, tol=0).fit(x.numpy())
    torch.testing.assert_close(model.centres, torch.from_numpy(rival.cluster_centers_))
    assert model.centres[2].tolist() == [20, 0]


def test_a_centre_that_mini_batches_pass_by_is_revived() -> None:
    x = torch.cat([torch.randn(400, 3), torch.randn(400, 3) + 20])
    model = KMeans(num_visible=3, num_hidden=2, batch_size=50)
    model.start(x)
    model.centres[1] = 1e4
    batches = x[torch.randperm(800)].split(50)
    told = []
    for batch in batches:
        model.update(batch)
        told.append(model.finish()["revived"])
    assert sum(told) == 1 and told.index(1) == 3  # after 200 samples, 100 for each of two centres
    assert model.assign(x).bincount().tolist() == [400, 400]


def test_more_centres_than_different_samples_end_in_peace() -> None:
    x = torch.eye(3).repeat(20, 1)
    model = fitted(x, num_hidden=5, passes=6)
    assert model.measure(x)["inertia"] < 1e-6 and model.centres.isfinite().all()


@pytest.mark.parametrize("number", [3, kmeans.FEW, kmeans.FEW + 1, 300])
def test_the_nearest_centre_is_the_first_of_equals_whatever_their_number(number: int) -> None:
    centres = torch.randn(number, 20)
    centres[-1] = centres[1]
    x = torch.cat([torch.randn(50, 20), centres])
    distances = (x.double()[:, None] - centres.double()).square().sum(2)
    for room in (None, torch.full((len(x) * number + 7,), torch.nan)):
        squared, cluster = kmeans.Distances(centres).nearest(x, room)
        assert torch.equal(cluster, distances.argmin(1)) and cluster[-1] == 1
        torch.testing.assert_close(squared.double(), distances.min(1).values, rtol=1e-4, atol=1e-4)


def test_data_far_from_the_origin_are_told_apart() -> None:
    """Times in seconds, a day apart; float32 products of them would be off by more than that."""
    x = 1.6e9 + 86400.0 * torch.arange(4).repeat_interleave(50)[:, None] + 1000 * torch.randn(200, 1)
    model = fitted(x, num_hidden=4)
    assert torch.equal(torch.unique(model.assign(x)[::50]), torch.arange(4))
    assert model.measure(x)["inertia"] < 1e7


def test_a_killed_fit_goes_on_where_it_was(digits: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the ninth round, resumed after the last journal row; the same bytes and the same journal."""
    monkeypatch.setattr(rounds, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(kmeans, "REFINING_ROUNDS", 0)
    for name, arguments in {
        "whole": {"passes": 12, "tolerance": 0.0},
        "batches": {"batch_size": 300, "passes": 3},
    }.items():
        job = train_job(digits, "kmeans", {"log_steps": 2}, num_visible=64, num_hidden=10, **arguments)
        _, expected = learned(job, tmp_path / name)
        with monkeypatch.context() as broken:
            updates, update, calls = iter(range(8)), KMeans.update, []
            broken.setattr(KMeans, "update", lambda self, x: (next(updates), update(self, x)))  # noqa: B023
            with pytest.raises(StopIteration):
                learned(job, tmp_path / f"{name}-killed")
            broken.setattr(KMeans, "update", lambda self, x: (calls.append(1), update(self, x)))  # noqa: B023
            _, again = learned(job, tmp_path / f"{name}-killed")
        assert again["digest"] == expected["digest"] and again["metrics"] == expected["metrics"]
        assert len(calls) < expected["steps"] - 5, "it began anew"


def test_what_it_learns_and_its_key_follow_the_seed(digits: Inputs, tmp_path: Path) -> None:
    job = train_job(digits, "kmeans", {}, num_visible=64, num_hidden=30, passes=3)
    job = job.model_copy(update={"one_pass": True, "draws": True})
    other = job.model_copy(update={"seed": 2})
    assert job.identity() != other.identity()
    torch.manual_seed(5)
    digests = [learned(one, tmp_path / str(n))[1]["digest"] for n, one in enumerate((job, job, other))]
    assert digests[0] == digests[1] != digests[2]


def test_too_few_samples_are_one_line(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 4), np.float32)
    inputs = read(tmp_path / "shards", Given({"train": values}, {"train": [0] * 5}), EVERYTHING)
    with pytest.raises(InputError, match="stage some: 7 centres need as many samples or more, found 5"):
        learned(train_job(inputs, "kmeans", {}, num_visible=4, num_hidden=7), tmp_path / "model")


# ------------------------------------------------------------------------------------------------ processes


def test_two_ranks_are_one(template: Stages, tmp_path: Path) -> None:
    """Whole rounds add the same batches up; a mini-batch is cut in two, and float32 products of other sizes differ."""
    random = np.random.default_rng(0)
    values = random.normal(size=(30_000, 500)) + 6 * random.normal(size=(5, 500))[random.integers(0, 5, 30_000)]
    inputs = read(tmp_path / "wide", Given({"train": values.astype(np.float32)}, {"train": [0] * 30_000}), EVERYTHING)
    for name, arguments in {"whole": {"passes": 4}, "batches": {"batch_size": 2000, "passes": 1}}.items():
        job = train_job(inputs, "kmeans", {}, num_visible=500, num_hidden=5, starts=1, **arguments)
        assert template.do(placed(job, tmp_path / f"{name} one")) == 0, template.log
        assert template.do_on_ranks(placed(job, tmp_path / f"{name} two"), 2) == [0, 0], template.log
        alone, shared = (outcome(tmp_path / f"{name} {ranks}")["result"]["metrics"] for ranks in ("one", "two"))
        assert shared == pytest.approx(alone, rel=1e-6)
        one, two = (registry.load(tmp_path / f"{name} {ranks}" / "model").state_dict() for ranks in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-6, atol=1e-6 if name == "whole" else 1e-5)


def test_killed_by_the_kernel_in_any_round_the_rest_is_the_same(
    template: Stages, digits: Inputs, tmp_path: Path
) -> None:
    """Of 18 mini-batches, a resume point behind the last of each pass: in the first, behind one, in the last."""
    job = train_job(digits, "kmeans", {"log_steps": 100}, num_visible=64, num_hidden=10, batch_size=300, passes=3)
    assert template.do(placed(job, tmp_path / "whole")) == 0, template.log
    whole = outcome(tmp_path / "whole")
    assert whole["result"]["steps"] == 18 and [step for step, _ in whole["journal"]] == [6, 12, 18]
    for number, goes_on_at in {1: 1, 7: 7, 18: 13}.items():
        folder = tmp_path / f"killed-{number}"
        assert template.do(placed(job, folder), ("round", number)) == -signal.SIGKILL
        assert not (folder / "result.json").exists()
        assert template.do(placed(job, folder)) == 0, template.log
        assert next(said["done"] for said in template.said("progress") if "done" in said) == goes_on_at
        assert outcome(folder) == whole, f"killed in round {number}"


# ------------------------------------------------------------------------------------------------ codes


def test_codes_are_what_their_formulas_say() -> None:
    """Triangle: max(0, μ(z) − z_k), z_k the distance from centre k (Coates, Ng & Lee 2011, §4.1)."""
    _, x = KMeans.example()
    centres = KMeans.example()[0].centres
    z = torch.stack([(x - centre).norm(dim=1) for centre in centres], 1)
    expected = {
        "distance": z,
        "triangle": (z.mean(1, keepdim=True) - z).clamp(min=0),
        "one_hot": torch.eye(3)[z.argmin(1)],
    }
    for code, codes in expected.items():
        model = KMeans(num_visible=6, num_hidden=3, code=code)  # type: ignore[arg-type]
        model.centres.copy_(centres)
        torch.testing.assert_close(model.encode(x), codes, rtol=1e-5, atol=1e-6)
        assert torch.equal(model.decode(model.encode(x)), centres[z.argmin(1)])
        assert torch.equal(model.assign(x), z.argmin(1))


def test_the_untrained_twin_has_other_centres_of_the_same_spread(digits: Inputs) -> None:
    model = fitted(pixels(digits), num_hidden=50, passes=2, starts=1)
    before = model.centres.clone()
    model.randomize()
    assert not torch.isclose(model.centres, before).all(1).any()
    assert (model.centres.mean(0) - before.mean(0)).abs().max() < 5 * before.std(0).max() / 50**0.5


def test_evaluated_it_says_how_far_held_out_samples_lie_from_their_centres(digits: Inputs, tmp_path: Path) -> None:
    held_out = digits.model_copy(update={"split": Split(test=0.2)})
    model, _ = learned(train_job(held_out, "kmeans", {}, num_visible=64, num_hidden=10), tmp_path)
    found = measured(tmp_path, held_out)
    assert found["test/inertia"] == pytest.approx(found["test/squared_error"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_hidden": 1}, "num_hidden, the number of clusters, must be at least 2, not 1"),
        ({"passes": 0}, "passes must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"tolerance": -1.0}, "tolerance must be 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KMeans(**{"num_visible": 4, "num_hidden": 2} | arguments)


def test_starts_are_better_than_chance() -> None:
    """Of 20 planted groups k-means++ and its rounds find every one; 20 samples drawn evenly miss some."""
    centres = 30 * torch.randn(20, 8)
    x = centres.repeat_interleave(40, 0) + torch.randn(800, 8)
    found = kmeans.best_of_starts(x, 20, starts=4)
    assert kmeans.squared_distances(centres, found).min(1).values.max() < 2
