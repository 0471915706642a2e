"""`synth`: audio in files and pipes, whole or as it is spoken, and what is refused before anything is written."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import types
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.commands import FEW, TINY, answer, error, run
from tests.skeletons import Graph


def wav(path: Path) -> tuple[int, int]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getnframes(), file.getframerate()


def assert_alike(wav: bytes, other: bytes) -> None:
    """Samples of 16 bits, but for the last: sums of a window may be taken in another order than those of a whole."""
    a, b = (np.frombuffer(data[44:], "<i2").astype(int) for data in (wav, other))
    assert len(a) == len(b)
    assert np.abs(a - b).max() <= 1
    assert np.abs(a).max() > 1000


def test_writes_what_it_says(cache: Path, tmp_path: Path):
    target = tmp_path / "out.wav"
    found = answer("synth", "Hello there.", "-o", target, *TINY, *FEW, "--precision", "fp32", "--cache-dir", cache)
    assert set(found) == {"output", "engine", "format", "sample_rate", "samples", "chunks", "metrics"}
    assert (found["format"], found["chunks"]) == ("wav", 1)
    assert found["output"] == str(target)
    assert wav(target) == (found["samples"], found["sample_rate"])
    metrics = found["metrics"]
    assert metrics["frames"] == 12
    assert found["samples"] / found["sample_rate"] == pytest.approx(metrics["audio_s"])
    assert metrics["rtf"] == pytest.approx(metrics["elapsed_s"] / metrics["audio_s"], rel=0.05)
    assert metrics["cache"]["text2semantic"] == "hit"
    assert metrics["fallback"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_one_line_for_people(cache: Path, tmp_path: Path):
    result = run("synth", "Hello", "-o", tmp_path / "a.wav", *TINY, *FEW, "--cache-dir", cache)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    for word in ("s of speech", "rtf", "first audio after", "text2semantic", "decoder"):
        assert word in result.stdout


def test_streamed_audio_is_the_same(cache: Path, tmp_path: Path):
    paths = [tmp_path / "whole.wav", tmp_path / "stream.wav"]
    options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
    whole = answer("synth", "Hello", "-o", paths[0], *options)
    streamed = answer("synth", "Hello", "-o", paths[1], "--stream", *options)
    assert streamed["chunks"] == 2
    assert streamed["samples"] == whole["samples"]
    assert_alike(*(path.read_bytes() for path in paths))


def test_stdin_to_stdout(cache: Path, tmp_path: Path):
    options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
    run("synth", "Grüße", "-o", tmp_path / "a.wav", *options)
    result = run("synth", "-", "-o", "-", *options, input="Grüße\n".encode())
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes == (tmp_path / "a.wav").read_bytes()
    streamed = run("synth", "-", "-o", "-", "--stream", *options, input="Grüße\r\n".encode())
    assert_alike(streamed.stdout_bytes, result.stdout_bytes)
    assert streamed.stdout_bytes[:4] == b"RIFF"
    assert "s of speech" in streamed.stderr


def test_speaks_by_name(cache: Path, tmp_path: Path, voice: Path):
    options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
    found = error("synth", "Hello", "-o", tmp_path / "a.wav", "--voice", "anna", *options, exit_code=1)
    assert (found["type"], "anna" in found["message"]) == ("InvalidOption", True)
    both = ["--voice", "anna", "--reference", voice]
    found = error("synth", "Hello", "-o", tmp_path / "a.wav", *both, *options, exit_code=2)
    assert "not both" in found["message"]


def test_speaks_a_long_text_in_segments(cache: Path, tmp_path: Path):
    options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
    text = "This is a sentence that is spoken. " * 12
    found = answer("synth", text, "-o", tmp_path / "a.wav", *options)
    assert "".join(s["text"] for s in found["metrics"]["segments"]) == text
    assert len(found["metrics"]["segments"]) > 1


def test_speaks_in_a_voice(copied: Path, tmp_path: Path, voice: Path):
    options = ["--reference", voice, "--reference-text", "la", "--precision", "fp32", "--cache-dir", copied]
    found = answer("synth", "Hello", "-o", tmp_path / "a.wav", *TINY, *FEW, *options)
    assert "encoder" in found["metrics"]["backends"]
    again = answer("synth", "Hello", "-o", tmp_path / "b.wav", *TINY, *FEW, *options)
    assert "encoder" not in again["metrics"]["cache"], "what was made of the voice is kept: its encoder is not loaded"
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_keeps_voices_where_it_is_told(copied: Path, tmp_path: Path, voice: Path):
    options = ["--reference", voice, "--reference-text", "la", "--precision", "fp32", "--cache-dir", copied]
    answer("synth", "Hello", "-o", tmp_path / "a.wav", *TINY, *FEW, *options, "--voices", tmp_path / "voices")
    assert list((tmp_path / "voices").rglob("voice.safetensors"))


def test_an_address_of_voices_is_not_repeated(tmp_path: Path):
    result = run("synth", "Hello", "-o", tmp_path / "a.wav", *TINY, "--voices", "redis://:s3/cret@host", "--debug")
    assert result.exit_code == 1
    assert "the address of voices cannot be read" in result.output
    assert "s3" not in result.output


def test_an_engine_whose_voices_are_a_file_takes_no_place_for_recordings(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"")
    options = ["--engine", "kokoro", "--checkpoint", tmp_path, "--voices", tmp_path]
    assert (
        "kokoro imitates no recordings"
        in error("synth", "Hello", "-o", tmp_path / "a.wav", *options, exit_code=2)["message"]
    )


def test_an_engines_own_options(checkpoint: Callable[..., list[str]], tmp_path: Path):
    options = ["-o", tmp_path / "a.wav", *checkpoint(Graph), "--cache-dir", tmp_path / "cache"]
    plain, fast = (answer("synth", "Hello", *options, "--option", f"speed={n}")["samples"] for n in ("1", "1.5"))
    assert (plain, fast) == (2 * fast, fast)
    assert fast > 0


@pytest.mark.parametrize(
    ("given", "exit_code", "says"),
    [
        (["pitch=3"], 1, "pitch is no option of skeleton: it takes speed (0.5 to 2)"),
        (["seed=3"], 1, "seed is no option of skeleton: it takes speed"),
        (["speed=fast"], 1, "speed must be 0.5 to 2, not 'fast'"),
        (["speed=3"], 1, "speed must be from 0.5 to 2, not 3.0"),
        (["speed=nan"], 1, "speed must be from 0.5 to 2, not nan"),
        (["speed"], 2, "'speed' is no NAME=VALUE"),
        (["=1"], 2, "'=1' is no NAME=VALUE"),
        (["speed=1", "speed=2"], 2, "speed is given twice"),
    ],
    ids=str,
)
def test_refuses_options_that_an_engine_has_not(
    given: list[str], exit_code: int, says: str, checkpoint: Callable[..., list[str]], tmp_path: Path
):
    options = [word for each in given for word in ("--option", each)]
    output = ["-o", tmp_path / "a.wav", "--cache-dir", tmp_path / "cache"]
    found = error("synth", "Hello", *output, *checkpoint(Graph), *options, exit_code=exit_code)
    assert says in found["message"]


def test_an_option_of_sampling_by_either_name(cache: Path, tmp_path: Path):
    options = ["-o", tmp_path / "a.wav", *TINY, "--seed", "0", "--precision", "fp32", "--cache-dir", cache]
    found = answer("synth", "Hello", *options, "--option", "max-new-tokens=7")
    assert found["metrics"]["frames"] == 7
    twice = ["--option", "temperature=0.5", "--temperature", "0.6"]
    assert "temperature is given twice" in error("synth", "Hello", *options, *twice, exit_code=2)["message"]


def test_an_engine_that_imitates_nobody_is_told_by_the_options_name(
    checkpoint: Callable[..., list[str]], tmp_path: Path, voice: Path
):
    options = [*checkpoint(Graph), "--reference", voice, "--cache-dir", tmp_path / "cache"]
    found = error("synth", "Hello", "-o", tmp_path / "a.wav", *options)
    assert found["message"] == "skeleton does not imitate voices: leave --reference out"


def test_an_engine_saved_to_a_file(cache: Path, tmp_path: Path):
    from accelerator.reference import load

    load("tiny").save(tmp_path / "engine.safetensors")
    options = ["--checkpoint", tmp_path / "engine.safetensors", "--precision", "fp32", "--cache-dir", cache]
    found = answer("synth", "Hello", "-o", tmp_path / "a.wav", *FEW, *options)
    assert found["metrics"]["cache"]["decoder"] == "hit"  # the same weights


def test_an_engine_from_its_checkpoint(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from accelerator.engines import CHECKPOINTS
    from accelerator.engines.reference import ReferenceAdapter
    from accelerator.reference import load

    class Adapter(ReferenceAdapter):
        @classmethod
        def from_checkpoint(cls, path: Path) -> Adapter:
            assert path == tmp_path
            return cls(load("tiny"))

    module = types.ModuleType("an_engine")
    module.Adapter = Adapter
    monkeypatch.setitem(sys.modules, "an_engine", module)
    monkeypatch.setitem(CHECKPOINTS, "an-engine", "an_engine:Adapter")
    options = ["--engine", "an-engine", "--checkpoint", tmp_path, "--precision", "fp32", "--cache-dir", cache]
    found = answer("synth", "Hello", "-o", tmp_path / "a.wav", *FEW, *options)
    assert (found["engine"], found["metrics"]["frames"]) == ("an-engine", 12)
    wrong = error("synth", "Hello", "-o", tmp_path / "a.wav", *options, *TINY, exit_code=2)
    assert "sizes" in wrong["message"]


@pytest.mark.parametrize(
    ("args", "exit_code", "kind", "says"),
    [
        (["hi", "--engine", "nope"], 2, "BadParameter", "choose one of"),
        (["hi", "--engine", "fish-speech"], 2, "BadParameter", "--checkpoint DIR"),
        (["hi", "--checkpoint", "/nowhere/at/all"], 1, "EngineError", "does not exist"),
        (["hi", "--size", "huge"], 2, "BadParameter", "huge"),
        (["hi", "--reference", "/nowhere/voice.wav"], 1, "InvalidReference", "does not exist"),
        (["hi", "--reference-text", "la"], 1, "InvalidReference", "--reference"),
        (["hi", "--top-p", "7"], 1, "InvalidOption", "--top-p"),
        (["hi", "--seed", "-1"], 1, "InvalidOption", "seed"),
        (["?!"], 1, "InvalidText", "no letter"),
        (["hi", "-o", "/nowhere/at/all/a.wav"], 1, "InvalidOption", "directory does not exist"),
        (["hi", "-o", "."], 1, "InvalidOption", "is a directory"),
        (["hi", "-o", "-"], 2, "BadParameter", "stdout"),
        (["hi", "-o", "a.aiff"], 1, "InvalidOption", "the formats are wav, flac, mp3, ogg, opus, m4a"),
        (["hi", "-o", "a"], 1, "InvalidOption", "no suffix"),
        (["hi", "--format", "aac"], 1, "InvalidOption", "no audio format 'aac'"),
        ([], 2, "BadParameter", "give a text"),
        (["hi", "--file", "a.txt"], 2, "BadParameter", "not both"),
        (["--file", "/nowhere/at/all.txt"], 1, "InvalidText", "cannot be read"),
    ],
)
def test_refuses(args: list[str], exit_code: int, kind: str, says: str, tmp_path: Path):
    output = [] if "-o" in args else ["-o", tmp_path / "a.wav"]
    found = error("synth", *args, *output, "--cache-dir", tmp_path / "cache", exit_code=exit_code)
    assert found["type"] == kind
    assert says in found["message"]
    assert list(tmp_path.iterdir()) == []  # before anything was loaded, exported or written


@pytest.mark.parametrize(("suffix", "kind"), [("mp3", "MP3"), ("flac", "FLAC"), ("ogg", "OGG"), ("opus", "OGG")])
@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_writes_what_the_suffix_says(suffix: str, kind: str, stream: list, cache: Path, tmp_path: Path):
    options = [*TINY, *FEW, *stream, "--precision", "fp32", "--cache-dir", cache]
    found = answer("synth", "Hello there.", "-o", tmp_path / f"a.{suffix}", *options)
    info = soundfile.info(str(tmp_path / f"a.{suffix}"))
    assert (info.format, found["format"]) == (kind, suffix)
    assert info.frames == found["samples"]
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_format_decides_where_no_suffix_does(stream: list, cache: Path, tmp_path: Path):
    options = [*TINY, *FEW, *stream, "--precision", "fp32", "--cache-dir", cache]
    result = run("synth", "Hello", "-o", "-", "--format", "flac", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes[:4] == b"fLaC"
    answer("synth", "Hello", "-o", tmp_path / "a.wav", "--format", "flac", *options)
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"fLaC"


def test_speaks_a_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Grüße\n", encoding="utf-8")
    run("synth", "Grüße", "-o", "a.wav", *options)
    assert "speaks the name" not in run("synth", "-f", "text.txt", "-o", "b.wav", *options).stderr
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
    result = run("synth", "text.txt", "-o", "c.wav", *options)
    assert result.exit_code == 0
    assert "speaks the name 'text.txt'" in result.stderr
    assert "--file text.txt" in result.stderr


def test_grows_as_it_is_spoken(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from accelerator.audio.files import AudioWriter

    sizes: list[int] = []
    write = AudioWriter.write

    def watched(self: AudioWriter, audio: np.ndarray) -> None:
        write(self, audio)
        (partial,) = tmp_path.glob("a.*.partial.wav")
        sizes.append(partial.stat().st_size)

    monkeypatch.setattr(AudioWriter, "write", watched)
    options = [*TINY, *FEW, "--precision", "fp32", "--cache-dir", cache]
    found = answer("synth", "This is a sentence that is spoken. " * 12, "-o", tmp_path / "a.wav", *options)
    assert len(sizes) == found["chunks"] > 1
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 44 + 2 * found["samples"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("keep", [[], ["--keep-partial"]])
@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_ctrl_c_while_it_speaks(keep: list, suffix: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from accelerator.audio.files import AudioWriter

    write, written = AudioWriter.write, []

    def interrupted(self: AudioWriter, audio: np.ndarray) -> None:
        if written:
            raise KeyboardInterrupt
        write(self, audio)
        written.append(len(audio))

    monkeypatch.setattr(AudioWriter, "write", interrupted)
    (tmp_path / f"a.{suffix}").write_bytes(b"before")
    options = [*TINY, *FEW, *keep, "--precision", "fp32", "--cache-dir", cache]
    text = "This is a sentence that is spoken. " * 12
    result = run("synth", text, "-o", tmp_path / f"a.{suffix}", *options)
    assert result.exit_code == 130
    assert (tmp_path / f"a.{suffix}").read_bytes() == b"before"
    partial = list(tmp_path.glob(f"a.*.partial.{suffix}"))
    assert len(partial) == len(keep)
    if keep:
        assert soundfile.info(str(partial[0])).frames == written[0]
        assert str(partial[0]) in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full in this file system")
@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_full_disk(stream: list, cache: Path):
    found = error("synth", "hi", "-o", "/dev/full", *TINY, *FEW, *stream, "--cache-dir", cache)
    assert found["type"] == "InvalidOption"
    assert "'/dev/full' cannot be written (No space left on device)" in found["message"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout in this file system")
def test_stdout_by_name_and_descriptors(cache: Path, tmp_path: Path):
    """What is said for people goes to stderr then, or it would be in the audio."""
    command = [sys.executable, "-m", "accelerator", "synth", "Hello", *TINY, *FEW, "--cache-dir", str(cache)]
    command += ["--precision", "fp32"]
    answer("synth", "Hello", *TINY, *FEW, "--cache-dir", cache, "--precision", "fp32", "-o", tmp_path / "a.wav")
    expected = (tmp_path / "a.wav").read_bytes()
    piped = subprocess.run([*command, "-o", "/dev/stdout"], capture_output=True, timeout=100)
    assert piped.stdout == expected
    assert b"s of speech" in piped.stderr
    with open(tmp_path / "b.wav", "wb") as file:
        subprocess.run([*command, "-o", "/dev/stdout"], stdout=file, stderr=subprocess.PIPE, check=True, timeout=100)
    assert (tmp_path / "b.wav").read_bytes() == expected
    if shutil.which("bash"):
        words = " ".join(map(shlex.quote, command))
        script = f"{words} -o >(cat > {shlex.quote(str(tmp_path / 'c.wav'))}); sleep 1"
        subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=100)
        assert (tmp_path / "c.wav").read_bytes() == expected


@pytest.mark.parametrize(("data", "says"), [(b"", "empty"), (b"\xff\xfe", "UTF-8"), (b"a" * 500_000, "split it")])
def test_refuses_what_stdin_says(data: bytes, says: str, tmp_path: Path):
    found = error("synth", "-", "-o", tmp_path / "a.wav", input=data)
    assert found["type"] == "InvalidText"
    assert says in found["message"]


def test_refuses_a_damaged_checkpoint(tmp_path: Path):
    (tmp_path / "engine.safetensors").write_bytes(b"nonsense")
    found = error("synth", "hi", "-o", tmp_path / "a.wav", "--checkpoint", tmp_path / "engine.safetensors")
    assert found["type"] == "EngineError"
