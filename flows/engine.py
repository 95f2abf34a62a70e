"""One recipe's run in one output folder: keys, what is finished, what is left, and doing it. Plain Python.

    OUT/shards/KEY/      ingested data                     OUT/plans/DIGEST.json   plans that said yes
    OUT/stages/KEY/      one finished (or begun) stage     OUT/RUN/                run.json, report.html, logs, lock

A stage's key is the digest of its job's identity (conf.protocol), hence of its settings and the content of its
inputs, so any recipe that asks for the same thing finds it done. Everything works without Prefect and MLflow;
flows/pipeline.py is the coat that shows it to Prefect, flows/tracking.py tells MLflow what lies here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import data.sources
from conf import Data, Train
from conf.errors import Damaged, StrataError, show
from conf.protocol import Below, EvaluateJob, FinetuneJob, Inputs, Result, TrainJob
from data import durable
from data.ingest import Makers, ingest
from data.manifest import Manifest
from data.quarantine import Loss, lost
from flows import stage
from flows.preparing import Prepared, shards_folder
from flows.progress import Reporter

FLOWS = ("ingest", "pretrain", "train", "finetune", "evaluate")


@dataclass
class Step:
    """One line of the plan as the user sees it, and as run.json records it."""

    flow: str
    name: str
    kind: str
    what: str
    key: str = ""
    folder: str = ""
    status: str = "waiting"
    cached: bool = False  # its result was there before this run began
    found: bool = False  # … before this command began
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        kept = ("flow", "name", "kind", "key", "folder", "status", "cached", "seconds", "what")
        evaluates = self.name if self.flow == "evaluate" else None
        return {name: getattr(self, name) for name in kept} | {"evaluates": evaluates}


@dataclass
class RecipeRun:
    """A prepared recipe at work in its output folder."""

    prepared: Prepared
    out: Path
    reporter: Reporter
    text: str = ""
    overrides: list[str] = field(default_factory=list)
    debug: bool = False
    cluster: Callable[[Data], Makers] | None = None  # the way to a Dask cluster, which flows/pipeline.py knows

    def __post_init__(self) -> None:
        self.out = self.out.absolute()
        self.name = self.prepared.run
        self.folder = self.out / self.name
        self.recipe = self.prepared.recipe
        self.results: dict[tuple[str, str], Result] = {}
        self.manifests: dict[str, Manifest] = {}
        self.losses: dict[str, Loss] = {}  # of data sets that were checked for it
        self._planned = {planned.name: planned for planned in self.prepared.plan.stages}
        self.steps = self._all_steps()
        self._before = self._earlier_record()
        self._began = time.monotonic()

    def _all_steps(self) -> list[Step]:
        steps = []
        for name, description in self.prepared.descriptions.items():
            shape = "×".join(map(str, description.shape))
            steps.append(Step("ingest", name, "shards", f"{sum(description.sizes.values()):,} samples of {shape}"))
        for planned in self.prepared.plan.stages:
            runs = f"{planned.runs} runs, " if planned.runs > 1 else ""
            steps_of = "one pass" if planned.one_pass else f"{runs}{planned.steps:,} steps"
            if planned.rounds:
                steps_of = f"at most {planned.steps:,} round{'s' * (planned.steps > 1)}"
            what = f"{planned.shape}, {steps_of}" if planned.steps else planned.shape
            steps.append(Step(planned.flow, planned.name, planned.kind, what))
        if self.recipe.evaluate is not None:
            for planned in self.prepared.plan.stages:
                if planned.flow != "finetune":
                    steps.append(Step("evaluate", planned.name, planned.kind, "numbers and figures"))
        return sorted(steps, key=lambda step: FLOWS.index(step.flow))

    def groups(self) -> Iterator[tuple[str, list[Step]]]:
        """The flows this recipe needs, in order, with their steps."""
        for flow in FLOWS:
            if steps := [step for step in self.steps if step.flow == flow]:
                yield flow, steps

    # --- what is finished ---

    def look(self) -> bool:
        """Finds every result that is already there; True if nothing is left to do."""
        for step in self.steps:
            try:
                if not self._find(step):
                    return False
            except KeyError:  # stands on something unfinished
                return False
            step.found = True
        return self._closed and (self.folder / "report.html").exists()

    def _find(self, step: Step) -> bool:
        """Names the step's folder and takes its result if it is finished."""
        if step.flow == "ingest":
            return self._find_shards(step)
        for whole in (True, False):  # what was computed before a shard was damaged is still right
            if not whole and not any(self._lost(origin).shards for origin in self.recipe.mixture(step.name)):
                return False
            step.key = durable.digest_value(self._job(step, whole=whole).identity())
            step.folder = f"stages/{step.key[:32]}"
            path = self.out / step.folder / "result.json"
            if path.exists():
                break
        else:
            return False
        result = self._read_result(path, step)
        self.results[step.flow == "evaluate" and "evaluate" or "stage", step.name] = result
        step.status, step.seconds = "finished", result.seconds
        return True

    def _read_result(self, path: Path, step: Step) -> Result:
        try:
            return Result.model_validate(durable.read_json(path))
        except ValueError:
            raise Damaged(
                f"stage {step.name}: {path} cannot be read; delete {path.parent} to compute it anew"
            ) from None

    def _find_shards(self, step: Step) -> bool:
        origin = self.recipe.origins[step.name]
        if origin.source is None:
            step.key = self.prepared.ingests[step.name]["manifest"]
            folder = shards_folder(origin, step.key, self.out)
            step.folder = str(folder)
        else:
            step.key = durable.digest_value(self.prepared.ingests[step.name])
            step.folder = f"shards/{step.key[:32]}"
            folder = self.out / step.folder
        if not (folder / "manifest.json").exists():
            return False
        self.manifests[step.name] = Manifest.load(folder)
        step.status = "finished"
        return True

    # --- doing it ---

    def do(self, steps: list[Step]) -> None:
        """Finishes steps of one flow in their order; evaluations share a process."""
        together = []
        for step in steps:
            if self._find(step):
                self._finished(step, found=True)
            elif step.flow == "ingest":
                self._ingest(step)
            elif step.flow == "evaluate":
                together.append(step)
            else:
                self._run_stage([step])
        if together:
            self._run_stage(together)

    def do_rest(self) -> None:
        """Finishes whatever is left, flow by flow: the way without Prefect."""
        for _, steps in self.groups():
            self.do([step for step in steps if step.status != "finished"])

    def _ingest(self, step: Step) -> None:
        origin = self.recipe.origins[step.name]
        assert origin.source is not None
        self._begin(step)
        began = time.monotonic()
        with self.reporter.bar(step.name, "samples") as progress, self._locked(self.out / step.folder, step):
            if not self._find_shards(step):
                ingest(
                    data.sources.open_source(origin.source, origin.limit),
                    self.out / step.folder,
                    shard_size=origin.shard_size,
                    workers=origin.workers,
                    makers=self._makers(origin),
                    progress=lambda done, of: progress({"done": done, "of": of}),
                )
                self._find_shards(step)
        step.seconds = time.monotonic() - began
        self._finished(step)

    def _makers(self, origin: Data) -> Makers | None:
        """Who makes the shards: a cluster, if the recipe names one and Prefect is there to reach it; else ourselves."""
        if origin.cluster is None:
            return None
        if self.cluster is None:
            self.reporter.line(f"without Prefect there is no way to the cluster {show(origin.cluster)}: ingesting here")
            return None
        return self.cluster(origin)

    def _run_stage(self, steps: list[Step]) -> None:
        for step in steps:
            self._begin(step)
        first = self.out / steps[0].folder
        jobs = [self._job(step).model_copy(update={"folder": str(self.out / step.folder)}) for step in steps]
        label = steps[0].name if len(steps) == 1 else steps[0].flow
        with self._locked(first, steps[0]):
            found = all((self.out / step.folder / "result.json").exists() for step in steps)  # another recipe's work
            if not found:
                try:
                    unit = "models" if steps[0].flow == "evaluate" else self._planned[steps[0].name].counted
                    with self.reporter.bar(label, unit) as progress:
                        request = first / "request.json"
                        stage.run_jobs(label, jobs, request, first / "log.txt", progress, debug=self.debug)
                except StrataError:
                    for step in steps:
                        step.status = "failed"
                    raise
        for step in steps:
            if not self._find(step):
                raise StrataError(f"stage {step.name} ended without a result; its log is {first / 'log.txt'}")
            self._finished(step, found=found)

    @contextmanager
    def _locked(self, folder: Path, step: Step) -> Iterator[None]:
        def wait(holder: str) -> None:
            self.reporter.line(f"{step.name}: {holder} is computing it for another recipe; waiting")

        with durable.lock(folder.with_name(f".{folder.name}.lock"), wait=wait):
            yield

    def _begin(self, step: Step) -> None:
        step.status = "running"
        self.record("running")

    def _finished(self, step: Step, *, found: bool = False) -> None:
        step.status, step.found = "finished", found
        earlier = self._before.get((step.flow, step.name))
        ours = earlier is not None and earlier["key"] == step.key and not earlier["cached"]
        step.cached = found and not ours
        self.reporter.step(step)
        self.record("running")

    # --- jobs ---

    def _lost(self, origin: str) -> Loss:
        """What a data set has to do without; checks it, once, if the recipe allows any loss."""
        share = self.recipe.origins[origin].quarantine
        if origin not in self.losses and share:
            self.losses[origin] = lost(self.manifests[origin].folder, share, self.out / "verified.json")
            if self.losses[origin].shards:
                self.reporter.line(f"{origin}: {self.losses[origin]}")
        return self.losses.get(origin, Loss())

    def _inputs(self, origin: str, weight: float, whole: bool) -> Inputs:
        manifest = self.manifests[origin]
        return Inputs(
            shards=str(manifest.folder),
            samples_digest=manifest.samples_digest,
            labels_digest=manifest.labels_digest,
            split=self.recipe.origins[origin].split,
            weight=weight,
            without=[] if whole else list(self._lost(origin).shards),
            remembered=str(self.out / "verified.json"),
        )

    def _model(self, name: str) -> Below:
        step = next(step for step in self.steps if step.name == name and step.flow not in ("ingest", "evaluate"))
        return Below(folder=str(self.out / step.folder / "model"), digest=self.results["stage", name].digest)

    def _job(self, step: Step, *, whole: bool = False) -> TrainJob | FinetuneJob | EvaluateJob:
        """What the step asks of a stage process; KeyError while something below it is unfinished.

        `whole`: as if no shard were damaged.
        """
        name = step.name
        declared, planned = self.recipe.stages[name], self._planned[name]
        settings = self.recipe.stages[name].train
        sets = self.recipe.mixture(name).items()
        inputs, *mixed = [self._inputs(origin, weight, whole) for origin, weight in sets]
        seed = self.recipe.seed
        if step.flow == "evaluate":
            assert self.recipe.evaluate is not None
            return EvaluateJob(
                stage=name, model=self._model(name), inputs=inputs, evaluate=self.recipe.evaluate,
                train=Train(threads=settings.threads), seed=seed,
            )  # fmt: skip
        below = self._model(declared.on) if declared.on else None
        if declared.finetune is not None:
            assert below is not None
            return FinetuneJob(
                stage=name, revision=planned.revision, below=below, inputs=inputs, finetune=declared.finetune,
                train=settings.model_copy(update={"devices": 1}),
            )  # fmt: skip
        return TrainJob(
            stage=name, spec=planned.spec, revision=planned.revision, below=below, hand_up=declared.hand_up,
            inputs=inputs, mixed=mixed, train=settings, seed=seed, one_pass=planned.one_pass,
            draws=planned.rounds, labeled=planned.labeled,
        )  # fmt: skip

    # --- run.json ---

    def _earlier_record(self) -> dict[tuple[str, str], dict[str, Any]]:
        path = self.folder / "run.json"
        self._started, self._seconds, self._closed = datetime.now(UTC).isoformat(timespec="seconds"), 0.0, False
        if not path.exists():
            return {}
        try:
            known = durable.read_json(path)
            self._started, self._seconds = known["started"], known["seconds"]
            self._closed = known["status"] == "finished" and known["closed"]
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{path} cannot be read; delete it, finished stages stay") from None
        return {(entry["flow"], entry["name"]): entry for entry in known["stages"] if entry["status"] != "waiting"}

    def record(self, status: str, error: str | None = None, *, closed: bool = False) -> None:
        """Writes run.json: what the report and the tracker read. `closed`: nothing will change any more."""
        shards = {
            name: {
                "folder": str(manifest.folder),
                "samples_digest": manifest.samples_digest,
                "labels_digest": manifest.labels_digest,
                "sizes": self.prepared.descriptions[name].sizes,
                "shape": list(manifest.shape),
                "lost": asdict(self.losses[name]) if name in self.losses else None,
            }
            for name, manifest in self.manifests.items()
        }
        value = {
            "run": self.name,
            "name": self.recipe.name,
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_text": self.text,
            "overrides": self.overrides,
            "started": self._started,
            "status": status,
            "error": error,
            "closed": closed,
            "seconds": self._seconds + time.monotonic() - self._began,
            "shards": shards,
            "stages": [step.record() for step in self.steps],
        }
        durable.write_json(self.folder / "run.json", value)

    def answer(self) -> dict[str, Any]:
        """What `--json` prints (README, "For scripts")."""
        stages: dict[str, Any] = {}
        for step in self.steps:
            if step.flow in ("ingest", "evaluate"):
                continue
            result = self.results["stage", step.name]
            evaluated = self.results.get(("evaluate", step.name))
            folder = self.out / step.folder
            entry: dict[str, Any] = {"model": str(folder / "model") if result.model else None}
            if result.models:
                entry["models"] = [
                    {name: run[name] for name in ("labels", "seed", "pretrained")} | {"path": str(folder / run["path"])}
                    for run in result.models
                ]
            entry["metrics"] = result.metrics | (evaluated.metrics if evaluated else {})
            stages[step.name] = entry | {"seconds": step.seconds, "cached": step.found}
        report = str(self.folder / "report.html")
        shards = {name: str(manifest.folder) for name, manifest in self.manifests.items()}
        return {"run": self.name, "out": str(self.out), "report": report, "shards": shards, "stages": stages}

    def remember_plan(self) -> None:
        """Keeps the plan's answer, so that the same command needs no torch to know its keys."""
        if self.prepared.remembered:
            return
        durable.write_json(
            self.out / "plans" / f"{self.prepared.digest}.json",
            {
                "plan": self.prepared.plan.model_dump(mode="json"),
                "descriptions": {name: value.model_dump() for name, value in self.prepared.descriptions.items()},
                "ingests": {name: dict(value) for name, value in self.prepared.ingests.items()},
            },
        )
