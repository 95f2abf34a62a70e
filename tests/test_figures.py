"""What there is to see of a model: exact on tiny ones, and nothing of a model that lacks the ability."""

from __future__ import annotations

import math
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_modules as registry
from conf import Split
from conf.errors import InputError
from conf.journal import read as read_journal
from conf.protocol import SampleJob
from data.shards import Reader
from data.splits import divide, some
from flows.figures import read as arrays
from lightning_modules import figures
from lightning_modules.adversarial import GAN
from lightning_modules.autoencoders import Autoencoder
from lightning_modules.belief_nets import DBN
from lightning_modules.boltzmann import RBM
from lightning_modules.deep_boltzmann import DBM
from lightning_modules.interfaces import Effort, Fitted, HasChains
from lightning_modules.labeled import LabeledRBM
from lightning_modules.sampling import sample
from lightning_modules.stack import Stack
from lightning_modules.topics import LDA
from lightning_modules.unrolled import DeepAutoencoder
from lightning_modules.variational import VAE
from lightning_modules.whitening import PCA
from tests.pass_jobs import learned, measured, read
from tests.shard_folders import Given
from tests.stage_kills import train_job


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomized(model: Fitted) -> Fitted:
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.requires_grad_(False)


def stack(*layers: Fitted) -> Stack:
    return Stack(layers=layers)  # type: ignore[arg-type]


def tiny_dbm() -> DBM:
    dbm = DBM(stack=stack(RBM(num_visible=5, num_hidden=4), RBM(num_visible=4, num_hidden=3)))
    randomized(dbm)
    return dbm


# ------------------------------------------------------------------------------------------------ hidden layers


def test_units_of_documents_are_known_by_the_words_that_move_them() -> None:
    rbm = RBM(num_visible=5, num_hidden=3)
    rbm.weights.data.copy_(torch.tensor([[0.5, 2, 9, -1, -3], [-1, 0, 9, 4, 1], [0.5, -2, 9, -3, 2]]).T)
    names = ["orbit", "moon", "the", "goal", "puck"]
    assert figures.named(stack(rbm), names) == {
        "layer1": [
            [["moon", "orbit"], ["puck", "goal"]],
            [["goal", "puck"], ["orbit"]],
            [["puck", "orbit"], ["goal", "moon"]],
        ]
    }
    assert figures.named(stack(rbm), names[:4]) == {}
    lda = LDA(num_visible=5, num_topics=2)
    lda.words.copy_(torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0], [0.5, 0.2, 0.15, 0.1, 0.05]]))
    assert figures.named(lda, names) == {
        "topics": [[["goal", "the"], ["orbit", "puck"]], [["orbit", "puck"], ["goal", "the"]]]
    }


def test_the_code_of_what_is_made_of_a_stack_is_as_high_as_the_stack() -> None:
    model = stack(DeepAutoencoder(stack=stack(RBM(num_visible=6, num_hidden=4), RBM(num_visible=4, num_hidden=3))))
    assert figures.filters(model).keys() == {"layer2"} and figures.activity(model, torch.rand(9, 6)).keys() == {
        f"layer2_{name}" for name in ("units", "lowest", "highest", "examples")
    }


def test_activity_of_dead_and_always_on_units_by_hand() -> None:
    """Unit 1 follows the only pixel, unit 2 is dead, unit 3 always on; q = σ(c + v w)."""
    rbm = RBM(num_visible=1, num_hidden=3)
    with torch.no_grad():
        rbm.weights.copy_(torch.tensor([[2.0, 0.0, 0.0]]))
        rbm.hidden_bias.copy_(torch.tensor([-1.0, -9.0, 9.0]))
    found = figures.activity(stack(rbm), torch.tensor([[0.0], [1.0], [1.0], [1.0]]))
    low, high, dead, always = (1 / (1 + math.exp(-field)) for field in (-1.0, 1.0, -9.0, 9.0))
    expected = {
        "layer1_units": [(low + 3 * high) / 4, dead, always],
        "layer1_lowest": [low, dead, always],
        "layer1_highest": [high, dead, always],
        "layer1_examples": [(low + dead + always) / 3, *[(high + dead + always) / 3] * 3],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values))


def test_rectified_units_have_an_activity_and_linear_ones_none() -> None:
    for hidden, layers in ("relu", {"layer1"}), ("gaussian", set()):
        found = figures.activity(stack(RBM(num_visible=3, num_hidden=2, hidden=hidden)), torch.rand(5, 3))
        assert {name.split("_")[0] for name in found} == layers and ("layer1_rectified" in found) == bool(layers)


def test_a_histogram_of_weights_by_hand() -> None:
    rbm = RBM(num_visible=3, num_hidden=2)
    with torch.no_grad():
        rbm.weights.copy_(torch.tensor([[4.1, 0.0], [-4.1, 0.05], [0.3, 2.0]]))
    found = figures.weights(stack(rbm))
    torch.testing.assert_close(found["layer1_norms"], torch.tensor([2 * 4.1**2 + 0.09, 0.05**2 + 4.0]).sqrt())
    edges, counts = found["layer1_edges"], found["layer1_counts"]
    torch.testing.assert_close(edges, torch.linspace(-4.1, 4.1, 42).double(), atol=1e-6, rtol=0)  # a bin is 0.2 wide
    where = {int(bin): int(counts[bin]) for bin in counts.nonzero()}
    assert where == {0: 1, 20: 2, 22: 1, 30: 1, 40: 1}  # −4.1; 0 and 0.05; 0.3; 2; 4.1


def test_receptive_fields_are_products_of_the_weights_below() -> None:
    dbm = tiny_dbm()
    w1, w2 = dbm.weights
    found = figures.filters(stack(dbm))
    torch.testing.assert_close(found, {"layer1": w1.t(), "layer2": (w1 @ w2).t()})
    below, above = randomized(RBM(num_visible=5, num_hidden=4)), randomized(RBM(num_visible=4, num_hidden=3))
    deep = stack(below, above)
    product = (below.weights @ above.weights).t()
    torch.testing.assert_close(figures.filters(deep), {"layer2": product})  # layer 1 was shown when it was learned
    torch.testing.assert_close(figures.filters(DBN(stack=deep)), {"layer1": below.weights.t(), "layer2": product})


def test_activity_of_deep_models_is_that_of_every_layer() -> None:
    dbm, v = tiny_dbm(), (torch.rand(7, 5) > 0.5).float()
    means = dbm.mean_field(v)
    found = figures.activity(stack(dbm), v)
    for k in (1, 2):
        torch.testing.assert_close(found[f"layer{k}_units"], means[k].mean(0))
    dbn = DBN(stack=stack(RBM(num_visible=5, num_hidden=4), RBM(num_visible=4, num_hidden=3)))
    randomized(dbn)
    torch.testing.assert_close(dbn.hidden_means(v)[2], dbn.encode(v))
    torch.testing.assert_close(dbn.hidden_means(v)[1], dbn.stack[0].encode(v))


def test_reconstructions_of_deep_models_go_through_all_layers() -> None:
    """Up by the means of every layer and down again; a DBM's top units come from mean field."""
    x = (torch.rand(3, 5) > 0.5).float()
    below, above = randomized(RBM(num_visible=5, num_hidden=4)), randomized(RBM(num_visible=4, num_hidden=3))
    assert isinstance(below, RBM) and isinstance(above, RBM)
    expected = below.decode(above.decode(above.encode(below.encode(x))))
    for deep in (stack(below, above), stack(DBN(stack=stack(below, above)))):
        found = figures.reconstructions(deep, x)
        assert torch.equal(found["originals"], x)
        torch.testing.assert_close(found["reconstructions"], expected)
    dbm = tiny_dbm()
    torch.testing.assert_close(
        figures.reconstructions(stack(dbm), x)["reconstructions"], dbm.decode(dbm.mean_field(x)[-1])
    )


def test_a_layer_that_undoes_noise_is_shown_undoing_it() -> None:
    x = torch.rand(3, 5)
    noisy = randomized(Autoencoder(num_visible=5, num_hidden=4, noise="masking", noise_level=0.5))
    plain = randomized(Autoencoder(num_visible=5, num_hidden=4))
    found = figures.reconstructions(stack(noisy), x)
    assert torch.equal(found["originals"], x) and (found["corrupted"] == 0).any()
    assert torch.equal(found["reconstructions"], stack(noisy).decode(stack(noisy).encode(found["corrupted"])))
    for model in (stack(plain), stack(noisy, randomized(RBM(num_visible=4, num_hidden=3)))):
        found = figures.reconstructions(model, x)  # a stack of several is no such layer
        assert found.keys() == {"originals", "reconstructions"}
        assert torch.equal(found["reconstructions"], model.decode(model.encode(x)))


def test_examples_are_taken_at_even_distances() -> None:
    x = torch.arange(10.0)[:, None]
    assert figures.spread(x, 4)[:, 0].tolist() == [0, 3, 6, 9]
    assert figures.spread(x, 50)[:, 0].tolist() == list(range(10))


# ------------------------------------------------------------------------------------------------ chains


def walkers() -> list[tuple[str, Fitted]]:
    layers = [RBM(num_visible=5, num_hidden=4), LabeledRBM(num_visible=4, num_hidden=3, num_classes=2)]
    kinds = {
        "rbm": RBM(num_visible=5, num_hidden=4),
        "labeled": LabeledRBM(num_visible=5, num_hidden=4, num_classes=2),
        "dbn": DBN(stack=stack(*layers)),
        "dbm": DBM(stack=stack(RBM(num_visible=5, num_hidden=4), RBM(num_visible=4, num_hidden=3))),
    }
    return list(kinds.items())


@pytest.mark.parametrize("name, model", walkers())
def test_frames_are_the_states_of_the_chains(name: str, model: Fitted) -> None:
    randomized(model)
    x = (torch.rand(20, 5) > 0.5).float()
    torch.manual_seed(3)
    data, numbers = figures.chains(model, x, Effort(num_temperatures=130))
    assert isinstance(model, HasChains)
    torch.manual_seed(3)
    start = figures.spread(x, 8)
    walked = [start, *islice(model.chains(start), 130)]
    assert numbers["sweeps"].tolist() == [*range(25), 25, 125]
    torch.testing.assert_close(data["frames"], torch.stack([walked[sweep] for sweep in [*range(25), 25, 125]]))
    short, few = figures.chains(model, x, Effort(num_temperatures=3))
    assert few["sweeps"].tolist() == [0, 1, 2, 3] and short["frames"].shape == (4, 8, 5)


@pytest.mark.parametrize("name, model", walkers())
def test_chains_end_in_the_model(name: str, model: Fitted) -> None:
    """From one example; against the model's own samples, five means at 4.5 s.e.: false alarm 3 in 100,000 of each."""
    randomized(model)
    number, sweeps = 20_000, 40
    ours = next(islice(model.chains(torch.ones(number, 5)), sweeps - 1, None))  # type: ignore[operator]
    theirs = model.sample(number, effort=Effort(num_temperatures=sweeps))  # type: ignore[operator]
    error = ((ours.var(0) + theirs.var(0)) / number).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()


def test_a_model_without_the_ability_has_no_figure() -> None:
    gan, x = GAN.example()
    assert isinstance(x, Tensor)
    effort = Effort(num_temperatures=2)
    for model in (gan, VAE.example()[0]):
        found = [figures.filters(model), figures.activity(model, x), figures.weights(model)]
        assert found == [{}, {}, {}] and figures.chains(model, x, effort) == ({}, {})
        assert figures.samples_by_class(model, effort) == {}
    assert figures.reconstructions(gan, x) == {} and figures.samples(gan, effort)
    pca = PCA(num_visible=3, num_hidden=2)
    pca.update(torch.randn(50, 3))
    pca.finish()
    white = stack(pca)
    found = [figures.activity(white, torch.randn(9, 3)), figures.weights(white), figures.samples(white, effort)]
    assert found == [{}, {}, {}] and figures.filters(white)["layer1"].shape == (2, 3)


# ------------------------------------------------------------------------------------------------ free energy


def test_free_energies_are_sums_over_hidden_states() -> None:
    """F(v) = −log Σ_h exp(−E); a DBM's is the variational one, which lies above."""
    rbm = randomized(RBM(num_visible=3, num_hidden=2))
    v = torch.tensor([[1.0, 0.0, 1.0]])
    hidden = torch.tensor(list(product([0.0, 1.0], repeat=2)))
    log_weights = v @ rbm.visible_bias + hidden @ rbm.hidden_bias + (v @ rbm.weights @ hidden.t())[0]
    torch.testing.assert_close(rbm.free_energy(v), -log_weights.logsumexp(0, keepdim=True))
    dbm = tiny_dbm()
    v = (torch.rand(6, 5) > 0.5).float()
    states = [torch.tensor(h) for h in product([0.0, 1.0], repeat=7)]

    def exact() -> Tensor:
        energies = [dbm.machine().energy([v, *h.expand(6, 7).split([4, 3], dim=1)]) for h in states]
        return -torch.stack(energies).neg().logsumexp(0)

    assert (dbm.free_energy(v) >= exact() - 1e-5).all()
    with torch.no_grad():
        dbm.weights[1].zero_()  # then the hidden units are independent given v, and mean field is exact
    torch.testing.assert_close(dbm.free_energy(v), exact())


def test_the_free_energy_gap_of_a_training(tmp_path: Path) -> None:
    """The journal's last one, from the weights that were saved: mean F of held-out samples less that of seen ones."""
    random = np.random.default_rng(0)
    values = {
        name: (random.random((size, 3, 4)) < 0.3).astype(np.float32) for name, size in (("train", 200), ("test", 50))
    }
    inputs = read(
        tmp_path / "shards",
        Given(values, {name: [-1] * len(rows) for name, rows in values.items()}),
        Split(validation=0.2),
    )
    settings = {"learning_rate": 0.3, "epochs": 20, "batch_size": 20}
    model, answer = learned(train_job(inputs, "rbm", settings, num_visible=12, num_hidden=30), tmp_path / "rbm")
    reader = Reader(Path(inputs.shards))
    parts = divide(reader, inputs.split)
    held_out = some(parts["validation"], 1000, "validation")
    seen = some(parts["train"], len(held_out), "free energy gap")
    assert len(seen) == len(held_out) < len(parts["train"])
    means = [model[0].free_energy(torch.from_numpy(reader.values(part))).mean().item() for part in (held_out, seen)]
    rows, _ = read_journal(tmp_path / "rbm" / "journal.jsonl")
    gaps = [row["metrics"]["validation/free_energy_gap"] for row in rows if "validation/loss" in row["metrics"]]
    assert len(gaps) == 20 and gaps[-1] == pytest.approx(means[0] - means[1], abs=1e-4)

    autoencoder = train_job(inputs, "autoencoder", {"epochs": 1}, num_visible=12, num_hidden=3)
    assert "validation/free_energy_gap" not in learned(autoencoder, tmp_path / "autoencoder")[1]["metrics"]
    with pytest.raises(InputError, match="autoencoder does not draw samples; these do: rbm, boltzmann_machine, "):
        sample(SampleJob(model=str(tmp_path / "autoencoder" / "model"), number=1, out=str(tmp_path / "x.npy")))

    metrics = measured(tmp_path / "rbm", inputs)
    found = {path.stem: arrays(path) for path in (tmp_path / "rbm" / "figures").glob("*.npz")}
    assert found.keys() == {"filters", "reconstructions", "samples", "data", "chains", "activity", "weights", "map"}
    assert found["chains"]["frames"].shape == (len(found["chains"]["sweeps"]), 8, 3, 4)
    assert found["filters"]["layer1"].shape == (30, 3, 4) and found["weights"]["layer1_counts"].sum() == 360
    assert metrics["test/log_prob"] < 0 and registry.load(tmp_path / "rbm" / "model")
