"""Addresses that are commands or lead to where nobody asked for."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

import braceexpand
import fsspec
import pytest

import data.remote
from conf.reading import read
from data.manifest import Manifest
from data.remote import local_file
from tests.attacks import Halves, attack
from tests.attacks.files import command, remanifest, samples, shards

COMMAND = "pipe:mkdir executed"
RECIPE = "name: x\ndata: {data}\nstages:\n  layer1: {{model: {{kind: rbm, num_hidden: 4}}}}\n"


def run_by_stock(address: str, folder: Path) -> bool:
    """What a stock reader of WebDataset shards makes of an address."""
    gopen = importlib.import_module("webdataset.gopen")
    for one in braceexpand.braceexpand(address):
        with contextlib.suppress(OSError):
            gopen.gopen(one.strip()).close()
    return (folder / "executed").is_dir()


@attack("webdataset", "images", "text", "audio", "table", "arrays", "counts", "idx")
def a_command_as_the_path_of(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    yield "runs no commands|no such file", lambda: samples(kind, COMMAND)
    yield run_by_stock(COMMAND, folder)


@attack(" pipe:mkdir executed", "{pipe:mkdir executed,a.tar}", "\tpipe:mkdir executed", "pipe:mkdir executed #.tar")
def a_command_in_disguise(folder: Path, patch: pytest.MonkeyPatch, address: str) -> Halves:
    yield "runs no commands", lambda: samples("webdataset", address)
    yield run_by_stock(address, folder)


@attack("PIPE:mkdir executed", "Pipe:mkdir executed")
def a_command_in_capitals(folder: Path, patch: pytest.MonkeyPatch, address: str) -> Halves:
    yield "runs no commands", lambda: samples("webdataset", address)
    gopen = importlib.import_module("webdataset.gopen")
    with pytest.raises(AssertionError):  # the handler of commands takes it, and only an assert is in its way
        gopen.gopen(address)
    gopen.Pipe(address[5:], mode="rb", shell=True, bufsize=8192).close()  # what follows the assert, as with python -O
    yield (folder / "executed").is_dir()


@attack("labels", "test_data", "validation_data")
def a_command_as_a_second_file(folder: Path, patch: pytest.MonkeyPatch, field: str) -> Halves:
    import numpy as np

    np.save(folder / "a.npy", np.eye(3))
    address = f"{COMMAND} # .npy"
    yield "runs no commands", lambda: samples("arrays", folder / "a.npy", **{field: address})
    yield run_by_stock(address, folder)


@attack()
def a_command_as_the_picture_of_a_row(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    (folder / "a.csv").write_text(f"file\n{COMMAND}\n")
    yield "no such file", lambda: samples("table", folder / "a.csv", image="file")
    yield run_by_stock((folder / "a.csv").read_text().split("\n")[1], folder)


@attack("source", "shards")
def a_command_in_a_recipe(folder: Path, patch: pytest.MonkeyPatch, field: str) -> Halves:
    from flows.preparing import prepare

    text = {"source": f"{{source: {{kind: webdataset, path: '{COMMAND}'}}}}", "shards": f"{{shards: '{COMMAND}'}}"}
    (folder / "recipe.yaml").write_text(RECIPE.format(data=text[field]))
    yield "runs no commands", lambda: prepare(read(folder / "recipe.yaml", []))
    yield run_by_stock(COMMAND, folder)


@attack("ingest", "ingest --dry-run", "verify", "data")
def a_command_on_the_command_line(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Halves:
    words = {"verify": ["verify", COMMAND], "data": ["data", COMMAND]}
    yield (
        "runs no commands|a folder of finished shards",
        lambda: command(*words.get(name, [*name.split(), "webdataset", COMMAND, "--out", "out"])),
    )
    yield run_by_stock(COMMAND, folder)


@attack()
def a_command_as_a_shard_of_a_manifest(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shards(folder)
    remanifest(path, lambda value: value["files"].__setitem__(COMMAND, [1, "0"]))
    yield "file name 'pipe:mkdir executed'", lambda: Manifest.load(path)
    patch.setattr("data.manifest.SAFE_NAME", __import__("re").compile(".*"))
    yield any(run_by_stock(name, folder) for name in Manifest.load(path).files if ":" in name)


@attack("simplecache::file://{}", "filecache::{}", "memory://a::file://{}", "http://127.0.0.1:9/a::file://{}")
def a_chain_that_ends_at_a_secret(folder: Path, patch: pytest.MonkeyPatch, pattern: str) -> Halves:
    secret = folder / "secret"
    secret.write_bytes(b"secret")
    address = pattern.format(secret)
    yield (
        "a chain of addresses",
        lambda: local_file(address if "://" in address.partition("::")[0] else f"s3://a::{address}"),
    )
    last = address.rpartition("::")[2]
    yield fsspec.open(address if "cache" in address else last).open().read() == b"secret"


@attack("local://{}", "ftp://127.0.0.1:9/a", "ssh://127.0.0.1:9/a", "dir://{}", "LOCAL://{}", " local://{}")
def a_scheme_that_is_not_allowed(folder: Path, patch: pytest.MonkeyPatch, pattern: str) -> Halves:
    secret = folder / "secret"
    secret.write_bytes(b"secret")
    address = pattern.format(secret)
    yield "an address of the scheme", lambda: local_file(address)
    plain = address.strip().lower()
    if plain.startswith("local"):
        yield fsspec.open(plain).open().read() == b"secret"
    patch.setattr(data.remote, "SCHEMES", (*data.remote.SCHEMES, address.partition(":")[0]))
    yield data.remote.is_remote(address)  # and would be asked for
