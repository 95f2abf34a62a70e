"""Every way in which somebody else's archive may not be used against us, and what it would do without the guard."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

import data.archives
from conf.errors import InputError
from data.files import Folder, Tree, open_tree
from tests.raw_trees import LIMIT, PACKED, contents, member, packed, refused, tar_bytes, zip_bytes

# --- names that somebody else chose --------------------------------------------------------------------------------

EVIL = {
    "up": "../evil",
    "up inside": "a/../../evil",
    "absolute": "/abs/evil",
    "nothing": "a//b",
    "dot": "a/./b",
    "windows": "..\\evil",
    "drive": "C:\\evil",
    "newline": "a\nb",
    "return": "a\rb",
    "escape": "\x1b]0;owned\x07",
    "clear": "\x1b[2J",
    "reordered": "photo\u202egnp.exe",
    "isolated": "a\u2066b",
    "next line": "a\x85b",
    "separator": "a\u2028b",
    "long": "x/" * 600 + "x",
}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", EVIL.values(), ids=EVIL)
def test_names_that_no_member_may_have(tmp_path: Path, name: str, kind: str) -> None:
    before = sorted(tmp_path.parent.rglob("*"))
    path = packed(tmp_path, kind, {"good.txt": b"x", name: b"evil"})
    refused(path)
    assert sorted(tmp_path.parent.rglob("*")) == sorted([*before, path])


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_control_of_names(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the guard every name is let in: the test above sees the guard and nothing else."""
    monkeypatch.setattr(Tree, "checked", lambda self, name: name)
    monkeypatch.setattr(data.archives, "hidden", lambda path: False)
    for name in EVIL.values():
        assert name in contents(open_tree(str(packed(tmp_path, kind, {"good.txt": b"x", name: b"evil"}))))


def test_a_nul_in_a_zip_name(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes([("aXb", b"x")]).replace(b"aXb", b"a\0b"))
    assert "a\\x00b" in refused(tmp_path / "a.zip")


def test_bytes_that_are_no_utf8_in_names(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(member("aXb"), b"x")]).replace(b"aXb", b"a\xffb"))
    assert "damaged" in refused(tmp_path / "a.tar")  # the header's checksum
    info = member("a\udcffb")
    whole = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + bytes(1024)
    (tmp_path / "a.tar").write_bytes(whole)
    assert "not UTF-8" in refused(tmp_path / "a.tar")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / os.fsdecode(b"a\xff")).write_bytes(b"x")
    assert "not UTF-8" in refused(tmp_path / "folder")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_members_of_one_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        path.write_bytes(tar_bytes([(member("a"), b"1"), (member("./a"), b"2")]))
    else:
        path.write_bytes(zip_bytes([("a", b"1"), ("b", b"2")]).replace(b"b", b"a"))
    assert "twice" in refused(path)


# --- members that are no files -------------------------------------------------------------------------------------

KINDS = {
    "symbolic link": (tarfile.SYMTYPE, "/etc/passwd"),
    "link inside": (tarfile.SYMTYPE, "good.txt"),
    "hard link": (tarfile.LNKTYPE, "good.txt"),
    "device": (tarfile.CHRTYPE, ""),
    "disk": (tarfile.BLKTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
    "contiguous": (tarfile.CONTTYPE, ""),
    "unknown": (b"Z", ""),
}


@pytest.mark.parametrize(("kind", "target"), KINDS.values(), ids=KINDS)
def test_tar_members_that_are_no_files(tmp_path: Path, kind: bytes, target: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(member("good.txt"), b"x"), (member("odd", kind, target), b"")]))
    assert "a.tar/odd" in refused(tmp_path / "a.tar")


def test_sparse_tar_members(tmp_path: Path) -> None:
    info = member("sparse")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"}
    (tmp_path / "a.tar").write_bytes(tar_bytes([(info, b"x")]))
    assert "a sparse member" in refused(tmp_path / "a.tar")
    header = bytearray(member("old").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"00000000000\x0000000000000\x00"
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    assert "a sparse member" in refused(tmp_path / "a.tar")


def test_a_link_out_of_a_folder_and_its_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path, "folder")
    (tmp_path / "secret").write_bytes(b"secret")
    (path / "cat" / "odd").symlink_to(tmp_path / "secret")
    assert "cat/odd: a link out of the tree" in refused(path)
    monkeypatch.setattr(Folder, "_inside", lambda self, item: True)
    assert contents(open_tree(str(path)))["cat/odd"] == b"secret"


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_zip_members_that_are_no_files(tmp_path: Path, mode: int) -> None:
    info = zipfile.ZipInfo("odd")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    (tmp_path / "a.zip").write_bytes(zip_bytes([("good.txt", b"x"), (info, b"/etc/passwd")]))
    assert "a.zip/odd" in refused(tmp_path / "a.zip")


def test_zip_members_that_cannot_be_read(tmp_path: Path) -> None:
    whole = zip_bytes([("a", b"x")])
    for offset, value, complaint in ((8, 1, "encrypted"), (10, 14, "method 14"), (10, 99, "method 99")):
        place = whole.index(b"PK\x01\x02") + offset
        (tmp_path / "a.zip").write_bytes(whole[:place] + struct.pack("<H", value) + whole[place + 2 :])
        assert complaint in refused(tmp_path / "a.zip")


# --- bombs ---------------------------------------------------------------------------------------------------------


def test_a_gzip_bomb(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(100 << 20), 9))
    began = time.monotonic()
    assert "a bomb" in refused(tmp_path / "a.tar.gz")
    assert time.monotonic() - began < 2


def test_a_zip_bomb(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes([("a", bytes(100 << 20))]))
    began = time.monotonic()
    assert "a bomb" in refused(tmp_path / "a.zip")
    assert time.monotonic() - began < 2


def test_a_zip_that_lies_about_a_size(tmp_path: Path) -> None:
    whole = zip_bytes([("a", bytes(10 << 20))])
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = whole.index(mark) + offset
        whole = whole[:place] + struct.pack("<I", 1000) + whole[place + 4 :]
    (tmp_path / "a.zip").write_bytes(whole)
    assert "damaged archive" in refused(tmp_path / "a.zip")  # no more than is said is unpacked; the CRC then differs


@pytest.mark.parametrize("kind", PACKED)
def test_a_file_that_is_too_large(tmp_path: Path, kind: str) -> None:
    tree = open_tree(str(packed(tmp_path, kind, {"a": bytes(range(256)) * 8192})))
    with pytest.raises(InputError, match="2097152 bytes; expected at most 1 MiB"):
        tree.read(tree.entries()[0], LIMIT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_huge_header_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    info = member("x", kind)
    info.size = 64 << 20
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(tmp_path / "a.tar", 65 << 20)
    assert "a header of 67108864 bytes" in refused(tmp_path / "a.tar")


def test_the_control_of_huge_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = member("x", tarfile.GNUTYPE_LONGNAME)
    info.size = 64 << 20
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(tmp_path / "a.tar", 65 << 20)
    peaks = []
    for limit in (data.archives.MAX_HEADER, 1 << 40):
        monkeypatch.setattr(data.archives, "MAX_HEADER", limit)
        tracemalloc.start()
        refused(tmp_path / "a.tar")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 4 << 20 and peaks[1] > 60 << 20


def test_headers_on_headers_in_a_tar(tmp_path: Path) -> None:
    info = member("x", tarfile.XHDTYPE)
    info.size = 512
    part = info.tobuf(tarfile.GNU_FORMAT) + b"10 path=x\n".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(part * 5000 + bytes(1024))
    assert "damaged archive" in refused(tmp_path / "a.tar")


def test_a_tar_that_leads_back_to_its_start(tmp_path: Path) -> None:
    info = member(".hidden")  # which nobody would miss if it came twice
    info.pax_headers = {"size": "-1536"}
    began = time.monotonic()
    (tmp_path / "a.tar").write_bytes(tar_bytes([(info, b"x")]))
    refused(tmp_path / "a.tar")
    assert time.monotonic() - began < 2


def test_the_controls_of_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limits the bombs go off, so the tests above see the limits."""
    monkeypatch.setattr(data.archives, "MAX_RATIO", 10_000)
    (tmp_path / "a.zip").write_bytes(zip_bytes([("a", bytes(20 << 20))]))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_bytes([(member("a"), bytes(20 << 20))])))
    for name in ("a.zip", "a.tar.gz"):
        tree = open_tree(str(tmp_path / name))
        assert len(tree.read(tree.entries()[0], 64 << 20)) == 20 << 20
