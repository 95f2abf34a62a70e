"""The flows, as Prefect shows and schedules them: a thin coat over flows/engine.py.

One flow run `run` a recipe, one subflow run a kind of work, one task a stage (the evaluations share one, since they
share a process). Tasks are called directly: under `.submit()` a SIGTERM would not end them. Importing this module
imports Prefect, so its settings (servers.prefect_environment) must stand in the environment before.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from conf import Recipe
from conf.errors import StrataError
from flows import cluster
from flows.engine import RecipeRun
from flows.opening import opened

_runs: dict[str, RecipeRun] = {}  # the runs at work in this process, by name: subflows are given names, not objects


@task(name="stage", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def stage(run: str, flow_name: str, names: list[str], label: str) -> None:
    """One stage, or all evaluations."""
    active = _runs[run]
    active.do([step for step in active.steps if step.flow == flow_name and step.name in names])


def _call(run: str, flow_name: str, names: list[str]) -> None:
    for together in [names] if flow_name == "evaluate" else [[name] for name in names]:
        stage(run, flow_name, together, ", ".join(together))


@flow(name="ingest", validate_parameters=False)
def ingest(run: str, names: list[str]) -> None:
    """Raw data → shards."""
    _call(run, "ingest", names)


@flow(name="pretrain", validate_parameters=False)
def pretrain(run: str, names: list[str]) -> None:
    """Layers, one on the other, and what is made of a stack of them."""
    _call(run, "pretrain", names)


@flow(name="train", validate_parameters=False)
def train(run: str, names: list[str]) -> None:
    """Generative models trained on the data."""
    _call(run, "train", names)


@flow(name="finetune", validate_parameters=False)
def finetune(run: str, names: list[str]) -> None:
    """Classifiers from few labels, beside their supervised twins."""
    _call(run, "finetune", names)


@flow(name="evaluate", validate_parameters=False)
def evaluate(run: str, names: list[str]) -> None:
    """Likelihoods, samples, filters, reconstructions."""
    _call(run, "evaluate", names)


SUBFLOWS = {"ingest": ingest, "pretrain": pretrain, "train": train, "finetune": finetune, "evaluate": evaluate}


@flow(name="run", flow_run_name="{recipe.name}")
def run(recipe: Recipe, out: str = "runs") -> dict[str, Any]:
    """A whole recipe. A worker calls this; `strata run` does too, with the run it has already opened."""
    with opened(recipe, out) as active:
        _runs[active.name] = active
        active.cluster = lambda origin: cluster.makers(origin, active.reporter.line)
        try:
            for flow_name, steps in active.groups():
                SUBFLOWS[flow_name](active.name, [step.name for step in steps])
        finally:
            active.cluster = None
            del _runs[active.name]
    return active.answer()


def through_prefect(active: RecipeRun) -> None:
    """Runs an opened recipe as flows. Prefect failing in mid-run is said in one line; what a stage raises goes on."""
    _send_logs_to(active.folder / "prefect.log")
    try:
        with tags(active.name):
            _bury(active.name)
            run(active.recipe, str(active.out))
    except StrataError:
        raise
    except Exception as error:  # Prefect's or ours: ours comes again, and is reported as what it is, without Prefect
        active.reporter.line(f"Prefect stopped answering ({type(error).__name__}); going on without it")


def _bury(name: str) -> None:
    """Flow runs of this recipe's run that a kill left running: we hold its lock, so nobody is at work on them."""
    dead = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[name]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])),
    )
    with get_client(sync_client=True) as client:
        for flow_run in client.read_flow_runs(flow_run_filter=dead, sort=FlowRunSort.ID_DESC, limit=200):
            crashed: State[Any] = Crashed(message="killed; the same command goes on in a new flow run")
            client.set_flow_run_state(flow_run.id, crashed, force=True)


def _send_logs_to(path: Path) -> None:
    """Prefect's loggers write to a file of the run: stdout and stderr are ours."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name in [None, *(name for name in logging.root.manager.loggerDict if name.startswith("prefect"))]:
        logger = logging.getLogger(name)
        if logger.handlers or name is None:
            logger.handlers = [handler]


def create_pool(name: str) -> None:
    """A work pool of plain processes, if there is none of that name."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
