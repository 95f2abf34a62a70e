"""The `strata` command: what a person types, and one `error:` line when something is wrong."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from conf import Recipe
from conf.errors import InputError, Interrupted, OutputError, StrataError, show
from data.remote import is_remote, local_path, shown

EPILOG = "Exit status: 0 done, 2 wrong input, 3 busy, 4 damaged, 5 diverged, 6 output not writable, 130/143 stopped."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{show(message, 300)}; see `{self.prog} --help`")


def _path(text: str) -> Path:
    """A path of the command line; an empty one, of a variable nobody set, would mean this folder."""
    return Path(_place(text))


def _place(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; expected a path")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"'{show(text)}' is not UTF-8 text; choose another name") from None
    return text


def _folder(text: str) -> Path:
    """Of shards that a command reads where they lie."""
    if is_remote(_place(text)):
        raise InputError(
            f"{shown(text)}: expected a folder on this machine; shards elsewhere are read by a recipe, "
            "data={shards: ADDRESS}, which checks what it fetches"
        )
    return local_path(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="strata", description="Raw data → pretrained models, one recipe at a time.", epilog=EPILOG)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, do: Callable[[argparse.Namespace], dict[str, Any]], help: str, example: str) -> Any:
        text = f"example:\n  strata {example}"
        raw = argparse.RawDescriptionHelpFormatter
        found = commands.add_parser(name, help=help, description=help, epilog=text, formatter_class=raw)
        found.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
        found.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        found.set_defaults(do=do)
        return found

    def out(found: Any) -> None:
        found.add_argument("--out", type=_path, default=Path("runs"), help="stages, reports, databases (default: runs)")

    def recipe(found: Any) -> None:
        found.add_argument("recipe", type=_path, help="a YAML file, such as conf/digits.yaml")
        found.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="sets a field of the recipe")

    found = command("run", _run, "run a recipe, or go on where it stopped", "run conf/digits.yaml seed=1 --out runs")
    recipe(found)
    out(found)
    found = command("check", _check, "validate a recipe and print its plan", "check conf/mnist_dbn.yaml")
    recipe(found)
    found = command("ingest", _ingest, "raw data → verified shards", "ingest idx /data/mnist --out shards/mnist")
    found.add_argument("kind", help="digits, idx, arrays, images, table, text, counts, webdataset, audio, patches")
    found.add_argument("path", nargs="?", help="file, folder or fsspec address (s3://…); digits and patches need none")
    found.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="key=value",
        help="the source's other fields, such as size=[28,28]",
    )
    found.add_argument("--out", type=_path, required=True, help="the folder of shards")
    found.add_argument("--shard-size", type=int, default=10_000, help="samples per shard")
    found.add_argument("--workers", type=int, default=None, help="processes that write shards (default: all cores)")
    found.add_argument("--limit", type=int, default=None, help="at most so many samples of each set")
    found.add_argument("--dry-run", action="store_true", help="only say what would be written")
    found = command("verify", _verify, "check every byte of some shards", "verify shards/mnist")
    found.add_argument("shards", type=_folder, metavar="DIR", help="a folder of shards")
    found = command("data", _data, "what is in a folder of shards", "data shards/mnist --page mnist.html")
    found.add_argument("shards", type=_folder, metavar="DIR", help="a folder of shards")
    found.add_argument("--page", type=_path, default=None, help="draw it as an HTML page, too")
    found = command("evaluate", _evaluate, "measure a model on shards", "evaluate MODEL --shards shards/mnist")
    found.add_argument("model", type=_path, help="a model directory")
    found.add_argument("--shards", type=_folder, required=True, help="a folder of shards")
    found.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help="fields of a recipe's evaluate block"
    )
    found = command("sample", _sample, "draw from a model", "sample MODEL -n 100 --out samples.npy")
    found.add_argument("model", type=_path, help="a model directory")
    found.add_argument("-n", "--number", type=int, default=64, help="how many (default: 64)")
    found.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    found.add_argument("--out", type=_path, required=True, help="a .npy file; pictures get a .png beside it")
    found = command(
        "encode", _encode, "codes of all samples of some shards", "encode MODEL --shards DIR --out codes --bits"
    )
    found.add_argument("model", type=_path, help="a model directory")
    found.add_argument("--shards", type=_folder, required=True, help="a folder of shards")
    found.add_argument("--out", type=_path, required=True, help="a folder: one .npy a set")
    found.add_argument("--bits", action="store_true", help="packed bits, which strata search looks up")
    found = command("search", _search, "nearest items by their codes", "search codes --item test/5 --out nearest.png")
    found.add_argument("folder", type=_path, metavar="DIR", help="codes of `encode --bits`, or an index of --build")
    asked = found.add_mutually_exclusive_group(required=True)
    asked.add_argument("--build", type=_path, metavar="INDEX", help="write an index of the codes into this folder")
    asked.add_argument("--item", nargs="+", metavar="N", help="nearest to these items: 17, test/17")
    asked.add_argument("--text", metavar="WORDS", help="nearest to a document of these words")
    asked.add_argument("--text-file", type=_path, metavar="FILE", help="nearest to the document in a file")
    asked.add_argument("--picture", type=_path, metavar="FILE", help="nearest to a picture")
    asked.add_argument("--codes", type=_path, metavar="FILE.npy", help="nearest to each of these packed codes")
    asked.add_argument("--serve", action="store_true", help="a page on loopback to type or pick in, until Ctrl-C")
    found.add_argument("-k", type=int, default=None, help="how many (default: 10; of a radius at most 1,000)")
    found.add_argument("--radius", type=int, default=None, help="all at most so many bits apart")
    found.add_argument("--exact", action="store_true", help="look into every bucket of an index of buckets")
    found.add_argument("--kind", choices=("flat", "tables", "buckets"), help="of the index to build (default: flat)")
    found.add_argument("--recall", type=float, default=None, help="that buckets are to reach (default: 0.99)")
    found.add_argument("--out", type=_path, default=None, help="a .png of the pictures found, or an .html page")
    found.add_argument("--crop", action="store_true", help="the picture is cropped, as ingest did by fit=crop")
    found.add_argument("--model", type=_path, default=None, help="the codes' model, where it lies elsewhere now")
    found.add_argument("--shards", type=_folder, default=None, help="the codes' shards, where they lie elsewhere now")
    found.add_argument("--texts", type=_folder, default=None, help="shards of the same documents as texts, for titles")
    found.add_argument("--port", type=int, default=None, help="of the page (default: any free one)")
    out(command("sync", _sync, "send MLflow what it has not received yet", "sync --out runs"))
    found = command("ui", _ui, "serve Prefect and MLflow on loopback", "ui --out runs")
    out(found)
    found.add_argument("--prefect-port", type=int, default=None)
    found.add_argument("--mlflow-port", type=int, default=None)
    found = command("deploy", _deploy, "schedule a recipe", 'deploy conf/digits.yaml --cron "0 3 * * *"')
    recipe(found)
    out(found)
    found.add_argument("--cron", required=True, help='when, such as "0 3 * * *" for three every night')
    found.add_argument("--name", default=None, help="of the deployment (default: the recipe's)")
    return parser


# --- commands: arguments → what --json prints ---------------------------------------------------------------------


def _read(arguments: argparse.Namespace) -> Recipe:
    from conf.reading import read

    return read(arguments.recipe, arguments.overrides)


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.engine import RecipeRun
    from flows.opening import send_the_rest
    from flows.preparing import prepare
    from flows.progress import Reporter

    recipe = _read(arguments)
    prepared = prepare(recipe, arguments.out)
    reporter = Reporter(silent=arguments.json)
    text = arguments.recipe.read_text("utf-8")
    run = RecipeRun(prepared, arguments.out, reporter, text, arguments.overrides, arguments.debug)
    reporter.line(f"strata: {arguments.recipe} → {run.folder}")
    if run.look():
        for step in run.steps:
            reporter.step(step)
        reporter.line("every stage is cached")
        send_the_rest(run)
    else:
        _work(run)
    answer = run.answer()
    _close(run, arguments.out)
    return answer


def _work(run: Any) -> None:
    """Through Prefect's flows where a server answers, plainly where none does."""
    from flows import servers
    from flows.opening import opened

    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {show(run.out)}: {error.strerror}; choose another place") from None
    os.environ.update({k: v for k, v in servers.prefect_environment(run.out).items() if k not in os.environ})
    with opened(run.recipe, run.out, run=run):
        with servers.prefect_for_a_run(run.out) as (api, problem):
            if problem:
                run.reporter.line(problem)
            if api is not None:
                os.environ["PREFECT_API_URL"] = api
                from flows.pipeline import through_prefect

                through_prefect(run)
        run.do_rest()


def _close(run: Any, out: Path) -> None:
    from flows import follower

    line = run.reporter.line
    line(f"report      {run.folder / 'report.html'}")
    line(f"both UIs    strata ui --out {shlex.quote(str(out))}")
    if url := follower.url(run.out, run.name):
        line(f"MLflow run  {url}")


def _check(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.preparing import prepare

    prepared = prepare(_read(arguments))
    if not arguments.json:
        for name, found in prepared.descriptions.items():
            shape, sizes = "×".join(map(str, found.shape)), ", ".join(f"{n:,} {s}" for s, n in found.sizes.items())
            print(f"{name}: samples of {shape}; {sizes}; {found.labeled:,} labeled for training")
        head = ("stage", "flow", "kind", "shape", "parameters", "samples", "steps")
        rows = [
            (s.name, s.flow, s.kind, s.shape, f"{s.parameters:,}", f"{s.samples:,}", f"{s.steps:,}")
            for s in prepared.plan.stages
        ]
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for row in [head, *rows]:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return prepared.plan.model_dump(mode="json")


def _ingest(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.data_commands import ingest

    return ingest(arguments)


def _verify(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.data_commands import verify

    return verify(arguments.shards, silent=arguments.json)


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.data_commands import data_in

    return data_in(arguments.shards, arguments.page, silent=arguments.json)


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.model_commands import evaluate

    return evaluate(arguments.model, arguments.shards, arguments.settings, silent=arguments.json)


def _sample(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.model_commands import sample

    return sample(arguments.model, arguments.number, arguments.seed, arguments.out, silent=arguments.json)


def _encode(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.model_commands import encode

    return encode(arguments.model, arguments.shards, arguments.out, arguments.bits, silent=arguments.json)


def _search(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.searching import search

    return search(arguments)


def _sync(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows import tracking

    if not arguments.out.is_dir():
        raise InputError(f"--out {show(arguments.out)}: there is no such folder; `strata run` makes one")
    found = tracking.sync(arguments.out)
    if not arguments.json:
        for run, rows, complete, error in found:
            print(f"{show(run)}: {rows:,} rows sent, {'complete' if complete else show(error or 'not complete', 300)}")
    failed = [error for _, _, complete, error in found if not complete and error]
    if failed:
        raise StrataError(failed[0])
    return {"runs": [{"run": run, "rows": rows, "complete": complete} for run, rows, complete, _ in found]}


def _ui(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.ui import serve

    return serve(arguments.out, arguments.prefect_port, arguments.mlflow_port)


def _deploy(arguments: argparse.Namespace) -> dict[str, Any]:
    from flows.scheduling import deploy

    return deploy(_read(arguments), arguments.out, arguments.cron, arguments.name)


# --- the command --------------------------------------------------------------------------------------------------


def _parse(argv: list[str]) -> argparse.Namespace:
    """key=value may stand before and behind options; argparse alone takes only the first group of them."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    assignments = getattr(arguments, "overrides", getattr(arguments, "settings", None))
    unknown = [word for word in rest if word.startswith("-") or assignments is None]
    if unknown:
        raise InputError(
            f"unrecognized arguments: {show(' '.join(unknown), 300)}; see `strata {arguments.command} --help`"
        )
    if assignments is not None:
        assignments += rest
    return arguments


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted(number)


def main(argv: list[str] | None = None) -> int:
    """Parses, does, and says `error: …` in one line; the exit status is the error class's."""
    argv = sys.argv[1:] if argv is None else argv
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    os.umask(0o077)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # bars and arrows where a terminal knows no UTF-8
    try:
        arguments = _parse(argv)
        answer = arguments.do(arguments)
        if arguments.json:
            print(json.dumps(answer).replace("\x7f", "\\u007f"))  # ASCII: whatever a name holds, a terminal is safe
        return 0
    except StrataError as error:
        return _fail(error, str(error), error.status, "--debug" in argv)
    except Interrupted as stop:
        return _fail(stop, f"stopped by {stop}; run the same command again to go on", 128 + stop.number, False)
    except KeyboardInterrupt as stop:
        return _fail(stop, "stopped by SIGINT; run the same command again to go on", 130, False)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = f"{show(error.filename or 'output')}: {error.strerror or error}"
        return _fail(error, message, OutputError.status, "--debug" in argv)
    except Exception as error:
        return _fail(error, f"a bug in strata: {type(error).__name__}: {show(error, 300)}", 1, "--debug" in argv)


def _fail(error: BaseException, message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
