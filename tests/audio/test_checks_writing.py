"""WAV files are written whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import threading
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from accelerator.audio import checks as audio_module
from accelerator.audio.checks import load_reference, write_wav
from accelerator.errors import InvalidInput

RATE = 24_000


def sine(seconds: float = 1.0, rate: int = RATE, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_round_trip(tmp_path: Path) -> None:
    whole = np.arange(-32768, 32768)
    write_wav(tmp_path / "all.wav", whole / 32768.0, 44_100)
    samples, rate = soundfile.read(tmp_path / "all.wav", dtype="int16")
    assert rate == 44_100
    np.testing.assert_array_equal(samples, whole)
    info = soundfile.info(tmp_path / "all.wav")
    assert (info.subtype, info.channels) == ("PCM_16", 1)
    reference = load_reference(tmp_path / "all.wav", sample_rate=44_100)
    np.testing.assert_array_equal(reference.audio, (whole / 32768).astype(np.float32))


def test_clipping_and_shapes() -> None:
    buffer = io.BytesIO()
    write_wav(buffer, np.array([[1.0, 2.0, -2.0, 0.5, -1.0]]), 8000)
    assert not buffer.closed
    buffer.seek(0)
    assert soundfile.read(buffer, dtype="int16")[0].tolist() == [32767, 32767, -32768, 16384, -32768]


def test_no_samples_make_a_valid_file(tmp_path: Path) -> None:
    write_wav(str(tmp_path / "none.wav"), np.zeros(0, np.float32), 8000)
    assert soundfile.info(str(tmp_path / "none.wav")).frames == 0


@pytest.mark.parametrize("bad", [np.array([0.0, np.nan]), np.array([np.inf]), np.zeros((2, 5))])
def test_unwritable_audio_leaves_the_file_alone(bad: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"before")
    with pytest.raises(InvalidInput):
        write_wav(path, bad, 8000)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["out.wav"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_file_alone(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audio_module.os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_wav(path, sine(), RATE)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["out.wav"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    write_wav(path, sine(1.0), RATE)
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            with wave.open(io.BytesIO(path.read_bytes())) as file:
                seen.add((file.getnframes(), len(file.readframes(10**6))))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        write_wav(path, sine(0.5 + i % 2), RATE)
    stop.set()
    reader.join()
    assert seen <= {(RATE, 2 * RATE), (RATE // 2, RATE), (RATE * 3 // 2, 3 * RATE)}
    assert os.listdir(tmp_path) == ["out.wav"]


def test_links_modes_and_devices(tmp_path: Path) -> None:
    (tmp_path / "real.wav").write_bytes(b"before")
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    write_wav(tmp_path / "link.wav", sine(), RATE)
    assert (tmp_path / "link.wav").is_symlink()
    assert soundfile.info(tmp_path / "real.wav").frames == RATE
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "real.wav").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    if os.path.exists("/dev/null"):
        write_wav("/dev/null", sine(), RATE)
        assert not os.path.isfile("/dev/null")
    with pytest.raises(OSError):
        write_wav(tmp_path / "no folder" / "out.wav", sine(), RATE)
    with pytest.raises(OSError):
        write_wav(tmp_path, sine(), RATE)
