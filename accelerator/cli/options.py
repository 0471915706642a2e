"""The options that several commands share."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .console import Output

__all__ = [
    "BOTH_SPELLINGS",
    "ENGINES",
    "AudioFormat",
    "CacheDir",
    "Checkpoint",
    "Debug",
    "EncoderFile",
    "Engine",
    "EngineOptions",
    "Json",
    "Precision",
    "PrecisionName",
    "ProofName",
    "Providers",
    "Prune",
    "Reference",
    "ReferenceText",
    "Size",
    "SizeName",
    "SynthesizerFile",
    "Threads",
    "UnspeakableName",
    "Verbose",
    "VocoderFile",
    "VoiceName",
    "Voices",
]


class PrecisionName(str, Enum):
    auto = "auto"
    int4 = "int4"
    int8 = "int8"
    fp32 = "fp32"


class ProofName(str, Enum):
    strict = "strict"
    warn = "warn"


class UnspeakableName(str, Enum):
    error = "error"
    skip = "skip"


class SizeName(str, Enum):
    tiny = "tiny"
    small = "small"
    s1_mini = "s1-mini"


BOTH_SPELLINGS = {"token_normalize_func": lambda word: word.replace("_", "-")}  # --model_dir for --model-dir


def _json(ctx: typer.Context, value: bool) -> bool:
    if isinstance(ctx.obj, Output):
        ctx.obj.json = ctx.obj.json or value
    return value


def _verbose(ctx: typer.Context, value: bool) -> bool:
    if value and isinstance(ctx.obj, Output):
        ctx.obj.verbosity(logging.INFO)
    return value


def _debug(ctx: typer.Context, value: bool) -> bool:
    if value and isinstance(ctx.obj, Output):
        ctx.obj.verbosity(logging.DEBUG)
    return value


Json = Annotated[
    bool, typer.Option("--json", callback=_json, is_eager=True, help="Print one JSON document to stdout, nothing else.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_verbose, is_eager=True, help="Say on stderr what is being done.")
]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_debug, is_eager=True, help="Show tracebacks and all log records on stderr."),
]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where exports are kept. [default: what `accelerator cache path` prints]"),
]
# Those of `accelerator.engines`, without importing it.
ENGINES = "reference, fish-speech, kitten, kokoro, mockingbird, piper, spark-tts, spark-tts-onnx or vits"
Engine = Annotated[str, typer.Option("--engine", help=f"The engine: {ENGINES}. All but reference need --checkpoint.")]
VoiceName = Annotated[
    str | None,
    typer.Option("--voice", help="A voice that the engine knows by name; `accelerator voices` lists them."),
]
Voices = Annotated[
    str | None,
    typer.Option(
        "--voices",
        metavar="PLACE",
        help="Where encoded recordings are kept: a directory, or redis://host:6379/0; an address with a password is "
        "better given as ACCELERATOR_VOICES. [default: that, else beside the exports]",
        show_default=False,
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option("--reference", help="A recording of the voice to speak in, 5 to 12 seconds; with --reference-text."),
]
ReferenceText = Annotated[str | None, typer.Option("--reference-text", help="What the recording says.")]
AudioFormat = Annotated[
    str | None,
    typer.Option("--format", help="wav, flac, mp3, ogg, opus or m4a. [default: by the suffix; wav for stdout]"),
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An option of the engine's own, speed=1.2 say; repeatable. `accelerator options` lists an engine's.",
    ),
]
Size = Annotated[
    SizeName | None,
    typer.Option("--size", help="Size of the reference engine. [default: small]", show_default=False),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="The engine's checkpoint: its directory, for kokoro and piper the .onnx file, for reference a file of its "
        "save(), for mockingbird a checkout of it.",
    ),
]
EncoderFile = Annotated[Path | None, typer.Option("--encoder", help="Of mockingbird: the speaker encoder's .pt file.")]
SynthesizerFile = Annotated[
    Path | None, typer.Option("--synthesizer", help="Of mockingbird: the synthesizer's .pt file.")
]
VocoderFile = Annotated[
    Path | None,
    typer.Option(
        "--vocoder",
        help="Of mockingbird: the .pt file of HiFi-GAN, Fre-GAN or WaveRNN. Of the three, any that is left out is the "
        "only one in the checkout's own folder.",
    ),
]
Precision = Annotated[
    PrecisionName, typer.Option("--precision", help="The first precision to try; auto is this machine's.")
]
Prune = Annotated[
    float | None,
    typer.Option(
        "--prune",
        help="Share of channels, heads or weights to leave out where the proof allows it and it is faster or smaller; "
        "says what became of it for each part. [default: none]",
        show_default=False,
    ),
]
Providers = Annotated[
    str | None,
    typer.Option(
        "--providers",
        metavar="NAMES",
        help="Execution providers of ONNX Runtime to try for each part, with commas between them, or auto: CUDA and "
        "TensorRT. Used where installed, proven and faster. [default: the CPU only]",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of each session. [default: measured]", show_default=False),
]
