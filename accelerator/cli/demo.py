"""`accelerator demo`: see and hear it on this machine, without an engine of one's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidOption, InvalidReference
from . import converted, formats
from .console import Output
from .options import (
    AudioFormat,
    CacheDir,
    Debug,
    Json,
    PrecisionName,
    Reference,
    ReferenceText,
    Size,
    Verbose,
    VoiceName,
)
from .synth import check_format, check_target, report_spoken, write_file

if TYPE_CHECKING:
    from ..benchmark.demo import DemoResult

__all__ = ["demo"]

_BUSY = 0.2  # CPUs that others used during the rounds
_PLAYERS = (
    ("afplay",),
    ("paplay",),
    ("aplay", "-q"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
)


def demo(
    ctx: typer.Context,
    engine: Annotated[
        str | None,
        typer.Argument(
            metavar="[spark-tts]", help="Instead of the built-in engine: a checkpoint, converted to ONNX files."
        ),
    ] = None,
    model_dir: Annotated[Path | None, typer.Option("--model-dir", help="The checkpoint, with spark-tts.")] = None,
    size: Size = None,
    text: Annotated[str | None, typer.Option("--text", help="What to say. [default: two sentences of its own]")] = None,
    voice: VoiceName = None,
    reference: Reference = None,
    reference_text: ReferenceText = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write, its suffix says the format.")
    ] = Path("demo.wav"),
    format: AudioFormat = None,
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option("--precision", help="Repeat it for several. [default: this machine's, then the others]"),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds that medians are taken of.")] = 3,
    cache_dir: CacheDir = None,
    play: Annotated[bool, typer.Option("--play", help="Play the file when it is written.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Wrap the built-in engine, compare it with PyTorch, and write what it says to a file.

    With spark-tts: convert a checkpoint to ONNX files unless it has them, and write what these say, in the voice of
    --reference or in one that is only described.
    """
    from ..benchmark.demo import TEXT, DemoOptions, run

    out: Output = ctx.obj
    if reference is not None and not reference.is_file():
        raise InvalidReference(f"the reference audio {str(reference)!r} does not exist")
    check_target(output)
    check_format(output, format)
    player = _player() if play else None
    if engine is not None or model_dir is not None:
        if engine != converted.SPARK_TTS:
            raise typer.BadParameter(f"a checkpoint is shown by `demo {converted.SPARK_TTS}` only", param_hint="ENGINE")
        if size is not None or voice is not None or precision:
            raise typer.BadParameter("--size, --voice and --precision are of the built-in engine", param_hint="ENGINE")
        said = text if text is not None else TEXT
        audio, info = converted.demonstrated(out, model_dir, said, reference, reference_text, cache_dir)
        write_file(output, audio, info["sample_rate"], format)
        report_spoken(out, {"engine": engine, **info}, output)
        if player is not None:
            _play(out, player, output)
        return
    options = DemoOptions(
        size=size.value if size is not None else None,
        text=text if text is not None else TEXT,
        speaker=voice,
        reference=reference,
        reference_text=reference_text,
        precisions=tuple(dict.fromkeys(p.value for p in precision)) if precision else None,
        cache_dir=cache_dir,
        rounds=rounds,
    )
    with out.progress() as progress:
        result = run(
            options,
            progress=progress,
            report=out.note,
            write=lambda audio, rate: write_file(output, audio, rate, format),
        )
    out.document({**result.figures, "output": str(output)})
    _show(out, result, output)
    if player is not None:
        _play(out, player, output)


def _show(out: Output, result: DemoResult, output: Path) -> None:
    figures = result.figures
    out.table(
        ("backend", "precision", "rtf>", "frames/s>", "first audio>", "speed-up>"),
        [_row(row) for row in figures["rows"]],
        title=f"Reference engine, size {figures['voice']['size']}: median of {figures['rounds']} rounds by turns",
    )
    out.line(
        "rtf: seconds of work for a second of speech, below 1 is faster than real time. "
        f"PyTorch has its best number of threads, {figures['torch_threads']}. "
        f"Peak memory of all arms together: {formats.size(figures['peak_rss_bytes'])}."
    )
    out.line(f"Wrote {output}: {len(result.audio) / result.sample_rate:.2f} s at {result.sample_rate:,} Hz.")
    if (others := figures["others_cpus"]) is not None and others > _BUSY:
        out.line(f"Something else kept {others:.1f} CPUs busy meanwhile: the machine can do better than this table.")
    if not figures["voice"]["trained"]:
        out.line(f"Note: {figures['voice']['note']}")


def _row(row: dict[str, Any]) -> list[str]:
    precision = row["precision"]
    if row["rejected"]:
        precision += f" ({', '.join(row['rejected'])} rejected by the proof)"
    return [
        row["backend"],
        precision,
        formats.ratio(row["rtf"]),
        f"{row['frames_per_s']:.0f}",
        formats.seconds(row["ttfa_s"]),
        f"{row['speed_up']:.2f} x",
    ]


def _player() -> tuple[str, ...]:
    """The command of the first player there is. Raises InvalidOption without one: better now than after the work."""
    if sys.platform == "win32":
        return ("winsound",)  # a module of Python
    for player in _PLAYERS:
        if shutil.which(player[0]):
            return player
    names = ", ".join(player[0] for player in _PLAYERS)
    raise InvalidOption(f"--play needs one of the players {names}, and none is installed; the file can be opened later")


def _play(out: Output, player: tuple[str, ...], path: Path) -> None:
    if sys.platform == "win32":
        import winsound

        winsound.PlaySound(str(path), winsound.SND_FILENAME)
    elif subprocess.run([*player, str(path)], check=False).returncode:
        out.note(f"{player[0]} could not play {path}.")
