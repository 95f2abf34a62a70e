"""Rates measured in turns: what keeps the machine busy slows all rivals alike, and the median of ratios is judged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

TURNS = 5


def in_turns(
    rivals: dict[str, Callable[[], int]], turns: int = TURNS, processor: dict[str, list[float]] | None = None
) -> dict[str, list[float]]:
    """Samples per second of each, turn by turn; a rival does its work and says how many samples it did.

    `processor` takes the same per second of the processor's time.
    """
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(turns):
        for name, work in rivals.items():
            began, used = time.perf_counter(), time.process_time()
            number = work()
            rates[name].append(number / (time.perf_counter() - began))
            if processor is not None:
                processor.setdefault(name, []).append(number / (time.process_time() - used))
    return rates


def told(title: str, rates: dict[str, list[float]], unit: str = "samples/s") -> None:
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"\n{title} ({load}, medians of {len(next(iter(rates.values())))})")
    for name, each in rates.items():
        print(f"  {name:<42} {median(each):>14,.0f} {unit}   ({min(each):,.0f} to {max(each):,.0f})")


def ratio(rates: dict[str, list[float]], first: str, second: str) -> float:
    return median(a / b for a, b in zip(rates[first], rates[second], strict=True))
