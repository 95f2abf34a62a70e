"""Brings MLflow up to date with what lies under OUT/<run>; the only import of mlflow, never a part of training.

One MLflow run a recipe's run, one child a stage it computed. `strata run` starts a follower (flows/follower.py), a
process of its own that reads run.json and the stages' journals and sends them in batches; `strata sync` (`sync`) sends
what is still missing. Nothing is sent twice: MLflow's runs are found by their tags before they are created, a journal
row is sent with the step, time and value it was written with (MLflow keeps equal ones once), and
OUT/<run>/tracking.json remembers what has arrived. Only rows behind a checkpoint are sent, since a kill rewrites the
others.

MLflow is at MLFLOW_TRACKING_URI, else in OUT/mlflow.db with artifacts in OUT/mlartifacts. One that is down or hangs
costs the follower's patience, never the run's. What is NOT here: logging from training (conf/journal.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import Any

from conf.errors import show
from conf.protocol import Result
from data import durable
from flows import figures, report, results
from flows.sent import (
    PATIENCE_SECONDS,
    STATUS,
    Metric,
    Refused,
    Row,
    Sent,
    Unreachable,
    closed,
    flat,
    label,
    location,
    new_metrics,
    new_rows,
    note,
    output_id,
    probe,
    read_run,
)
from flows.servers import HOST, MLFLOW_PORT
from flows.wording import public

EXPERIMENT = "strata"
UNREACHABLE = 75  # the follower's exit status (EX_TEMPFAIL): what is missing can be sent later
ALIAS = "newest"  # MLflow keeps `latest` for itself
POLL_SECONDS, RETRY_SECONDS = 0.5, 2.0
MAX_METRICS, MAX_PARAMS, PARAM_LENGTH = 1000, 100, 6000  # MLflow's limits: per batch, per batch, characters
ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the follower and `strata sync` try again by themselves
}


# --- what commands call ---------------------------------------------------------------------------------------------


def sync(out: Path) -> list[tuple[str, int, bool, str | None]]:
    """Sends what MLflow has not received of any run in `out` → (run, rows sent, complete, error) of each."""
    answers: list[tuple[str, int, bool, str | None]] = []
    away: str | None = None
    for folder in sorted(path.parent for path in out.glob("*/run.json")):
        sent, error, before = Sent(out, folder.name), None, 0
        try:
            with sent.locked(wait=False):
                before = sent.rows
                if sent.missing(read_run(folder, check=True), public(location(out))):
                    if away:
                        raise Unreachable(away)
                    update(sent, patience=30, check=True)
        except durable.Locked as holder:
            error = f"{holder} is sending it"
        except Refused as problem:
            error = str(problem)
        except Unreachable as problem:
            error = away = str(problem)
        answers.append((folder.name, sent.rows - before, sent.complete and not error, error))
    return answers


def server(out: Path, port: int) -> tuple[list[str], dict[str, str], str]:
    """(command, environment, address) of MLflow's UI; no command where a server runs elsewhere."""
    uri = location(out)
    if uri.startswith("http"):
        return [], {}, public(uri)
    prepare(out)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    artifacts = {"MLFLOW_ARTIFACTS_DESTINATION": (out / "mlartifacts").absolute().as_uri()}
    return command, ENVIRONMENT | artifacts | {"MLFLOW_BACKEND_STORE_URI": uri}, f"http://{HOST}:{port}"


def prepare(out: Path) -> None:
    """Creates the output's own database if MLflow is to use it and it is not there yet.

    Migrated under a temporary name, without waiting for the disk at each of 60 migrations, and renamed: processes that
    open a new one at the same time crash each other, and one that is killed inside the migrations leaves a database
    that no MLflow opens again.
    """
    database = (out / "mlflow.db").absolute()
    if location(out) != f"sqlite:///{database}" or database.exists():
        return
    with durable.lock(out / "mlflow.lock", wait=lambda holder: None):
        if not database.exists():
            temporary = database.with_name(f".mlflow.{os.getpid()}.db")
            temporary.unlink(missing_ok=True)
            with _unsynced():
                _client(f"sqlite:///{temporary}").search_experiments(max_results=1)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, database)
            durable.sync_folder(out)


@contextlib.contextmanager
def _unsynced() -> Iterator[None]:
    """New sqlite connections of this process do not wait for the disk."""
    from sqlalchemy import Engine, event

    def quick(connection: Any, _: Any) -> None:
        connection.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")

    event.listen(Engine, "connect", quick)
    try:
        yield
    finally:
        event.remove(Engine, "connect", quick)


# --- one process that sends ------------------------------------------------------------------------------------------


def follow(out: Path, run: str) -> int:
    """Sends what a run writes until the run has ended and all is sent → exit status."""
    sent, sender, failed = Sent(out, run), None, -math.inf
    with sent.locked(wait=True):
        while True:
            record = read_run(sent.folder)
            over = closed(record)
            if not record["stages"] or not sent.missing(record, public(location(out))):
                if over:
                    return 0
            elif over or time.monotonic() > failed + RETRY_SECONDS:
                try:
                    sender = update(sent, patience=PATIENCE_SECONDS, sender=sender)
                    if over:
                        continue
                except Unreachable as error:
                    print(f"strata: {error}", file=sys.stderr, flush=True)  # into tracking.log
                    sender, failed = None, time.monotonic()
                    ended = (sent.folder / "run.json").stat().st_mtime
                    if closed(read_run(sent.folder)) and time.time() > ended + PATIENCE_SECONDS:
                        return UNREACHABLE
            time.sleep(POLL_SECONDS)


def update(sent: Sent, *, patience: int, check: bool = False, sender: Sender | None = None) -> Sender:
    """One round: everything that is there and final goes to MLflow. Errors: Unreachable, also kept in the state."""
    os.environ.update(ENVIRONMENT, MLFLOW_HTTP_REQUEST_TIMEOUT=str(patience))
    try:
        if sender is None:
            probe(location(sent.out))
        with _one_line():
            sender = sender or Sender(sent)
            sender.send(read_run(sent.folder, check=check))
    except Unreachable as error:
        sent.save(error=str(error))
        raise
    sent.save(error=None)
    return sender


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Whatever MLflow, its database or its server raise becomes one line. Errors: Refused."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        words = public(" ".join(str(error).split())) or type(error).__name__
        raise Refused(f"MLflow did not take what was sent: {show(words, 200)}") from error


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # news of its new tables; alembic's it holds back itself
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


class Sender:
    """One run's way into MLflow. Errors of every method: what `_one_line` catches."""

    def __init__(self, sent: Sent) -> None:
        from mlflow import entities

        self.entities = entities
        uri = location(sent.out)
        prepare(sent.out)
        self.sent, self.client, self.output = sent, _client(uri), output_id(sent.out)
        if sent.uri != public(uri) or not self._known(sent.run_id):
            sent.forget(public(uri))
        found, served = self.client.get_experiment_by_name(EXPERIMENT), uri.startswith("http")
        artifacts = None if served else (sent.out / "mlartifacts").absolute().as_uri()
        self.experiment = str(found.experiment_id if found else self.client.create_experiment(EXPERIMENT, artifacts))
        page = public(uri).rstrip("/") if served else f"http://{HOST}:{MLFLOW_PORT}"
        self.pages = f"{page}/#/experiments/{self.experiment}/runs"

    def send(self, record: Row) -> None:
        """What is there and final, from top to bottom; ends the MLflow run if the run has ended."""
        sent, began = self.sent, int(datetime.fromisoformat(record["started"]).timestamp() * 1000)
        sent.own(record)
        if sent.run_id is None:
            parent = self._run(sent.run, {"strata.flow": "run"}, began)
            sent.save(experiment_id=self.experiment, run_id=parent, url=f"{self.pages}/{parent}", status="RUNNING")
        if record["status"] == "running" and sent.status != "RUNNING":
            children = [mine["run_id"] for mine in sent.stages.values() if mine["run_id"] and not mine["finished"]]
            for run_id in [sent.run_id, *children]:
                self.client.update_run(run_id, status="RUNNING")
            sent.save(status="RUNNING", complete=False)
        if "recipe" not in sent.noted:
            self._recipe(record)
            sent.save(noted=[*sent.noted, "recipe"])
        for row in record["stages"]:
            folder = sent.out / row["folder"]
            mine, found = sent.mine(row), results.result(folder) if row["status"] == "finished" else None
            if mine is not None and not mine["finished"]:
                self._stage(record, row, mine, folder, found)
            if row["status"] == "finished" and note(row) not in sent.noted:
                self._summary(record, row, folder, found)
                sent.save(noted=[*sent.noted, note(row)])
        if closed(record):
            self._end(record)

    # --- the parent run ---

    def _recipe(self, record: Row) -> None:
        self._params(self.sent.run_id, record["recipe"])
        overrides = "".join(f"{line}\n" for line in record["overrides"])
        for name, content in {"recipe.yaml": record["recipe_text"], "overrides.txt": overrides}.items():
            self.client.log_text(self.sent.run_id, public(content), name)

    def _summary(self, record: Row, row: Row, folder: Path, found: Result | None) -> None:
        """A finished stage on the parent run, so that runs compare at a glance."""
        how = "computed" if self.sent.mine(row) else "cached"
        self.client.set_tag(self.sent.run_id, f"strata.stage.{label(row)}", f"{how} {row['key']}")
        shards = record["shards"].get(row["name"], {}) if row["flow"] == "ingest" else {}
        for digest in ("samples_digest", "labels_digest"):
            if digest in shards:
                self.client.set_tag(self.sent.run_id, f"strata.shards.{row['name']}.{digest}", shards[digest])
        if found:
            when = int((folder / "result.json").stat().st_mtime * 1000)
            self._metrics(self.sent.run_id, [(f"{row['name']}/{n}", v, when, 0) for n, v in found.metrics.items()])

    def _end(self, record: Row) -> None:
        sent, status = self.sent, STATUS[record["status"]]
        for mine in sent.stages.values():
            if mine["run_id"] and not mine["finished"]:
                self.client.set_terminated(mine["run_id"], status)
        if record["status"] == "finished":
            for row in record["stages"]:
                self._register(record, row)
        words = unescape(report.summary(results.load(sent.out, sent.run)))
        self.client.set_tag(sent.run_id, "mlflow.note.content", f"{public(record['error'] or '')} {words}".strip())
        page = sent.folder / "report.html"
        if not page.exists() or record.get("stale"):
            report.write(sent.out, sent.run)
        self.client.log_artifact(sent.run_id, str(page))
        self.client.set_terminated(sent.run_id, status)
        sent.save(status=status, complete=True)

    def _register(self, record: Row, row: Row) -> None:
        """The stage's model as a version of strata-RECIPE-STAGE, once a digest, behind an alias."""
        folder, name = self.sent.out / row["folder"], f"strata-{record['name']}-{row['name']}"
        found = results.result(folder)
        if found is None or not found.model or self.sent.registered.get(name) == found.digest:
            return
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        versions = self.client.search_model_versions(f"name = '{name}'")
        version = next((v.version for v in versions if v.tags.get("strata.digest") == found.digest), None)
        if version is None:
            mine = self.sent.mine(row)
            run_id, path = (mine["run_id"], "model") if mine else (self.sent.run_id, f"models/{row['name']}")
            if not mine:
                self.client.log_artifacts(run_id, str(folder / "model"), path)
            weights = durable.digest_file(folder / "model" / "weights.safetensors")
            tags = {"strata.digest": found.digest, "strata.key": row["key"], "strata.weights_sha256": weights}
            version = self.client.create_model_version(
                name, f"runs:/{run_id}/{path}", run_id, tags=tags, await_creation_for=None
            ).version
        newest = max((int(v.version) for v in versions), default=0)
        if int(version) >= newest:
            self.client.set_registered_model_alias(name, ALIAS, version)
        self.sent.save(registered=self.sent.registered | {name: found.digest})

    # --- one stage ---

    def _stage(self, record: Row, row: Row, mine: Row, folder: Path, found: Result | None) -> None:
        """Journal rows as they become final; with the result all that belongs to it. An evaluation has no run."""
        sent = self.sent
        if row["flow"] == "evaluate":
            below = next((r for r in record["stages"] if label(r) == row["evaluates"]), row)
            target = (sent.mine(below) or mine)["run_id"] or sent.run_id
        else:
            if mine["run_id"] is None:
                tags = {"strata.flow": row["flow"], "strata.stage": row["name"], "strata.key": row["key"],
                        "strata.kind": row["kind"], "mlflow.parentRunId": sent.run_id}  # fmt: skip
                child = self._run(label(row), tags, None)
                self.client.update_run(child, status="RUNNING")
                self._params(child, record["recipe"]["stages"].get(row["name"], {}))
                mine["run_id"] = child
                sent.save()
            target = mine["run_id"]
            self._journal(mine, folder, final=found is not None)
        if row["status"] != "finished":
            return
        if found:
            self._result(row, target, folder, found)
        if mine["run_id"]:
            self.client.set_terminated(mine["run_id"], "FINISHED")
        mine["finished"] = True
        sent.save()

    def _journal(self, mine: Row, folder: Path, *, final: bool) -> None:
        rows, length = new_rows(folder, mine, final=final)
        if rows:
            values = [(name, v, row["time"], row["step"]) for row in rows for name, v in row["metrics"].items()]
            self._metrics(mine["run_id"], values)
            mine.update(journal=length, step=rows[-1]["step"])
            self.sent.save(rows=self.sent.rows + len(rows))

    def _result(self, row: Row, target: Any, folder: Path, found: Result) -> None:
        """Metrics that the journal does not have, likelihoods in words, pictures, revealed keys, the model."""
        own = target != self.sent.run_id
        if own:  # else the summary on the parent run says the same
            self._metrics(target, new_metrics(folder, found))
        for entry in found.details.get("likelihoods", []):
            for answer in (entry, entry.get("reverse")):
                if answer:
                    words = ", ".join(
                        f"{k} {v}" for k, v in answer.items() if k not in ("set", "reverse") and v is not None
                    )
                    name = _name(f"strata.likelihood.{row['name']}.{entry['set']}.{answer['estimator']}")
                    self.client.set_tag(target, name, words)
        with tempfile.TemporaryDirectory() as temporary:
            if figures.write(folder / "figures", Path(temporary)):
                self.client.log_artifacts(target, temporary, "pictures" if own else f"pictures/{row['name']}")
        with tempfile.TemporaryDirectory() as temporary:
            for model in found.models:  # a pretrained classifier and its twin were shown the same labels
                shutil.copyfile(folder / model["revealed"], Path(temporary) / f"{model['labels']}-{model['seed']}.json")
            if found.models:
                self.client.log_artifacts(target, temporary, f"revealed/{row['name']}")
        if found.model:
            self.client.log_artifacts(target, str(folder / "model"), "model")

    # --- single steps, each harmless when repeated ---

    def _known(self, run_id: str | None) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return run_id is not None and bool(self.client.get_run(run_id))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _run(self, name: str, tags: dict[str, str], began: int | None) -> str:
        """The run with these tags, created unless it is there."""
        tags = {"strata.output": self.output, "strata.run": self.sent.run} | tags
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.client.search_runs([self.experiment], wanted, max_results=1, order_by=["start_time ASC"])
        if found:
            return str(found[0].info.run_id)
        tags["mlflow.source.name"] = "strata"
        return str(self.client.create_run(self.experiment, began, tags, name).info.run_id)

    def _metrics(self, run_id: Any, values: list[Metric]) -> None:
        """In batches. MLflow would store an infinity as 1.8e308: what is not finite is sent as NaN."""
        entity = self.entities.Metric
        entities = [entity(_name(n), v if math.isfinite(v) else math.nan, when, step) for n, v, when, step in values]
        for start in range(0, len(entities), MAX_METRICS):
            self.client.log_batch(run_id, metrics=entities[start : start + MAX_METRICS])

    def _params(self, run_id: Any, tree: Row) -> None:
        """Flattened; MLflow lets no parameter change, so only those it has not are sent."""
        known = self.client.get_run(run_id).data.params
        values = {_name(name): public(str(value))[:PARAM_LENGTH] for name, value in flat(tree)}
        entities = [self.entities.Param(name, value) for name, value in values.items() if name not in known]
        for start in range(0, len(entities), MAX_PARAMS):
            self.client.log_batch(run_id, params=entities[start : start + MAX_PARAMS])


def _name(text: str) -> str:
    """MLflow takes no `@` (nor much else) in a name: `test/error@100` → `test/error_at_100`."""
    return re.sub(r"[^\w\-./: ]", "_", text.replace("@", "_at_"))[:250]


def main() -> int:
    """`python -m flows.tracking OUT RUN`: follows a run until it has ended."""
    os.nice(5)  # training comes first
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "INFO")  # tracking.log has room for it
    return follow(Path(sys.argv[1]), sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
