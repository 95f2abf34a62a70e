"""The stage process that answers queries about codes, for as long as somebody asks (conf.protocol.SearchJob)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

from conf import lifeline
from conf.errors import ERRORS, StrataError, show
from conf.protocol import Query, Request, SearchJob
from data import durable
from flows.stage import end, environment


class Searcher:
    """A context; `about` is what index.json says of codes that have one, and the same of others.

    Any thread may ask; queries are answered one after another. Errors: what the process reported, as the class of its
    exit status; StrataError when it died without a word.
    """

    def __init__(self, job: SearchJob, *, debug: bool = False) -> None:
        self._lock = threading.Lock()
        self._place = tempfile.TemporaryDirectory(prefix="strata-")
        request, self._log = Path(self._place.name) / "request.json", Path(self._place.name) / "log.txt"
        durable.write_json(request, Request(jobs=[job], debug=debug).model_dump(mode="json"))
        with self._log.open("ab") as chatter:
            self._process = subprocess.Popen(
                lifeline.command([sys.executable, "-m", "lightning_modules.fit", str(request)]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=chatter,
                env=environment(),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            self.about = self._heard()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *why: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        end(self._process)
        self._place.cleanup()

    def ask(self, query: Query) -> list[dict[str, Any]]:
        """Of each code that the query stands for: {"numbers", "distances", "within"}."""
        with self._lock:
            with contextlib.suppress(BrokenPipeError):  # its last words are heard below
                assert self._process.stdin is not None
                self._process.stdin.write(query.model_dump_json().encode() + b"\n")
                self._process.stdin.flush()
            found: list[dict[str, Any]] = self._heard()["found"]
            return found

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = (self._log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
            raise StrataError(f"search: its process ended (status {self._process.wait()}): {show(last, 300)}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise ERRORS.get(said["error"]["status"], StrataError)(said["error"]["message"])
        answer: dict[str, Any] = said["answer"]
        return answer
