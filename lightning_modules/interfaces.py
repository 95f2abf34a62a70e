"""The two axes every model is placed on, and what an answer about likelihood must say.

Axis 1, how it is fitted: exactly one of `Model`, `PhasedModel`, `StreamingModel`, `ComposedModel`.
Axis 2, what it can do: any of `Encodes`, `Layer`, `Clusters`, `StartsFromBelow`, `StartsFromData`, `SamplesHidden`,
`Samples`, `Classifies`, `SamplesByClass`, `HasLogProb`, `HasFreeEnergy`, `HasChains`, `HasHiddenLayers`, `HasTopics`,
`Hashes`, `HasDictionary`, `Measures`, `HasMonitors`, `RankState`, `MovingAverages`.
Training asks for axis 1; commands, reports and contract tests ask for axis 2.

Rules for every model. It is plain single-device mathematics: no Lightning, no shards, no files. Its constructor is
keyword-only and is its whole configuration; arguments out of range raise ValueError. It draws from torch's default
generator and never seeds. `example()` returns a tiny valid instance and a batch of two samples.
`x` is (batch, num_visible) float; a model that wants images takes `image_shape` and reshapes by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeGuard

from torch import Tensor, nn

Batch = Tensor | Mapping[str, Tensor]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Effort:
    """How much work an estimate may cost."""

    num_samples: int = 100  # importance samples per data point
    num_chains: int = 100  # AIS runs
    num_temperatures: int = 5000  # intermediate distributions of AIS; Gibbs steps when sampling


@dataclass(frozen=True)
class LogLikelihood:
    """log p(x) in nats with what the number promises.

    `std_error` is that of the mean over the batch that comes from the estimator (not from the choice of data).
    """

    nats: Tensor  # (batch,)
    kind: Literal["exact", "lower_bound", "upper_bound", "estimate"]
    estimator: str
    effort: Effort
    std_error: float | None = None
    effective_sample_size: float | None = None
    reverse: LogLikelihood | None = None  # the same from the other side, where it was measured


class Fitted(nn.Module, ABC):
    """What all four ways of fitting share. Not to be inherited directly."""

    revision: ClassVar[int] = 1  # raised with any change of the model's numbers; part of the stage key
    num_visible: int
    spec: dict[str, Any]  # {"kind", "arguments"}, completed; set by build, and by nothing else

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """The interval data must lie in (Bernoulli units: (0, 1)), or None."""
        return None

    def idle_arguments(self) -> dict[str, str]:
        """Arguments that change nothing beside the others → what they need; recipes may not give them."""
        return {}

    @property
    def num_parameters(self) -> int:
        """Free ones, of this model and all inside it."""
        parts = [part for part in self.modules() if isinstance(part, Fitted)]
        return sum(p.numel() for p in self.parameters()) - sum(part.num_unused for part in parts)

    @property
    def num_unused(self) -> int:
        """Entries of this class's own parameters that nothing depends on."""
        return 0

    @classmethod
    @abstractmethod
    def example(cls) -> tuple[Self, Batch]:
        """A tiny valid instance and a batch of two samples it accepts."""


class Model(Fitted):
    """Trained by one optimizer on one objective."""

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """{"loss": scalar to minimise, then named parts for the curves}; means over the batch, nats per example."""

    def after_step(self) -> None:
        """Projects parameters onto their constraints after each optimizer step; most models have none."""


@dataclass(frozen=True)
class Phase:
    """One optimizer's turn within a step. Its gradients touch `parameters` only."""

    name: str
    parameters: Sequence[nn.Parameter]
    losses: Callable[[Any], Losses]
    steps: int = 1


class PhasedModel(Fitted):
    """Several optimizers in turn: a GAN's discriminator and generator, wake and sleep, up and down."""

    @abstractmethod
    def phases(self) -> Sequence[Phase]: ...


class StreamingModel(Fitted):
    """Fitted by one pass over the data: statistics are gathered, then everything follows from them in closed form.

    Statistics are plain attributes in float64, no buffers: they are not saved. `finish` turns them into the buffers
    that are, and forgets them. The order of the samples must not matter beyond rounding.
    """

    @property
    def least_samples(self) -> int:
        """How many samples `finish` needs."""
        return 1

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Takes in a batch, (batch, num_visible) on any device."""

    @abstractmethod
    def partial(self) -> dict[str, Tensor]:
        """The statistics gathered so far, on the CPU: what one process tells another."""

    @abstractmethod
    def merge(self, partial: Mapping[str, Tensor]) -> None:
        """Takes in the statistics another instance gathered from other samples, its `partial()`."""

    @abstractmethod
    def finish(self) -> dict[str, float]:
        """Sets the fitted buffers → facts about the fit, by name. ValueError, one line, where there is none."""


class IteratedModel(StreamingModel):
    """Fitted by rounds over the data, each from where the last one ended: k-means, EM.

    `start` chooses where to begin; in every round `update` takes in batches and `finish` takes the step their
    statistics say. A round's outcome is in the buffers, and the next one needs nothing else.
    """

    start_samples: int  # that `start` is given, drawn evenly from the data
    passes: int  # over all samples, at most
    batch_size: int | None  # samples of a round, drawn anew in every pass; None: all of them

    @abstractmethod
    def start(self, sample: Tensor) -> None:
        """Sets the buffers from (start_samples, num_visible) or all there are; may draw. ValueError: too few."""

    @abstractmethod
    def forget(self) -> None:
        """Drops the statistics gathered so far; `finish` does it too."""

    @property
    @abstractmethod
    def settled(self) -> bool:
        """Whether the last round has changed so little that no more are worth their while."""


class ComposedModel(Fitted):
    """Put together from trained parts; nothing is left to fit (a deep belief net made of a stack)."""


class Encodes(ABC):
    """Turns data into codes."""

    num_visible: int
    num_hidden: int

    @abstractmethod
    def encode(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_hidden): the code's mean, no sampling noise."""

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        """The interval codes lie in (sigmoid codes: (0, 1)), or None."""
        return None


class Layer(Encodes):
    """May stand in a Stack."""

    @abstractmethod
    def decode(self, h: Tensor) -> Tensor:
        """(batch, num_hidden) → (batch, num_visible): the way back, a mean."""


class Clusters(ABC):
    """Sorts data into groups."""

    num_clusters: int

    @abstractmethod
    def assign(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch,) int64: which cluster each belongs to, from 0."""


class Hashes(ABC):
    """Turns data into short binary codes, to be compared by the number of bits that differ."""

    num_bits: int

    @abstractmethod
    def bits(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_bits) bool, no noise."""


class StartsFromData(ABC):
    """Parameters start from a sample of what it learns from."""

    @abstractmethod
    def start_from_data(self, x: Tensor) -> None:
        """Called once, before training, with 10,000 samples, (n, num_visible), or all there are; may draw."""


class StartsFromBelow(ABC):
    """A layer whose parameters may start from those of the layer it will stand on."""

    @abstractmethod
    def start_from_below(self, below: Layer | None) -> None:
        """Called once, before training; `below`: the finished layer under it, None where it learns from the data.

        ValueError where it is to start from a layer and this is none that it can start from.
        """


class SamplesHidden(ABC):
    """Has stochastic hidden units, so that a layer above may be trained on samples of them."""

    @abstractmethod
    def sample_hidden(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → one draw of the hidden units, (batch, num_hidden)."""


class Samples(ABC):
    """Draws new data."""

    @abstractmethod
    def sample(self, num_samples: int, *, effort: Effort) -> Tensor:
        """→ (num_samples, num_visible): the mean given the last latent draw, where there is one."""


class Classifies(ABC):
    """Tells classes apart, as learned from batches {"x": (batch, num_visible), "label": (batch,) integers}."""

    num_classes: int | None  # None: this one was put together without labels and tells nothing

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, num_classes): log p(label | x) up to a constant per example, no noise."""


class SamplesByClass(Classifies):
    """A joint model of data and their labels."""

    @abstractmethod
    def sample_class(self, label: Tensor, *, effort: Effort) -> Tensor:
        """One draw of data of each class, (batch,) integers → (batch, num_visible): as `Samples.sample`."""


class HasLogProb(ABC):
    """Has a density it can answer for."""

    @property
    def has_log_prob(self) -> bool:
        """False for an instance of a class that has a density which itself has none; asking it is a ValueError."""
        return True

    @property
    def reads_counts(self) -> bool:
        """Whether x are the counts of a document's words; log_prob is then that of the words, their number given."""
        return False

    @abstractmethod
    def log_prob(self, x: Tensor, *, effort: Effort) -> LogLikelihood:
        """(batch, num_visible) → nats per example, and what they promise."""


class HasFreeEnergy(ABC):
    """Has a density whose log Z is hard to come by; differences of log p between data need none."""

    @property
    def has_free_energy(self) -> bool:
        """False for an instance that has none, or a log Z for each kind of example that does not cancel."""
        return True

    @abstractmethod
    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = −log p(v) − log Z, or an upper bound of it: (batch, num_visible) → (batch,), nats."""


class HasChains(ABC):
    """Draws new data by Gibbs chains that can be watched."""

    @abstractmethod
    def chains(self, v: Tensor) -> Iterator[Tensor]:
        """From v, (batch, num_visible), one chain a row, without end.

        After each sweep: the means of the visible units given the last draw of the others, (batch, num_visible).
        """


class HasHiddenLayers(ABC):
    """Has hidden units to look at, by layer: 1 is the layer next to the data.

    A layer may be left out: one whose units are neither in [0, 1] nor rectified has no activity, one without weights
    no fields.
    """

    @abstractmethod
    def hidden_means(self, v: Tensor) -> dict[int, Tensor]:
        """Means of the hidden units as inferred from v: (batch, num_visible) → (batch, num_units_k) a layer."""

    @abstractmethod
    def incoming_weights(self) -> dict[int, Tensor]:
        """The weights into each unit from the layer below it, (num_units_k, num_units_{k−1}) a layer."""

    @abstractmethod
    def receptive_fields(self) -> dict[int, Tensor]:
        """The same as seen from the data, through all layers between: (num_units_k, num_visible) a layer."""


class HasTopics(ABC):
    """Explains documents by topics."""

    @abstractmethod
    def topics(self) -> Tensor:
        """(num_topics, num_visible): how probable each word is in each."""


@dataclass(frozen=True)
class Dictionary:
    """Atoms, and whose few make an example: v ≈ offset + h D, h = argmin ½‖v − offset − h D‖² + λ‖h‖₁."""

    atoms: Tensor  # D, (num_hidden, num_visible)
    offset: Tensor  # (num_visible,)
    penalty: float  # λ
    nonnegative: bool = False


class HasDictionary(Encodes):
    """Its codes are coefficients of atoms, the best ones or guesses of them."""

    @abstractmethod
    def dictionary_of_codes(self) -> Dictionary: ...


class Measures(ABC):
    """Knows numbers beyond a reconstruction error that say how good it is on data it was not fitted to."""

    @abstractmethod
    def measure(self, v: Tensor) -> dict[str, float]:
        """(batch, num_visible) → numbers by name."""


class HasMonitors(ABC):
    """Knows numbers that show how learning goes and would slow every step: training asks for them when it logs."""

    @abstractmethod
    def monitors(self, batch: Batch) -> dict[str, Tensor]:
        """Means over a batch as `losses` takes it, by name. Nothing moves; what is drawn is forgotten."""


class RankState(ABC):
    """State that belongs to a share of the work (persistent chains): tensors whose first dimension is the global chain.

    Right after construction it is the state of all chains; training hands each rank its slice and saves the slices
    under their global index. Not a registered buffer: DistributedDataParallel would overwrite it with rank 0's.
    """

    @abstractmethod
    def rank_state(self) -> dict[str, Tensor]: ...

    @abstractmethod
    def load_rank_state(self, state: dict[str, Tensor]) -> None: ...


class MovingAverages(ABC):
    """Buffers that follow means over the batch: before `after_step` they are set to their mean over the ranks.

    Ranks are weighted by their shares of the batch, so that buffers linear in its means are those of the whole batch.
    """

    @abstractmethod
    def moving_averages(self) -> Sequence[Tensor]: ...


def labeled(model: object) -> TypeGuard[Classifies]:
    """Whether it learns from labels, or can be measured by them."""
    return isinstance(model, Classifies) and model.num_classes is not None
