"""Latent Dirichlet allocation (Blei, Ng & Jordan 2003, JMLR 3): the directed rival of the replicated softmax.

Symbols: K topics, φ_k the distribution of words in topic k, θ the shares of the topics in a document, z_n the topic of
its n-th word w_n, x_w how often word w occurs in it, α the concentration of θ.

    θ ~ Dirichlet(α, …, α),     z_n ~ θ,     w_n ~ φ_{z_n},     p(w | θ) = Π_w (Σ_k θ_k φ_kw)^{x_w}

The fit is scikit-learn's variational Bayes. What p(document) is, it only bounds, and its own perplexity is one of
normalised variational weights; here p(document) is estimated by annealing, as a replicated softmax's is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lightning_modules.interfaces import Batch, Effort, HasLogProb, HasTopics, LogLikelihood, StreamingModel
from lightning_modules.likelihood import PILOT_CHAINS, Annealing, annealed_importance_sampling, joined


class LDA(StreamingModel, HasLogProb, HasTopics):
    """Topics of documents given as word counts; log_prob is that of their words in order, given how many there are.

    num_visible: words of the vocabulary, at least 1. num_topics: K, at least 1.
    concentration: α > 0 of the topics' shares; word_concentration: > 0, of the prior of each φ_k; None: 1 / K.
    passes: of variational Bayes over all documents, at least 1.

    "One pass" is over the shards: the counts are kept, sparse, and fitted in the end, from scikit-learn's first random
    state, whatever the seed of the recipe. The bytes of the documents decide their order.
    """

    revision: ClassVar[int] = 1

    def __init__(
        self,
        *,
        num_visible: int,
        num_topics: int = 50,
        concentration: float | None = None,
        word_concentration: float | None = None,
        passes: int = 50,
    ) -> None:
        super().__init__()
        for name, count in {"num_visible": num_visible, "num_topics": num_topics, "passes": passes}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        for name, value in {"concentration": concentration, "word_concentration": word_concentration}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        self.num_visible, self.num_topics, self.passes = num_visible, num_topics, passes
        self.concentration, self.word_concentration = concentration, word_concentration
        self.words: Tensor
        self.register_buffer("words", torch.full((num_topics, num_visible), 1 / num_visible))
        self._documents = _no_documents()

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """Counts: no less than 0."""
        return (0.0, float("inf"))

    @property
    def reads_counts(self) -> bool:
        """True."""
        return True

    # ---- fitting

    def update(self, batch: Batch) -> None:
        """Keeps the counts of these documents, (batch, num_visible)."""
        assert isinstance(batch, Tensor)
        row, word = batch.nonzero(as_tuple=True)
        self._keep({"row": row, "word": word, "count": batch[row, word], "number": torch.tensor(len(batch))})

    def _keep(self, documents: Mapping[str, Tensor]) -> None:
        """Which document, which word and how often, of every nonzero count; the number of documents."""
        new = {name: values.detach().cpu().double() for name, values in documents.items()}
        new["row"] += self._documents["number"]
        self._documents["number"] = self._documents["number"] + new.pop("number")
        for name, values in new.items():
            self._documents[name] = torch.cat([self._documents[name], values])

    def partial(self) -> dict[str, Tensor]:
        """The documents so far, see `_keep`."""
        return self._documents

    def merge(self, partial: Mapping[str, Tensor]) -> None:
        """Takes over the documents of another."""
        self._keep(partial)

    def finish(self) -> dict[str, float]:
        """φ of the posterior's mean → {"documents", "passes"}. ValueError without documents."""
        from sklearn.decomposition import LatentDirichletAllocation  # half a second that only a fit should cost

        number = int(self._documents["number"])
        if not number:
            raise ValueError("an lda needs 1 training samples or more, found 0")
        fitted = LatentDirichletAllocation(
            n_components=self.num_topics,
            doc_topic_prior=self.concentration,
            topic_word_prior=self.word_concentration,
            max_iter=self.passes,
            random_state=0,
        ).fit(_in_order(self._documents, number, self.num_visible))
        words = fitted.components_ / fitted.components_.sum(1, keepdims=True)
        self.words.copy_(torch.from_numpy(words))
        self._documents = _no_documents()
        return {"documents": float(number), "passes": float(fitted.n_iter_)}

    # ---- density

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """log p(words), (batch,) nats, by AIS for each document (`DocumentAnnealing`).

        Estimates of log p are low in expectation, unlike those of a model whose log Z is estimated.
        """
        groups = []
        for row, counts in enumerate(x):
            numbers = (effort.num_chains, PILOT_CHAINS)
            chains, pilot = (DocumentAnnealing(self.words, counts, self._alpha, number) for number in numbers)
            found = annealed_importance_sampling(chains, effort, pilot=pilot)
            likelihood = LogLikelihood(
                nats=x.new_full((1,), found.nats),
                kind="estimate",
                estimator=found.estimator,
                effort=effort,
                std_error=found.std_error,
                effective_sample_size=found.effective_sample_size,
            )
            groups.append((torch.tensor([row], device=x.device), likelihood))
        return joined(groups, "documents")

    def topics(self) -> Tensor:
        return self.words

    @property
    def _alpha(self) -> float:
        return 1 / self.num_topics if self.concentration is None else self.concentration

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Two topics of six words, and two documents."""
        return cls(num_visible=6, num_topics=2), torch.tensor([[1.0, 0, 2, 0, 1, 1], [0, 0, 1, 3, 0, 1]])


class DocumentAnnealing(Annealing):
    """Chains over the topics' shares θ of one document, from their prior to their posterior:

    p_β(θ) ∝ Dirichlet(θ) Π_w (Σ_k θ_k φ_kw^β)^{x_w},     so that Z₀ = 1 and Z₁ = p(words)

    words: φ, (num_topics, num_visible); counts: x, (num_visible,); concentration: α.

    A step draws every word's topic, in proportion to θ_k φ_kw^β, and then θ given the topics: of (θ, topics) with the
    powers of φ for its likelihood it is a Gibbs sweep, and seen from θ alone it satisfies detailed balance.
    """

    log_partition_at_start = 0.0

    def __init__(self, words: Tensor, counts: Tensor, concentration: float, num_chains: int) -> None:
        occurring = counts.nonzero()[:, 0]
        self._counts = counts[occurring].double()  # (different words,)
        self._log_words = words[:, occurring].double().log()  # (num_topics, different words)
        self._word_of = torch.arange(len(occurring), device=counts.device).repeat_interleave(
            counts[occurring].round().long()
        )  # (words,)
        self._concentration = concentration
        self._shares = self._draw_shares(self._log_words.new_zeros(num_chains, len(words)))

    def _draw_shares(self, topics: Tensor) -> Tensor:
        """θ given how many words have each topic, (num_chains, num_topics) twice."""
        gamma = torch._standard_gamma(topics + self._concentration)
        return gamma / gamma.sum(-1, keepdim=True)

    def log_ratio(self, beta: float, next_beta: float) -> Tensor:
        """log p*_next(θ) − log p*_β(θ) of each chain, (num_chains,)."""
        after, before = ((self._shares @ (b * self._log_words).exp()).log() for b in (next_beta, beta))
        return (after - before) @ self._counts

    def step(self, beta: float) -> None:
        """Topics of all words, then the shares."""
        weights = self._shares[:, None] * (beta * self._log_words).exp().t()  # (num_chains, different words, topics)
        reached = weights.cumsum(-1)
        chance = torch.rand(len(weights), len(self._word_of), 1, dtype=weights.dtype, device=weights.device)
        reached = reached[:, self._word_of]
        topic = (reached < chance * reached[..., -1:]).sum(-1)  # (num_chains, words)
        topics = torch.zeros_like(self._shares).scatter_add_(1, topic, torch.ones_like(chance[..., 0]))
        self._shares = self._draw_shares(topics)


def _no_documents() -> dict[str, Tensor]:
    nothing = torch.zeros(0, dtype=torch.float64)
    return {"row": nothing, "word": nothing, "count": nothing, "number": torch.tensor(0.0, dtype=torch.float64)}


def _in_order(documents: Mapping[str, Tensor], number: int, num_words: int) -> Any:
    """A sparse matrix (number, num_words) of the counts, rows in the order of their bytes."""
    from scipy import sparse

    places = (documents["row"].long().numpy(), documents["word"].long().numpy())
    rows = sparse.csr_matrix((documents["count"].numpy(), places), shape=(number, num_words))

    def content(row: int) -> tuple[bytes, bytes]:
        inside = slice(rows.indptr[row], rows.indptr[row + 1])
        return rows.indices[inside].tobytes(), rows.data[inside].tobytes()

    return rows[sorted(range(number), key=content)]
