"""Ingest on a Dask cluster: `data.cluster` of a recipe → a flow that has Dask's workers make the shards.

A task is a few shards; a Dask worker makes them in a process of ours (data/workers.py), which ends with the task, the
worker or the run. What is made where has no influence on a byte. Workers see OUT and the source under the same paths
and talk to the Prefect API of this run, which every task brings along; nothing starts a server of its own.
Dask's libraries (the extra `dask`) are imported only when a recipe asks for a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import queue
import secrets
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import get_current_settings

from conf import Data
from conf.errors import InputError, StrataError, show
from data import durable
from data.ingest import Makers
from data.remote import CACHE
from data.workers import Unseen, made_by_processes, num_workers
from flows.servers import answers

CONNECT_SECONDS, WORKER_SECONDS, DRAIN_SECONDS = 8.0, 10.0, 5.0
SILENCE_SECONDS = 10.0  # without a finished task: is the cluster still there?
TASKS_AHEAD = 3  # submitted per thread of the cluster; the rest waits here, where it costs nothing
MOST_SHARDS = 8  # of a task
SAME = ("strata", "numpy", "pillow", "scikit-learn", "prefect")  # what a shard's bytes, or talking at all, may hang on
PASSED_ON = (CACHE,)  # environment of the processes that make shards
Say = Callable[[str], None]


def makers(origin: Data, say: Say) -> Makers:
    """Who makes the shards of a data set with `cluster`. Errors: InputError, for an address or without Dask.

    The makers raise InputError (no scheduler, no workers, a worker that sees other files than we do), StrataError (the
    cluster went away) and what a shard's writer raises.
    """
    for module in ("distributed", "prefect_dask"):
        if importlib.util.find_spec(module) is None:
            raise InputError(f'data.cluster {show(origin.cluster)}: needs Dask; pip install "strata[dask]"')

    def made(request: dict[str, Any], numbers: Sequence[int], count: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        folder = Path(request["folder"])
        with _reached(str(origin.cluster), origin.workers) as client, _told(folder, request) as token:
            _require_fit(client, str(folder), token)
            _answered(client, client.run, _forget_prefect)  # of an earlier run that was killed
            workers = _answered(client, client.nthreads)
            say(f"    ingesting on {len(workers)} Dask workers with {sum(workers.values())} threads, {origin.cluster}")
            work = _at_work[token] = _Work(client, list(numbers), say)
            try:
                for _ in _flow(client)(token, str(folder)):
                    while work.answers:
                        answer = work.answers.popleft()
                        yield answer
                        count(answer["moments"]["count"])
            finally:
                del _at_work[token]
            _answered(client, client.run, _forget_prefect)  # before the run may stop its server

    return made


# --- the way to the cluster ----------------------------------------------------------------------------------------


@contextmanager
def _reached(address: str, workers: int | None) -> Iterator[Any]:
    """A client of the cluster at an address, or of one that lives as long as this block."""
    import dask
    import distributed

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).handlers.clear()  # stderr is ours
        logging.getLogger(name).propagate = True
    if address != "local":
        with _connected(address, None) as client:
            yield client
        return
    quiet: dict[str, list[str]] = {f"distributed.{who}.http.routes": [] for who in ("scheduler", "worker")}  # no pages
    with tempfile.TemporaryDirectory(prefix="strata-dask-") as scratch, dask.config.set(quiet):
        cluster = distributed.LocalCluster(
            n_workers=num_workers(workers),
            threads_per_worker=1,
            memory_limit=0,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            security=True,  # else whoever can reach the port could have our processes do things
            silence_logs=logging.CRITICAL,
            local_directory=scratch,
        )
        with cluster, _connected(cluster.scheduler_address, cluster.security) as client:
            client.run(_to_nobody)
            yield client


@contextmanager
def _connected(address: str, security: Any) -> Iterator[Any]:
    import distributed

    where = f"data.cluster {show(address)}"
    security = security or distributed.Security()  # as Dask's own configuration says
    try:
        asyncio.run(_knock(address, security))
    except Exception as error:  # whoever listens there may send anything
        reason = f"no scheduler answers within {CONNECT_SECONDS:.0f} s" if isinstance(error, OSError) else show(error)
        raise InputError(f"{where}: {reason}; expected the address that `dask scheduler` names") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions that differ: _require_fit says which matter
        client = distributed.Client(address, timeout=CONNECT_SECONDS, security=security, set_as_default=False)
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            raise InputError(
                f"{where}: the scheduler has no workers; start some: dask worker {show(address)}"
            ) from None
        yield client


async def _knock(address: str, security: Any) -> None:
    """Dask's client waits for ever on somebody who takes the connection and says nothing; this does not."""
    from distributed.comm import connect

    arguments = security.get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=CONNECT_SECONDS, **arguments), CONNECT_SECONDS)
    comm.abort()


@contextmanager
def _told(folder: Path, request: dict[str, Any]) -> Iterator[str]:
    """Lays the request beside the folder of shards, where workers read it → the token by which they know it."""
    path, token = _request_path(folder), secrets.token_hex(8)
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    durable.write_json(path, {"token": token, "request": request, "environment": environment, "place": os.getcwd()})
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def _request_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.request.json")


def _require_fit(client: Any, folder: str, token: str) -> None:
    """Errors: InputError naming the first worker that is not fit to make these shards."""
    try:
        found = _answered(client, client.run, _unfit, folder, token, _software(), str(get_current_settings().api.url))
    except StrataError:
        raise
    except Exception as error:  # of what a worker cannot even load, Dask gives no better
        raise InputError(f"a Dask worker cannot load strata ({show(error)}); install the same strata there") from None
    for worker, problem in found.items():
        if problem:
            raise InputError(f"Dask worker {show(worker)}: {problem}")


# --- the flow -----------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    client: Any
    numbers: list[int]
    say: Say
    answers: deque[dict[str, Any]] = field(default_factory=deque)


_at_work: dict[str, _Work] = {}  # by token: flows are given names, not objects


@flow(name="shards", validate_parameters=False, persist_result=False)
def shards(token: str, folder: str) -> Iterator[None]:
    """Makes the shards of a folder and stops whenever there are answers; given away, Prefect would keep them all."""
    # Prefect sends a flow's and a task's own function to workers by value, with all it names: let that be little.
    yield from _submitted(token, folder)


def _submitted(token: str, folder: str) -> Iterator[None]:
    """Submits the shards, a few a task and not many tasks ahead."""
    work = _at_work[token]
    threads = max(1, _threads(work.client))
    size = max(1, min(MOST_SHARDS, len(work.numbers) // (TASKS_AHEAD * threads)))
    waiting = [work.numbers[first : first + size] for first in range(0, len(work.numbers), size)][::-1]
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    flying = 0
    while waiting or flying:
        while waiting and flying < TASKS_AHEAD * threads:
            numbers = waiting.pop()
            label = f"shards {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"shard {numbers[0]}"
            make.submit(folder, token, numbers, label).add_done_callback(finished.put)
            flying += 1
        work.answers.extend(_result(_next(finished, work), work.client))
        flying -= 1
        yield
        threads = max(1, _threads(work.client))


def _flow(client: Any) -> Any:
    from prefect_dask import DaskTaskRunner

    settings = {"security": client.security, "timeout": CONNECT_SECONDS}
    runner: Any = DaskTaskRunner(address=client.scheduler.address, client_kwargs=settings)
    return shards.with_options(task_runner=runner)


def _next(finished: queue.SimpleQueue[Any], work: _Work) -> Any:
    """The next finished task. Says so while there is nobody to wait for."""
    told = False
    while True:
        try:
            return finished.get(timeout=SILENCE_SECONDS)
        except queue.Empty:
            if not _threads(work.client) and not told:
                work.say("    the Dask cluster has lost its last worker; waiting for others")
                told = True


def _result(future: Any, client: Any) -> list[dict[str, Any]]:
    """Errors: those of the task, as themselves."""
    from distributed import CancelledError
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        answers: list[dict[str, Any]] = future.result()
    except KilledWorker as error:
        raise StrataError(
            f"Dask workers died again and again ({show(error)}); out of memory? run again to go on"
        ) from None
    except (CancelledError, CommClosedError):
        raise _gone(client) from None
    return answers


def _threads(client: Any) -> int:
    """All workers' together."""
    return sum(_answered(client, client.nthreads).values())


def _answered(client: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """What the scheduler says. Errors: StrataError if it is gone."""
    try:
        return question(*arguments)
    except OSError:  # Dask's own errors of connections are such
        raise _gone(client) from None


def _gone(client: Any) -> StrataError:
    return StrataError(f"the Dask scheduler at {show(client.scheduler.address)} went away; run again to go on")


# --- on a worker ---------------------------------------------------------------------------------------------------


@task(name="shards", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def make(folder: str, token: str, numbers: list[int], label: str) -> list[dict[str, Any]]:
    """A few shards."""
    return _made(folder, token, numbers)


def _made(folder: str, token: str, numbers: list[int]) -> list[dict[str, Any]]:
    """Errors: those of ShardWriter.make, and InputError where this worker sees other files than we do."""
    if problem := _unseen(folder, token):
        raise InputError(f"Dask worker on {_host()}: {problem}")
    told = durable.read_json(_request_path(Path(folder)))
    wanted = _wanted()

    def count(done: int) -> None:
        if not wanted():
            raise StrataError("the run that wanted these shards has ended")

    place = told["place"] if os.path.isdir(told["place"]) else None  # only relative paths of a source hang on it
    made = made_by_processes(told["request"], numbers, 1, count, environment=told["environment"], folder=place)
    try:
        return list(made)
    except Unseen as error:
        raise InputError(f"Dask worker on {_host()}: {error}; workers need the source at the same path") from None


def _wanted() -> Callable[[], bool]:
    """Tells whether somebody still waits for the task this thread does: Dask forgets those whose client is gone."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        known = worker.state.tasks.get(key)
        return known is not None and known.state != "cancelled"

    return wanted


async def _unfit(folder: str, token: str, expected: dict[str, str], api: str) -> str | None:
    """Why a worker cannot make the shards of a folder; None if it can."""
    return await asyncio.to_thread(_problem, folder, token, expected, api)  # in the loop it would look like a dead one


def _problem(folder: str, token: str, expected: dict[str, str], api: str) -> str | None:
    found = _software()
    for name, version in expected.items():
        if found[name] != version:
            return f"has {name} {found[name]}, this machine {version}; install the same there"
    if problem := _unseen(folder, token):
        return problem
    if not answers(api):
        return f"no Prefect at {show(api)}; set PREFECT_API_URL to a server that workers reach (README, A cluster)"
    return None


def _unseen(folder: str, token: str) -> str | None:
    path = _request_path(Path(folder))
    expected = "workers need --out at the same path of a shared file system, as the same user"
    try:
        same = durable.read_json(path)["token"] == token
    except OSError as error:
        return f"{show(folder)}: {(error.strerror or str(error)).lower()}; {expected}"
    if not same or path.stat().st_uid != os.getuid() or not os.access(folder, os.W_OK):
        return f"{show(folder)}: not the same folder as here, or not ours to write; {expected}"
    return None


def _software() -> dict[str, str]:
    found = {"Python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in SAME:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _host() -> str:
    return show(os.uname().nodename)


async def _forget_prefect() -> None:
    """Sends what Prefect still has to say of tasks to their run's server, and has the next task look for its own.

    Else a worker would tell the first server it knew of all tasks to come.
    """
    from prefect.events.worker import EventsWorker

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.to_thread(EventsWorker.drain_all, DRAIN_SECONDS, at_exit=False), DRAIN_SECONDS)


def _to_nobody() -> None:
    """The processes of our own cluster share our stdout and stderr, which are for the user."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nobody, descriptor)
    os.close(nobody)
