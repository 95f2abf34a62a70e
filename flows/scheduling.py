"""`strata deploy`: a recipe as a scheduled Prefect deployment on the running server."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from conf import Recipe
from conf.errors import InputError, show
from data.remote import is_remote, local_path
from data.sources.arrays import names_file
from flows import servers
from flows.preparing import prepare

POOL = "strata"


def _anywhere(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths: a worker runs it in a folder of its own."""
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    for origin in filter(None, [tree.get("data"), *tree.get("datasets", {}).values()]):
        source = origin.get("source") or {}
        for field, value in source.items():
            if field == "path" or (source["kind"] == "arrays" and isinstance(value, str) and names_file(value)):
                source[field] = _absolute(value)
        if origin.get("shards"):
            origin["shards"] = _absolute(origin["shards"])
    return Recipe.model_validate(tree)


def _absolute(place: str) -> str:
    return place if is_remote(place) else str(local_path(place).absolute())


def deploy(recipe: Recipe, out: Path, cron: str, name: str | None) -> dict[str, Any]:
    """Registers the deployment and prints the one line that starts a worker for it.

    Errors: InputError when the recipe or the cron line is wrong, or no Prefect server answers.
    """
    out = out.absolute()
    prepare(recipe, out)
    api = os.environ.get("PREFECT_API_URL") or servers.known_server(out)
    if api is None or not servers.answers(api):
        raise InputError(
            f"deploy needs a running Prefect server; start one with `strata ui --out {show(out)}` "
            "or set PREFECT_API_URL"
        )
    os.environ.update(servers.prefect_environment(out) | {"PREFECT_API_URL": api})
    from prefect.deployments.runner import EntrypointType
    from prefect.schedules import Cron

    from flows.pipeline import create_pool, run

    try:
        schedule = Cron(cron)
    except ValueError as error:
        raise InputError(f"--cron {show(cron)}: {show(error)}; expected five fields, such as '0 3 * * *'") from None
    create_pool(POOL)
    deployment: Any = run.to_deployment(
        name=name or recipe.name,
        schedule=schedule,
        parameters={"recipe": _anywhere(recipe).model_dump(mode="json"), "out": str(out)},
        work_pool_name=POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    identity = deployment.apply()
    prefect = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    quiet = ["DO_NOT_TRACK=true", "PREFECT_SERVER_ANALYTICS_ENABLED=false"]
    settings = [*quiet, f"PREFECT_API_URL={api}", f"PREFECT_HOME={out / 'prefect'}"]
    worker = shlex.join(["env", *settings, *prefect])
    print(f"deployed run/{name or recipe.name}, schedule {cron}\nstart a worker with\n  {worker}")
    return {"deployment": f"run/{name or recipe.name}", "id": str(identity), "worker": worker}
