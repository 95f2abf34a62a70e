"""How many equally likely words a model of documents is in doubt about, on average.

    perplexity = exp(−1/N Σ_n 1/D_n log p(words of document n)),

with N documents of D_n words: the mean is over documents, not over words (Salakhutdinov & Hinton 2009, NIPS 22, §5). A
number means something beside those of other models of the same documents by the same estimator, and beside that of
words drawn one by one (`unigram`): vocabularies and their making move it by hundreds.
"""

from __future__ import annotations

import math

from torch import Tensor


def perplexity(nats: Tensor, counts: Tensor) -> float:
    """nats: log p of each document's words, (batch,); counts: (batch, num_words), those without words left out."""
    lengths = counts.double().sum(1)
    return math.exp(-(nats.double() / lengths)[lengths > 0].mean().item())


def unigram(counts: Tensor, mean_counts: Tensor) -> Tensor:
    """log p of each document where every word is drawn by its share in other documents, (batch,) nats.

    mean_counts: (num_words,) of the others; words that never occur there count as one in a million documents.
    """
    shares = mean_counts.double().clamp(min=1e-6)
    return counts.double() @ (shares / shares.sum()).log()
