"""Two ranks, forked and killed at chosen steps: they compute what one does, agree to the bit, and lose nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from conf.protocol import Inputs
from data import durable
from data.shards import Reader
from data.splits import divide
from lightning_modules.boltzmann import RBM
from tests.conftest import until
from tests.stage_kills import Stages, on_ranks, outcome, placed, train_job

ADAM = {"optimizer": "adam", "learning_rate": 1e-3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load((folder / "model" / "weights.safetensors").read_bytes())


def jobs(digits: Inputs) -> dict[str, Any]:
    return {
        "chains": train_job(digits, "rbm", {}, num_visible=64, num_hidden=8, algorithm="pcd", num_chains=21),
        "fast weights and moving averages": train_job(
            digits, "rbm", {}, num_visible=64, num_hidden=8, algorithm="fast_pcd", num_chains=21, centered=True,
            sparsity_target=0.2,
        ),
        "two optimizers": train_job(digits, "gan", ADAM, num_visible=64, num_latent=4),
        "no noise": train_job(digits, "autoencoder", {}, num_visible=64, num_hidden=8),
    }  # fmt: skip


@pytest.mark.parametrize("sparsity_target", [None, 0.2])
@pytest.mark.parametrize("batch_size", [100, 1299])
def test_two_ranks_take_the_steps_of_one(
    template: Stages, digits: Inputs, tmp_path: Path, batch_size: int, sparsity_target: float | None
) -> None:
    """The gradient of the global batch, whatever its pieces: with batches of 1,299 the last has one sample for two.

    Moving averages too: of activities, which penalties follow.
    """
    settings = {"epochs": 3, "batch_size": batch_size, "log_steps": 1}
    job = train_job(digits, "autoencoder", settings, num_visible=64, num_hidden=8, sparsity_target=sparsity_target)
    assert template.do(placed(job, tmp_path / "one")) == 0, template.log
    assert template.do_on_ranks(placed(job, tmp_path / "two"), 2) == [0, 0], template.log
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    journals = [outcome(tmp_path / name)["journal"] for name in ("one", "two")]
    for (step, alone), (same, shared) in zip(*journals, strict=True):
        assert step == same and alone == pytest.approx(shared, abs=1e-4)


@pytest.mark.parametrize("batch_size", [100, 1299])
def test_two_ranks_sharpen_the_clusters_of_one(
    template: Stages, digits: Inputs, tmp_path: Path, batch_size: int
) -> None:
    """Centres, encoder and how often each cluster is chosen, which the target of every sample follows."""
    code = train_job(digits, "autoencoder", {}, num_visible=64, num_hidden=8, activation="linear", loss="squared_error")
    assert template.do(placed(code, tmp_path / "code")) == 0, template.log
    settings = {"epochs": 3, "batch_size": batch_size, "log_steps": 1, "learning_rate": 0.5}
    job = train_job(digits, "dec", settings, tmp_path / "code", num_clusters=10, averaging=0.5)
    assert template.do(placed(job, tmp_path / "one")) == 0, template.log
    assert template.do_on_ranks(placed(job, tmp_path / "two"), 2) == [0, 0], template.log
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert any("frequencies" in name for name in one)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["pcd", "fast_pcd", "parallel_tempering"])
@pytest.mark.parametrize("centered", [False, True])
def test_two_ranks_take_the_step_of_all_data_and_all_chains(
    template: Stages, digits: Inputs, tmp_path: Path, algorithm: str, centered: bool
) -> None:
    """Ten chains a rank, a batch of all data: the step one process would take to the same twenty states."""
    settings = {"batch_size": 1300, "epochs": 4, "checkpoint_steps": 1, "learning_rate": 0.1}
    arguments = {"algorithm": algorithm, "num_chains": 20, "num_temperatures": 3, "centered": centered}
    job = train_job(digits, "rbm", settings, num_visible=64, num_hidden=8, **arguments)
    assert template.do_on_ranks(placed(job, tmp_path), 2, ("step", 3))[1] == -signal.SIGKILL
    checkpoint = tmp_path / "checkpoint"
    before, after = (torch.load(checkpoint / f"{step}.pt", weights_only=True)["model"] for step in (1, 2))
    chains = torch.cat([torch.load(checkpoint / f"2.rank{rank}.pt", weights_only=True)["chains"] for rank in (0, 1)])
    model = chains[:, -1] if algorithm == "parallel_tempering" else chains
    reader = Reader(Path(digits.shards))
    train = divide(reader, digits.split)["train"][:]
    rbm = RBM(num_visible=64, num_hidden=8, **arguments)  # type: ignore[arg-type]
    rbm.load_state_dict(before)
    assert len(train) <= 1300 and model.shape == (20, 64)
    machine = rbm.learned_machine()
    data = torch.from_numpy(reader.values(train))
    field = rbm.hidden_field(torch.cat([data, model])).detach()
    machine.free_energy_difference(torch.cat([data, model]), field, len(data)).backward()
    if rbm.centering is not None:
        rbm.centering.move(data, rbm.encode(data).detach())
        torch.testing.assert_close(after["centering.hidden_offset"], rbm.centering.hidden_offset)
        torch.testing.assert_close(after["centering.visible_offset"], rbm.centering.visible_offset)
    for name, parameter in rbm.named_parameters():
        assert parameter.grad is not None and parameter.grad.norm() > 1e-3
        torch.testing.assert_close(after[name], before[name] - 0.1 * parameter.grad, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", ["chains", "two optimizers"])
def test_a_batch_too_small_for_two_ranks(template: Stages, digits: Inputs, tmp_path: Path, name: str) -> None:
    job = jobs(digits)[name]
    few = job.model_copy(update={"train": job.train.model_copy(update={"batch_size": 1299, "log_steps": 1})})
    assert template.do_on_ranks(placed(few, tmp_path), 2) == [0, 0], template.log
    journal = [metrics for _, metrics in outcome(tmp_path)["journal"] if "train/learning_rate" in metrics]
    assert len(journal) == 4 and len({frozenset(metrics) for metrics in journal}) == 1


@pytest.mark.parametrize("name", ["chains", "fast weights and moving averages", "two optimizers"])
def test_one_rank_dies_and_the_rest_is_the_same(template: Stages, digits: Inputs, tmp_path: Path, name: str) -> None:
    job = jobs(digits)[name]
    assert template.do_on_ranks(placed(job, tmp_path / "whole"), 2) == [0, 0], template.log
    for step in (1, 7, 8, 23):
        folder = tmp_path / f"killed-{step}"
        first, last = template.do_on_ranks(placed(job, folder), 2, ("step", step))
        assert last == -signal.SIGKILL and first not in (0, 143), template.log
        assert template.do_on_ranks(placed(job, folder), 2) == [0, 0], template.log
        assert outcome(folder) == outcome(tmp_path / "whole"), f"killed in step {step}"


def test_chains_are_saved_under_their_global_index(template: Stages, digits: Inputs, tmp_path: Path) -> None:
    """Two ranks' chains are one set: what they saved, one rank can load, and says that it is no exact resume."""
    job = jobs(digits)["chains"]
    assert template.do_on_ranks(placed(job, tmp_path), 2, ("step", 10))[1] == -signal.SIGKILL
    shares = [torch.load(tmp_path / "checkpoint" / f"7.rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [{name: len(value) for name, value in share.items()} for share in shares] == [
        {"chains": 10, "hidden": 10}, {"chains": 11, "hidden": 11},
    ]  # fmt: skip
    assert template.do(placed(job, tmp_path)) == 0, template.log
    assert outcome(tmp_path)["result"]["placement"]["exact"] is False


@pytest.mark.parametrize("told", [[1], [0, 1]], ids=["one", "both"])
def test_sigterm_stops_both_ranks_after_the_same_step(
    template: Stages, digits: Inputs, tmp_path: Path, told: list[int]
) -> None:
    settings = {"epochs": 40, "checkpoint_steps": 100}
    job = train_job(digits, "rbm", settings, num_visible=64, num_hidden=8, algorithm="pcd")
    assert template.do_on_ranks(placed(job, tmp_path / "whole"), 2) == [0, 0]
    processes = template.start(on_ranks(placed(job, tmp_path / "stopped"), 2), ranks=2)
    checkpoint = tmp_path / "stopped" / "checkpoint"
    until((checkpoint / "100.json").exists, 30)
    for rank in told:
        os.kill(processes[rank], signal.SIGTERM)
    assert template.wait() == [143, 143], template.log
    assert durable.read_json(checkpoint / "position.json")["step"] < 300, "it went on"
    assert len(list(checkpoint.glob("*.rank0.pt"))) == len(list(checkpoint.glob("*.rank1.pt"))) == 2
    assert template.do_on_ranks(placed(job, tmp_path / "stopped"), 2) == [0, 0]
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_ranks_that_drift_apart_are_a_bug(template: Stages, digits: Inputs, tmp_path: Path) -> None:
    statuses = template.do_on_ranks(placed(jobs(digits)["no noise"], tmp_path), 2, ("drift", 26))
    assert statuses == [1, 1] and "the ranks' weights differ after step 26" in template.log
    assert not (tmp_path / "result.json").exists()
