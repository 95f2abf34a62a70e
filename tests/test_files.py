"""Trees of raw files: what is listed and read, and every way in which somebody else's archive is refused."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import data.archives
from conf.errors import InputError, OutputError
from data.files import Entry, Tree, divide, open_tree
from tests.raw_trees import CONTENT, LIMIT, PACKED, contents, member, packed, tar_bytes, zip_bytes


def refused(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        tree = open_tree(str(path))
        for entry in tree.entries():
            tree.read(entry, LIMIT)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500
    return message


# --- as it should be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKED)
def test_the_same_files_however_they_are_packed(tmp_path: Path, kind: str) -> None:
    tree = open_tree(str(packed(tmp_path, kind)))
    assert contents(tree) == CONTENT
    assert [entry.path for entry in tree.entries()] == sorted(CONTENT, key=str.encode)
    assert [entry.size for entry in tree.entries()] == [3, 3000, 0, 2]
    assert tree.head(tree.entries()[1], 4) == b"twot"
    assert f"tree.{kind}/cat/a.txt" in tree.where(tree.entries()[0])


@pytest.mark.parametrize("kind", PACKED)
def test_hidden_files_are_nobodys(tmp_path: Path, kind: str) -> None:
    hidden = {".DS_Store": b"x", "cat/.git/config": b"x", "__MACOSX/cat/._a.txt": b"x"}
    if kind == "folder":
        del hidden["__MACOSX/cat/._a.txt"]
    assert contents(open_tree(str(packed(tmp_path, kind, hidden | CONTENT)))) == CONTENT


@pytest.mark.parametrize("kind", PACKED)
def test_a_fingerprint_changes_with_the_files_alone(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path, kind)
    tree = open_tree(str(path))
    before = tree.fingerprint()
    assert open_tree(str(path)).fingerprint() == before == tree.fingerprint()
    packed(tmp_path, kind, CONTENT | {"cat/a.txt": b"won"})
    assert tree.fingerprint() != before


@pytest.mark.parametrize("kind", PACKED)
def test_processes_that_share_a_tree_read_the_same(tmp_path: Path, kind: str) -> None:
    tree = open_tree(str(packed(tmp_path, kind, {f"{number}": bytes([number]) * 5000 for number in range(100)})))
    entries = tree.entries()
    child = os.fork()
    right = all(tree.read(entry, LIMIT) == bytes([int(entry.path)]) * 5000 for _ in range(20) for entry in entries)
    if child == 0:
        os._exit(0 if right else 1)
    assert right and os.waitpid(child, 0)[1] == 0


def test_a_dot_before_the_names_of_a_tar(tmp_path: Path) -> None:
    members = [(member(".", tarfile.DIRTYPE), b""), (member("./cat", tarfile.DIRTYPE), b""), (member("./cat/a"), b"x")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert contents(open_tree(str(tmp_path / "a.tar"))) == {"cat/a": b"x"}


def test_an_archive_that_is_a_folder(tmp_path: Path) -> None:
    packed(tmp_path, "folder").rename(tmp_path / "odd.zip")
    assert contents(open_tree(str(tmp_path / "odd.zip"))) == CONTENT
    assert contents(open_tree(f"file://{tmp_path}/odd.zip")) == CONTENT


def test_zip_names_without_the_utf8_flag(tmp_path: Path) -> None:
    whole = zip_bytes([("ü.txt", b"x")])
    for place in (whole.index(b"PK\x03\x04") + 6, whole.index(b"PK\x01\x02") + 8):
        whole = whole[:place] + b"\0\0" + whole[place + 2 :]
    (tmp_path / "macos.zip").write_bytes(whole)
    assert contents(open_tree(str(tmp_path / "macos.zip"))) == {"ü.txt": b"x"}
    (tmp_path / "dos.zip").write_bytes(whole.replace("ü".encode(), b"\x81x"))
    assert "not UTF-8" in refused(tmp_path / "dos.zip")


# --- sets and classes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a", "x/b", "x/y/c"], {"train": ["", "x", "x/y"]}),
        (["test/x/a", "train/y/b"], {"train": ["y"], "test": ["x"]}),
        (["Test/a", "Train/b", "Valid/c"], {"train": [""], "validation": [""], "test": [""]}),
        (["20news-bydate-test/x/1", "20news-bydate-train/y/2"], {"train": ["y"], "test": ["x"]}),
        (["photos/test/x/1", "photos/train/y/2"], {"train": ["y"], "test": ["x"]}),
        (["photos/2/train/1"], {"train": [""]}),
        (["photos/cat/1", "photos/dog/1"], {"train": ["photos/cat", "photos/dog"]}),
        (["crash-test/1", "bullet-train/1"], {"train": ["crash-test", "bullet-train"]}),
        (["train/1", "tram/1"], {"train": ["train", "tram"]}),
        ([], {}),
    ],
)
def test_sets_and_classes(paths: list[str], expected: dict[str, list[str]]) -> None:
    divided = divide([Entry(path, 1, "") for path in paths])
    assert {name: [class_name for _, class_name in pairs] for name, pairs in divided.items()} == expected
    assert list(divided) == list(expected)


@pytest.mark.parametrize(
    ("paths", "culprit"),
    [
        (["train/1", "test/2", "3"], "also 3"),
        (["train/1", "test/2", "more/3"], "also more/3"),
        (["train/1", "Train/2", "test/2"], "two folders of one set"),
        (["val/1", "valid/2", "train/2"], "two folders of one set"),
    ],
)
def test_sets_that_mix(paths: list[str], culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        divide([Entry(path, 1, "") for path in paths])


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
    assert "sparse" in refused(tmp_path / "a.tar")
    header = bytearray(member("old").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"00000000000\x0000000000000\x00"
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    assert "sparse" in refused(tmp_path / "a.tar")


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


def test_headers_on_headers_in_a_tar(tmp_path: Path) -> None:
    info = member("x", tarfile.XHDTYPE)
    info.size = 512
    part = info.tobuf(tarfile.GNU_FORMAT) + b"10 path=x\n".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(part * 5000 + bytes(1024))
    assert "damaged archive" in refused(tmp_path / "a.tar")


def test_a_tar_that_leads_back_to_its_start(tmp_path: Path) -> None:
    info = member("x")
    info.pax_headers = {"size": "-1024"}
    began = time.monotonic()
    (tmp_path / "a.tar").write_bytes(tar_bytes([(info, b"x")]))
    refused(tmp_path / "a.tar")
    assert time.monotonic() - began < 2


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path, kind, {"a": b"1" * 600, "b": b"2" * 600, "c": b""})
    whole = path.read_bytes()
    needed = len(whole) if kind != "tar" else 512 * 7 + 512  # three headers, twice two blocks, and one of the end
    for place in sorted({*range(0, needed, 97 if kind == "tar" else 7), *range(0, needed, 512), needed - 1}):
        path.write_bytes(whole[:place])
        assert path.name in refused(path)


def test_a_damaged_header_does_not_end_a_tar(tmp_path: Path) -> None:
    path = packed(tmp_path, "tar", {"a": b"1", "b": b"2", "c": b"3"})
    whole = path.read_bytes()
    assert contents(open_tree(str(path))).keys() == {"a", "b", "c"}
    path.write_bytes(whole[:1030] + b"?" + whole[1031:])
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["a"]  # so says the library
    assert "damaged header" in refused(path)


def test_what_lies_behind_the_end_of_a_tar(tmp_path: Path) -> None:
    path = packed(tmp_path, "tar")
    path.write_bytes(path.read_bytes() * 2)
    assert "no zeros at its end" in refused(path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_any_flipped_bit_of_a_packed_archive_is_found_or_means_nothing(tmp_path: Path, kind: str) -> None:
    content = {"a": b"hello", "b/c": os.urandom(100)}
    path = packed(tmp_path, kind, content)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = contents(open_tree(str(path)))
        except InputError as error:
            assert path.name in str(error)  # noqa: PT017
        else:  # a zip has no checksum of its names and flags; gzip's header has time and system
            assert list(found.values()) == list(content.values()) or set(found) < set(content)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", bytes(100), b"\x1f\x8b\x08"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz"])
def test_files_that_are_no_archives(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / f"a.{kind}").write_bytes(content)
    assert f"a.{kind}" in refused(tmp_path / f"a.{kind}")


def test_paths_that_are_no_trees(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "missing")
    assert "no such file" in refused(tmp_path / "missing.zip")
    (tmp_path / "file").write_bytes(b"x")
    assert "a file; expected a folder or one of .zip" in refused(tmp_path / "file")
    assert "not a directory" in refused(tmp_path / "file" / "below")
    (tmp_path / "loop").symlink_to("loop")
    assert "loop" in refused(tmp_path / "loop")
    assert open_tree(str(tmp_path / "empty.d")).address.endswith("empty.d")


def test_a_message_keeps_the_ends_of_long_paths(tmp_path: Path) -> None:
    where = open_tree(str(tmp_path / ("x" * 200) / "photos")).where("cat/1.png")
    assert where.endswith("xxx/photos/cat/1.png") and len(where) == 120
    where = open_tree(str(tmp_path / "photos.zip")).where("y" * 1000 + ".png")
    assert "/photos.zip/…" in where and where.endswith("y.png") and len(where) == 120


# --- files that change ---------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_bytes(b"won"),
    "longer": lambda path: path.write_bytes(b"one and more"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "replaced": lambda path: (path.with_name("new").write_bytes(b"one"), os.replace(path.with_name("new"), path)),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_after_it_was_listed(tmp_path: Path, change: Callable[[Path], object]) -> None:
    tree = open_tree(str(packed(tmp_path, "folder")))
    entry = tree.entries()[0]
    change(tmp_path / "tree.folder" / "cat" / "a.txt")
    with pytest.raises(InputError, match=r"a.txt: (changed while it was read|no such file|is a directory)"):
        tree.read(entry, LIMIT)


def test_a_write_right_after_the_listing_is_seen(tmp_path: Path) -> None:
    """Two writes of one length within a tick of the file system's clock look the same, unless one waits."""
    path = packed(tmp_path, "folder") / "cat" / "a.txt"
    for number in range(20):
        path.write_bytes(b"%03d" % number)
        tree = open_tree(str(tmp_path / "tree.folder"))
        entry = tree.entries()[0]
        path.write_bytes(b"%03d" % (number + 1))
        with pytest.raises(InputError, match="changed while it was read"):
            tree.read(entry, LIMIT)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_that_changes_after_it_was_listed(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path, kind)
    tree = open_tree(str(path))
    entry, before = tree.entries()[0], tree.fingerprint()
    with path.open("r+b") as file:
        file.write(b"\0\0\0\0")
    with pytest.raises(InputError, match="changed while it was read"):
        tree.read(entry, LIMIT)
    assert tree.fingerprint() != before


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path, "tar.gz")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="file exists; expected room to unpack"):
        open_tree(str(path)).entries()
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    assert contents(open_tree(str(path))) == CONTENT
    assert not list((tmp_path / "cache").iterdir())


def test_the_controls_of_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limits the bombs go off, so the tests above see the limits."""
    monkeypatch.setattr(data.archives, "MAX_RATIO", 10_000)
    (tmp_path / "a.zip").write_bytes(zip_bytes([("a", bytes(20 << 20))]))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_bytes([(member("a"), bytes(20 << 20))])))
    for name in ("a.zip", "a.tar.gz"):
        tree = open_tree(str(tmp_path / name))
        assert len(tree.read(tree.entries()[0], 64 << 20)) == 20 << 20
