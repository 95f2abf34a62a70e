"""What a person sees while a run works: one line a finished step, a bar where there is a terminal.

Everything goes to stdout through plain print (no wrapping of paths); without a terminal a long step says a line every
ten seconds instead of a bar.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

from conf.errors import show

QUIET_SECONDS = 10.0
MAX_LINE = 10_000  # characters; paths stay whole


class Shown(Protocol):
    flow: str
    name: str
    kind: str
    what: str
    found: bool
    seconds: float


class Reporter:
    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.live = sys.stdout.isatty() and not silent

    def line(self, text: str) -> None:
        if not self.silent:
            print(show(text, MAX_LINE), flush=True)

    def step(self, step: Shown) -> None:
        """One finished step."""
        took = "cached" if step.found else f"{step.seconds:.1f} s"
        self.line(f"  {step.flow:<9} {step.name:<12} {step.kind:<16} {step.what:<44} {took:>9}")

    @contextmanager
    def bar(self, name: str, unit: str) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Gives a function that takes progress: {done, of, loss}, or {stage} when a process turns to another one."""
        if self.live:
            with tqdm(desc=f"  {name}", unit=f" {unit}", leave=False, dynamic_ncols=True, file=sys.stdout) as bar:
                yield lambda said: _move(bar, said)
            return
        state: dict[str, Any] = {"told": time.monotonic(), "name": name}
        yield lambda said: self._say(state, said, unit)

    def _say(self, state: dict[str, Any], said: dict[str, Any], unit: str) -> None:
        if "stage" in said:
            state |= {"name": said["stage"], "first": None}
        if "done" in said and not state.get("first"):
            state["first"] = said["done"], time.monotonic()
        if "done" in said and time.monotonic() - state["told"] > QUIET_SECONDS:
            state["told"] = time.monotonic()
            done, began = state["first"]
            rate = (said["done"] - done) / (time.monotonic() - began)
            left = (
                f", {rate:,.{int(rate < 10)}f} {unit}/s, {(said['of'] - said['done']) / rate:,.0f} s left"
                if rate
                else ""
            )
            self.line(f"    {state['name']}: {said['done']:,} of {said['of']:,} {unit}{_loss(said)}{left}")


def _move(bar: Any, said: dict[str, Any]) -> None:
    if "stage" in said:
        bar.set_description(f"  {said['stage']}")
        bar.reset()
    if "done" in said:
        bar.total = said["of"]
        bar.set_postfix_str(_loss(said).strip(", "), refresh=False)
        bar.update(said["done"] - bar.n)


def _loss(said: dict[str, Any]) -> str:
    loss = said.get("loss")
    return f", loss {loss:.4g}" if loss is not None and math.isfinite(loss) else ""
