"""`strata search`: what is asked becomes a code, what is found a table, a picture or a page, on loopback alone."""

from __future__ import annotations

import http.client
import io
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import conf
import lightning_modules as registry
from conf.protocol import EncodeJob, IndexJob, Query, SearchJob
from data.codes import Codes
from data.shards import Reader, ingest
from data.sources import open_source
from flows.items import Items
from flows.search_server import Server
from lightning_modules.boltzmann import RBM
from lightning_modules.encoding import encode
from lightning_modules.searching import Finder, index, search
from lightning_modules.stack import Stack
from lightning_modules.whitening import PCA
from tests.conftest import Command, Say, error, until
from tests.shard_folders import digits, flip

POSTS = {
    "space": ["orbit shuttle launch moon", "launch of a shuttle into orbit orbit", "moon moon orbit"],
    "hockey": ["goal puck ice game", "ice hockey game puck puck", "the game was lost on ice"],
}


class World:
    """Shards, a model, packed codes and an index of them."""

    def __init__(self, folder: Path, model: Stack) -> None:
        self.shards, self.model, self.codes, self.index = (
            folder / name for name in ("shards", "model", "codes", "index")
        )
        self.reader = Reader(self.shards)
        registry.save(model.eval(), self.model, {"shape": []})
        job = EncodeJob(model=str(self.model), shards=str(self.shards), out=str(self.codes), bits=True)
        encode(job, lambda line: None)
        index(IndexJob(codes=str(self.codes), out=str(self.index)))
        loaded = Codes.load(self.codes)
        packed = np.concatenate([loaded.rows(name) for name in loaded.files])
        self.bits = np.unpackbits(packed, axis=1, count=loaded.width, bitorder="little").astype(bool)

    def nearest(self, bits: np.ndarray, k: int, without: int = -1) -> list[tuple[int, int]]:
        """By brute force: (distance, number), nearest first."""
        found = sorted((int((bits != code).sum()), number) for number, code in enumerate(self.bits))
        return [pair for pair in found if pair[1] != without][:k]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("pictures")
    ingest(digits(), folder / "shards", shard_size=500)
    reader = Reader(folder / "shards")
    layer = PCA(num_visible=64, num_hidden=12)
    layer.update(torch.from_numpy(reader.values(np.arange(len(reader)))))
    layer.finish()
    return World(folder, Stack(layers=[layer]))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("documents")
    for name, posts in POSTS.items():
        (folder / "raw" / name).mkdir(parents=True)
        for number, post in enumerate(posts):
            text = f"From: a\nSubject: {name} <{number}>\n\n{post}\n"
            (folder / "raw" / name / f"{number}.txt").write_text(text)
    for out, words in (("shards", 50), ("texts", None)):
        source = conf.TextSource(kind="text", path=str(folder / "raw"), vocabulary=words)
        ingest(open_source(source), folder / out, shard_size=4)
    torch.manual_seed(0)
    num_words = Reader(folder / "shards").manifest.num_values
    return World(folder, Stack(layers=[RBM(num_visible=num_words, num_hidden=24, weight_std=1)]))


def asked(folder: Path, *queries: Query, **more: str) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    lines = [query.model_dump_json() for query in queries]
    search(SearchJob(folder=str(folder), **more), lines, said.append)
    return said[1:]


def pairs(found: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(found["distances"], found["numbers"], strict=True))


# --- what is asked ---


def test_items_are_looked_for_by_their_codes_and_are_not_their_own_neighbours(pictures: World) -> None:
    numbers = [0, 777, 1796]
    for folder in (pictures.codes, pictures.index):
        (said,) = asked(folder, Query(items=numbers, k=7))
        for number, found in zip(numbers, said["answer"]["found"], strict=True):
            assert pairs(found) == pictures.nearest(pictures.bits[number], 7, without=number)
            assert found["within"] is None


def test_a_radius_is_answered_whole_and_shown_in_part(pictures: World) -> None:
    (said,) = asked(pictures.index, Query(items=[5], radius=3, k=4))
    (found,) = said["answer"]["found"]
    everything = [pair for pair in pictures.nearest(pictures.bits[5], 5000, without=5) if pair[0] <= 3]
    assert found["within"] == len(everything) > 4 and pairs(found) == everything[:4]


def test_a_text_becomes_word_counts_over_the_shards_vocabulary(documents: World) -> None:
    words = documents.reader.manifest.features()
    counts = np.array([2.0 * (word == "orbit") + (word == "launch") for word in words], np.float32)
    model = registry.load(documents.model)
    assert isinstance(model, Stack)
    bits = (model.encode(torch.from_numpy(counts[None])) > 0.5).numpy()[0]
    text, nothing = asked(documents.codes, Query(text="Orbit, ORBIT; launch xyzzy", k=4), Query(text="xyzzy"))
    assert pairs(text["answer"]["found"][0]) == documents.nearest(bits, 4)
    assert nothing["error"]["status"] == 2 and "words that are counted" in nothing["error"]["message"]


def test_a_picture_is_prepared_as_ingest_would(pictures: World, tmp_path: Path) -> None:
    pixels = pictures.reader.values(np.array([42]))[0].reshape(8, 8)
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(tmp_path / "digit.png")
    (said,) = asked(pictures.codes, Query(picture=str(tmp_path / "digit.png"), k=3))
    assert (0, 42) in pairs(said["answer"]["found"][0])


def test_codes_of_a_file_are_looked_for(pictures: World, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.load(pictures.codes / "train.bits.npy")[[3, 9]])
    (said,) = asked(pictures.codes, Query(codes=str(tmp_path / "codes.npy"), k=5))
    for number, found in zip((3, 9), said["answer"]["found"], strict=True):
        assert pairs(found) == pictures.nearest(pictures.bits[number], 5)


def test_what_cannot_be_asked_is_one_line_and_ends_only_its_own_query(pictures: World, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((2, 3), np.uint8))
    np.save(tmp_path / "spare.npy", np.full((2, 2), 255, np.uint8))
    wrong = {
        "item 1797: expected a number from 0 to 1,796": Query(items=[1797]),
        "a text has to become word counts": Query(text="moon"),
        "no such file": Query(picture=str(tmp_path / "missing.png")),
        "no picture; expected PNG": Query(picture=str(tmp_path / "wide.npy")),
        "expected packed codes, (n, 2) uint8, found uint8 of shape (2, 3)": Query(codes=str(tmp_path / "wide.npy")),
        "has codes of more than 12 bits": Query(codes=str(tmp_path / "spare.npy")),
        "expected items, a text, a picture or codes": Query(),
    }
    *refused, fine = asked(pictures.codes, *wrong.values(), Query(items=[1]))
    for said, message in zip(refused, wrong, strict=True):
        assert said["error"]["status"] == 2 and message in said["error"]["message"], said
    assert fine["answer"]["found"]


def test_another_model_or_other_shards_are_refused(pictures: World, documents: World) -> None:
    (model,) = asked(pictures.codes, Query(picture="x.png"), shards=str(documents.shards))
    assert "holds other samples than the codes are of" in model["error"]["message"]
    (shards,) = asked(documents.codes, Query(text="moon"), model=str(pictures.model))
    assert "another model than the codes are of" in shards["error"]["message"]


# --- what a person knows an item by ---


def test_documents_are_known_by_key_class_words_and_title(documents: World) -> None:
    digest = documents.reader.manifest.samples_digest
    items = Items(documents.shards, digest)
    item = items.item(4)
    assert (item.place, item.key, item.label) == ("train/4", "space/1.txt", "space")
    assert "orbit" in item.title.split(", ")
    assert items.number("train/4") == items.number("4") == 4
    titled = Items(documents.shards, digest, documents.shards.with_name("texts"))
    assert titled.item(4).title == "space <1>"
    with pytest.raises(conf.errors.InputError, match="expected a number, or train/ROW"):
        items.number("test/4")


# --- the page ---


class InProcess:
    """What a Searcher is, without a process."""

    def __init__(self, world: World) -> None:
        self._finder = Finder(world.codes, None, None)
        self.about = vars(self._finder.index.about)

    def ask(self, query: Query) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._finder.answer(query)["found"]
        return found


@pytest.fixture(params=["pictures", "documents"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[World, Server]]:
    world = request.getfixturevalue(request.param)
    items = Items(world.shards, world.reader.manifest.samples_digest)
    server = Server(InProcess(world), items, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield world, server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: Server, path: str, host: str | None = None, method: str = "GET", **more: str) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    headers = {"Host": server.hosts[0] if host is None else host} | more
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_the_page_shows_what_is_nearest_and_loads_nothing_foreign(served: tuple[World, Server]) -> None:
    world, server = served
    status, content, headers = get(server, "/?item=1&k=3")
    page = content.decode()
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and "<script" not in page
    places = [f"train/{number}" for _, number in world.nearest(world.bits[1], 3, without=1)]
    shown = [page.find(f'href="/?item={place}&amp;k=3"') for place in places]
    assert -1 not in shown and shown == sorted(shown)
    assert get(server, "/")[0] == 200 and get(server, "/", method="HEAD")[1] == b""


def test_what_is_typed_comes_back_escaped(served: tuple[World, Server]) -> None:
    _, server = served
    status, content, _ = get(server, "/?item=%3Cb%3E1%22&k=%3Cb%3E")
    assert status == 400 and b"<b>1" not in content and b"&lt;b&gt;" in content
    for wrong in ("item=99999", "item=-1", "item=../1", "item=1&k=0", "item=1&radius=x", "item=1&k=" + "9" * 30):
        assert get(server, f"/?{wrong}")[0] == 400
    assert get(server, "/?" + "&".join(f"a{n}=1" for n in range(20)))[0] == 400


def test_words_are_typed_and_pictures_are_served(served: tuple[World, Server]) -> None:
    world, server = served
    if world.reader.manifest.image_shape:
        status, content, headers = get(server, "/picture/42.png")
        assert status == 200 and headers["Content-Type"] == "image/png"
        drawn = np.asarray(Image.open(io.BytesIO(content)).convert("L").resize((8, 8), Image.Resampling.NEAREST))
        assert np.abs(drawn / 255 - world.reader.values(np.array([42]))[0].reshape(8, 8)).max() < 0.01
        assert get(server, "/picture/1797.png")[0] == 404
    else:
        page = get(server, "/?text=orbit%0D%0A%3Cmoon%3E&k=2")[1].decode()
        assert len(set(re.findall(r'href="/\?item=(train/\d+)', page))) == 2 and "“orbit &lt;moon&gt;”" in page
        assert get(server, "/?text=xyzzy")[0] == 400 and get(server, "/picture/1.png")[0] == 404


def test_only_its_own_address_is_answered_and_no_file_is_reached(served: tuple[World, Server]) -> None:
    _, server = served
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_port
    assert get(server, "/", host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "", f"127.0.0.1:{port}.evil.example"):
        assert get(server, "/", host=host)[0] == 403
        assert get(server, "/picture/1.png", host=host)[0] == 403
    for site in ("cross-site", "same-site"):
        assert get(server, "/?item=1", **{"Sec-Fetch-Site": site})[0] == 403
    for path in (
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/picture/../manifest.json",
        "/picture/%2e%2e%2fmanifest.json",
        "/picture/1.png/../2.png",
        "/manifest.json",
        "//etc/passwd",
        "/picture/1.PNG",
        "/picture/1.png%00",
    ):
        status, content, _ = get(server, path)
        assert status == 404 and content == b"there is no such page\n", path
    assert get(server, "/", method="POST")[0] == 501
    with socket.create_connection(("127.0.0.1", port)) as raw:  # HTTP/1.0 without any Host
        raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 403 " in raw.recv(1000)


def test_nobody_listens_on_other_addresses(served: tuple[World, Server]) -> None:
    _, server = served
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", server.server_port), timeout=2):
        pass


# --- the command ---


def test_the_command_builds_looks_and_draws(pictures: World, say: Say, tmp_path: Path) -> None:
    built = say("search", pictures.codes, "--build", "buckets", "--kind", "buckets", "--recall", "1", "--json").answer
    assert built["kind"] == "buckets" and built["recall"] == 1 and built["num_codes"] == 1797
    ended = say("search", "buckets", "--item", "train/5", "9", "-k", 4, "--exact", "--out", "near.png", "--json")
    for number, answer in zip((5, 9), ended.answer["answers"], strict=True):
        found = [(each["distance"], each["number"]) for each in answer["nearest"]]
        assert found == pictures.nearest(pictures.bits[number], 4, without=number)
    assert Image.open("near.png").size[0] > 2 * Image.open("near.png").size[1]  # five beside each other, two rows

    said = error(say("search", pictures.codes, "--build", pictures.codes), 2)
    beside = error(say("search", pictures.codes, "--serve", "-k", 3), 2)
    assert beside == "-k goes with another question than --serve; leave it out"
    assert "holds the codes themselves" in said and not (pictures.codes / "index.json").exists()
    flip(tmp_path / "buckets" / "index.faiss", 2000, 1)
    assert "index.faiss: differs from the digest" in error(say("search", "buckets", "--item", "5"), 4)


def test_a_page_is_served_until_ctrl_c(documents: World, strata: Command) -> None:
    process = strata.start("search", documents.codes, "--serve")
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    try:
        until(lambda: len(lines) == 2, 120, lambda: str((process.poll(), lines)))
        address = lines[1].split()[0].removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/?text=moon+orbit")
        assert b"space/" in connection.getresponse().read()
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 130
    finally:
        process.kill()
        reader.join()
    assert process.stderr is not None and process.stderr.read().count("\n") == 1
    process.stderr.close()
    process.stdout.close()
    strata.await_quiet(20)
