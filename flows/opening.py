"""A run from its lock to its report: what surrounds the stages, with Prefect or without.

`opened` takes the run's lock, starts the tracker beside it, and when the stages are through, or one failed, or a
signal came, records how it ended, writes the report and gives the tracker a moment to finish. `strata run` and a
Prefect worker both come through here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conf import Recipe
from conf.errors import Busy, Interrupted, StrataError, show
from data import durable
from flows import follower, report
from flows.engine import RecipeRun
from flows.preparing import Prepared, prepare
from flows.progress import Reporter
from flows.sent import Sent, location, read_run
from flows.wording import public

TRACKER_SECONDS = 10.0  # a run waits this long for MLflow after its last stage
STOPPED_SECONDS = 4.0  # … after a signal
_open: dict[tuple[str, str], RecipeRun] = {}


@contextmanager
def opened(recipe: Recipe, out: str | Path, *, run: RecipeRun | None = None) -> Iterator[RecipeRun]:
    """The run of `recipe` in `out`, held for the time of the block; one already open in this process is joined.

    Errors: InputError (preparing it), Busy (another process holds it), and whatever the block raises.
    """
    prepared: Prepared = run.prepared if run is not None else prepare(recipe, Path(out).absolute())
    key = (prepared.run, str(Path(out).absolute()))
    if key in _open:
        yield _open[key]
        return
    run = run or RecipeRun(prepared, Path(out), Reporter(), recipe.model_dump_json(indent=1))
    try:
        with durable.lock(run.folder / ".lock"):
            _open[key] = run
            try:
                yield from _through(run)
            finally:
                del _open[key]
    except durable.Locked as holder:
        raise Busy(
            f"run {run.name} in {show(run.out)}: {holder} is running it; wait for it or choose another --out"
        ) from None


def _through(run: RecipeRun) -> Iterator[RecipeRun]:
    run.remember_plan()
    run.record("running")
    tracker = follower.start(run.out, run.name)
    status, error = "failed", None
    try:
        yield run
        status = "finished"
    except StrataError as failure:
        error = str(failure)
        raise
    except (Interrupted, KeyboardInterrupt) as failure:
        status, error = "interrupted", str(failure) or "SIGINT"
        raise
    except BaseException as failure:
        error = f"{type(failure).__name__}: {show(failure)}"
        raise
    finally:
        run.record(status, error)
        report.write(run.out, run.name)
        run.record(status, error, closed=True)
        seconds = STOPPED_SECONDS if status == "interrupted" else TRACKER_SECONDS
        if problem := follower.await_end(tracker, run.out, run.name, seconds):
            run.reporter.line(problem)


def send_the_rest(run: RecipeRun) -> None:
    """For a run that was found finished: what MLflow could not be told then, it is told now."""
    if Sent(run.out, run.name).missing(read_run(run.folder), public(location(run.out))):
        tracker = follower.start(run.out, run.name)
        if problem := follower.await_end(tracker, run.out, run.name, TRACKER_SECONDS):
            run.reporter.line(problem)
