"""Whole or absent, one holder, equal values equal bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from data import durable


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A real second process that says `ready` on stdout when it is where the test wants it."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


HOLDER = """
    import sys, time
    from pathlib import Path
    from data import durable
    with durable.lock(Path(sys.argv[1])):
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with durable.writing(target) as file:
        file.write(b"first")
        assert not target.exists()
    assert target.read_bytes() == b"first"
    with pytest.raises(ZeroDivisionError), durable.writing(target) as file:
        file.write(b"second")
        raise ZeroDivisionError
    assert target.read_bytes() == b"first"
    assert os.listdir(target.parent) == ["file"]


def test_a_kill_in_the_middle_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "file"
    durable.write_bytes(target, b"old")
    writer = start(
        """
        import sys, time
        from pathlib import Path
        from data import durable
        with durable.writing(Path(sys.argv[1])) as file:
            file.write(b"new, but not all of it")
            file.flush()
            print("ready", flush=True)
            time.sleep(60)
        """,
        target,
    )
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert target.read_bytes() == b"old"
    durable.write_bytes(target, b"newer")
    assert target.read_bytes() == b"newer"


def test_content_is_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync") or fsync(descriptor))  # type: ignore
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("replace") or replace(a, b))  # type: ignore
    durable.write_bytes(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = start(HOLDER, path)
    try:
        with pytest.raises(durable.Locked, match=f"process {holder.pid} "), durable.lock(path):
            pass
    finally:
        holder.kill()
        holder.wait()
    began = time.monotonic()
    with durable.lock(path):
        assert time.monotonic() - began < 1


def test_a_lock_can_be_awaited(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = start(HOLDER, path)
    told: list[str] = []

    def kill_it(who: str) -> None:
        told.append(who)
        holder.kill()
        holder.wait()

    with durable.lock(path, wait=kill_it):
        pass
    assert len(told) == 1 and str(holder.pid) in told[0]


def test_equal_values_have_equal_digests() -> None:
    assert durable.digest_value({"a": 1, "b": [2.0, "ü"]}) == durable.digest_value({"b": [2.0, "ü"], "a": 1})
    assert durable.digest_value({"a": 1}) != durable.digest_value({"a": 2})
    assert durable.digest_value(1) != durable.digest_value(1.0)
    with pytest.raises(ValueError):
        durable.canonical({"loss": float("nan")})


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    durable.write_bytes(tmp_path / "file", b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert durable.digest_file(tmp_path / "file") == durable.digest_bytes(b"abc") == expected
