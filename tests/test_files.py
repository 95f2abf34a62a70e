"""Trees of raw files: what is listed and read, damaged ones, and files that change meanwhile."""

from __future__ import annotations

import os
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.errors import InputError, OutputError
from data.files import Entry, divide, open_tree
from tests.raw_trees import CONTENT, LIMIT, PACKED, contents, member, packed, refused, tar_bytes, zip_bytes

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


def test_zip_members_that_cannot_be_read(tmp_path: Path) -> None:
    whole = zip_bytes([("a", b"x")])
    for offset, value, complaint in ((8, 1, "encrypted"), (10, 14, "method 14"), (10, 99, "method 99")):
        place = whole.index(b"PK\x01\x02") + offset
        (tmp_path / "a.zip").write_bytes(whole[:place] + struct.pack("<H", value) + whole[place + 2 :])
        assert complaint in refused(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", PACKED)
def test_a_file_that_is_too_large(tmp_path: Path, kind: str) -> None:
    tree = open_tree(str(packed(tmp_path, kind, {"a": bytes(range(256)) * 8192})))
    with pytest.raises(InputError, match="2097152 bytes; expected at most 1 MiB"):
        tree.read(tree.entries()[0], LIMIT)


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
    """Two writes of one length within a tick of the file system's clock, here of 10 ms, look the same; so one waits."""
    path = packed(tmp_path, "folder") / "cat" / "a.txt"

    def write(content: bytes) -> None:
        path.write_bytes(content)
        tick = time.time_ns() // 10_000_000 * 10_000_000
        os.utime(path, ns=(tick, tick))

    for number in range(10):
        write(b"%03d" % number)
        tree = open_tree(str(tmp_path / "tree.folder"))
        entry = tree.entries()[0]
        write(b"%03d" % (number + 1))
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
