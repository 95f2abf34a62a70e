"""Archives: names that somebody else chose, and bytes that are not what they say."""

from __future__ import annotations

import itertools
import ntpath
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

import data.archives
import data.durable
import data.sources.lines
import data.sources.tables
from data.files import Tree, open_tree
from tests.attacks import Halves, attack
from tests.attacks.files import (
    npy,
    plain,
    samples,
    shard,
    stock_samples,
    succeeds,
    tar_header_of,
)
from tests.raw_trees import contents, member, tar_bytes, zip_bytes

GOOD = ("good.txt", b"good")


def extracted(path: Path, folder: Path) -> Path:
    """What a careless victim does with a tar."""
    (folder / "a").mkdir(parents=True)
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="fully_trusted")
    return folder


def of_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path.write_bytes(tar_bytes([(member(GOOD[0]), GOOD[1]), *members]))
    return path


def of_zip(path: Path, *members: tuple[Any, bytes]) -> Path:
    path.write_bytes(zip_bytes([GOOD, *members]))
    return path


def read(path: Path) -> Any:
    return lambda: contents(open_tree(str(path)))


# --- names ---------------------------------------------------------------------------------------------------------


@attack("../evil", "a/../../evil", "ABSOLUTE")
def a_tar_member_that_leads_out(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Halves:
    path = of_tar(folder / "a.tar", (member(name.replace("ABSOLUTE", f"{folder}/evil")), b"evil"))
    yield "leads out of its tree|a relative path", read(path)
    extracted(path, folder / "victim")
    yield (folder / "evil").read_bytes() == b"evil"


@attack("../evil", "a/../../evil", "ABSOLUTE")
def a_zip_member_that_leads_out(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Halves:
    path = of_zip(folder / "a.zip", (name.replace("ABSOLUTE", f"{folder}/evil"), b"evil"))
    yield "leads out of its tree|a relative path", read(path)
    (folder / "victim" / "a").mkdir(parents=True)
    with zipfile.ZipFile(path) as archive:  # as those do who write by the names themselves
        for info in archive.infolist():
            (folder / "victim" / info.filename).write_bytes(archive.read(info))
    yield (folder / "evil").read_bytes() == b"evil"


@attack("../b", "ABSOLUTE")
def a_key_of_a_foreign_shard_that_leads_out(folder: Path, patch: pytest.MonkeyPatch, key: str) -> Halves:
    key = key.replace("ABSOLUTE", f"{folder}/b")
    path = shard(folder / "in" / "a.tar", ("a.txt", b"x"), (f"{key}.txt", b"evil"))
    yield "leads out of its tree|a relative path", lambda: samples("webdataset", folder / "in")
    for sample in stock_samples(path):  # as those do who write by the key
        (folder / "in" / sample["__key__"]).write_bytes(sample["txt"])
    yield (folder / "b").read_bytes() == b"evil"


@attack("..\\evil", "C:\\evil")
def a_member_that_leads_out_on_windows(folder: Path, patch: pytest.MonkeyPatch, name: str) -> Halves:
    yield "a relative path with slashes", read(of_zip(folder / "a.zip", (zipfile.ZipInfo(name), b"evil")))
    yield not ntpath.normpath(ntpath.join("C:\\victim", name)).startswith("C:\\victim")


@attack(("empty parts", "a//b"), ("a dot", "a/./b"), ("the same name", "a/b"), ("a dot in front", "./a/b"))
def two_members_that_are_one_file(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str]) -> Halves:
    path = of_tar(folder / "a.tar", (member("a/b"), b"first"), (member(variant[1]), b"second"))
    yield "nothing between slashes|in the archive twice", read(path)
    yield (extracted(path, folder / "victim") / "a" / "b").read_bytes() == b"second"


@attack("upper case", "two extensions")
def two_fields_of_one_sample(folder: Path, patch: pytest.MonkeyPatch, variant: str) -> Halves:
    name = {"upper case": "a.NPY", "two extensions": "a.b.npy"}[variant]
    path = shard(folder / "a.tar", ("a.npy", npy([1, 2])), (name, npy([3, 4])))
    yield "another a.npy of the same sample|more than one member of the sample", lambda: samples("webdataset", path)
    if variant == "upper case":
        yield succeeds(lambda: stock_samples(path), ValueError)  # ends somewhere in the middle of training
    yield len(stock_samples(path)) == 1


@attack("one key twice", "a label behind another sample")
def a_sample_that_comes_in_two_parts(folder: Path, patch: pytest.MonkeyPatch, variant: str) -> Halves:
    last = ("a.npy", npy([3, 4])) if variant == "one key twice" else ("a.cls", b"1")
    path = shard(folder / "a.tar", ("a.npy", npy([1, 2])), ("b.npy", npy([3, 4])), last)
    yield "in the archive twice|begins at member 0 and goes on at member 2", lambda: samples("webdataset", path)
    yield [sample["__key__"] for sample in stock_samples(path)] == ["a", "b", "a"]


@attack()
def a_sample_without_a_key(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shard(folder / "a.tar", ("a.npy", npy([1, 2])), (".npy", npy([3, 4])))
    yield "called KEY.EXTENSION", lambda: samples("webdataset", path)
    yield len(stock_samples(path)) == 1  # one of two, and no word


@attack(
    ("newline", "a\nb"),
    ("return", "a\rb"),
    ("title of the window", "\x1b]0;owned\x07"),
    ("clear the screen", "\x1b[2J"),
    ("reordered", "photo\u202egnp.exe"),
    ("isolated", "a\u2066b"),
    ("next line", "a\x85b"),
    ("separator", "a\u2028b"),
)
def a_name_with_control_characters(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, str]) -> Halves:
    paths = [of_tar(folder / "a.tar", (member(variant[1]), b"x")), of_zip(folder / "a.zip", (variant[1], b"x"))]
    for path in paths[1:]:
        with pytest.raises(Exception, match=r"a\.zip"):
            read(path)()
    yield "control or reordering characters", read(paths[0])
    patch.setattr(Tree, "checked", lambda self, name: name)
    yield all(not plain("".join(read(path)())) or "\n" in variant[1] for path in paths)


@attack()
def a_name_longer_than_any_file_system_takes(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    name = "x/" * 600 + "x" * 300
    path = of_tar(folder / "a.tar", (member(name), b"x"))
    yield "of at most 1024 bytes", read(path)
    yield succeeds(lambda: extracted(path, folder / "victim"), OSError)


@attack()
def two_names_that_are_no_utf8(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    parts = [member(f"{letter}.npy").tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") for letter in "\udcff\udcfe"]
    path = folder / "a.tar"
    path.write_bytes(b"".join(parts) + bytes(1024))
    yield "not UTF-8", read(path)
    with tarfile.open(path, errors="replace") as tar:
        yield len(set(tar.getnames())) == 1


@attack()
def a_zip_name_that_ends_at_a_nul(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = folder / "a.zip"
    path.write_bytes(zip_bytes([("a.pngX.exe", b"x")]).replace(b"a.pngX.exe", b"a.png\0.exe"))
    yield "control or reordering characters", read(path)
    yield zipfile.ZipFile(path).namelist() == ["a.png"]


# --- archives that are not what they say ---------------------------------------------------------------------------


@attack()
def a_damaged_header_that_ends_a_tar(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = of_tar(folder / "a.tar", (member("b"), b"b"), (member("c"), b"c"))
    whole = path.read_bytes()
    path.write_bytes(whole[:1030] + b"?" + whole[1031:])
    yield "a damaged header", read(path)
    with tarfile.open(path) as tar:
        yield tar.getnames() == [GOOD[0]]


@attack()
def a_second_archive_behind_the_first(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shard(folder / "a.tar", ("a.npy", npy([1, 2])))
    path.write_bytes(path.read_bytes() + shard(folder / "b.tar", ("b.npy", npy([3, 4]))).read_bytes())
    yield "no zeros at its end", lambda: samples("webdataset", path)
    yield [sample["__key__"] for sample in stock_samples(path)] == ["a"]


@attack()
def a_foreign_shard_cut_between_members(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    path = shard(folder / "a.tar", *((f"{name}.npy", npy([1, 2])) for name in "abcd"))
    os.truncate(path, 2 * 1024)
    yield "cut short", lambda: samples("webdataset", path)
    yield [sample["__key__"] for sample in stock_samples(path)] == ["a", "b"]


@attack()
def a_zip_that_lies_about_a_size(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    whole = zip_bytes([("a.txt", b"x" * 100_000)])
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = whole.index(mark) + offset
        whole = whole[:place] + struct.pack("<I", 1000) + whole[place + 4 :]
    path = folder / "a.zip"
    path.write_bytes(whole)
    yield "Bad CRC-32", lambda: samples("text", path)
    patch.setattr(zipfile.ZipExtFile, "_update_crc", lambda self, newdata: None)
    yield len(samples("text", path)[0]) == 1000  # of 100,000


@attack()
def a_tar_that_leads_back_to_its_start(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    info = member("odd")
    info.pax_headers = {"size": "-1536"}
    path = of_tar(folder / "a.tar", (info, b"x"))
    yield "a member before the one it follows", read(path)
    with tarfile.open(path) as tar:
        yield len(list(itertools.islice(tar, 1000))) == 1000


@attack()
def headers_on_headers_in_a_tar(folder: Path, patch: pytest.MonkeyPatch) -> Halves:
    part = tar_header_of(tarfile.XHDTYPE, 512) + b"10 path=x\n".ljust(512, b"\0")
    path = folder / "a.tar"
    path.write_bytes(part * 5000 + bytes(1024))
    yield "damaged archive", read(path)
    with pytest.raises(RecursionError), tarfile.open(path):
        pass
    yield True  # a crash


@attack(
    ("pax", tarfile.XHDTYPE),
    ("global pax", tarfile.XGLTYPE),
    ("long name", tarfile.GNUTYPE_LONGNAME),
    ("long link", tarfile.GNUTYPE_LONGLINK),
)
def a_huge_header_in_a_tar(folder: Path, patch: pytest.MonkeyPatch, variant: tuple[str, bytes]) -> Halves:
    path = folder / "a.tar"
    path.write_bytes(tar_header_of(variant[1], 8 << 20))
    os.truncate(path, 9 << 20)
    yield "a header of 8388608 bytes", read(path)
    patch.setattr(data.archives, "MAX_HEADER", 1 << 40)
    tracemalloc.start()
    with pytest.raises(Exception, match=r"a\.tar"):
        read(path)()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    yield peak > 7 << 20
