"""k-means: centres μ_k, each the mean of the samples nearest to it (MacQueen 1967; Lloyd 1982), clusters and codes.

Symbols: v a sample, μ_k the centre of cluster k of K, z_k = ‖v − μ_k‖, inertia the mean of min_k z_k² over samples.
What is NOT here: the rounds over the data (`rounds.py`), mixtures of Gaussians (`mixture_model.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.interfaces import Batch, Clusters, IteratedModel, Layer, Measures

VALUES_AT_A_TIME = 2**19  # of samples: in float64 they stay in the processor's cache
FAR = 32  # of the samples farthest from their centres, kept for centres that have none
FEW = 100  # centres up to which k-means++ tries several samples a centre and products are of centres with samples
REFINING_ROUNDS = 20  # on the sample that a start is chosen from


class KMeans(IteratedModel, Layer, Clusters, Measures):
    """K = num_hidden ≥ 2 centres of least inertia, found by Lloyd's rounds over all samples or by mini-batches.

    distance: euclidean, or cosine: samples and centres have length 1 (spherical k-means, Dhillon & Modha 2001).
    code: one_hot, triangle h_k = max(0, mean_j z_j − z_k) (Coates, Ng & Lee 2011), or distance h_k = z_k; the way
    back is the nearest centre.
    batch_size: None, or samples of a mini-batch (Sculley 2010): a centre moves to the mean of all it has ever taken in.
    passes: over the data, at most. tolerance: ≥ 0; rounds over all samples end once they lower the inertia by no more
    than this share of it. starts: k-means++ (Arthur & Vassilvitskii 2007), each refined on the same sample of the data;
    the best is taken.

    A centre without samples, or one that has got none of the last 100 K in mini-batches, moves to the sample farthest
    from its own centre. Sums are float64, whatever order shards and ranks come in.
    """

    revision: ClassVar[int] = 2

    def __init__(
        self,
        *,
        num_visible: int,
        num_hidden: int,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        code: Literal["one_hot", "triangle", "distance"] = "one_hot",
        batch_size: int | None = None,
        passes: int = 100,
        tolerance: float = 1e-5,
        starts: int = 4,
    ) -> None:
        super().__init__()
        if num_hidden < 2:
            raise ValueError(f"num_hidden, the number of clusters, must be at least 2, not {num_hidden}")
        counts = {"num_visible": num_visible, "passes": passes, "starts": starts}
        for name, count in (counts | ({} if batch_size is None else {"batch_size": batch_size})).items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be 0 or more, not {tolerance}")
        self.num_visible, self.num_hidden, self.num_clusters = num_visible, num_hidden, num_hidden
        self.distance, self.code, self.batch_size = distance, code, batch_size
        self.passes, self.tolerance, self.starts = passes, tolerance, starts
        self.start_samples = max(10_000, 10 * num_hidden)
        self.centres: Tensor
        self.taken: Tensor
        self.idle: Tensor
        self.inertia: Tensor
        self.register_buffer("centres", torch.zeros(num_hidden, num_visible))
        self.register_buffer("taken", torch.zeros(num_hidden, dtype=torch.float64))  # samples a centre stands for
        self.register_buffer("idle", torch.zeros(num_hidden, dtype=torch.float64))  # seen since it last took one
        self.register_buffer("inertia", torch.full((), math.inf, dtype=torch.float64))  # of the last round
        self._settled = False
        self._sums: Tensor
        self._counts: Tensor
        self._squares: Tensor
        self._far: dict[str, Tensor]
        self.forget()

    def idle_arguments(self) -> dict[str, str]:
        """What only rounds over all samples need."""
        return {} if self.batch_size is None else {"tolerance": "rounds over all samples, no batch_size"}

    @property
    def hidden_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if self.code == "one_hot" else None

    @property
    def least_samples(self) -> int:
        return self.num_hidden

    # ---- fitting

    @torch.no_grad()
    def start(self, sample: Tensor) -> None:
        if len(sample) < self.num_hidden:
            raise ValueError(f"{self.num_hidden} centres need as many samples or more, found {len(sample)}")
        found = best_of_starts(self._measured(sample), self.num_hidden, self.starts)
        self.centres.copy_(self._measured(found))
        self.taken.zero_(), self.idle.zero_()
        self.inertia.fill_(math.inf)
        self._settled = False
        self.forget()

    @property
    def settled(self) -> bool:
        return self._settled

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Adds each sample to its nearest centre's sum."""
        assert isinstance(batch, Tensor)
        distances, v = Distances(self.centres), self._measured(batch)
        parts, sums, found = self._parts(v), self._sums.to(v.device), []
        room = v.new_empty(len(parts[0]) * self.num_hidden)  # fresh memory for each part would cost more than the sums
        exact = v.new_empty(parts[0].shape, dtype=torch.float64)
        for part in parts:
            found.append(distances.nearest(part, room))
            sums.index_add_(0, found[-1][1], exact[: len(part)].copy_(part))
        squared, cluster = map(torch.cat, zip(*found, strict=True))
        self._sums = sums
        self._add_counts(torch.bincount(cluster, minlength=self.num_hidden), squared.sum(dtype=torch.float64))
        farthest, place = squared.topk(min(FAR, self.num_hidden, len(v)))
        self._keep_farthest(farthest, cluster[place], v[place])

    def partial(self) -> dict[str, Tensor]:
        """Sums, numbers and squared distances of the samples so far, and those farthest from their centres."""
        own = {"sums": self._sums, "counts": self._counts, "squares": self._squares}
        return {name: tensor.cpu() for name, tensor in (own | self._far).items()}

    def merge(self, partial: Mapping[str, Tensor]) -> None:
        self._sums = self._sums + partial["sums"].to(self._sums.device)
        self._add_counts(partial["counts"], partial["squares"])
        self._keep_farthest(partial["distances"], partial["clusters"], partial["samples"])

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Moves the centres → {"samples", "inertia" before the move, "revived" centres}."""
        number = float(self._counts.sum())
        if number < (1 if self.batch_size else self.num_hidden):
            raise ValueError(f"{self.num_hidden} centres need {self.num_hidden} samples or more, found {number:.0f}")
        counts, sums = self._counts.cpu(), self._sums.cpu()
        idle = torch.where(counts > 0, 0.0, self.idle.cpu() + number)
        revived = self._revive(idle >= (100 * self.num_hidden if self.batch_size else 1), counts, sums, idle)
        before = self.taken.cpu() if self.batch_size else torch.zeros_like(counts)
        before[list(revived)] = 0
        taken = before + counts
        moved = (before[:, None] * self.centres.cpu().double() + sums) / taken.clamp(min=1)[:, None]
        self.centres.copy_(self._measured(torch.where(taken[:, None] > 0, moved, self.centres.cpu().double())))
        self.taken.copy_(taken)
        self.idle.copy_(idle)
        inertia = float(self._squares) / number
        was, self._settled = float(self.inertia), False
        if self.batch_size is None:
            self._settled = not revived and was - inertia <= self.tolerance * inertia
        self.inertia.fill_(inertia)
        self.forget()
        return {"samples": number, "inertia": inertia, "revived": float(len(revived))}

    def _revive(self, dead: Tensor, counts: Tensor, sums: Tensor, idle: Tensor) -> dict[int, int]:
        """Hands the farthest samples, one each, from their clusters to dead centres → {centre: place of its sample}."""
        revived: dict[int, int] = {}
        order = self._far["distances"].argsort(descending=True, stable=True).tolist()
        for centre in dead.nonzero()[:, 0].tolist():
            while order and (counts[self._far["clusters"][order[0]]] <= 1 or self._far["distances"][order[0]] <= 0):
                order.pop(0)
            if not order:
                break
            place = order.pop(0)
            old, sample = int(self._far["clusters"][place]), self._far["samples"][place].double()
            sums[old] -= sample
            counts[old] -= 1
            sums[centre], counts[centre], idle[centre] = sample, 1.0, 0.0
            revived[centre] = place
        return revived

    def _add_counts(self, counts: Tensor, squares: Tensor) -> None:
        self._counts = self._counts + counts.cpu()
        self._squares = self._squares + squares.cpu()

    def _keep_farthest(self, squared: Tensor, cluster: Tensor, v: Tensor) -> None:
        new = {"distances": squared, "clusters": cluster, "samples": v}
        joined = {name: torch.cat([kept, new[name].to(kept)]) for name, kept in self._far.items()}
        order = joined["distances"].argsort(descending=True, stable=True)[: min(FAR, self.num_hidden)]
        self._far = {name: tensor[order] for name, tensor in joined.items()}

    def forget(self) -> None:
        self._sums = torch.zeros(self.num_hidden, self.num_visible, dtype=torch.float64, device="cpu")
        self._counts = torch.zeros(self.num_hidden, dtype=torch.float64, device="cpu")
        self._squares = torch.zeros((), dtype=torch.float64, device="cpu")
        self._far = {
            "distances": torch.zeros(0, device="cpu"),
            "clusters": torch.zeros(0, dtype=torch.int64, device="cpu"),
            "samples": torch.zeros(0, self.num_visible, device="cpu"),
        }

    # ---- what it can do

    def assign(self, v: Tensor) -> Tensor:
        return nearest(self._measured(v), self.centres)[1]

    def encode(self, v: Tensor) -> Tensor:
        if self.code == "one_hot":
            return F.one_hot(self.assign(v), self.num_hidden).to(v.dtype)
        squared = squared_distances(self._measured(v), self.centres)
        distances = squared.clamp(min=0).sqrt()
        return distances if self.code == "distance" else (distances.mean(1, keepdim=True) - distances).relu()

    def decode(self, h: Tensor) -> Tensor:
        place = h.argmin(1) if self.code == "distance" else h.argmax(1)
        return self.centres[place].to(h.dtype)

    def filters(self) -> Tensor:
        """(num_hidden, num_visible): the centres."""
        return self.centres

    def measure(self, v: Tensor) -> dict[str, float]:
        """{"inertia": mean squared distance from the nearest centre}."""
        distances = Distances(self.centres)
        parts = [distances.nearest(part)[0].double().sum() for part in self._parts(self._measured(v))]
        return {"inertia": float(sum(parts)) / len(v)}

    @torch.no_grad()
    def randomize(self) -> None:
        """The untrained twin: each value of a centre is Gaussian, with its mean and variance over learned centres."""
        mean, std = self.centres.mean(0), self.centres.std(0, correction=0)
        self.centres.copy_(self._measured(mean + std * torch.randn_like(self.centres)))

    def _parts(self, v: Tensor) -> Sequence[Tensor]:
        return v.split(max(1, VALUES_AT_A_TIME // self.num_visible))

    def _measured(self, v: Tensor) -> Tensor:
        """What distances are taken of: v itself, or its direction."""
        return F.normalize(v, dim=1) if self.distance == "cosine" else v

    @classmethod
    def example(cls) -> tuple[Self, Tensor]:
        """Three centres of six values, and two samples."""
        model = cls(num_visible=6, num_hidden=3)
        x = torch.sin(torch.arange(60.0).square()).reshape(10, 6)
        model.centres.copy_(x[:3])
        return model, x[3:5]


# ---- distances and starts, of any points


class Distances:
    """From some centres, (K, num_visible): ‖v − μ_k‖² = ‖v‖² − 2 v·μ_k + ‖μ_k‖².

    Around the centres' mean where that is far from the origin: else digits cancel.
    """

    def __init__(self, centres: Tensor) -> None:
        middle = centres.mean(0)
        far = middle.square().sum() > 100 * (centres - middle).square().sum(1).mean()
        self._middle = middle.double() if far else None
        self._centres = self._around(centres)
        self._squares = self._centres.square().sum(1)

    def _around(self, v: Tensor) -> Tensor:
        return v if self._middle is None else (v.double() - self._middle).to(v.dtype)

    def squared(self, v: Tensor) -> Tensor:
        """(batch, num_visible) → (batch, K); may be −ε."""
        v = self._around(v)
        return torch.addmm(self._squares, v, self._centres.T, alpha=-2) + v.square().sum(1, keepdim=True)

    def nearest(self, v: Tensor, room: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squared distances from the nearest centres and which they are, (batch,) each; the first one of equals.

        room: for batch · K values or more, which are written over.
        """
        v, number = self._around(v), len(self._centres)
        room = None if room is None else room[: len(v) * number]
        if number <= FEW:  # as rows they are multiplied faster
            out = None if room is None else room.view(number, len(v))
            least, cluster = torch.addmm(self._squares[:, None], self._centres, v.T, alpha=-2, out=out).min(0)
        else:
            out = None if room is None else room.view(len(v), number)
            least, cluster = _least(torch.addmm(self._squares, v, self._centres.T, alpha=-2, out=out))
        return (least + torch.linalg.vector_norm(v, dim=1).square()).clamp(min=0), cluster


def _least(values: Tensor) -> tuple[Tensor, Tensor]:
    """values.min(1), the first one of equals."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.min(1)
    place = torch.from_numpy(values.detach().numpy().argmin(1))  # several times as fast as torch's
    return values.gather(1, place[:, None])[:, 0], place


def squared_distances(v: Tensor, centres: Tensor) -> Tensor:
    """See `Distances`."""
    return Distances(centres.to(v.dtype)).squared(v)


def nearest(v: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """See `Distances`."""
    return Distances(centres.to(v.dtype)).nearest(v)


@torch.no_grad()
def best_of_starts(x: Tensor, number: int, starts: int) -> Tensor:
    """Centres (number, width) of all of x, (n, width): k-means++, refined by Lloyd's rounds; of `starts` the best."""
    found = [_refined(x, _plus_plus(x, number)) for _ in range(starts)]
    return min(found, key=lambda centres: float(nearest(x, centres)[0].double().sum()))


def _plus_plus(x: Tensor, number: int) -> Tensor:
    """Each next centre a sample drawn in proportion to its squared distance; of a few draws the one that helps most."""
    trials = 2 + int(math.log(number)) if number <= FEW else 1
    centres = x.new_empty(number, x.shape[1])
    centres[0] = x[int(torch.randint(len(x), (1,)))]
    squared = squared_distances(x, centres[:1])[:, 0].clamp(min=0)
    for chosen in range(1, number):
        reached = squared.double().cumsum(0).cpu()
        draws = torch.rand(trials, dtype=torch.float64) * reached[-1]
        candidates = x[torch.searchsorted(reached, draws, right=True).clamp(max=len(x) - 1).to(x.device)]
        left = torch.minimum(squared[:, None], squared_distances(x, candidates).clamp(min=0))  # (n, trials)
        best = int(left.sum(0).argmin())
        centres[chosen], squared = candidates[best], left[:, best]
    return centres


def _refined(x: Tensor, centres: Tensor) -> Tensor:
    """Lloyd's rounds; a centre without samples stays where it is."""
    before: Tensor | None = None
    for _ in range(REFINING_ROUNDS):
        cluster = nearest(x, centres)[1]
        if before is not None and torch.equal(cluster, before):
            break
        counts = torch.bincount(cluster, minlength=len(centres))[:, None]
        sums = torch.zeros_like(centres).index_add_(0, cluster, x)
        centres, before = torch.where(counts > 0, sums / counts.clamp(min=1), centres), cluster
    return centres
