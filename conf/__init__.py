"""The recipe: one YAML file that says a whole run from top to bottom.

Every field is typed, has its unit in its name or comment, and refuses unknown keys. `model` is `{kind, arguments…}`;
the arguments belong to the model's constructor and are checked against its signature by `plan`, not here.
What is NOT here: reading YAML (conf/reading.py) and what a stage process is asked (conf/protocol.py).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

# Numbers are strict: `epochs: true` and `epochs: "5"` are mistakes, not 1 and 5.
Count = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
Labels = Annotated[int, Field(ge=1)] | Literal["all"]


def _cluster(value: str) -> str:
    if not re.fullmatch(r"local|(tcp|tls)://[^\s/@]+:\d{1,5}", value):
        raise ValueError(f"expected tcp://HOST:PORT, as `dask scheduler` names it, or local; found {value!r}")
    return value


def _texts(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) else value


Cluster = Annotated[str, AfterValidator(_cluster)]


def _a_place(value: str) -> str:
    if not value:
        raise ValueError("is empty; expected a path")
    if "\0" in value:
        raise ValueError("holds a NUL character, which no path has")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("is not UTF-8 text; rename the file or folder")
    return value


Address = Annotated[str, AfterValidator(_a_place)]  # of a file or folder: a path here, or an fsspec address


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# --- where data come from ------------------------------------------------------------------------------------------


class DigitsSource(Strict):
    """1,797 handwritten digits, 8×8, 17 gray levels, that ship inside scikit-learn; no download."""

    kind: Literal["digits"]


class IdxSource(Strict):
    """A folder of IDX files (MNIST's format), gzipped or not; the training files, the test files or both."""

    kind: Literal["idx"]
    path: Address


class ArraysSource(Strict):
    """A .npy file (samples first), or an .npz or MATLAB .mat (up to v7) with the arrays of one or more sets.

    In an .npz or .mat the usual names are found by themselves (x, data, x_train, train_data …; y, labels, y_train …;
    x_test …); other names are given here, as `X[0]` for an element of a cell array, or as the path of another .npy or
    .mat file.
    """

    kind: Literal["arrays"]
    path: Address
    data: str | None = None
    labels: str | None = None
    validation_data: str | None = None
    validation_labels: str | None = None
    test_data: str | None = None
    test_labels: str | None = None
    image_shape: list[Count] | None = Field(None, min_length=2, max_length=3)  # says that vectors are pictures
    image_order: Literal["rows", "columns"] = "rows"  # how a vector fills its picture; columns: as MATLAB does
    scale: Positive | None = None  # value = stored / scale; default: 255 for uint8 with anything above 1, else 1
    columns: bool = False  # samples are the array's last dimension, as MATLAB likes it


class Pictures(Strict):
    """How pictures become arrays: turned as their EXIF says, on white where transparent, resized (bilinear)."""

    size: list[Count] = Field([32, 32], min_length=2, max_length=2)  # height, width in pixels
    channels: Literal[1, 3] = 1


class Words(Strict):
    """How texts are kept: as they are, or as counts of the most frequent words of the train set."""

    vocabulary: Count | None = None  # number of words; default: the texts themselves, which no model reads yet
    stop_words: Literal["none", "english"] = "none"  # english: scikit-learn's list is left out of the vocabulary


class ImagesSource(Pictures):
    """A tree of pictures (a folder, a .zip or .tar, here or at an fsspec address); class = the folder's name, if any.

    Two top folders named `train` and `test` are the source's own sets.
    """

    kind: Literal["images"]
    path: Address
    fit: Literal["stretch", "crop"] = "stretch"  # crop: the largest centred part of `size`'s proportions is resized


class TableSource(Pictures, Words):
    """A CSV (gzipped or not) or Parquet table: its numeric columns, or one column of texts or of picture paths."""

    kind: Literal["table"]
    path: Address
    columns: list[str] | None = Field(None, min_length=1)  # numeric ones; default: all but `label` and `set`
    text: str | None = None  # the column of texts
    image: str | None = None  # the column of picture paths, relative to the table's folder
    label: str | None = None
    set: str | None = None  # a column that says train, validation or test
    scale: Positive = 1.0  # value = stored / scale, of numeric columns

    @model_validator(mode="after")
    def one_view(self) -> TableSource:
        if sum(view is not None for view in (self.columns, self.text, self.image)) > 1:
            raise ValueError("takes one of 'columns', 'text' and 'image'")
        return self


class TextSource(Words):
    """Texts: a tree of files (a folder, a .zip or .tar.gz; class = folder), or one file with a text a line.

    The file may be gzipped; lines of white space alone are passed over, and a sample's key is the number of its line.
    """

    kind: Literal["text"]
    path: Address
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    headers: Literal["keep", "drop"] = "keep"  # drop: lines `Name: …` as of an e-mail, up to the first empty one


class CountsSource(Strict):
    """Word counts: lines of `id:count …`, with something before them or without (libsvm, LDA-C).

    A folder holds one file a set, named by it (train…, test…). Lines without any id are left out.
    """

    kind: Literal["counts"]
    path: Address
    # What stands before a line's first id:count; number: that of its ids, which must be right.
    leading: Literal["none", "label", "number", "ignored"] = "none"
    first_id: Literal[0, 1] = 1
    vocabulary: Count | None = None  # number of ids; default: the largest there is


class WebDatasetSource(Pictures, Words):
    """Other people's WebDataset shards: .tar files in a folder, or one; words of their names or folders may be sets.

    What is read are pictures, .npy arrays of one shape, or texts (.txt); never anything pickled.
    """

    kind: Literal["webdataset"]
    path: Address
    field: str | None = None  # extension of the member that is the sample; default: the one that is known and no label
    label: str = "cls"  # extension of the member that is the label, if there is one


class AudioSource(Strict):
    """A tree of .wav files (class = folder) → windows of log-mel frames."""

    kind: Literal["audio"]
    path: Address
    sample_rate: Count = 16_000  # Hz; recordings at another rate are resampled
    mels: Count = 40
    frames: Count = 10  # per sample; windows do not overlap, and a rest at the end of a recording is left out
    frame_ms: Positive = 25.0
    hop_ms: Positive = 10.0


class PatchesSource(Strict):
    """Patches of the pictures of another source, at places drawn by each picture's key."""

    kind: Literal["patches"]
    of: Annotated[DigitsSource | IdxSource | ArraysSource | ImagesSource, Field(discriminator="kind")]
    size: list[Count] = Field([16, 16], min_length=2, max_length=2)  # height, width in pixels
    per_picture: Count = 100


Source = Annotated[
    DigitsSource
    | IdxSource
    | ArraysSource
    | ImagesSource
    | TableSource
    | TextSource
    | CountsSource
    | WebDatasetSource
    | AudioSource
    | PatchesSource,
    Field(discriminator="kind"),
]


class Split(Strict):
    """Which samples are for what: shares taken by the hash of a sample's key.

    `test` applies only where the source has no test set of its own.
    """

    test: Share = 0.2
    validation: Share = 0.1
    duplicates: Literal["keep", "drop"] = "keep"  # drop: of samples with equal content one stays, if possible in test


class Data(Strict):
    """A raw source to ingest, or a folder of finished shards (or the fsspec address of one)."""

    source: Source | None = None
    shards: Address | None = None
    split: Split = Split()
    shard_size: Count = 10_000  # samples per shard
    limit: Count | None = None  # at most so many samples of each set, evenly spread over it
    quarantine: Share = 0.0  # damaged shards are left out while they hold at most this share of the samples

    # From here on nothing enters what is learned, or a stage's key.
    workers: Count | None = None  # processes that ingest; default: all cores
    cluster: Cluster | None = None  # of Dask, which then ingests: tcp://HOST:PORT of its scheduler, or `local`
    cache_gib: Positive = 20.0  # room for remote shards on this machine; whole shards make way

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
    momentum: Share | None = None  # sgd's momentum, by default 0; adam's first decay rate, by default 0.9
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
                found = [*value]
                raise ValueError(
                    f"'{field}' must give one value for each of labels {self.labels}, found those of {found}"
                )
        return self

    def per_labels(self, field: Literal["seeds", "epochs", "batch_size"], labels: Labels) -> int:
        value = getattr(self, field)
        return value[labels] if isinstance(value, dict) else value


class Stage(Strict):
    """One step of a recipe: a model trained on data (or on the codes of the stage it stands on), or a fine-tuning.

    `data: {a: 3, b: 1}` trains on a mixture: of four samples three are of set a, each set going through epochs of its
    own. Validation, evaluation and fine-tuning use the first set named.
    """

    on: Name | None = None  # the stage below
    data: Name | dict[Name, Positive] | None = None  # which of `datasets`; default: the only one, or the stage below's
    model: ModelSpec | None = None
    finetune: Finetune | None = None
    hand_up: Literal["mean", "sample"] = "mean"  # what the stack below hands to this stage
    train: Train = Train()

    @model_validator(mode="after")
    def one_job(self) -> Stage:
        if (self.model is None) == (self.finetune is None):
            raise ValueError("needs exactly one of 'model' and 'finetune'")
        if self.data is not None and not self.data:
            raise ValueError("'data' names no data set")
        if self.finetune is not None and self.on is None:
            raise ValueError("'finetune' needs 'on', the stage whose stack it fine-tunes")
        return self


class Retrieval(Strict):
    """How models that give bits are measured by what they find: samples of the same class in the training set."""

    num_queries: Annotated[int, Field(ge=0, strict=True)] = 1000  # labeled test samples, drawn; 0: no retrieval
    num_items: Count = 100_000  # labeled training samples they are looked for among, drawn


class Evaluate(Strict):
    """What is measured at the end, and how much work an estimate may cost."""

    num_examples: Count = 10_000  # test samples a likelihood is averaged over, from the set's start
    num_samples: Count = 100  # importance samples per example
    num_chains: Count = 100  # AIS runs
    num_temperatures: Count = 1000  # of AIS
    gibbs_steps: Count = 500  # of the chains that draw samples
    binarize: Literal["sample", "threshold", "none"] = "sample"  # of test data for models of binary data; once, by seed
    map: Literal["pca", "umap", "none"] = "pca"  # codes as points of a plane; umap needs `pip install 'strata[map]'`
    retrieval: Retrieval = Retrieval()


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
            for origin in [stage.data] if isinstance(stage.data, str) else stage.data or {}:
                if origin not in self.origins:
                    raise ValueError(f"stages.{name}.data names {origin!r}; the data sets are {list(self.origins)}")
            if stage.on is None and stage.data is None and len(self.origins) > 1:
                raise ValueError(f"stages.{name} must name its 'data', one of {list(self.origins)}")
            seen[name] = stage
        return self

    @property
    def origins(self) -> dict[str, Data]:
        """Every data set by name; the short form `data:` is called `data`."""
        return {"data": self.data} if self.data is not None else self.datasets

    def mixture(self, stage: str) -> dict[str, float]:
        """The data sets a stage is trained on, with their weights."""
        this = self.stages[stage]
        if isinstance(this.data, dict):
            return this.data
        if this.data is None and this.on is not None:
            return self.mixture(this.on)
        return {this.data or next(iter(self.origins)): 1.0}

    def origin(self, stage: str) -> str:
        """The data set a stage reads, the first one of a mixture."""
        return next(iter(self.mixture(stage)))

    def chain(self, stage: str) -> list[str]:
        """The stages below `stage`, bottom first."""
        below = self.stages[stage].on
        return [] if below is None else [*self.chain(below), below]
