"""The recipe: one YAML file that says a whole run from top to bottom.

Every field is typed, has its unit in its name or comment, and refuses unknown keys. `model` is `{kind, arguments…}`;
the arguments belong to the model's constructor and are checked against its signature by `plan`, not here.
What is NOT here: reading YAML (conf/reading.py) and what a stage process is asked (conf/protocol.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

# Numbers are strict: `epochs: true` and `epochs: "5"` are mistakes, not 1 and 5.
Count = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
Labels = Annotated[int, Field(ge=1)] | Literal["all"]


def _texts(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) else value


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# --- where data come from ------------------------------------------------------------------------------------------


class DigitsSource(Strict):
    """1,797 handwritten digits, 8×8, 17 gray levels, that ship inside scikit-learn; no download."""

    kind: Literal["digits"]


class IdxSource(Strict):
    """A folder of IDX files (MNIST's format), gzipped or not; the training files, the test files or both."""

    kind: Literal["idx"]
    path: str


class ArraysSource(Strict):
    """A .npy file (samples first), or an .npz with the arrays of one or more sets.

    In an .npz the usual names are found by themselves (x, data, x_train, train_data …; y, labels, y_train …; x_test …);
    other names are given here. `labels` may also be the path of a second .npy.
    """

    kind: Literal["arrays"]
    path: str
    data: str | None = None
    labels: str | None = None
    test_data: str | None = None
    test_labels: str | None = None
    image_shape: list[Count] | None = Field(None, min_length=2, max_length=3)  # says that vectors are pictures


class ImagesSource(Strict):
    """A folder tree of pictures; a picture's class is the name of its folder, if it has one.

    Two top folders named `train` and `test` are the source's own sets.
    """

    kind: Literal["images"]
    path: str
    size: list[Count] = Field([32, 32], min_length=2, max_length=2)  # height, width in pixels; pictures are resized
    channels: Literal[1, 3] = 1


Source = Annotated[DigitsSource | IdxSource | ArraysSource | ImagesSource, Field(discriminator="kind")]


class Split(Strict):
    """Shares taken by the hash of a sample's key; `test` applies only where the source has no test set of its own."""

    test: Share = 0.2
    validation: Share = 0.1


class Data(Strict):
    """A raw source to ingest, or the folder of finished shards."""

    source: Source | None = None
    shards: str | None = None
    split: Split = Split()
    shard_size: Count = 10_000  # samples per shard

    @model_validator(mode="after")
    def one_origin(self) -> Data:
        if (self.source is None) == (self.shards is None):
            raise ValueError("needs exactly one of 'source' and 'shards'")
        return self


# --- what is learned -----------------------------------------------------------------------------------------------


class Train(Strict):
    """How a stage is trained. Batch sizes are global: shared by all ranks."""

    epochs: Annotated[int, Field(ge=0, strict=True)] = 10
    batch_size: Count = 100
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.05
    schedule: Literal["constant", "linear"] = "constant"  # linear: falls to 0 over the stage
    momentum: Share = 0.0  # sgd's momentum, adam's first decay rate (0: torch's 0.9)
    weight_decay: NotNegative = 0.0  # on weights, not on biases
    binarize: Literal["none", "sample"] = "none"  # sample: x in [0, 1] drawn anew as Bernoulli(x) at every step
    precision: Annotated[Literal["32", "bf16-mixed"], BeforeValidator(_texts)] = "32"

    # From here on nothing enters the mathematics or a stage's key.
    devices: Count = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    threads: Count | None = None  # per process; default: all cores, shared by the devices
    loader_workers: Annotated[int, Field(ge=0, strict=True)] = 0
    log_steps: Count = 50  # optimizer steps between two rows of the metrics journal
    checkpoint_steps: Count = 500


PLACEMENT = frozenset(
    ("devices", "accelerator", "threads", "loader_workers", "log_steps", "checkpoint_steps")
)  # fields of Train that say where and how a stage runs, not what it computes


class ModelSpec(BaseModel):
    """`{kind, constructor arguments}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Finetune(Strict):
    """A classifier on a finished stack, once per number of labels and seed, beside its supervised twin.

    A seed draws which labels are revealed (balanced over classes) and the new weights. The twin is the same net from
    random weights on the same labels. `epochs`, `seeds` and `batch_size` may differ per number of labels:
    `{100: 50, 1000: 30, all: 10}`.
    """

    labels: list[Labels] = Field(min_length=1)
    seeds: Count | dict[Labels, Count] = 5
    epochs: Count | dict[Labels, Count] = 50
    batch_size: Count | dict[Labels, Count] = 10
    learning_rate: Positive = 0.001  # adam
    twin_learning_rate: Positive | None = None  # default: learning_rate
    weight_decay: NotNegative = 0.0
    dropout: Share = 0.0
    input_noise: NotNegative = 0.0  # standard deviation of noise on the inputs, in units of the data
    twin: bool = True

    @field_validator("labels")
    @classmethod
    def distinct(cls, labels: list[Labels]) -> list[Labels]:
        if len(set(labels)) != len(labels):
            raise ValueError("names the same number of labels twice")
        return labels

    @model_validator(mode="after")
    def known_labels(self) -> Finetune:
        for field in ("seeds", "epochs", "batch_size"):
            value = getattr(self, field)
            if isinstance(value, dict) and set(value) != set(self.labels):
                raise ValueError(f"'{field}' must give one value for each of labels {self.labels}")
        return self

    def per_labels(self, field: Literal["seeds", "epochs", "batch_size"], labels: Labels) -> int:
        value = getattr(self, field)
        return value[labels] if isinstance(value, dict) else value


class Stage(Strict):
    """One step of a recipe: a model trained on data (or on the codes of the stage it stands on), or a fine-tuning."""

    on: Name | None = None  # the stage below
    data: Name | None = None  # which of `datasets`; default: the only one, or that of the stage below
    model: ModelSpec | None = None
    finetune: Finetune | None = None
    hand_up: Literal["mean", "sample"] = "mean"  # what the stack below hands to this stage
    train: Train = Train()

    @model_validator(mode="after")
    def one_job(self) -> Stage:
        if (self.model is None) == (self.finetune is None):
            raise ValueError("needs exactly one of 'model' and 'finetune'")
        if self.finetune is not None and self.on is None:
            raise ValueError("'finetune' needs 'on', the stage whose stack it fine-tunes")
        return self


class Evaluate(Strict):
    """What is measured at the end, and how much work an estimate may cost."""

    num_examples: Count = 10_000  # test samples a likelihood is averaged over, from the set's start
    num_samples: Count = 100  # importance samples per example
    num_chains: Count = 100  # AIS runs
    num_temperatures: Count = 1000  # of AIS
    gibbs_steps: Count = 500  # of the chains that draw samples
    binarize: Literal["sample", "threshold", "none"] = "sample"  # of test data for models of binary data; once, by seed


class Recipe(Strict):
    """A whole run."""

    name: Annotated[Name, BeforeValidator(_texts)]
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    data: Data | None = None
    datasets: dict[Name, Data] = {}
    train: Train = Train()  # defaults for every stage
    stages: dict[Name, Stage] = Field(min_length=1)
    evaluate: Evaluate | None = Evaluate()

    @model_validator(mode="before")
    @classmethod
    def inherit_train(cls, tree: Any) -> Any:
        """Writes the recipe's `train` into every stage that does not say otherwise, so that a stage is complete."""
        if (
            not isinstance(tree, dict)
            or not isinstance(tree.get("train"), dict)
            or not isinstance(tree.get("stages"), dict)
        ):
            return tree
        stages = {
            name: stage | {"train": tree["train"] | (stage.get("train") or {})}
            if isinstance(stage, dict) and isinstance(stage.get("train", {}), dict | None)
            else stage
            for name, stage in tree["stages"].items()
        }
        return tree | {"stages": stages}

    @model_validator(mode="after")
    def consistent(self) -> Recipe:
        if (self.data is None) == (not self.datasets):
            raise ValueError("needs exactly one of 'data' and 'datasets'")
        seen: dict[str, Stage] = {}
        for name, stage in self.stages.items():
            if stage.on is not None and stage.on not in seen:
                where = "a later stage" if stage.on in self.stages else "no stage"
                raise ValueError(f"stages.{name}.on names {stage.on!r}, which is {where}; earlier ones: {list(seen)}")
            if stage.on is not None and seen[stage.on].finetune is not None:
                raise ValueError(f"stages.{name}.on names {stage.on!r}, a fine-tuning; nothing can stand on one")
            if stage.data is not None and stage.data not in self.origins:
                raise ValueError(f"stages.{name}.data names {stage.data!r}; the data sets are {list(self.origins)}")
            if stage.on is None and stage.data is None and len(self.origins) > 1:
                raise ValueError(f"stages.{name} must name its 'data', one of {list(self.origins)}")
            seen[name] = stage
        return self

    @property
    def origins(self) -> dict[str, Data]:
        """Every data set by name; the short form `data:` is called `data`."""
        return {"data": self.data} if self.data is not None else self.datasets

    def origin(self, stage: str) -> str:
        """The name of the data set a stage reads."""
        this = self.stages[stage]
        if this.data is not None:
            return this.data
        return self.origin(this.on) if this.on is not None else next(iter(self.origins))

    def chain(self, stage: str) -> list[str]:
        """The stages below `stage`, bottom first."""
        below = self.stages[stage].on
        return [] if below is None else [*self.chain(below), below]
