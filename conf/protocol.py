"""What a stage process is asked and what it answers.

A request is a job; `python -m lightning_modules.fit REQUEST.json` does it. A job's `identity()` is everything that
enters the mathematics, and its digest is the stage's key; folders, devices, threads and logging stand outside it.
Lines a stage process writes to stdout are JSON: `{"progress": …}`, `{"answer": …}` or `{"error": {status, message}}`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from conf import PLACEMENT, Evaluate, Finetune, Recipe, Split, Strict, Train

Flow = Literal["pretrain", "train", "finetune"]


class Inputs(Strict):
    """The samples a job reads: a folder of shards, which of its sets, and the digests that name its content."""

    shards: str
    samples_digest: str
    labels_digest: str
    split: Split
    weight: float = 1.0  # in a mixture
    without: list[str] = []  # damaged shards that are left out, by name
    remembered: str | None = None  # the file that remembers which shards were verified

    def identity(self, *, labels: bool = False) -> dict[str, Any]:
        named: dict[str, Any] = {"samples": self.samples_digest, "split": self.split.model_dump()}
        named |= {"without": sorted(self.without)} if self.without else {}
        return named | ({"labels": self.labels_digest} if labels else {})


class Below(Strict):
    """The finished model a job stands on."""

    folder: str
    digest: str


class TrainJob(Strict):
    """Train one model; a layer joins the stack below it. Answer: a model directory."""

    do: Literal["train"] = "train"
    stage: str
    folder: str = ""
    spec: dict[str, Any]  # of the new model alone, arguments complete
    revision: Any
    below: Below | None
    hand_up: Literal["mean", "sample"]
    inputs: Inputs
    mixed: list[Inputs] = []  # further sets that training draws from
    train: Train
    seed: int
    one_pass: bool = False  # statistics of one pass, then closed form: neither optimizer nor order enters
    draws: bool = False  # a fit by passes that begins at random
    labeled: bool = False  # learns from the samples that have a label, and from their labels
    method: int = 1  # revision of how models are trained, whatever the model

    def samples(self) -> dict[str, Any]:
        """What names the samples it learns from."""
        if not self.mixed:
            return self.inputs.identity(labels=self.labeled)
        sets = [inputs.identity() | {"weight": inputs.weight} for inputs in (self.inputs, *self.mixed)]
        return sets[0] | {"mixed": sets[1:]}

    def identity(self) -> dict[str, Any]:
        sampled = self.train.binarize == "sample" or bool(self.below and self.hand_up == "sample")
        drawn = not self.one_pass or self.draws or sampled
        train = self.train.model_dump(include={"binarize"} if self.one_pass else None, exclude=set(PLACEMENT))
        return {
            "do": self.do,
            "spec": self.spec,
            "revision": [self.method, self.revision],
            "below": self.below and self.below.digest,
            "hand_up": self.hand_up if self.below else "mean",
            "inputs": self.samples(),
            "train": train,
            "seed": self.seed if drawn else None,
        }


class FinetuneJob(Strict):
    """Classifiers from few labels on a finished stack, and their supervised twins, one run after another."""

    do: Literal["finetune"] = "finetune"
    stage: str
    folder: str = ""
    revision: Any
    below: Below
    inputs: Inputs
    finetune: Finetune
    train: Train  # placement only
    method: int = 1  # revision of how labels are revealed and classifiers trained

    def identity(self) -> dict[str, Any]:
        return {
            "do": self.do,
            "revision": [self.method, self.revision],
            "below": self.below.digest,
            "inputs": self.inputs.identity(labels=True),
            "finetune": self.finetune.model_dump(mode="json"),
            "precision": self.train.precision,
        }


class EvaluateJob(Strict):
    """Likelihoods, samples, filters and reconstructions of one finished model."""

    do: Literal["evaluate"] = "evaluate"
    stage: str
    folder: str = ""
    model: Below
    inputs: Inputs
    evaluate: Evaluate
    train: Train  # placement only
    seed: int
    revision: int = 5  # of the measurements

    def identity(self) -> dict[str, Any]:
        return {
            "do": self.do,
            "revision": self.revision,
            "model": self.model.digest,
            "inputs": self.inputs.identity(labels=True),
            "evaluate": self.evaluate.model_dump(),
            "seed": self.seed,
        }


class SampleJob(Strict):
    """Draw from a model into a .npy file, and a picture beside it where samples are images."""

    do: Literal["sample"] = "sample"
    model: str
    number: int = Field(ge=1)
    out: str
    seed: int = 0
    gibbs_steps: int = 500


class EncodeJob(Strict):
    """Codes of every sample of some shards: one .npy a set, and codes.json."""

    do: Literal["encode"] = "encode"
    model: str
    shards: str
    out: str
    bits: bool = False  # packed, see data/codes.py
    batch_size: int = 1000


class IndexJob(Strict):
    """Build an index of packed codes, to be searched."""

    do: Literal["index"] = "index"
    codes: str
    out: str
    kind: Literal["flat", "tables", "buckets"] = "flat"
    recall: float = Field(0.99, gt=0, le=1)  # of the ten nearest, that buckets are to find


class SearchJob(Strict):
    """Answer queries, one `Query` a line of stdin, about a folder of packed codes or an index until there are no more.

    The first answer says what is searched, each further one what was found; an error ends only its own query. Model and
    shards are those the codes are of, unless given: a text or a picture has to become a code first.
    """

    do: Literal["search"] = "search"
    folder: str
    model: str | None = None
    shards: str | None = None


class Query(Strict):
    """What to look for, exactly one of the first four, and how many: k nearest, or all within a radius, at most k."""

    items: list[int] | None = None  # numbers of codes; themselves are left out of what is found
    text: str | None = None  # of a model of documents
    picture: str | None = None  # a file, of a model of pictures
    codes: str | None = None  # a .npy file of packed codes
    k: int = Field(10, ge=1, le=10_000)
    radius: int | None = Field(None, ge=0)  # bits
    exact: bool = False  # all buckets
    crop: bool = False  # as `fit: crop` of the source of pictures


Job = TrainJob | FinetuneJob | EvaluateJob | SampleJob | EncodeJob | IndexJob | SearchJob


class Description(Strict):
    """What `plan` must know of a data set: shape of a sample, range of its values, sizes after the split."""

    shape: list[int]
    low: float | None  # of the scaled values; None: not known before ingest
    high: float | None
    sizes: dict[str, int]  # train, validation, test
    labeled: int  # labeled training samples
    labeled_test: int
    num_classes: int


class PlanJob(Strict):
    """Check kinds, signatures, widths and ranges; build every model on the meta device; touch no file."""

    do: Literal["plan"] = "plan"
    recipe: Recipe
    descriptions: dict[str, Description]


class StagePlan(Strict):
    """One stage as `plan` found it."""

    name: str
    flow: Flow
    kind: str
    spec: dict[str, Any]  # of the new model, arguments complete; for a fine-tuning, of the classifier without its stack
    revision: Any
    shape: str  # "784 → 500"
    parameters: int
    samples: int
    steps: int
    runs: int = 1  # of a fine-tuning
    one_pass: bool = False  # no training in epochs: the steps of one pass over the samples
    rounds: bool = False  # many passes, each from where the last one ended; begins at random
    labeled: bool = False  # learns from labels, or can be measured by them

    @property
    def counted(self) -> str:
        """What its progress is counted in."""
        return "rounds" if self.rounds else "batches" if self.one_pass else "steps"


class Plan(Strict):
    stages: list[StagePlan]


class Request(Strict):
    """The content of request.json: jobs done one after another by one process; a finished one is skipped."""

    jobs: list[Job] = Field(min_length=1)
    debug: bool = False


class Result(Strict):
    """result.json, written last: the stage is finished, and this is what came of it."""

    stage: str
    key: str
    do: str
    kind: str
    digest: str  # of what a later stage reads
    metrics: dict[str, float]
    model: bool = False  # is there a `model` directory beside this file
    models: list[dict[str, Any]] = []  # of a fine-tuning: labels, seed, pretrained, path, error, revealed
    details: dict[str, Any] = {}  # what the report shows beside the metrics: kinds of likelihoods, shapes, sizes
    steps: int = 0
    seconds: float
    placement: dict[str, Any] = {}  # devices, threads, versions: what does not enter the key
