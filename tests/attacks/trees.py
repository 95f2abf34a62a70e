"""Members and files that are none, links, pipes, and files that change while they are read."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tarfile
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data.archives
import data.durable
import data.sources.lines
import data.sources.tables
from data.files import Folder, open_tree
from data.shards import Reader, ingest
from data.sources import RawSource
from tests.attacks import Halves, attack
from tests.attacks.archives import extracted, of_tar, of_zip, read
from tests.attacks.files import (
    npy,
    patience,
    picture,
    samples,
    source,
    stock_samples,
    two_tone,
)
from tests.raw_trees import member, packed, tar_bytes

# --- members and files that are none -------------------------------------------------------------------------------


@attack(("symbolic link", tarfile.SYMTYPE), ("hard link", tarfile.LNKTYPE))
def a_tar_member_that_leads_to_a_secret(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, bytes]) -> Halves:
    (folder / "secret").write_bytes(b"secret")
    path = of_tar(folder / "a.tar", (member("odd.txt", variant[1], str(folder / "secret")), b""))
    yield "a symbolic link|a hard link", read(path)
    yield (extracted(path, folder / "victim") / "odd.txt").read_bytes() == b"secret"


@attack()
def a_link_member_of_a_foreign_shard(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = folder / "a.tar"
    path.write_bytes(tar_bytes([(member("a.txt"), b"x"), (member("b.txt", tarfile.SYMTYPE, "a.txt"), b"")]))
    yield "a symbolic link", lambda: samples("webdataset", path)
    yield [sample["__key__"] for sample in stock_samples(path)] == ["a"]  # the other one is lost without a word


@attack()
def a_pipe_in_a_tar(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = of_tar(folder / "a.tar", (member("odd.txt", tarfile.FIFOTYPE), b""))
    yield "a pipe", read(path)
    extracted(path, folder / "victim")
    with patience() as gave_up:
        (folder / "victim" / "odd.txt").read_bytes()
    yield bool(gave_up)


@attack(("device", tarfile.CHRTYPE), ("disk", tarfile.BLKTYPE), ("contiguous", tarfile.CONTTYPE), ("unknown", b"Z"))
def a_tar_member_that_is_no_file(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, bytes]) -> Halves:
    path = of_tar(folder / "a.tar", (member("odd.txt", variant[1]), b""))
    yield "a device|of an unknown type", read(path)
    patch.setattr(data.archives.tarfile, "AREGTYPE", variant[1])
    yield read(path)()["odd.txt"] == b""  # a sample out of nothing


@attack("pax", "old GNU")
def a_sparse_tar_member(folder: Path, patch: pytest.MonkeyPatch, variant: str) -> Halves:
    info = member("odd.txt")
    if variant == "pax":
        info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 33), "GNU.sparse.map": "0,1"}
        whole = tar_bytes([(info, b"x")])
    else:
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[156:157] = tarfile.GNUTYPE_SPARSE
        header[386:410] = b"00000000000\x0000000000000\x00"
        header[483:495] = b"77777777777\0"
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        whole = bytes(header) + bytes(1024)
    path = folder / "a.tar"
    path.write_bytes(whole)
    yield "a sparse member", read(path)
    yield (extracted(path, folder / "victim") / "odd.txt").stat().st_size > 1 << 32


@attack(("symbolic link", stat.S_IFLNK), ("pipe", stat.S_IFIFO), ("device", stat.S_IFCHR), ("socket", stat.S_IFSOCK))
def a_zip_member_that_is_no_file(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, int]) -> Halves:
    info = zipfile.ZipInfo("odd.txt")
    info.create_system, info.external_attr = 3, (variant[1] | 0o777) << 16
    path = of_zip(folder / "a.zip", (info, b"/etc/passwd"))
    yield "a symbolic link|neither a file nor a folder", read(path)
    patch.setattr(data.archives.stat, "S_IFMT", lambda mode: 0)
    yield read(path)()["odd.txt"] == b"/etc/passwd"  # a text that nobody wrote


@attack("out of the folder", "to a folder", "to itself", "to nothing")
def a_link_in_a_folder(folder: Path, patch: pytest.MonkeyPatch, variant: str) -> Halves:
    (folder / "secret").mkdir()
    (folder / "secret" / "a.txt").write_bytes(b"secret")
    (folder / "in").mkdir()
    (folder / "in" / "good.txt").write_bytes(b"good")
    link = folder / "in" / "odd.txt"
    targets = {"out of the folder": folder / "secret" / "a.txt", "to a folder": folder / "in"}
    link.symlink_to(targets.get(variant, Path({"to itself": "odd.txt", "to nothing": "gone"}.get(variant, ""))))
    yield "a link out of the tree or to a folder|too many levels|no such file", lambda: samples("text", folder / "in")
    if variant == "out of the folder":
        patch.setattr(Folder, "_inside", lambda self, item: True)
        yield samples("text", folder / "in")[1].tobytes() == b"secret"
    if variant == "to a folder":  # which `os.walk` and `rglob` of other tools follow for ever, or until a name is long
        walked = itertools.islice(os.walk(folder / "in", followlinks=True), 30)
        yield len(list(walked)) == 30
    yield [path.name for path in (folder / "in").iterdir() if path.is_file()] == ["good.txt"]  # passed over silently


@attack("../secret.png", "in/../../secret.png", "ABSOLUTE", "link.png", "folder/secret.png")
def a_picture_of_a_row_that_lies_elsewhere(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Halves:
    (folder / "secret.png").write_bytes(picture(1))
    (folder / "in" / "in").mkdir(parents=True)
    (folder / "in" / "link.png").symlink_to("../secret.png")
    (folder / "in" / "folder").symlink_to("..")
    table = folder / "in" / "a.csv"
    table.write_text(f"file\n{name.replace('ABSOLUTE', str(folder / 'secret.png'))}\n")
    yield "is not a path below|is a link out of", lambda: samples("table", table, image="file", size=[4, 6])
    patch.setattr(data.sources.tables._Pictures, "_inside", lambda self, name, row: str(self.folder / name.decode()))
    yield bool(samples("table", table, image="file", size=[4, 6])[0].max() == 1)


@attack("folder", "zip", "tar")
def names_that_are_one_once_normalised(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    path = packed(folder, kind, {"ü.txt": b"composed", "u\u0308.txt": b"two letters"})
    yield "", lambda: sorted(text.tobytes() for text in samples("text", path)) == [b"composed", b"two letters"]
    names = [entry.path for entry in open_tree(str(path)).entries()]
    yield len({unicodedata.normalize("NFC", name) for name in names}) == 1  # where one would write over the other


@attack("images", "text", "audio")
def a_pipe_in_a_folder(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    (folder / "in").mkdir()
    os.mkfifo(folder / "in" / "odd")
    yield "neither a file nor a folder", lambda: samples(kind, folder / "in")
    with patience() as gave_up:
        (folder / "in" / "odd").read_bytes()
    yield bool(gave_up)


@attack(
    ("arrays", "a.npy"), ("table", "a.csv"), ("text", "a.txt"), ("counts", "a.txt"), ("images", "a.zip"),
    ("webdataset", "a.tar"), ("idx", "train-images-idx3-ubyte"),
)  # fmt: skip
def a_pipe_instead_of_a_file(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str]) -> Halves:
    kind, name = variant
    (folder / "in").mkdir()
    os.mkfifo(folder / "in" / name)
    yield (
        "not a regular file|no file|it is empty",
        lambda: _patient(lambda: samples(kind, folder / "in" if kind == "idx" else folder / "in" / name)),
    )
    with patience() as gave_up:
        (folder / "in" / name).read_bytes()
    yield bool(gave_up)


def _patient(use: Any) -> bool:
    with patience(1.0) as gave_up:
        use()
    return not gave_up


@attack()
def a_link_where_a_temporary_file_will_be(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    victim, target = folder / "victim", folder / "out" / "file"
    victim.write_bytes(b"precious")
    target.parent.mkdir()
    temporary = target.with_name(f".file.{os.getpid()}.tmp")
    temporary.symlink_to(victim)

    def use() -> bool:
        data.durable.write_bytes(target, b"ours")
        return victim.read_bytes() == b"precious" and target.read_bytes() == b"ours"

    yield "", use
    temporary.symlink_to(victim)
    with temporary.open("wb") as file:  # as those do who write `path + ".tmp"`
        file.write(b"ours")
    yield victim.read_bytes() == b"ours"


# --- files that change while they are read -------------------------------------------------------------------------


@attack("images", "text", "webdataset", "arrays")
def a_source_that_changes_during_ingest(folder: Path, patch: pytest.MonkeyPatch, kind: str) -> Halves:
    """Described as it was, written as it is: the manifest then names a content that is not there."""
    name, old, new = {
        "images": ("in/a.png", two_tone(1), two_tone(2)),
        "text": ("in.txt", b"old\n", b"new\n"),
        "webdataset": ("in.tar", *(tar_bytes([(member("a.txt"), text)]) for text in (b"old", b"new"))),
        "arrays": ("in.npy", npy([[1, 2]]), npy([[3, 4]])),
    }[kind]
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(old)
    opened = source(kind, path.parent, size=[1, 2]) if kind == "images" else source(kind, path)
    described = opened.describe()
    time.sleep(0.03)  # more than a tick of the file system's clock
    path.write_bytes(new)
    yield "changed while", lambda: ingest(opened, folder / "out" / "shards", shard_size=1)
    patch.setattr(RawSource, "require_unchanged", lambda self: None)
    patch.setattr(Folder, "_read", lambda self, entry, size: (self._root / entry.path).read_bytes())
    patch.setattr(data.archives.Archive, "_reading", lambda self, where: contextlib.nullcontext())
    patch.setattr(data.sources.lines, "stamp", lambda status: opened.collection._lines._opened[1][1])  # type: ignore
    manifest = ingest(opened, folder / "out" / "shards", shard_size=1)
    reader = Reader(manifest.folder)
    found = "".join(reader.texts(np.arange(1))) if manifest.holds_texts else int(reader.read(np.arange(1)).flat[0])
    yield manifest.content == described.content and found in ("new", 2, 3)
