"""Shards at an address: what arrives is what was written, within its budget, whoever shares the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from conf.errors import Damaged, InputError
from data import durable, shard_cache
from data.loading import ShardData
from data.order import Order
from data.shard_cache import MARK, open_remote
from data.shards import Manifest, Reader, check, ingest
from data.sources import open_source
from tests.conftest import DIGITS, LAYER, Command, until
from tests.remote_shards import GO, SCRIPT, SEEN
from tests.shard_folders import digits, flip
from tests.test_remote import bucket  # noqa: F401 - a fixture

ROOM = 1 << 30


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 shards of the digits, 103 kB each."""
    return ingest(digits(), tmp_path_factory.mktemp("remote") / "shards", shard_size=100).folder


@pytest.fixture
def memory(whole: Path) -> Iterator[str]:
    """The shards at memory://shards."""
    files = fsspec.filesystem("memory")
    files.pipe({f"/shards/{path.name}": path.read_bytes() for path in whole.iterdir()})
    yield "memory://shards"
    files.store.clear()


@pytest.fixture
def served(whole: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The shards behind a server, and the folder its script lies in."""
    folder = shutil.copytree(whole, tmp_path / "server" / "shards")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.remote_shards", str(folder)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}", folder.parent
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "PAUSES", (0.01, 0.02))


def tars(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.tar"))


def test_a_remote_folder_reads_like_the_one_it_is(whole: Path, memory: str, tmp_path: Path) -> None:
    folder = open_remote(memory, tmp_path, ROOM)
    assert tars(folder) == [] and not list(folder.glob("*.index.npy"))
    remote, local = Reader(folder), Reader(whole)
    assert remote.manifest.digest == local.manifest.digest
    assert np.array_equal(remote.labels(), local.labels()) and remote.keys("train") == local.keys("train")
    some = np.array([1500, 3, 1501, 3, 777])
    assert np.array_equal(remote.read(some), local.read(some))
    assert tars(folder) == ["train-00000.tar", "train-00007.tar", "train-00015.tar"]
    assert np.array_equal(remote.read(np.arange(1797)), local.read(np.arange(1797)))
    fsspec.filesystem("memory").store.clear()
    assert np.array_equal(Reader(folder).read(some), local.read(some))  # nobody asks again


def test_opening_again_fetches_the_manifest_alone(memory: str, tmp_path: Path) -> None:
    folder = open_remote(memory, tmp_path, ROOM)
    files = fsspec.filesystem("memory")
    for path in files.ls("/shards", detail=False):
        if not path.endswith("manifest.json"):
            files.rm(path)
    assert open_remote(f"{memory}/", tmp_path, 2 * ROOM) == folder
    assert durable.read_json(folder / MARK) == {"address": memory, "bytes": 2 * ROOM}


def test_other_content_at_the_address_gets_another_folder(memory: str, tmp_path: Path) -> None:
    first = open_remote(memory, tmp_path / "cache", ROOM)
    before = Reader(first).read(np.arange(5))
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((30, 4)))
    import conf

    other = ingest(
        open_source(conf.ArraysSource(kind="arrays", path=str(tmp_path / "a.npy"))), tmp_path / "o", shard_size=7
    )
    fsspec.filesystem("memory").pipe({f"/shards/{path.name}": path.read_bytes() for path in other.folder.iterdir()})
    second = open_remote(memory, tmp_path / "cache", ROOM)
    assert second != first and len(Reader(second)) == 30
    assert np.array_equal(Reader(first).read(np.arange(5)), before)
    with pytest.raises(Damaged, match=r"memory://shards/train-00001\.tar: .* bytes; its manifest says"):
        Reader(first).read(np.array([150]))  # the old manifest's shards are no longer there


def test_over_the_budget_whole_shards_make_way_oldest_first(whole: Path, memory: str, tmp_path: Path) -> None:
    size = sum((whole / f"train-00000.{kind}").stat().st_size for kind in ("tar", "index.npy"))
    folder = open_remote(memory, tmp_path, 3 * size)
    reader = Reader(folder)
    for shard in (0, 1, 2):
        reader.read(np.array([100 * shard]))
        time.sleep(0.01)
    assert tars(folder) == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]
    Reader(folder).read(np.array([5]))  # shard 0 is used again, by somebody else
    reader.read(np.array([300]))
    assert tars(folder) == ["train-00000.tar", "train-00002.tar", "train-00003.tar"]
    assert np.flatnonzero(reader._open).tolist() == [0, 2, 3]  # what made way is not kept mapped
    expected = Reader(whole).read(np.arange(1797))
    assert np.array_equal(
        reader.read(np.random.default_rng(0).permutation(1797)), expected[np.random.default_rng(0).permutation(1797)]
    )
    total = sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith((".tar", ".index.npy")))
    assert total <= 3 * size and len(tars(folder)) == 3
    assert {path.name.split(".")[0] for path in folder.glob("*.index.npy")} == {t.split(".")[0] for t in tars(folder)}
    small = open_remote(memory, tmp_path / "small", size - 1)
    with pytest.raises(InputError, match="data.cache_gib leaves room for"):
        Reader(small).read(np.array([0]))


def test_a_shard_in_use_is_not_evicted(whole: Path, memory: str, tmp_path: Path) -> None:
    size = sum((whole / f"train-00000.{kind}").stat().st_size for kind in ("tar", "index.npy"))
    folder = open_remote(memory, tmp_path, size)
    manifest = Manifest.load(folder)
    with shard_cache.at_hand(manifest, manifest.shards[4]):
        Reader(folder).read(np.array([500]))
        assert tars(folder) == ["train-00004.tar", "train-00005.tar"]
    Reader(folder).read(np.array([600]))
    assert tars(folder) == ["train-00006.tar"]


def test_what_is_still_to_arrive_takes_room(whole: Path, served: tuple[str, Path], tmp_path: Path) -> None:
    """Else two that fetch at once would both find room for one, and the budget be exceeded for good."""
    address, server = served
    size = sum((whole / f"train-00000.{kind}").stat().st_size for kind in ("tar", "index.npy"))
    folder = open_remote(address, tmp_path / "cache", 2 * size)
    Reader(folder).read(np.array([0]))
    (server / SCRIPT).write_text("train-00001.tar wait\n")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(Reader(folder).read, np.array([100]))
        try:
            until(lambda: "train-00001.tar" in (server / SEEN).read_text(), 20)
            Reader(folder).read(np.array([200]))
            assert tars(folder) == ["train-00002.tar"]
        finally:
            (server / GO).touch()
        assert np.array_equal(waiting.result(), Reader(whole).read(np.array([100])))
    assert tars(folder) == ["train-00001.tar", "train-00002.tar"]
    Reader(folder).read(np.array([300]))
    assert len(tars(folder)) == 2 and not list(folder.glob(".*.room"))


def test_what_a_kill_left_is_cleared_away(whole: Path, memory: str, tmp_path: Path) -> None:
    size = sum((whole / f"train-00000.{kind}").stat().st_size for kind in ("tar", "index.npy"))
    folder = open_remote(memory, tmp_path, 2 * size)
    (folder / ".train-00003.tar.99999.tmp").write_bytes(b"x" * 2 * size)
    (folder / ".train-00003.room").write_bytes(b"x" * 2 * size)
    (folder / ".train-labels.npy.99999.tmp").write_bytes(b"x")
    Reader(folder).read(np.array([0, 100]))
    assert tars(folder) == ["train-00000.tar", "train-00001.tar"]
    assert [path.name for path in folder.glob(".*.tmp")] == [".train-labels.npy.99999.tmp"]


FAULTS = ("reset", "500", "short", "flip", "missing")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["manifest.json", "train-labels.npy", "train-00002.tar", "train-00002.index.npy"])
def test_a_fault_once_or_twice_costs_a_try(
    whole: Path, served: tuple[str, Path], tmp_path: Path, name: str, fault: str
) -> None:
    address, server = served
    (server / SCRIPT).write_text(f"{name} {fault}\n" * 2)
    folder = open_remote(address, tmp_path / "cache", ROOM)
    assert np.array_equal(Reader(folder).read(np.arange(200, 300)), Reader(whole).read(np.arange(200, 300)))
    assert (server / SEEN).read_text().split("\n").count(name) == 3
    for path in folder.iterdir():
        if not path.name.startswith(".") and path.name != MARK:
            assert path.read_bytes() == (whole / path.name).read_bytes()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_one_line(served: tuple[str, Path], tmp_path: Path, fault: str) -> None:
    address, server = served
    folder = open_remote(address, tmp_path / "cache", ROOM)
    (server / SCRIPT).write_text(f"train-00002.tar {fault}\n" * 3)
    with pytest.raises(Damaged if fault == "flip" else InputError) as caught:
        Reader(folder).read(np.array([250]))
    message = str(caught.value)
    assert message.startswith(f"{address}/train-00002.tar: ") and "\n" not in message and len(message) < 400
    assert tars(folder) == [] and not list(folder.glob(".*.tmp"))
    assert (server / SEEN).read_text().split("\n").count("train-00002.tar") == 3
    assert Reader(folder).read(np.array([250])).shape == (1, 8, 8)


def test_a_shard_damaged_there_is_damaged_here(served: tuple[str, Path], tmp_path: Path) -> None:
    address, server = served
    folder = open_remote(address, tmp_path / "cache", ROOM)
    flip(server / "shards" / "train-00002.tar", 700, 1)
    with pytest.raises(Damaged, match=r"train-00002\.tar: differs from the digest in its manifest"):
        Reader(folder).read(np.array([250]))
    (server / "shards" / "train-00003.tar").write_bytes(b"short")
    with pytest.raises(Damaged, match="5 bytes; its manifest says 103,424"):
        Reader(folder).read(np.array([350]))


def test_a_copy_damaged_here_is_fetched_anew(whole: Path, memory: str, tmp_path: Path) -> None:
    folder = open_remote(memory, tmp_path, ROOM)
    Reader(folder).read(np.arange(400))
    flip(folder / "train-00001.tar", 700, 1)
    (folder / "train-00002.index.npy").write_bytes(b"")
    check(folder, tmp_path / "remembered.json")
    assert tars(folder) == ["train-00000.tar", "train-00002.tar", "train-00003.tar"]
    assert np.array_equal(Reader(folder).read(np.arange(400)), Reader(whole).read(np.arange(400)))


def test_small_files_damaged_here_are_fetched_anew_at_opening(memory: str, tmp_path: Path) -> None:
    folder = open_remote(memory, tmp_path, ROOM)
    flip(folder / "train-labels.npy", 300, 1)
    (folder / "train-mean.npy").unlink()
    with pytest.raises(Damaged):
        Reader(folder).labels()
    assert open_remote(memory, tmp_path, ROOM) == folder
    check(folder)


def test_training_wants_room_for_a_window(memory: str, tmp_path: Path) -> None:
    manifest = Manifest.load(open_remote(memory, tmp_path, ROOM))
    needed = sum(size for name, (size, _) in manifest.files.items() if name.endswith((".tar", ".index.npy")))
    for room, samples, fits in ((needed, 1797, True), (needed - 1, 1797, False), (needed - 1, 1600, True)):
        folder = open_remote(memory, tmp_path, room)
        data = ShardData(shards=folder, samples=np.arange(samples), batch_size=100, epochs=1, seed=0)
        if fits:
            data.prepare_data()
            continue
        with pytest.raises(InputError, match=rf"over 18 shards at a time, of {needed:,} bytes, but data\.cache_gib"):
            data.prepare_data()


@pytest.mark.parametrize("address", ["pipe:cat a.tar", "ftp://host/a", "memory://nothing-here", "PIPE:x"])
def test_what_is_no_folder_of_shards(address: str, tmp_path: Path) -> None:
    from data.remote import is_remote

    with pytest.raises(InputError) as caught:
        assert is_remote(address)
        open_remote(address, tmp_path, ROOM)
    assert "\n" not in str(caught.value)


def test_processes_share_a_cache(whole: Path, served: tuple[str, Path], tmp_path: Path) -> None:
    """Four at once, in four orders, with room for five shards: each reads everything right, nobody evicts in use."""
    address, _ = served
    size = sum((whole / f"train-00000.{kind}").stat().st_size for kind in ("tar", "index.npy"))
    folder = open_remote(address, tmp_path / "cache", 5 * size)
    expected, children = Reader(whole).read(np.arange(1797)), []
    for number in range(4):
        child = os.fork()
        if not child:
            status = 1
            try:
                order = np.random.default_rng(number).permutation(18)
                reader = Reader(folder)
                for shard in order:
                    rows = np.arange(100 * shard, min(100 * shard + 100, 1797))
                    assert np.array_equal(reader.read(rows), expected[rows])
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert sum(path.stat().st_size for kind in ("tar", "index.npy") for path in folder.glob(f"*.{kind}")) <= 5 * size


def test_shards_in_a_bucket(whole: Path, bucket: str, tmp_path: Path) -> None:  # noqa: F811
    """Read by this process first and then by its forks, as loader workers are."""
    fsspec.filesystem("s3").pipe({f"{bucket}/shards/{path.name}": path.read_bytes() for path in whole.iterdir()})
    folder = open_remote(f"{bucket}/shards", tmp_path, ROOM)
    expected = Reader(whole).values(np.arange(1797))
    assert np.array_equal(Reader(folder).values(np.arange(100)), expected[:100])
    data = ShardData(shards=folder, samples=np.arange(1797), batch_size=100, epochs=1, seed=0, loader_workers=2)
    seen = np.concatenate([step.x.numpy() for step in data.train_dataloader()])
    assert np.array_equal(seen, expected[Order(np.arange(1797), 0, 0)[:]])
    fsspec.filesystem("s3").pipe(f"{bucket}/shards/train-00003.tar", b"x")
    (folder / "train-00003.tar").unlink()
    with pytest.raises(Damaged, match=r"train-00003\.tar: 1 bytes; its manifest says"):
        Reader(folder).read(np.array([300]))


def test_a_run_reads_an_address(
    served: tuple[str, Path], strata: Command, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    address, server = served
    path = recipe(LAYER, DIGITS.replace("{source: {kind: digits}}", f"{{shards: '{address}', cache_gib: 1.0}}"))
    done = strata("run", path, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    folders = list((tmp_path / "out" / "cache" / "shards").glob("*/manifest.json"))
    assert len(folders) == 1 and len(tars(folders[0].parent)) == 18
    again = strata("run", path, "--out", tmp_path / "out")
    assert again.status == 0 and "every stage is cached" in again.out
    assert (server / SEEN).read_text().split("\n").count("train-00002.tar") == 1
