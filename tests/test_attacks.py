"""Every attack is refused in one line, at once, without a trace; and without its guard every attack succeeds.

The attacks lie in tests/attacks/, one family a file.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conf.errors import Damaged, InputError
from tests.attacks import (
    ATTACKS,
    Attack,
    archives,
    bombs,
    commands,
    damage,
    manifests,
    pickles,
    terminal,
    trees,
    values,
)
from tests.attacks.files import forget_peak, peak_memory

FAMILIES = (archives, bombs, commands, damage, manifests, pickles, terminal, trees, values)
MOST_SECONDS = 2.0
MOST_MEMORY = 256 << 20  # bytes of growth while an attack is refused
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")

tried: set[str] = set()
refused: set[str] = set()  # in one line
unharmed: set[str] = set()  # by attacks that are no reason to stop, as escape codes in a text
fired: set[str] = set()
_watching: list[list[str]] = []


def _watch(event: str, arguments: object) -> None:
    if _watching and event in STARTS:
        _watching[-1].append(f"{event} {arguments}")


sys.addaudithook(_watch)


@contextmanager
def watched() -> Iterator[None]:
    """Nobody may start a process or connect to anything meanwhile, nor take much time or memory."""
    started: list[str] = []
    forget_peak()
    before, began = peak_memory(), time.monotonic()
    _watching.append(started)
    try:
        yield
    finally:
        _watching.pop()
    assert not started
    assert time.monotonic() - began < MOST_SECONDS
    assert peak_memory() - before < MOST_MEMORY


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file but those below `out`, which is where a victim may write."""
    found = (path for path in folder.rglob("*") if "out" not in path.relative_to(folder).parts)
    return {str(path): (path.lstat().st_mode, 0 if path.is_dir() else path.lstat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_attack(case: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried.add(case.name)
    folder = tmp_path / "inner" / "here"  # so that there is an outside
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STRATA_CACHE", str(folder / "out" / "cache"))
    halves = case.begin(folder, monkeypatch)
    expected, use = next(halves)
    before = snapshot(tmp_path)
    with watched():
        try:
            without_effect = use()
        except (InputError, Damaged) as error:
            line = str(error)
            assert re.search(expected, line) and line.isprintable() and 20 < len(line) < 700
            refused.add(case.name)
        else:
            assert without_effect is True
            unharmed.add(case.name)
    assert snapshot(tmp_path) == before
    assert next(halves) is True, "without its guard the attack still fails, so this case shows nothing"
    fired.add(case.name)


def test_the_count() -> None:
    assert len({case.name for case in ATTACKS}) == len(ATTACKS) >= 60
    print(
        f"\n{len(refused) + len(unharmed)} of {len(tried)} blocked ({len(refused)} with one line each, "
        f"{len(unharmed)} without effect), {len(fired)} of {len(tried)} controls fire"
    )
    assert refused | unharmed == fired == tried
    assert len(tried) < len(ATTACKS) or len(refused) >= 60
