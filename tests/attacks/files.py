"""What attackers send, and what their victims do with it."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import pickle
import shutil
import signal
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter

import conf
import data.ingest
from conf.errors import ERRORS
from data import durable
from data.manifest import Manifest
from data.sources import RawSource, open_source
from flows.cli import main
from tests.raw_trees import member, tar_bytes

# --- what victims do -----------------------------------------------------------------------------------------------


def source(kind: str, path: object, **fields: Any) -> RawSource:
    settings: Any = {"kind": kind, "path": str(path)} | fields
    return open_source(TypeAdapter(conf.Source).validate_python(settings))


def samples(kind: str, path: object, **fields: Any) -> list[np.ndarray]:
    """All samples of a source, described before."""
    opened = source(kind, path, **fields)
    return [value for name, count in opened.sets.items() for _, value in opened.samples(name, range(count))]


def ingested(kind: str, path: object, folder: Path, shard_size: int = 4, **fields: Any) -> Manifest:
    return data.ingest.ingest(source(kind, path, **fields), folder, shard_size=shard_size)


def command(*arguments: object) -> str:
    """What `strata …` prints; ends with the exception of its exit status."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mask = os.umask(0o022)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
    finally:
        os.umask(mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if status == 0:
        return out.getvalue()
    assert err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1, err.getvalue()
    assert status in ERRORS, err.getvalue()
    assert plain(out.getvalue()), out.getvalue()
    raise ERRORS[status](err.getvalue().removeprefix("error: ").rstrip("\n"))


def plain(text: str) -> bool:
    """Whether a terminal only prints it."""
    return bool(text) is False or all(line.isprintable() for line in text.split("\n"))


class GaveUp(BaseException):
    """No OSError, as TimeoutError is, which many would take for a file that cannot be read."""


@contextlib.contextmanager
def patience(seconds: float = 0.2) -> Iterator[list[bool]]:
    """Ends what hangs; the list then holds True."""
    gave_up: list[bool] = []

    def ring(number: int, frame: Any) -> None:
        gave_up.append(True)
        raise GaveUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.suppress(GaveUp):
            yield gave_up
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stock_samples(*paths: object, **options: Any) -> list[dict[str, Any]]:
    """What the webdataset library reads, with its own way to go on after an error, undecoded."""
    import webdataset

    return list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, **options))


def stock_decode(path: Path) -> None:
    """What the webdataset library does by default."""
    import webdataset

    with contextlib.suppress(Exception):
        list(webdataset.WebDataset(str(path), shardshuffle=False).decode())


def succeeds(use: Callable[[], object], *errors: type[Exception]) -> bool:
    """Whether nobody objects, or only as a program that crashes does."""
    try:
        use()
    except errors:
        return True
    return not errors


def forget_peak() -> None:
    """Peaks begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes of resident memory at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


# --- what attackers send -------------------------------------------------------------------------------------------


class Marker:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled(marker: Path, extension: str) -> bytes:
    if extension == "pth":
        content = io.BytesIO()
        torch.save(Marker(marker), content)
        return content.getvalue()
    content = pickle.dumps(Marker(marker))
    return gzip.compress(content) if extension.endswith("gz") else content


def npy(values: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, values, **options)
    return content.getvalue()


def npy_of_header(header: str, content: bytes = b"") -> bytes:
    text = header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def lying_npy(shape: tuple[int, ...], content: bytes = bytes(100)) -> bytes:
    return npy_of_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", content)


def objects(marker: Path) -> np.ndarray:
    return np.array([[Marker(marker)]], object)


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes([(member(name), content) for name, content in members]))
    return path


def picture(shade: int = 7, kind: str = "PNG", size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("L" if kind != "WEBP" else "RGB", size, shade).save(content, kind, **options)
    return content.getvalue()


def two_tone(shade: int) -> bytes:
    """Of one length whatever the shade."""
    content = io.BytesIO()
    Image.fromarray(np.array([[shade, 9]], np.uint8)).save(content, "BMP")
    return content.getvalue()


def frames(kind: str, number: int = 3) -> bytes:
    more = [Image.new("RGB", (6, 4), (80 * shade, 0, 0)) for shade in range(1, number)]
    content = io.BytesIO()
    Image.new("RGB", (6, 4)).save(content, kind, save_all=True, append_images=more)
    return content.getvalue()


def png_with(content: bytes, kind: bytes, chunk: bytes, replace: bool = False) -> bytes:
    """A PNG with a chunk behind its header, or a header of its own."""
    whole = struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", zlib.crc32(kind + chunk))
    return content[:8] + whole + content[33:] if replace else content[:33] + whole + content[33:]


def mat_element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content


def mat_array(shape: tuple[int, int], content: bytes) -> bytes:
    """A MATLAB matrix X of bytes."""
    flags = mat_element(6, struct.pack("<II", 9, 0))
    name = struct.pack("<HH", 1, 1) + b"X\0\0\0"
    content += bytes(-len(content) % 8)
    return mat_element(14, flags + mat_element(5, struct.pack("<ii", *shape)) + name + mat_element(2, content))


MAT_HEAD = b"MATLAB 5.0 MAT-file".ljust(124, b" ") + b"\x00\x01IM"


# --- shards that strata wrote --------------------------------------------------------------------------------------

VALUES = np.arange(96, dtype=np.uint8).reshape(12, 8)  # in three shards of four


@functools.cache
def _whole() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="strata-attacks-"))
    np.savez(folder / "x.npz", x=VALUES, y=np.array([f"class {row % 3}" for row in range(12)]))
    return ingested("arrays", folder / "x.npz", folder / "shards").folder


def shards(folder: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(_whole(), folder / "shards"))


def remanifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a manifest and makes its digest right again, which anyone can."""
    value = json.loads((folder / "manifest.json").read_bytes())
    value.pop("digest")
    change(value)
    value["digest"] = durable.digest_value(value)
    (folder / "manifest.json").write_bytes(durable.readable(value))


def replace(folder: Path, name: str, content: bytes) -> None:
    """Another content of a file, which the manifest then lists."""
    (folder / name).write_bytes(content)
    entry = [len(content), durable.digest_bytes(content)]
    remanifest(folder, lambda value: value["files"].__setitem__(name, entry))


def tar_header_of(kind: bytes, size: int) -> bytes:
    info = member("x", kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)
