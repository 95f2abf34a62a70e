"""Topics against sums over all ways in which a tiny document's words can come about."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_modules.interfaces import Effort
from lightning_modules.perplexity import perplexity, unigram
from lightning_modules.topics import LDA, DocumentAnnealing


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tiny(concentration: float = 0.4) -> LDA:
    """Two topics of three words."""
    lda = LDA(num_visible=3, num_topics=2, concentration=concentration)
    lda.words.copy_(torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]]))
    return lda


def probability(lda: LDA, words: tuple[int, ...], alpha: float) -> float:
    """Σ over the topics of all words of p(topics) p(words | topics), θ integrated out (Griffiths & Steyvers 2004)."""
    total = 0.0
    for topics in itertools.product(range(2), repeat=len(words)):
        p = 1.0
        for n, (topic, word) in enumerate(zip(topics, words, strict=True)):
            p *= (topics[:n].count(topic) + alpha) / (n + 2 * alpha) * lda.words[topic, word].item()
        total += p
    return total


def counted(words: tuple[int, ...]) -> Tensor:
    return torch.bincount(torch.tensor(words), minlength=3).float()


@pytest.mark.parametrize("alpha", [0.05, 0.4, 3.0])
def test_annealing_finds_the_probability_of_a_document(alpha: float) -> None:
    """Three documents within four of the printed standard errors, which are twice the plain ones, and 0.02 nats."""
    lda = tiny(alpha)
    documents = [(0, 2, 2, 1, 0), (1, 1, 1, 1, 1), (2,)]
    x = torch.stack([counted(words) for words in documents])
    for words, row in zip(documents, x, strict=True):
        found = lda.log_prob(row[None], effort=Effort(num_chains=4000, num_temperatures=50))
        error = found.nats.item() - math.log(probability(lda, words, alpha))
        assert found.std_error is not None and abs(error) < 0.02 and abs(error) < 4 * found.std_error + 1e-6
    together = lda.log_prob(x, effort=Effort(num_chains=4000, num_temperatures=50))
    expected = [math.log(probability(lda, words, alpha)) for words in documents]
    torch.testing.assert_close(together.nats, torch.tensor(expected), atol=0.02, rtol=0)
    assert together.kind == "estimate" and together.estimator.endswith("for each of 3 documents")


def test_probabilities_of_all_documents_of_a_length_sum_to_one() -> None:
    """The check of the check: over all 27 sequences of three words."""
    total = sum(probability(tiny(), words, 0.4) for words in itertools.product(range(3), repeat=3))
    assert total == pytest.approx(1, abs=1e-6)


def test_a_step_leaves_the_posterior_as_it_is() -> None:
    """After 60 steps at β = 1 chains have the posterior's mean of θ, by sums over topics: one comparison at 4.5 s.e.,
    false alarm 7 in a million runs.
    """
    lda, words, alpha = tiny(), (0, 2, 2, 1, 0), 0.4
    chains = DocumentAnnealing(lda.words, counted(words), alpha, 20_000)
    for _ in range(60):
        chains.step(1.0)
    weights, means = [], []
    for topics in itertools.product(range(2), repeat=5):
        p = 1.0
        for n, (topic, word) in enumerate(zip(topics, words, strict=True)):
            p *= (topics[:n].count(topic) + alpha) / (n + 2 * alpha) * lda.words[topic, word].item()
        weights.append(p)
        means.append((topics.count(0) + alpha) / (5 + 2 * alpha))
    expected = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    found = chains._shares[:, 0]
    assert abs(found.mean() - expected) < 4.5 * found.std() / math.sqrt(20_000)


def test_planted_topics_are_found() -> None:
    """Two topics of ten words that hardly overlap, from 400 documents of 40 words."""
    planted = torch.full((2, 10), 0.01)
    planted[0, :5] = planted[1, 5:] = 0.19
    shares = torch.distributions.Dirichlet(torch.full((2,), 0.5)).sample((400,))
    documents = torch.distributions.Multinomial(40, shares @ planted).sample()
    lda = LDA(num_visible=10, num_topics=2, concentration=0.5, passes=30)
    lda.update(documents[:150])
    lda.update(documents[150:])
    assert lda.finish()["documents"] == 400
    distance = torch.cdist(planted, lda.words, p=1)
    assert distance.min(1).values.max() < 0.1 and lda.words.sum(1).sub(1).abs().max() < 1e-5


def test_perplexity_is_a_mean_over_documents() -> None:
    """Of a model that gives every word 1/8, and of one whose documents differ in length."""
    counts = torch.tensor([[1.0, 0, 3], [0, 2, 0], [0, 0, 0]])
    assert perplexity(-math.log(8) * counts.sum(1), counts) == pytest.approx(8)
    nats = torch.tensor([-4.0, -6.0, 0.0])
    assert perplexity(nats, counts) == pytest.approx(math.exp((1 + 3) / 2))


def test_unigram_draws_words_by_their_share() -> None:
    counts, mean_counts = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([3.0, 1.0, 4.0])
    expected = 2 * math.log(3 / 8) + math.log(1 / 8)
    assert unigram(counts, mean_counts).item() == pytest.approx(expected)
    assert unigram(counts, torch.tensor([1.0, 0.0, 1.0])).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_topics": 0}, "num_topics must be at least 1, not 0"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"concentration": 0.0}, "concentration must be above 0, not 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LDA(**{"num_visible": 6, **arguments})  # type: ignore[arg-type]
