"""`strata ingest`, `verify` and `data` in the hands of a new user: strange names, wrong kinds, places in the way."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DIGITS, LAYER, Command, Say, error, tree

STRANGE = [  # names of folders (RELIABILITY: unicode, space and special characters)
    "a b", "ü", "u\u0308", "\u05d0\u05d1\u202e", "🙂", "%d%s%", "a#b", "a?b=c&d", "{a,b}", "[x]", "$HOME", "a;b|c>d",
    "it's", 'a"b', "back\\slash", "new\nline", "-rf", "é" * 127 + "x",
]  # fmt: skip
ARRAY = np.random.default_rng(0).random((20, 5))
VALUES = "name: x\ndata: {source: {kind: arrays, path: v.npy}}\nstages: {l: {model: {kind: rbm, num_hidden: 3}}}\n"


@pytest.fixture
def place(say: Say, tmp_path: Path) -> Path:
    """The current folder, with some of everything in it."""
    for name in ("empty", "foreign", "photos/a", "photos/b", "texts"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "foreign" / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("x\n")
    np.save(tmp_path / "v.npy", ARRAY)
    for number in range(6):
        picture = np.full((8, 8), 40 * number, np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png")
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "objects.npy").write_bytes(pickle.dumps([{}]))
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "values.yaml").write_text(VALUES)
    return tmp_path


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRANGE, ids=[ascii(name)[:20] for name in STRANGE])
def test_folders_of_strange_names(say: Say, tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    np.save(home / "v.npy", ARRAY)
    out = home / "shards"
    made = say("ingest", "arrays", home / "v.npy", "--out", out, "--json")
    assert made.status == 0 and made.err == "" and made.answer["out"] == str(out), made
    verified = say("verify", out)
    assert verified.status == 0 and verified.out.endswith(": 20 samples, every byte as written\n")
    seen = say("data", out, "--page", home / "page.html")
    assert seen.status == 0 and seen.out.splitlines()[1].startswith("20 samples of 5 values, float64")
    assert (home / "page.html").stat().st_size > 5_000
    for ended in (verified, seen):
        assert all(line.isprintable() for line in ended.out.splitlines()), ended.out


def test_recipes_name_strange_folders(say: Say, tmp_path: Path) -> None:
    origins: list[dict[str, Any]] = []
    for name in STRANGE:
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "v.npy", ARRAY)
        say("ingest", "arrays", tmp_path / name / "v.npy", "--out", tmp_path / name / "shards")
        origins.append({"source": {"kind": "arrays", "path": str(tmp_path / name / "v.npy")}})
        origins.append({"shards": str(tmp_path / name / "shards")})
    datasets = {f"d{number}": origin for number, origin in enumerate(origins)}
    stages = {f"s{data}": {"data": data, "model": {"kind": "rbm", "num_hidden": 3}} for data in datasets}
    recipe = {"name": "x", "datasets": datasets, "stages": stages}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe, ensure_ascii=False))
    ended = say("check", tmp_path / "recipe.yaml", "--json")
    assert ended.status == 0 and [stage["shape"] for stage in ended.answer["stages"]] == ["5 → 3"] * 36, ended


def test_a_run_in_a_folder_of_a_strange_name(strata: Command, tmp_path: Path) -> None:
    home = tmp_path / "a b%d#?{x,y}[z]$HOME;'\"\\ü🙂\nend"
    home.mkdir()
    (home / "recipe.yaml").write_text(DIGITS + LAYER)
    ended = strata("run", home / "recipe.yaml", "--out", home / "out")
    assert ended.status == 0 and ended.err == "", ended
    assert len(list(home.glob("out/digits-*/report.html"))) == 1
    assert f"report      {home}".replace("\n", "\\n") in ended.out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_knows_no_bars(tmp_path: Path, encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}

    def call(*arguments: object) -> bytes:
        command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
        ended = subprocess.run(command, env=environment, capture_output=True)
        assert ended.returncode == 0 and not ended.stderr, ended
        return ended.stdout

    shards = tmp_path / "ü🙂"
    call("ingest", "digits", "--out", shards)
    assert call("verify", shards).endswith(b": 1,797 samples, every byte as written\n")
    assert b"1,797 samples of 8" in call("data", shards)
    assert json.loads(call("data", shards, "--json"))["folder"] == str(shards)


def test_names_of_classes_and_files_cannot_steer_a_terminal(say: Say, place: Path) -> None:
    (place / "photos" / "a").rename(place / "photos" / "a\x9b31m\x7fü")
    for command in (["ingest", "--out", "s", "--json"], ["ingest", "--out", "s2", "--dry-run"]):
        ended = say(command[0], "images", "photos", "size=[8,8]", *command[1:])
        assert ended.out.replace("\n", "").isprintable() or ended.status == 2
        assert "\x9b" not in ended.out + ended.err and "\x7f" not in ended.out + ended.err


# --- what is refused, in one line, leaving nothing behind ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["ingest"], 2, "the following arguments are required: kind, --out; see `strata ingest --help`"),
        (
            ["ingest", "digit", "--out", "o"],
            2,
            "ingest: unknown kind 'digit' (did you mean 'digits'?); expected",
        ),
        (["ingest", "digits", "v.npy", "--out", "o"], 2, "the source digits takes no path, found 'v.npy'"),
        (
            ["ingest", "patches", "photos.zip", "--out", "o"],
            2,
            "patches are cut from another source, 'of={kind: images,",
        ),
        (["ingest", "digits", "--out", ""], 2, "argument --out: is empty; expected a path"),
        (["ingest", "digits", "--out", "file"], 6, "--out file: is a file; choose another place"),
        (["ingest", "digits", "--out", "file/x"], 6, "/file is a file; choose another place"),
        (["ingest", "digits", "--out", "nowhere"], 6, "--out nowhere: is a link to nothing; choose another place"),
        (["ingest", "digits", "--out", "n" * 300], 6, "file name too long; choose another place"),
        (["ingest", "digits", "--out", "/dev/null"], 6, "--out /dev/null: is a file; choose another place"),
        (
            ["ingest", "digits", "--out", "foreign"],
            2,
            "--out foreign: holds other files, such as note.txt; choose",
        ),
        (["ingest", "digits", "--out", "file", "--dry-run"], 6, "--out file: is a file"),
        (["ingest", "images", "photos", "--out", "photos"], 2, "--out photos: lies inside the source photos"),
        (["ingest", "images", "photos", "--out", "photos/a/s"], 2, "--out photos/a/s: lies inside the source photos"),
        (["ingest", "images", "photos", "--out", "empty/../photos/s"], 2, "lies inside the source photos"),
        (["ingest", "digits", "--out", "o", "--shard-size", "0"], 2, "--shard-size 0: expected at least 1"),
        (
            ["ingest", "digits", "--out", "o", "--shard-size", "1e3"],
            2,
            "--shard-size: invalid int value: '1e3'",
        ),
        (["ingest", "arrays", "--out", "o"], 2, "ingest: path is missing"),
        (["ingest", "arrays", "", "--out", "o"], 2, "ingest: path: is empty; expected a path"),
        (["ingest", "arrays", "missing.npy", "--out", "o"], 2, "missing.npy: no such file or directory"),
        (["ingest", "arrays", "nowhere", "--out", "o"], 2, "nowhere: no such file or directory"),
        (["ingest", "arrays", "n" * 300, "--out", "o"], 2, "file name too long; expected a readable file or folder"),
        (["ingest", "arrays", "empty", "--out", "o"], 2, "empty: not a regular file; expected the path of one"),
        (["ingest", "arrays", "file", "--out", "o"], 2, "file: expected a .npy"),
        (["ingest", "arrays", "objects.npy", "--out", "o"], 2, "objects.npy: expected a .npy"),
        (
            ["ingest", "arrays", "v.npy", "lables=y.npy", "--out", "o"],
            2,
            "did you mean 'labels'?",
        ),
        (
            ["ingest", "images", "photos", "size=[8", "--out", "o"],
            2,
            "did not find expected ',' or ']', line 2, column 1",
        ),
        (["ingest", "images", "empty", "--out", "o"], 2, "empty: no pictures in this folder"),
        (["ingest", "images", "file", "--out", "o"], 2, "file: a file; expected a folder or one of .zip"),
        (["ingest", "text", "pipe:ls", "--out", "o"], 2, "pipe:ls: strata runs no commands"),
        (["ingest", "text", "ftp://x/y", "--out", "o"], 2, "ftp://x/y: an address of the scheme ftp"),
        (["ingest", "text", "t", "\udce4=1", "--out", "o"], 2, "override '\\udce4=1': not UTF-8 text"),
        (["ingest", "text", "\udce4", "--out", "o"], 2, "ingest: path: is not UTF-8 text; rename the file or folder"),
        (["ingest", "digits", "--out", "\udce4"], 2, "argument --out: '\\udce4' is not UTF-8 text; choose another"),
        (["verify", ""], 2, "argument DIR: is empty; expected a path"),
        (["verify", "empty"], 2, "empty: expected a folder of finished shards"),
        (["verify", "missing"], 2, "missing: expected a folder of finished shards"),
        (["verify", "s3://bucket/x"], 2, "s3://bucket/x: expected a folder on this machine"),
        (["verify", "empty", "more"], 2, "unrecognized arguments: more; see `strata verify --help`"),
        (["data", "file"], 2, "file/manifest.json: not a directory"),
        (["data", "https://localhost:9/x"], 2, "https://localhost:9/x: expected a folder on this machine"),
        (["data", "empty", "--page", ""], 2, "argument --page: is empty; expected a path"),
        (["check", ""], 2, "argument recipe: is empty; expected a path"),
        (["check", "/dev/zero"], 2, "/dev/zero: longer than 1048576 bytes"),
        (
            ["check", "values.yaml", "data={source: {kind: text, path: texts}}"],
            2,
            "data: holds texts, which no model reads",
        ),
        (["check", "values.yaml", "data={source: {kind: arrays, path: nowhere}}"], 2, "nowhere: no such file"),
        (["run", "values.yaml", "--out", ""], 2, "argument --out: is empty; expected a path"),
        (["run", "values.yaml", "--out", "nowhere"], 6, "--out nowhere: is a link to nothing"),
        (
            ["run", "values.yaml", "data.source={kind: images, path: .}"],
            2,
            "--out runs: lies inside the source .; choose a place outside of it",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_no_trace(
    say: Say, place: Path, arguments: list[str], status: int, expected: str
) -> None:
    before = tree(place)
    message = error(say(*arguments), status)
    assert expected in message and message.isprintable(), message
    assert tree(place) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody who may not read")
def test_what_may_not_be_read_or_written_is_said(say: Say, place: Path) -> None:
    say("ingest", "arrays", "v.npy", "--out", "shards")
    (place / "shards" / "manifest.json").chmod(0o600)
    (place / "v.npy").chmod(0)
    for folder in (place, *place.parents[:3]):
        folder.chmod(0o755)
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    os.seteuid(65534)
    try:
        assert "v.npy: permission denied" in error(say("ingest", "arrays", "v.npy", "--out", "open/o"))
        assert "is a folder we may not write to" in error(say("ingest", "digits", "--out", "o"), 6)
        for command in ("verify", "data"):
            assert "permission denied" in error(say(command, "shards"))
    finally:
        os.seteuid(0)


def test_shards_may_lie_where_a_killed_ingest_left_some(say: Say, place: Path) -> None:
    assert say("ingest", "arrays", "v.npy", "--out", "o").status == 0
    (place / "o" / "manifest.json").unlink()
    (place / "o" / ".train-00000.tar.1.tmp").touch()
    assert say("ingest", "arrays", "v.npy", "--out", "o").status == 0
    (place / "hidden").mkdir()
    (place / "hidden" / ".lock").touch()
    assert say("ingest", "arrays", "v.npy", "--out", "hidden").status == 0
    assert say("ingest", "arrays", "v.npy", "scale=2", "--out", "empty").status == 0
