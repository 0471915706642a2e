"""`accelerator synth`: one text to one WAV file, and what it cost."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from ..errors import InvalidOption, InvalidReference, InvalidText
from . import engine as engines
from . import formats
from .console import Output
from .options import CacheDir, Checkpoint, Debug, Engine, Json, Precision, PrecisionName, Size, Threads, Verbose

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_target", "synth", "write_file"]

STDOUT = Path("-")
_HEADER_BYTES = 44


def synth(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(help='What to say; "-" reads it from stdin.')],
    output: Annotated[Path, typer.Option("--output", "-o", help='The WAV file to write; "-" is stdout.')],
    engine: Engine = "reference",
    size: Size = None,
    checkpoint: Checkpoint = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="A recording of the voice to speak in, 5 to 15 seconds.")
    ] = None,
    reference_text: Annotated[str | None, typer.Option("--reference-text", help="What the recording says.")] = None,
    voice: Annotated[str | None, typer.Option("--voice", help="Instead: a voice the engine knows by name.")] = None,
    precision: Precision = PrecisionName.auto,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Same seed, same audio, on one machine with one tuning: another processor, another version of this "
            "package or of what it runs on, another --precision or --threads, or a change by `accelerator tune` may "
            "give another."
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus mass, above 0 up to 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Candidates kept.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Frames at most.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Take chunks as they are ready; with -o - they are written at once.")
    ] = False,
    threads: Threads = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Speak a text into a WAV file."""
    out: Output = ctx.obj
    if output == STDOUT and out.json:
        raise typer.BadParameter("stdout takes either the audio or the JSON", param_hint="--output")
    engines.check_choice(engine, size, checkpoint)
    text = _read_stdin() if text == "-" else text
    sampling: dict[str, Any] = {
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
    }
    _check_early(text, output, reference, reference_text, sampling)
    if voice is not None and reference is not None:
        raise typer.BadParameter("give --voice or --reference, not both", param_hint="--voice")
    options = {"precision": precision.value, "threads": threads, "cache_dir": cache_dir}
    with out.progress() as progress:
        optimizer = engines.open_engine(out, engine, size, checkpoint, progress=progress, **options)
        with_voice = reference is not None
        engines.prepare(optimizer, encoder=with_voice)  # before the clock of the request starts
    spoken = {"voice": voice, **sampling}
    with optimizer:
        if stream:
            result = _stream(optimizer, output, text, reference, reference_text, spoken)
        else:
            speech = optimizer.synthesize(text, reference, reference_text, **spoken)
            write_file(output, speech.audio, speech.sample_rate)
            result = {"sample_rate": speech.sample_rate, "samples": len(speech.audio), "metrics": speech.metrics}
    _report(out, {"output": str(output), "engine": engine, **result})


def write_file(target: Path, audio: np.ndarray, sample_rate: int) -> None:
    """A WAV file, atomically, or to stdout for "-". Raises InvalidOption where it cannot be written."""
    from ..audio import write_wav

    if target == STDOUT:
        write_wav(_stdout(), audio, sample_rate)
        return
    try:
        write_wav(target, audio, sample_rate)
    except OSError as error:
        raise InvalidOption(
            f"{str(target)!r} cannot be written ({error.strerror or error}): choose another --output"
        ) from error


def check_target(target: Path) -> None:
    """Raises InvalidOption for a path that no file can have."""
    if target == STDOUT:
        return
    if target.is_dir():
        raise InvalidOption(f"{str(target)!r} cannot be written: it is a directory, name a file in it")
    if not target.resolve().parent.is_dir():
        raise InvalidOption(f"{str(target)!r} cannot be written: its directory does not exist, make it first")


def _check_early(text: str, output: Path, reference: Path | None, reference_text: str | None, sampling: Any) -> None:
    """What would otherwise fail only after minutes of loading or exporting."""
    from ..speech import SamplingParams
    from ..text import check_text

    check_text(text)
    SamplingParams(**sampling)
    if reference is None and reference_text is not None:
        raise InvalidReference("--reference-text without --reference: give both or neither")
    if reference is not None and not reference.is_file():
        raise InvalidReference(f"the reference audio {str(reference)!r} does not exist")
    check_target(output)


def _stream(
    optimizer: Any, output: Path, text: str, reference: Path | None, reference_text: str | None, sampling: Any
) -> dict[str, Any]:
    import numpy as np

    chunks = optimizer.stream(text, reference, reference_text, **sampling)
    pieces: list[np.ndarray] = []
    count = samples = 0
    rate = 0
    for chunk in chunks:
        if output == STDOUT:
            if not count:
                _stdout().write(_endless_header(chunk.sample_rate))
            _stdout().write(_steps(chunk.audio, chunk.sample_rate))
            _stdout().flush()
        else:
            pieces.append(chunk.audio)
        count, samples, rate = count + 1, samples + len(chunk.audio), chunk.sample_rate
    if output != STDOUT:
        write_file(output, np.concatenate(pieces) if pieces else np.zeros(0, np.float32), rate or optimizer.sample_rate)
    return {"sample_rate": rate, "samples": samples, "chunks": count, "metrics": chunks.metrics}


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
    for fallback in metrics["fallback"]:
        out.note(f"Fallback: {fallback['part']} ran in PyTorch: {fallback['reason']}: {fallback['message']}")


def _read_stdin() -> str:
    """The text on stdin; a shell's newline at its end is not part of it. Bounded, since a pipe need not end."""
    from ..text import MAX_CHARS

    data = typer.get_binary_stream("stdin").read(4 * MAX_CHARS + 4)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.end >= len(data) > 4 * MAX_CHARS:  # cut within a character: too long in any case
            text = data.decode("utf-8-sig", "replace")
        else:
            raise InvalidText(f"the text on stdin is not UTF-8 (byte {error.start}): convert it first") from error
    return text.removesuffix("\n").removesuffix("\r")


def _stdout() -> BinaryIO:
    return cast(BinaryIO, sys.stdout.buffer)


def _steps(audio: np.ndarray, sample_rate: int) -> bytes:
    """The 16-bit samples that a WAV file of this audio would have."""
    from ..audio import write_wav

    file = io.BytesIO()
    write_wav(file, audio, sample_rate)
    return file.getvalue()[_HEADER_BYTES:]


def _endless_header(sample_rate: int) -> bytes:
    """A WAV header for a stream whose length is not known yet, as ffmpeg and sox write it."""
    unknown = 0xFFFFFFFF
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", unknown, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16, b"data", unknown),
    )
