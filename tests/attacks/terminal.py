"""Names, keys and texts that would do something to the terminal they are printed on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import conf.errors
from conf.reading import read
from flows import data_commands, data_lines
from tests.attacks import Halves, attack
from tests.attacks.files import command, ingested, plain, remanifest, replace, samples, shards
from tests.raw_trees import packed

EVIL = {
    "clear the screen": "\x1b[2J",
    "title of the window": "\x1b]0;owned\x07",
    "a line of its own": "x\nerror: all is well",
    "overwrite the line": "x\rall is well",
    "eight-bit escape": "\x9b2J",
    "reorder": "\u202egnp.exe",
    "backspace": "x\b\b\b",
}


def raw(text: object, limit: int = 0) -> str:
    return str(text)


@attack(*EVIL.items())
def a_file_name_in_an_error(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str]) -> Halves:
    path = packed(folder, "folder", {variant[1]: b"no picture"})
    yield "no picture", lambda: samples("images", path)
    patch.setattr("data.remote.show", raw)
    patch.setattr("data.remote.shown", raw)
    patch.setattr("data.files.shown", raw)
    with pytest.raises(conf.errors.InputError) as caught:
        samples("images", path)
    yield "\n" in str(caught.value) or not str(caught.value).isprintable()


@attack("header", "name")
def a_table_in_an_error(folder: Path, patch: pytest.MonkeyPatch, where: str) -> Halves:
    evil = EVIL["clear the screen"]
    path = folder / (f"{evil}.csv" if where == "name" else "a.csv")
    path.write_text("a,b\n1,-5\n2,3\n" if where == "name" else f"a,{evil}\n1,2\n3,x\n")
    fields = {"label": "b"} if where == "name" else {}
    yield r"\\x1b", lambda: samples("table", path, **fields)
    for module in ("data.sources.cells", "data.sources.columns", "data.remote", "data.sources.classes"):
        patch.setattr(f"{module}.show", raw)
    patch.setattr("data.remote.shown", raw)
    patch.setattr("builtins.repr", str)
    with pytest.raises(conf.errors.InputError) as caught:
        samples("table", path, **fields)
    yield not str(caught.value).isprintable()


@attack("ingest", "verify", "data", "check")
def an_argument_in_an_error(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Halves:
    evil = EVIL["title of the window"]
    words = {
        "ingest": ["ingest", "images", evil, "--out", "out"],
        "check": ["check", evil],
    }
    yield r"\\x1b", lambda: command(*words.get(name, [name, evil]))
    for module in ("conf.reading", "data.manifest", "data.sources", "flows.cli"):
        patch.setattr(f"{module}.show", raw)
    with pytest.raises(conf.errors.StrataError) as caught:
        command(*words.get(name, [name, evil]))
    yield not plain(str(caught.value))


@attack("out", "verified")
def a_folder_in_an_answer(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    evil = folder / "out" / EVIL["clear the screen"]
    if what == "verified":
        evil.parent.mkdir()
        shards(folder).rename(evil)
    else:
        np.save(folder / "a.npy", np.eye(3))
    made = ["ingest", "arrays", folder / "a.npy", "--out", evil, "--dry-run"]
    words = ["verify", evil] if what == "verified" else made
    yield "", lambda: plain(command(*words)) and "x1b" in command(*words)
    patch.setattr(data_commands, "show", raw)
    yield not plain(command(*words))


@attack("keys", "classes", "an extra file", "texts", "columns")
def what_strata_data_and_verify_print(folder: Path, patch: pytest.MonkeyPatch, what: str) -> Halves:
    evil = EVIL["clear the screen"]
    if what == "texts":
        (folder / "a.txt").write_text(f"{evil} hello\nother\n")
        path = ingested("text", folder / "a.txt", folder / "shards").folder
    elif what == "columns":
        (folder / "a.csv").write_text(f"{evil},b\n1,2\n3,5\n")
        path = ingested("table", folder / "a.csv", folder / "shards").folder
    else:
        path = shards(folder)
    if what == "keys":
        replace(path, "train-00000.keys.jsonl", b'"\\u001b[2J"\n' * 4)
    elif what == "classes":
        remanifest(path, lambda value: value.update(classes=list(EVIL.values())[:3]))
    elif what == "an extra file":
        (path / evil).write_bytes(b"")
    words = ["verify" if what == "an extra file" else "data", path]
    yield "", lambda: plain(command(*words)) and r"\x1b" in command(*words)
    patch.setattr(data_lines, "show", raw)
    patch.setattr("data.verification.show", raw)
    yield not plain(command(*words))


@attack()
def an_argument_of_10_kB_in_an_error(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    (folder / "recipe.yaml").write_text("name: x\n")
    yield "expected key=value", lambda: read(folder / "recipe.yaml", ["x" * 10_000])
    patch.setattr("conf.reading.show", raw)
    with pytest.raises(conf.errors.InputError) as caught:
        read(folder / "recipe.yaml", ["x" * 10_000])
    yield len(str(caught.value)) > 10_000
