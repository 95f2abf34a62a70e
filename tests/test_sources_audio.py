"""Recordings: the file format, the frames, and trees of both."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

import conf
from conf.errors import InputError
from data.sources import RawSource, open_source
from data.sources.mel import LogMel, hertz, mel
from data.sources.wav import CutShort, read_header, read_mono
from tests.raw_folders import everything, refused
from tests.raw_trees import PACKED, packed

RANDOM = np.random.default_rng(0)


def sine(frequency: float, seconds: float = 0.5, rate: int = 16_000, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def wav(sound: np.ndarray, rate: int = 16_000, dtype: str = "int16") -> bytes:
    """sound: (n,) or (n, channels) in [−1, 1]."""
    file = io.BytesIO()
    if dtype == "int24":
        with wave.open(file, "wb") as written:
            written.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
            written.setsampwidth(3)
            written.setframerate(rate)
            values = np.round(sound * (2**23 - 1)).astype("<i4")
            written.writeframes(values.reshape(-1, 1).view(np.uint8)[:, :3].tobytes())
    elif dtype == "uint8":
        wavfile.write(file, rate, np.round(sound * 127 + 128).astype(np.uint8))
    elif dtype.startswith("int"):
        wavfile.write(file, rate, np.round(sound * np.iinfo(dtype).max).astype(dtype))
    else:
        wavfile.write(file, rate, sound.astype(dtype))
    return file.getvalue()


def audio(path: Path, **settings: Any) -> RawSource:
    return open_source(conf.AudioSource(kind="audio", path=str(path), **settings))


# --- the file format -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        ("uint8", 2**-7),
        ("int16", 2**-15),
        ("int24", 2**-22),
        ("int32", 2**-24),
        ("float32", 2**-24),
        ("float64", 2**-24),
    ],
)
def test_samples_of_every_kind(dtype: str, error: float, channels: int) -> None:
    sound = RANDOM.uniform(-1, 1, (101, channels))
    content = wav(sound, 8000, dtype)
    header = read_header(content, len(content), "a.wav")
    assert (header.rate, header.channels, header.length) == (8000, channels, 101)
    found = read_mono(content, header, "a.wav")
    assert found.dtype == np.float32 and np.abs(found - sound.mean(axis=1)).max() < 2 * error


def test_the_header_is_found_behind_other_chunks_and_in_extensible_files() -> None:
    plain = wav(sine(440))
    listed = plain[:12] + b"LIST" + struct.pack("<I", 100_001) + bytes(100_002) + plain[12:]
    with pytest.raises(CutShort):
        read_header(listed[: 64 << 10], len(listed), "a.wav")
    assert read_header(listed, len(listed), "a.wav").length == 8000
    form = struct.pack("<HHIIHHHHIH14s", 0xFFFE, 1, 16_000, 32_000, 2, 16, 22, 16, 4, 1, b"\0" * 14)
    extensible = plain[:12] + b"fmt " + struct.pack("<I", 40) + form + plain[36:]
    header = read_header(extensible, len(extensible), "a.wav")
    assert np.array_equal(
        read_mono(extensible, header, "a"), read_mono(plain, read_header(plain, len(plain), "a"), "a")
    )


def test_any_damaged_header_is_refused_or_harmless() -> None:
    content = wav(sine(440, 0.05))
    for place in range(len(content) - 1600 + 4):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            damaged = content[:place] + bytes([value]) + content[place + 1 :]
            try:
                header = read_header(damaged, len(damaged), "a.wav")
                assert len(read_mono(damaged, header, "a.wav")) == header.length
            except InputError as error:
                assert str(error).startswith("a.wav: ")  # noqa: PT017
    for size in range(len(content)):
        with pytest.raises(InputError):
            read_header(content[:size], size, "a.wav")


# --- the frames ----------------------------------------------------------------------------------------------------


def test_energy_lies_in_the_band_of_the_tone() -> None:
    frames = LogMel(16_000, 40, 400, 160)
    edges = hertz(np.linspace(0, mel(8000), 42))
    for band in range(4, 40, 5):  # the lowest bands are narrower than a Hann window's main lobe
        values = frames.frames(sine(edges[band + 1]).astype(np.float32))
        assert values.shape == (1 + (8000 - 400) // 160, 40) and (values.argmax(axis=1) == band).all()
        far = np.abs(np.arange(40) - band) > 6
        assert (values[:, [band]] - values[:, far]).min() > np.log(1000)


def test_the_mel_scale() -> None:
    assert mel(1000.0) == pytest.approx(999.99, abs=0.01) and mel(0.0) == 0  # HTK's: 1000 Hz are 1000 mel
    assert hertz(mel(np.array([20.0, 440.0, 8000.0]))) == pytest.approx([20, 440, 8000])
    filters = LogMel(16_000, 40, 400, 160).filters
    assert filters.shape == (40, 257) and filters.min() == 0 and 0.5 < filters.max(axis=1).min() <= filters.max() <= 1
    inside = (np.fft.rfftfreq(512, 1 / 16_000) > hertz(mel(8000.0) / 41)) & (np.arange(257) < 256 * 0.93)
    assert filters.sum(axis=0)[inside] == pytest.approx(1)  # neighbours overlap so that nothing is heard twice or never


def test_parseval() -> None:
    frames = LogMel(16_000, 40, 400, 160)
    sound = RANDOM.normal(size=(3, 400))
    power = frames.power(sound)
    both_sides = power[:, 0] + 2 * power[:, 1:-1].sum(axis=1) + power[:, -1]
    assert both_sides == pytest.approx(512 * np.square(sound * frames.window).sum(axis=1))
    low, high = frames.bounds
    for loud in (np.ones(400), np.where(np.arange(400) % 2, 1.0, -1.0), np.sign(sine(1000))[:400]):
        assert frames.frames(loud).max() < high
    assert frames.frames(np.zeros(400)).max() == pytest.approx(low) == np.log(1e-10)


# --- trees ---------------------------------------------------------------------------------------------------------

SETTINGS = {"sample_rate": 8000, "mels": 12, "frames": 5}  # frames of 200 samples, 80 apart: 520 a window's span


@pytest.mark.parametrize("kind", PACKED)
def test_a_tree_of_recordings(tmp_path: Path, kind: str) -> None:
    sounds = {
        "low/a.wav": sine(300, 0.2, 8000),
        "low/b.wav": sine(400, 0.065, 8000),
        "high/c.wav": sine(3000, 0.15, 8000),
    }
    content = {name: wav(sound, 8000) for name, sound in sounds.items()} | {"readme.txt": b"x"}
    source = audio(packed(tmp_path, kind, content), **SETTINGS)
    description = source.describe()
    assert (description.shape, description.dtype, description.classes) == ((5, 12), "float32", ("high", "low"))
    keys, values, labels = everything(source)
    assert keys == ["high/c.wav#0", "high/c.wav#1", "low/a.wav#0", "low/a.wav#1", "low/a.wav#2", "low/b.wav#0"]
    assert labels == [0, 0, 1, 1, 1, 1] and description.sets == {"train": 6} == description.labeled
    assert description.low <= values.min() and values.max() <= description.high
    whole = LogMel(8000, 12, 200, 80).frames((np.round(sounds["low/a.wav"] * 32767) / 32768).astype(np.float32))
    assert np.array_equal(values[2:5].reshape(15, 12), whole[:15])
    other = audio(tmp_path / f"tree.{kind}", **SETTINGS)
    other.expect(description, source.seen)
    assert np.array_equal(next(iter(other.samples("train", [4])))[1], values[4])
    assert list(other.keys("train")) == keys and other.labels("train").tolist() == labels


def test_recordings_are_resampled_and_mixed(tmp_path: Path) -> None:
    stereo = np.stack([sine(1000, 0.5, 44_100, 0.8), np.zeros(22_050)], axis=1)
    content = {"plain/a.wav": wav(sine(1000, 0.5, 8000, 0.4), 8000), "other/b.wav": wav(stereo, 44_100)}
    source = audio(packed(tmp_path, "folder", content), **SETTINGS)
    _, values, labels = everything(source)
    other, plain = (
        values[np.array(labels) == label][1:-1] for label in (0, 1)
    )  # away from the ends, where filters ring
    assert len(other) == len(plain) == 7
    loudest = int(plain.mean(axis=(0, 1)).argmax())
    assert np.abs(other[..., loudest] - plain[..., loudest]).max() < 0.02


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"hello", "no RIFF/WAVE"),
        (b"", "no RIFF/WAVE"),
        (wav(sine(300, 0.05, 8000), 8000), "too short for 5 frames"),
        (wav(sine(300, 0.2, 8000), 8000)[:-2], "cut short"),
        (wav(sine(300, 0.2, 8000), 8000).replace(b"fmt \x10\0\0\0\x01", b"fmt \x10\0\0\0\x02"), "format 2"),
    ],
)
def test_recordings_that_are_none(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = packed(tmp_path, "folder", {"a/odd.wav": content, "a/good.wav": wav(sine(300, 0.2, 8000), 8000)})
    message = refused(audio(path, **SETTINGS))
    assert "odd.wav" in message and complaint in message


def test_sound_that_is_no_number(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, 1.5):
        sound = sine(300, 0.2, 8000)
        sound[700] = value
        source = audio(packed(tmp_path, "folder", {"odd.wav": wav(sound, 8000, "float32")}), **SETTINGS)
        with pytest.raises(InputError, match="odd.wav: sound outside −1 … 1 or NaN"):
            everything(source)


def test_trees_and_settings_without_sound(tmp_path: Path) -> None:
    assert "no such file" in refused(audio(tmp_path / "missing"))
    assert "no recordings" in refused(audio(packed(tmp_path, "folder", {"readme.md": b"x"})))
    with pytest.raises(InputError, match="200 mels are too many"):
        audio(tmp_path, mels=200)
    with pytest.raises(InputError, match="frames of 0 samples"):
        audio(tmp_path, frame_ms=0.01)
