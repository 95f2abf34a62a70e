"""Trees of raw files as folders and archives, right and wrong."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from conf.errors import InputError
from data.files import Tree, open_tree

CONTENT = {"cat/a.txt": b"one", "cat/sub/ü.txt": b"two" * 1000, "dog/b.txt": b"", "loose.txt": b"\x00\xff"}
PACKED = ("folder", "zip", "tar", "tar.gz", "tgz")
LIMIT = 1 << 20


def tar_bytes(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_bytes(members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content, compress_type=zipfile.ZIP_DEFLATED)
    return file.getvalue()


def packed(folder: Path, kind: str, content: dict[str, bytes] = CONTENT) -> Path:
    path = folder / f"tree.{kind}"
    if kind == "folder":
        for name, part in content.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(part)
    elif kind == "zip":
        path.write_bytes(zip_bytes(list(content.items())))
    else:
        whole = tar_bytes([(member(name), part) for name, part in content.items()])
        path.write_bytes(whole if kind == "tar" else gzip.compress(whole))
    return path


def contents(tree: Tree) -> dict[str, bytes]:
    return {entry.path: tree.read(entry, LIMIT) for entry in tree.entries()}


def refused(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        tree = open_tree(str(path))
        for entry in tree.entries():
            tree.read(entry, LIMIT)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500
    return message
