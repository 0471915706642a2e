"""Audio files as they are written: read back, each must be the format its name says, with every sample in its place."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from accelerator.audio.checks import AudioWriter, load_reference, write_audio
from accelerator.audio.files import FORMATS, audio_format
from accelerator.errors import InvalidInput, InvalidOption
from accelerator.speech import Speech

RATE = 24_000
BY_LIBSNDFILE = [name for name in FORMATS if name != "m4a"]
CONTAINERS = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "ogg": "OGG", "opus": "OGG"}
SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS", "opus": "OPUS"}
CHUNK = 5_000


def melody(rate: int = RATE, seconds: float = 3.0) -> np.ndarray:
    """A tone that never repeats, so that a piece that is missing, doubled or moved shows."""
    t = np.arange(int(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * 220 * t * (1 + 0.3 * t)) * (0.6 + 0.4 * np.cos(9 * t))).astype(np.float32)


def chunks(audio: np.ndarray) -> list[np.ndarray]:
    return [audio[i : i + CHUNK] for i in range(0, len(audio), CHUNK)]


class Pipe(io.RawIOBase):
    """A file object that cannot go back."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data) -> int:  # type: ignore[no-untyped-def, override]
        self.data += bytes(data)
        return len(data)


def assert_alike(heard: np.ndarray, said: np.ndarray, *, late: int = 0, tolerance: float) -> None:
    """`late`: samples of an encoder's delay that a stream's reader cannot know of."""
    assert len(said) <= len(heard) <= len(said) + late + 2_500
    error = heard[late:][: len(said)] - said[: len(heard) - late]
    assert np.sqrt(np.mean(error**2)) < tolerance * np.sqrt(np.mean(said**2))


@pytest.mark.parametrize("name", BY_LIBSNDFILE)
@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_a_file_is_what_its_name_says(name: str, rate: int, tmp_path: Path) -> None:
    said = melody(rate)
    write_audio(tmp_path / f"a.{name}", said, rate)
    info = soundfile.info(str(tmp_path / f"a.{name}"))
    assert (info.format, info.subtype, info.channels) == (CONTAINERS[name], SUBTYPES[name], 1)
    assert info.samplerate == (
        48_000 if (name, rate) == ("opus", 44_100) else 24_000 if rate == 22_050 and name == "opus" else rate
    )
    heard = load_reference(tmp_path / f"a.{name}", sample_rate=rate).audio
    assert abs(len(heard) - len(said)) <= 2
    if name in ("wav", "flac"):
        np.testing.assert_array_equal(heard, np.rint(said * 32768) / np.float32(32768))
    else:
        assert_alike(np.pad(heard, (0, 2)), said, tolerance=0.1)
    assert os.listdir(tmp_path) == [f"a.{name}"]


@pytest.mark.parametrize("name", BY_LIBSNDFILE)
def test_piece_by_piece_is_one_recording(name: str, tmp_path: Path) -> None:
    """Not several that are joined, of which readers would hear the first."""
    said = melody()
    with AudioWriter(tmp_path / f"a.{name}", RATE) as writer:
        for chunk in chunks(said):
            writer.write(chunk)
    write_audio(tmp_path / f"b.{name}", said, RATE)
    a, b = (soundfile.read(str(tmp_path / f"{x}.{name}"))[0] for x in "ab")
    assert len(a) == len(b) == len(said)
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.03 * np.sqrt(np.mean(b**2))  # Vorbis chooses its windows by what it has


@pytest.mark.parametrize("name", BY_LIBSNDFILE)
def test_a_stream_is_read_to_its_end(name: str) -> None:
    said, pipe = melody(), Pipe()
    with AudioWriter(pipe, RATE, name) as writer:
        for number, chunk in enumerate(chunks(said)):
            writer.write(chunk)
            assert len(pipe.data) > (number > 5) * 1000  # not all of it at the end
    assert not pipe.closed
    heard = load_reference(pipe.data, sample_rate=RATE).audio
    assert_alike(heard, said, late=1105 if name == "mp3" else 0, tolerance=0.1)


def test_a_streamed_mp3_begins_with_sound() -> None:
    """LAME's first frame is for the length, which a stream does not know: left blank it would be heard as a pause."""
    pipe = Pipe()
    with AudioWriter(pipe, RATE, "mp3") as writer:
        writer.write(melody())
    assert pipe.data[:2] == b"\xff\xf3"
    assert any(pipe.data[4:36])
    whole = io.BytesIO()
    write_audio(whole, melody(), RATE, "mp3")
    assert b"Xing" in whole.getvalue()[:64]  # where it is known, it is told


def test_a_streamed_wav_can_be_played_while_it_grows(tmp_path: Path) -> None:
    said = melody()
    writer = AudioWriter(tmp_path / "a.wav", RATE)
    writer.write(said[:CHUNK])
    assert writer.partial is not None
    assert writer.partial.suffix == ".wav"
    assert soundfile.info(str(writer.partial)).frames == CHUNK
    assert not (tmp_path / "a.wav").exists()
    writer.write(said[CHUNK:])
    writer.close()
    assert os.listdir(tmp_path) == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes()[40:44] == (2 * len(said)).to_bytes(4, "little")


@pytest.mark.parametrize("name", BY_LIBSNDFILE)
def test_what_was_interrupted_can_be_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{name}").write_bytes(b"before")
    writer = AudioWriter(tmp_path / f"a.{name}", RATE)
    writer.write(melody(seconds=1.0))
    kept = writer.keep()
    assert kept is not None
    assert soundfile.info(str(kept)).frames == RATE
    assert (tmp_path / f"a.{name}").read_bytes() == b"before"


@pytest.mark.parametrize("name", BY_LIBSNDFILE)
def test_what_fails_leaves_the_file_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{name}").write_bytes(b"before")

    def fail() -> None:
        with AudioWriter(tmp_path / f"a.{name}", RATE) as writer:
            writer.write(melody(seconds=1.0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(InvalidInput), AudioWriter(tmp_path / f"a.{name}", RATE) as writer:
        writer.write(np.array([np.nan]))
    assert (tmp_path / f"a.{name}").read_bytes() == b"before"
    assert os.listdir(tmp_path) == [f"a.{name}"]


@pytest.mark.parametrize("name", BY_LIBSNDFILE)
def test_a_full_disk_is_told(name: str) -> None:
    """Encoders in C call back for each write, where Python's exceptions would be lost."""

    class Full(Pipe):
        def write(self, data) -> int:  # type: ignore[no-untyped-def, override]
            if len(self.data) + len(data) > 10_000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    with pytest.raises(OSError, match="No space left"), AudioWriter(Full(), RATE, name) as writer:
        writer.write(melody(seconds=20.0))


@pytest.mark.parametrize("name", BY_LIBSNDFILE)
def test_nothing_said(name: str, tmp_path: Path) -> None:
    """Only a WAV file can be empty: an empty MP3 has no frame, and an empty FLAC is one of unknown length."""
    nothing = np.zeros(0, np.float32)
    if name == "wav":
        write_audio(tmp_path / "a.wav", nothing, RATE)
        assert soundfile.info(str(tmp_path / "a.wav")).frames == 0
        return
    with pytest.raises(InvalidInput, match="there is no audio"):
        write_audio(tmp_path / f"a.{name}", nothing, RATE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["mp3", "ogg", "opus"])
def test_loud_samples_are_clipped_not_wrapped(name: str, tmp_path: Path) -> None:
    write_audio(tmp_path / f"a.{name}", 8 * melody(), RATE)
    heard = soundfile.read(str(tmp_path / f"a.{name}"))[0]
    assert_alike(heard, np.clip(8 * melody(), -1, 1), tolerance=0.15)


@pytest.mark.parametrize(
    ("name", "rate", "file"),
    [
        ("opus", 22_050, 24_000),
        ("opus", 44_100, 48_000),
        ("opus", 96_000, 48_000),
        ("mp3", 96_000, 48_000),
        ("mp3", 20_000, 22_050),
    ],
)
def test_rates_that_a_format_lacks(name: str, rate: int, file: int, tmp_path: Path) -> None:
    said = melody(rate)
    with AudioWriter(tmp_path / f"a.{name}", rate) as writer:
        for chunk in chunks(said):
            writer.write(chunk)
    info = soundfile.info(str(tmp_path / f"a.{name}"))
    assert info.samplerate == file
    assert info.frames == pytest.approx(3 * file, abs=2)
    heard = soundfile.read(str(tmp_path / f"a.{name}"), dtype="float32")[0]
    assert_alike(np.pad(heard, (0, 2)), soxr.resample(said, rate, file)[: len(heard)], tolerance=0.1)


def test_formats_by_name_and_suffix(tmp_path: Path) -> None:
    assert audio_format("X.MP3").name == "mp3"
    assert audio_format("x.mp3", "FLAC").name == "flac"
    assert audio_format("x.oga").name == "ogg"
    assert audio_format(io.BytesIO()).name == "wav"
    assert audio_format("/dev/stdout").name == "wav"
    for target, name in (("x.aiff", None), ("x", None), ("x.wav.bak", None), ("x.wav", "aac"), (io.BytesIO(), "")):
        with pytest.raises(InvalidOption, match="the formats are wav, flac, mp3, ogg, opus, m4a"):
            audio_format(target, name)
    with pytest.raises(InvalidOption):
        write_audio(tmp_path / "a.aiff", melody(), RATE)
    assert os.listdir(tmp_path) == []


def test_speech_saves_itself(tmp_path: Path) -> None:
    speech = Speech(melody(), RATE, {})
    speech.save(tmp_path / "a.flac")
    speech.save(tmp_path / "b", "ogg")
    assert [soundfile.info(str(tmp_path / name)).format for name in ["a.flac", "b"]] == ["FLAC", "OGG"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
@pytest.mark.parametrize("by_pieces", [False, True])
def test_a_named_pipe(by_pieces: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    if by_pieces:
        with AudioWriter(tmp_path / "pipe", RATE, "flac") as writer:
            writer.write(melody())
    else:
        write_audio(tmp_path / "pipe", melody(), RATE, "flac")
    reader.join()
    assert len(load_reference(read[0], sample_rate=RATE).audio) == len(melody())


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no descriptors in this file system")
def test_a_shells_process_substitution() -> None:
    """`>(command)` is a name below /dev/fd, of a pipe that has no name of its own."""
    out, into = os.pipe()
    try:
        write_audio(f"/dev/fd/{into}", melody(seconds=0.2), RATE, "flac")
    finally:
        os.close(into)
    with open(out, "rb") as pipe:
        assert len(load_reference(pipe.read(), sample_rate=RATE).audio) == 0.2 * RATE


# AAC, and a second opinion on the others' files from a reader that is not their writer.


@pytest.fixture
def av():
    return pytest.importorskip("av", reason='pip install -e ".[formats]"')


def decoded(av, file) -> tuple[np.ndarray, int]:  # type: ignore[no-untyped-def]
    with av.open(file) as container:
        rate = container.streams.audio[0].rate
        resampler = av.AudioResampler(format="fltp", rate=rate)
        pieces = [p.to_ndarray()[0] for f in container.decode(audio=0) for p in resampler.resample(f)]
    return np.concatenate(pieces), rate


@pytest.mark.parametrize("name", FORMATS)
def test_another_reader(av, name: str, tmp_path: Path) -> None:
    write_audio(tmp_path / f"a.{name}", melody(), RATE)
    heard, rate = decoded(av, str(tmp_path / f"a.{name}"))
    said = soxr.resample(melody(), RATE, rate)
    late = 1024 if name == "m4a" and len(heard) > len(said) + 1024 else 0
    assert_alike(np.pad(heard, (0, 400)), said, late=late, tolerance=0.1)


@pytest.mark.parametrize("name", FORMATS)
def test_another_reader_of_streams(av, name: str) -> None:
    pipe = Pipe()
    with AudioWriter(pipe, RATE, name) as writer:
        for chunk in chunks(melody()):
            writer.write(chunk)
    heard, rate = decoded(av, io.BytesIO(pipe.data))
    said = soxr.resample(melody(), RATE, rate)
    late = {"mp3": 1105, "m4a": 1024}.get(name, 0)
    assert_alike(np.pad(heard, (0, 400)), said, late=late, tolerance=0.1)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 96_000])
def test_m4a_is_a_reference_too(av, rate: int, tmp_path: Path) -> None:
    write_audio(tmp_path / "a.m4a", melody(rate), rate)
    reference = load_reference(tmp_path / "a.m4a", sample_rate=rate)
    assert abs(len(reference.audio) - 3 * rate) < 0.1 * rate
    assert_alike(np.pad(reference.audio, (0, 2)), melody(rate), tolerance=0.1)


def test_a_full_disk(av) -> None:
    class Full(Pipe):
        def write(self, data) -> int:  # type: ignore[no-untyped-def, override]
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), AudioWriter(Full(), RATE, "m4a") as writer:
        writer.write(melody())


def test_m4a_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InvalidOption, match=r"m4a needs the package av: pip install .*\[formats\]"):
        write_audio(tmp_path / "a.m4a", melody(), RATE)
    assert os.listdir(tmp_path) == []
