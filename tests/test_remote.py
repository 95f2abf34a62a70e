"""Raw inputs at addresses: in memory, from a web server and from an S3-compatible server, both on loopback."""

from __future__ import annotations

import functools
import http.server
import io
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

import conf
import data.remote
from conf.errors import InputError, OutputError
from data.files import open_tree
from data.ingest import ingest
from data.remote import SCHEMES, fingerprint, is_remote, local_file, shown
from data.sources import RawSource, open_source
from tests.raw_folders import RANDOM, everything
from tests.raw_trees import CONTENT, contents, member, tar_bytes, zip_bytes


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a web server."""
    folder = tmp_path / "www"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


def refused(path: str) -> str:
    with pytest.raises(InputError) as caught:
        local_file(path)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500
    return message


def picture(size: int = 4) -> tuple[np.ndarray, bytes]:
    file, pixels = io.BytesIO(), RANDOM.integers(0, 256, (size, size), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return pixels, file.getvalue()


def images(path: str) -> RawSource:
    return open_source(conf.ImagesSource(kind="images", path=path, size=[4, 4]))


# --- what may be named ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a", "/a/b.npy", "c:d", "a::b", "windpipe:1", "a://b"[1:], "-", "file:///a"])
def test_paths_that_are_none_of_ours(path: str) -> None:
    assert not is_remote(path)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"file"}))
def test_schemes_that_may_be_named(scheme: str) -> None:
    assert is_remote(f"{scheme}://host/a")


def test_messages_hide_passwords_and_signatures() -> None:
    assert shown("https://me:secret@host/a.csv?X-Amz-Signature=secret") == "https://host/a.csv?…"
    assert shown("/a/b?c") == "/a/b?c"
    assert shown("memory://a\x1b[2J") == "memory://a\\x1b[2J"


# --- single files --------------------------------------------------------------------------------------------------


def test_a_local_file_is_itself(tmp_path: Path) -> None:
    assert local_file(str(tmp_path / "x")) == tmp_path / "x" == local_file(f"file://{tmp_path}/x")


def test_a_remote_file_is_fetched_once(memory: Any, cache: Path) -> None:
    memory.pipe_file("/some folder/ü.csv.gz", b"hello" * 10_000)
    address = "memory://some folder/ü.csv.gz"
    before = fingerprint(address)
    path = local_file(address)
    assert path.read_bytes() == b"hello" * 10_000 and path.is_relative_to(cache) and path.name.endswith(".csv.gz")
    changed = path.stat().st_mtime_ns
    assert local_file(address) == path and path.stat().st_mtime_ns == changed and fingerprint(address) == before
    memory.pipe_file("/some folder/ü.csv.gz", b"other" * 10_000)
    assert local_file(address).read_bytes() == b"other" * 10_000 and fingerprint(address) != before
    assert path.read_bytes() == b"hello" * 10_000


@pytest.mark.parametrize(
    "name", ["..", ".", "a..", "-v", ".hidden", "%2e%2e%2fevil", "x" * 300 + ".csv", "a\nb", "\u202eb"]
)
def test_no_name_leads_out_of_the_cache(memory: Any, cache: Path, name: str) -> None:
    memory.store.clear()
    memory.pipe_file(f"/a/{name}", b"x")
    if name in ("..", "."):
        return
    path = local_file(f"memory://a/{name}")
    assert path.read_bytes() == b"x" and path.resolve().parent.parent == (cache / "raw").resolve()
    assert path.name.isascii() and path.name.isprintable() and len(path.name) <= 80


def test_a_private_copy_ends_with_the_process(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STRATA_CACHE", raising=False)
    memory.pipe_file("/a", b"x")
    assert local_file("memory://a").is_relative_to(os.environ.pop("STRATA_CACHE"))
    code = (  # a fork that ends in the usual way leaves its parent's copies alone
        "import os, fsspec, data.remote as r\n"
        "fsspec.filesystem('memory').pipe_file('/a', b'x')\n"
        "path = r.local_file('memory://a')\n"
        "if os.fork() == 0: raise SystemExit\n"
        "os.wait()\n"
        "print(path.parents[2], path.exists())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path, existed = ended.stdout.split()
    assert existed == "True" and not Path(path).exists()


def test_files_that_cannot_be_fetched(memory: Any, cache: Path) -> None:
    assert "no such file" in refused("memory://missing")
    memory.pipe_file("/folder/a", b"x")
    assert "a folder; expected a file" in refused("memory://folder")
    assert "cannot be read" in refused("http://[bad/x")
    assert "cannot be read" in refused("http://127.0.0.1:9/a.csv") or "no such file" in refused("http://127.0.0.1:9/a")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_backend_that_is_not_installed(cache: Path) -> None:
    try:
        import adlfs  # noqa: F401
    except ImportError:
        assert "not installed" in refused("abfs://container/a.csv")
    else:
        pytest.skip("adlfs is installed")


def test_a_cache_that_cannot_be_written(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/a", b"x")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="not a directory; expected room for memory://a"):
        local_file("memory://a")


@pytest.mark.parametrize("content", [b"other", b"longer than before", b""])
def test_a_file_that_changes_while_it_is_fetched(
    memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    memory.pipe_file("/a", b"hello")
    status = data.remote.Remote.status
    seen = []

    def then_change(self: Any, name: str | None = None) -> Any:
        seen.append(status(self, name))
        if len(seen) == 1:
            memory.pipe_file("/a", content)
        return seen[-1]

    monkeypatch.setattr(data.remote.Remote, "status", then_change)
    assert "changed while it was fetched" in refused("memory://a")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
    assert local_file("memory://a").read_bytes() == content


def test_a_file_of_a_web_server(web: tuple[str, Path], cache: Path) -> None:
    address, folder = web
    (folder / "a b.csv").write_bytes(b"x,y\n" * 100_000)
    path = local_file(f"{address}/a%20b.csv")
    assert path.read_bytes() == b"x,y\n" * 100_000 and path.name == "a_b.csv"
    assert "no such file" in refused(f"{address}/missing.csv")
    os.utime(folder / "a b.csv", ns=(0, 0))
    assert local_file(f"{address}/a%20b.csv") != path


def test_a_web_server_that_tells_no_date(web: tuple[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = web
    (folder / "a.csv").write_bytes(b"x")
    send = Quiet.send_header

    def without_date(self: Any, name: str, value: str) -> None:
        if name != "Last-Modified":
            send(self, name, value)

    monkeypatch.setattr(Quiet, "send_header", without_date)
    assert "neither ETag nor date" in refused(f"{address}/a.csv")


# --- trees ---------------------------------------------------------------------------------------------------------


def fill(address: str, content: dict[str, bytes] = CONTENT) -> None:
    filesystem, root = fsspec.core.url_to_fs(address)
    for name, part in content.items():
        filesystem.pipe_file(f"{root}/{name}", part)


def test_a_remote_folder_is_read_straight(memory: Any, cache: Path) -> None:
    fill("memory://bucket/tree", CONTENT | {".hidden/a": b"x"})
    fill("memory://bucket/tree2", {"not": b"ours"})
    tree = open_tree("memory://bucket/tree")
    assert contents(tree) == CONTENT and not cache.exists() and not tree.by_content
    before = tree.fingerprint()
    assert before == open_tree("memory://bucket/tree").fingerprint()
    memory.pipe_file("/bucket/tree/cat/a.txt", b"won")
    assert tree.fingerprint() != before
    with pytest.raises(InputError, match="memory://bucket/tree/cat/a.txt: changed while it was read"):
        tree.read(tree.entries()[0], 100)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\\b"])
def test_names_that_no_remote_file_may_have(memory: Any, name: str) -> None:
    memory.pipe_file(f"/tree/{name}", b"x")
    with pytest.raises(InputError) as caught:
        open_tree("memory://tree").entries()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_remote_archive(memory: Any, cache: Path, kind: str) -> None:
    whole = (
        zip_bytes(list(CONTENT.items())) if kind == "zip" else tar_bytes([(member(n), c) for n, c in CONTENT.items()])
    )
    memory.pipe_file(f"/bucket/tree.{kind}", whole)
    tree = open_tree(f"memory://bucket/tree.{kind}")
    before = tree.fingerprint()
    assert not cache.exists()
    assert contents(tree) == CONTENT and tree.by_content and tree.fingerprint() == before
    assert tree.where(tree.entries()[0]) == f"memory://bucket/tree.{kind}/cat/a.txt"


def test_a_folder_of_a_web_server(web: tuple[str, Path]) -> None:
    address, folder = web
    for name, part in CONTENT.items():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes(part)
    (folder / "other.txt").write_bytes(b"x")
    assert contents(open_tree(f"{address}/tree/")) == CONTENT == contents(open_tree(f"{address}/tree"))
    (folder / "tree" / "index.html").write_text('<a href="../other.txt">x</a> <a href="cat/a.txt">y</a>')
    with pytest.raises(InputError, match="leads out of its tree"):
        open_tree(f"{address}/tree").entries()
    (folder / "tree" / "index.html").write_text('<a href="%2e%2e/other.txt">x</a> <a href="?C=N">sort</a>')
    with pytest.raises(InputError, match="leads out of its tree"):
        open_tree(f"{address}/tree").entries()


def test_remote_pictures_are_known_by_their_listing(memory: Any, cache: Path) -> None:
    written = {f"{c}/{n}.png": picture() for c in ("cat", "dog") for n in range(3)}
    fill("memory://photos", {name: content for name, (_, content) in written.items()})
    source = images("memory://photos")
    description = source.describe()
    assert description.sets == {"train": 6} and description.classes == ("cat", "dog")
    keys, values, labels = everything(source)
    assert keys == list(written) and labels == [0, 0, 0, 1, 1, 1]
    assert all(np.array_equal(value, written[key][0]) for key, value in zip(keys, values, strict=True))
    other = images("memory://photos")
    other.expect(description, source.seen)
    assert [key for key, _ in other.samples("train", [1, 4])] == ["cat/1.png", "dog/1.png"]
    memory.pipe_file("/photos/cat/1.png", picture()[1])
    with pytest.raises(InputError, match="changed while"):
        images("memory://photos").expect(description, source.seen)
    assert images("memory://photos").describe().content != description.content


def test_several_processes_ingest_from_a_web_server(web: tuple[str, Path], cache: Path, tmp_path: Path) -> None:
    address, folder = web
    for number in range(6):
        (folder / "tree" / "cat").mkdir(parents=True, exist_ok=True)
        (folder / "tree" / "cat" / f"{number}.png").write_bytes(picture()[1])
    (folder / "texts.txt").write_bytes(b"one\n\ntwo\nthree\nfour\n")
    recipes = {
        "tree": conf.ImagesSource(kind="images", path=f"{address}/tree", size=[4, 4]),
        "texts": conf.TextSource(kind="text", path=f"{address}/texts.txt", vocabulary=3),
    }
    for name, recipe in recipes.items():
        alone = ingest(open_source(recipe), tmp_path / name / "1", shard_size=1)
        shared = ingest(open_source(recipe), tmp_path / name / "2", shard_size=1, workers=2)
        assert alone.samples_digest == shared.samples_digest and alone.sets == shared.sets


# --- S3 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3-compatible server on loopback."""
    backend = pytest.importorskip("s3fs", reason="s3fs is not installed").S3FileSystem
    server = pytest.importorskip("moto.server", reason="moto is not installed with its server")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    name = f"strata-{uuid.uuid4().hex}"
    backend.clear_instance_cache()  # of an earlier test's server
    backend().mkdir(name)
    yield f"s3://{name}"
    running.stop()
    backend.clear_instance_cache()


def test_s3(bucket: str, cache: Path) -> None:
    fill(f"{bucket}/tree", CONTENT)
    tree = open_tree(f"{bucket}/tree")
    assert contents(tree) == CONTENT and not cache.exists()
    before = tree.fingerprint()
    assert before == open_tree(f"{bucket}/tree").fingerprint()
    fill(f"{bucket}/tree", {"cat/a.txt": b"won"})
    assert tree.fingerprint() != before
    with pytest.raises(InputError, match="changed while it was read"):
        tree.read(tree.entries()[0], 100)
    fill(bucket, {"texts.txt": b"one\ntwo\n", "tree.zip": zip_bytes(list(CONTENT.items()))})
    path = local_file(f"{bucket}/texts.txt")
    assert path.read_bytes() == b"one\ntwo\n" and local_file(f"{bucket}/texts.txt") == path
    assert contents(open_tree(f"{bucket}/tree.zip")) == CONTENT
    assert "no such file" in refused(f"{bucket}/missing.csv")
    assert "no such file" in refused("s3://no-such-bucket/a.csv")
    texts = open_source(conf.TextSource(kind="text", path=f"{bucket}/texts.txt"))
    assert [bytes(text) for _, text in texts.samples("train", [0, 1])] == [b"one", b"two"]


def test_several_processes_ingest_from_s3(bucket: str, cache: Path, tmp_path: Path) -> None:
    fill(f"{bucket}/photos", {f"{c}/{n}.png": picture()[1] for c in ("cat", "dog") for n in range(3)})
    fill(bucket, {"lines.txt": b"one\ntwo\nthree\nfour\n"})
    for recipe in (
        conf.ImagesSource(kind="images", path=f"{bucket}/photos", size=[4, 4]),
        conf.TextSource(kind="text", path=f"{bucket}/lines.txt"),
    ):
        alone = ingest(open_source(recipe), tmp_path / recipe.kind / "1", shard_size=1)
        shared = ingest(open_source(recipe), tmp_path / recipe.kind / "2", shard_size=1, workers=2)
        assert alone.samples_digest == shared.samples_digest and alone.sets == shared.sets


def test_s3_with_a_fork(bucket: str) -> None:
    fill(f"{bucket}/tree", CONTENT)
    tree = open_tree(f"{bucket}/tree")
    assert contents(tree) == CONTENT
    child = os.fork()
    if child == 0:
        os._exit(0 if contents(tree) == CONTENT else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_s3_that_does_not_answer(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
    assert "cannot be read" in refused(f"{bucket}/a.csv")
