"""`accelerator synth`: one text to one audio file, and what it cost."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from ..errors import GenerationError, InvalidOption, InvalidReference, InvalidText
from . import engine as engines
from . import formats
from .console import Output
from .options import (
    ENGINES,
    AudioFormat,
    CacheDir,
    Debug,
    EncoderFile,
    EngineOptions,
    Json,
    Precision,
    PrecisionName,
    Providers,
    Prune,
    ReferenceText,
    Size,
    SynthesizerFile,
    Threads,
    UnspeakableName,
    Verbose,
    VocoderFile,
    VoiceName,
    Voices,
)

if TYPE_CHECKING:
    import numpy as np

    from ..audio.checks import AudioWriter
    from ..pipeline.stream import SpeechStream

__all__ = ["check_format", "check_target", "report_spoken", "synth", "write_file"]

STDOUT = Path("-")


def synth(
    ctx: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help='The file to write, its suffix says the format; "-" is stdout.'),
    ] = None,
    text: Annotated[str | None, typer.Argument(help='What to say; "-" reads it from stdin.')] = None,
    said: Annotated[str | None, typer.Option("--text", help="Another way to give TEXT.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help='Instead: a text file (UTF-8) to speak; "-" is stdin.')
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", help="In place of --output: a folder for a file named by the time."),
    ] = None,
    format: AudioFormat = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help=f"The engine: {ENGINES}; spark-tts-onnx is what `accelerator convert` wrote. All but reference need "
            "--checkpoint.",
        ),
    ] = "reference",
    size: Size = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "--model-dir",
            help="The engine's checkpoint: its directory, for kokoro and piper the .onnx file, for reference a file of "
            "its save(), for mockingbird a checkout of it.",
        ),
    ] = None,
    encoder: EncoderFile = None,
    synthesizer: SynthesizerFile = None,
    vocoder: VocoderFile = None,
    voice: VoiceName = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            "--prompt-path",
            help="A recording of the voice to speak in, 5 to 12 seconds; with --reference-text.",
        ),
    ] = None,
    reference_text: ReferenceText = None,
    voices: Voices = None,
    precision: Precision = PrecisionName.auto,
    prune: Prune = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Same seed, same audio, on one machine with one tuning: another processor, another version of this "
            "package or of what it runs on, another --precision or --threads, or a change by `accelerator tune` may "
            "give another."
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. [default: the engine's]")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus mass, above 0 up to 1. [default: the engine's]")] = None,
    top_k: Annotated[int | None, typer.Option(help="Candidates kept. [default: the engine's]")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Frames of each segment at most. [default: the engine's]")
    ] = None,
    option: EngineOptions = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Write audio as soon as there is any, not by whole segments.")
    ] = False,
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial", help="When interrupted, keep what was spoken, under another name.")
    ] = False,
    unspeakable: Annotated[
        UnspeakableName, typer.Option(help="Text that the voice cannot speak: refuse all of it, or leave that out.")
    ] = UnspeakableName.error,
    threads: Threads = None,
    providers: Providers = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Speak a text into an audio file: WAV, FLAC, MP3, Ogg Vorbis, Opus or m4a.

    The file grows under the name NAME.*.partial.SUFFIX and gets its own when it is complete.
    """
    out: Output = ctx.obj
    output = _target(_named(output, output_dir, format))
    if output == STDOUT and out.json:
        raise typer.BadParameter("stdout takes either the audio or the JSON", param_hint="--output")
    models = {"encoder": encoder, "synthesizer": synthesizer, "vocoder": vocoder}
    engines.check_choice(engine, size, checkpoint, models)
    if said is not None and text is not None:
        raise typer.BadParameter("give TEXT or --text, not both", param_hint="--text")
    text = _text(out, said if text is None else text, file)
    sampling: dict[str, Any] = {
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
    }
    written = engines.split_options(option)
    if twice := [name for name in written if sampling.get(name) is not None]:
        raise typer.BadParameter(f"{twice[0]} is given twice: leave one out", param_hint="--option")
    _check_early(text, output, format, reference, reference_text, sampling)
    if voice is not None and reference is not None:
        raise typer.BadParameter("give --voice or --reference, not both", param_hint="--voice")
    options: dict[str, Any] = {"precision": precision.value, "prune": prune, "threads": threads, "cache_dir": cache_dir}
    options |= {"providers": providers, "voices": voices}
    with out.progress() as progress:
        optimizer = engines.open_engine(out, engine, size, checkpoint, models, progress=progress, **options)
        with optimizer:
            growing = _Growing(output, format, at_once=stream)
            own = engines.own_options(optimizer.adapter, written)
            asked = {"voice": voice, "unspeakable": unspeakable.value, "eager": stream, **sampling, **own}
            asked["on_restart"] = None if stream else growing.restart
            asked_now = optimizer.stream(text, reference, reference_text, **asked)  # refused before minutes of exports
            engines.prepare(optimizer, encoder=not asked_now.knows_voice)  # before the clock of the request starts
            speech = optimizer.stream(text, reference, reference_text, **asked)
            progress.speaking(lambda: _so_far(speech))
            result = _speak(out, speech, growing, keep=keep_partial)
    _report(out, {"output": str(output), "engine": engine, **result})


class _Growing:
    """The file on its way: begun with the first chunk, which tells the rate, and anew where speech begins anew."""

    def __init__(self, output: Path, format: str | None, *, at_once: bool) -> None:
        """at_once: into a pipe, too; else that gets all at the end, since the header of a whole file tells its length.

        Raises InvalidOption for a format that there is not.
        """
        from ..audio.files import audio_format, is_stream

        self._output = output
        self._format = format if output == STDOUT else audio_format(output, format).name
        self._as_whole = not at_once and (output == STDOUT or is_stream(output))
        self._writer: AudioWriter | None = None
        self._begin()

    def _begin(self) -> None:
        self._whole = io.BytesIO() if self._as_whole else None
        self._rate = self._samples = self._chunks = 0

    def write(self, audio: np.ndarray, sample_rate: int) -> None:
        """Raises InvalidOption where it cannot be written."""
        from ..audio.files import AudioWriter

        with _told(self._output):
            if self._writer is None:
                target = self._whole or (_stdout() if self._output == STDOUT else self._output)
                self._writer = AudioWriter(target, sample_rate, self._format)
            self._writer.write(audio)
        self._rate, self._samples, self._chunks = sample_rate, self._samples + len(audio), self._chunks + 1

    def restart(self) -> None:
        """Drop what was written."""
        self.discard()
        self._begin()

    def close(self) -> dict[str, Any]:
        """What was written. Raises InvalidOption where it cannot be, GenerationError without any audio."""
        if self._writer is None:
            raise GenerationError("the engine produced no audio: try another text, seed or reference")
        with _told(self._output):
            self._writer.close()
            if self._whole is not None:
                _write(self._output, self._whole.getvalue())
        figures = {"sample_rate": self._rate, "samples": self._samples, "chunks": self._chunks}
        return {"format": self._writer.format, **figures}

    def keep(self) -> Path | None:
        """Where what was spoken so far stays; None if nothing does."""
        if self._writer is not None and self._samples:
            return self._writer.keep()
        self.discard()
        return None

    def discard(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.discard()


def _speak(out: Output, speech: SpeechStream, file: _Growing, *, keep: bool) -> dict[str, Any]:
    """Write the chunks as they come. Raises what speaking raises, InvalidOption where they cannot be written."""
    try:
        for chunk in speech:
            file.write(chunk.audio, chunk.sample_rate)
        written = file.close()
    except BaseException:
        speech.close()
        if not keep:
            file.discard()
        elif (kept := file.keep()) is not None:
            out.note(f"Kept what was spoken in {kept}.")
        raise
    return {**written, "metrics": speech.metrics}


def _write(output: Path, data: bytes) -> None:
    if output == STDOUT:
        _stdout().write(data)
    else:
        output.write_bytes(data)


@contextmanager
def _told(output: Path) -> Iterator[None]:
    """What the system says of a file, as an error of ours."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InvalidOption(
            f"{str(output)!r} cannot be written ({error.strerror or error}): choose another --output"
        ) from error


def write_file(target: Path, audio: np.ndarray, sample_rate: int, format: str | None = None) -> None:
    """An audio file, atomically, or to stdout for "-". Raises InvalidOption where it cannot be written."""
    from ..audio.checks import write_audio

    with _told(target):
        write_audio(_stdout() if target == STDOUT else target, audio, sample_rate, format)


def check_target(target: Path) -> None:
    """Raises InvalidOption for a path that no file can have."""
    if target == STDOUT:
        return
    if target.is_dir():
        raise InvalidOption(f"{str(target)!r} cannot be written: it is a directory, name a file in it")
    if not target.exists() and not target.resolve().parent.is_dir():
        raise InvalidOption(f"{str(target)!r} cannot be written: its directory does not exist, make it first")


def check_format(target: Path, format: str | None) -> None:
    """Raises InvalidOption for a format that there is not."""
    from ..audio.files import audio_format

    audio_format(io.BytesIO() if target == STDOUT else target, format)


def _target(output: Path) -> Path:
    """The path, or "-" for what is stdout by another name: beside the audio nothing else may go there."""
    if output == STDOUT or not os.path.abspath(output).startswith(("/dev/", "/proc/")):
        return output
    try:
        same = os.path.samestat(os.stat(output), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # ValueError: stdout is no file, as in tests
        return output
    return STDOUT if same and not stat.S_ISCHR(os.stat(output).st_mode) else output


def _check_early(
    text: str, output: Path, format: str | None, reference: Path | None, reference_text: str | None, sampling: Any
) -> None:
    """What would otherwise fail only after minutes of loading or exporting."""
    from ..speech import SamplingParams
    from ..text.check import check_text

    check_text(text)
    SamplingParams(**sampling)
    if reference is None and reference_text is not None:
        raise InvalidReference("--reference-text without --reference: give both or neither")
    if reference is not None and not reference.is_file():
        raise InvalidReference(f"the reference audio {str(reference)!r} does not exist")
    check_target(output)
    check_format(output, format)


def report_spoken(out: Output, info: dict[str, Any], output: Path) -> None:
    """Of what was spoken without an optimizer, which has no metrics."""
    out.document({**info, "path": str(output), "output": str(output)})
    said = (
        f"{output}: {info['seconds']:.2f} s of speech in {formats.seconds(info['elapsed_s'])} "
        f"(rtf {formats.ratio(info['elapsed_s'] / info['seconds'])})"
    )
    (out.note if output == STDOUT else out.line)(said)


def _named(output: Path | None, folder: Path | None, format: str | None) -> Path:
    """The file to write. Raises BadParameter, and InvalidOption for a folder that cannot be."""
    if (output is None) == (folder is None):
        what = "give either" if output is not None else "give one: the file, or a folder for a file named by the time"
        raise typer.BadParameter(f"--output or --output-dir: {what}", param_hint="--output")
    if output is not None:
        return output
    assert folder is not None
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}.{format or 'wav'}"


def _so_far(speech: SpeechStream) -> str:
    metrics = speech.metrics
    segments = metrics["segments"]
    spoken = f"{metrics['audio_s']:.1f} s spoken"
    if len(segments) < 2:
        return spoken
    done = sum(segment["state"] == "done" for segment in segments)
    return f"{done} of {len(segments)} segments, {spoken}"


def _report(out: Output, result: dict[str, Any]) -> None:
    out.document(result)
    metrics = result["metrics"]
    backends = ", ".join(
        f"{part} {backend}"
        + (f" {p}" if backend in ("onnxruntime", "onednn") and (p := metrics["precision"].get(part)) else "")
        for part, backend in metrics["backends"].items()
    )
    line = (
        f"{result['output']}: {metrics['audio_s']:.2f} s of speech in {formats.seconds(metrics['elapsed_s'])} "
        f"(rtf {formats.ratio(metrics['rtf'])}, first audio after {formats.seconds(metrics['ttfa_s'])}; {backends})"
    )
    if result["output"] == str(STDOUT):
        out.note(line)
    else:
        out.line(line)
    if len(metrics["segments"]) > 1:
        again = sum(segment["tries"] > 1 for segment in metrics["segments"])
        out.note(f"{len(metrics['segments'])} segments" + (f", {again} of them tried twice" if again else ""))
    for skipped in metrics["skipped"]:
        out.note(f"Not spoken: {skipped['text']!r} at position {skipped['start']}")
    for fallback in metrics["fallback"]:
        out.note(f"Fallback: {fallback['part']} ran in its own code: {fallback['reason']}: {fallback['message']}")


def _text(out: Output, text: str | None, file: Path | None) -> str:
    """What to say, wherever it comes from. Raises BadParameter, InvalidText."""
    if (text is None) == (file is None):
        what = "give a text or --file, not both" if file is not None else "give a text, or a file of it by --file"
        raise typer.BadParameter(what, param_hint="TEXT")
    if text == "-" or file == Path("-"):
        return _read_stdin()
    if file is not None:
        try:
            with open(file, "rb") as source:
                return _decoded(source.read, str(file))
        except OSError as error:
            raise InvalidText(f"the text file {str(file)!r} cannot be read: {error.strerror or error}") from error
    assert text is not None
    if _names_a_file(text):
        out.note(f"Note: this speaks the name {text!r}. To speak what is in that file: --file {text}")
    return text


def _names_a_file(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except ValueError:  # a NUL; what is too long for a name is no file
        return False


def _read_stdin() -> str:
    if sys.__stdin__ is None:
        raise InvalidText("the text on stdin cannot be read: stdin is closed")
    return _decoded(typer.get_binary_stream("stdin").read, "on stdin")


def _decoded(read: Callable[[int], bytes], where: str) -> str:
    """A text file's text; the newline at its end is not part of it. Bounded, since a pipe need not end."""
    from ..text.check import MAX_CHARS

    data = read(4 * MAX_CHARS + 4)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.end >= len(data) > 4 * MAX_CHARS:  # cut within a character: too long in any case
            text = data.decode("utf-8-sig", "replace")
        else:
            raise InvalidText(f"the text {where} is not UTF-8 (byte {error.start}): convert it first") from error
    return text.removesuffix("\n").removesuffix("\r")


def _stdout() -> BinaryIO:
    if sys.__stdout__ is None:
        raise InvalidOption("'-' cannot be written: stdout is closed")
    return cast(BinaryIO, sys.stdout.buffer)
