"""`accelerator bench`: one command for each measurement in `accelerator.benchmark`, and files for their results."""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidOption
from . import engine as engines
from . import formats
from .group import Command
from .measures import COMMAND, WITH_PEERS, Measures
from .options import (
    CacheDir,
    Checkpoint,
    Debug,
    PrecisionName,
    ProofName,
    Providers,
    Reference,
    ReferenceText,
    Size,
    SizeName,
    Threads,
    Verbose,
    VoiceName,
)
from .synth import check_target

__all__ = ["app"]

app = typer.Typer(
    cls=Measures,
    help="Measure on this machine. Without a command: `engine`, the comparison with PyTorch; for those "
    "with peers `peers`.",
    rich_markup_mode=None,
)

Precisions = Annotated[
    list[PrecisionName] | None, typer.Option("--precision", help="Repeat it for several. [default: all]")
]
_ROUNDS = "Rounds that medians are taken of. [default: {}]"
Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help=_ROUNDS.format(5))]
FewRounds = Annotated[int | None, typer.Option("--rounds", min=1, help=_ROUNDS.format(3))]
_STEPS = "Steps whose mean is a frame's time{}. [default: 24{}]"
Steps = Annotated[int | None, typer.Option("--frames", min=1, help=_STEPS.format("", ""))]
Frames = Annotated[
    int | None,
    typer.Option("--frames", min=1, help=_STEPS.format(", and frames of speech", "; of speech a whole sentence")),
]
SegmentFrames = Annotated[
    int | None, typer.Option("--frames", min=1, help="Frames of each segment at most. [default: 32]")
]
Seconds = Annotated[
    float | None, typer.Option("--seconds", min=0.1, help="In place of --frames: as many as so much speech has.")
]
Measured = Annotated[
    str,
    typer.Option(
        "--engine",
        help="reference, or fish-speech with --checkpoint. (`bench feed-forward` is about VITS.)",
    ),
]
TrueSize = Annotated[
    SizeName | None, typer.Option("--size", help="Size of the reference engine. [default: s1-mini]", show_default=False)
]
_SCENARIOS = "throughput, first-audio, voice, long-text, callers, memory or neighbours"  # without importing them
Contexts = Annotated[
    list[int] | None,
    typer.Option("--context", min=1, help="Positions before the first frame; repeatable. [default: 200, 1500]"),
]
Proof = Annotated[
    ProofName, typer.Option("--proof", help="warn also times what the proof rejects, as it may random weights.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Only shows that everything runs.")]
VoiceFile = Annotated[
    Path | None, typer.Option("--checkpoint", help="The trained voice's file. [default: the bundled one]")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the table to this file.")]
Svg = Annotated[Path | None, typer.Option("--svg", help="Write the chart to this file.")]


@app.command("engine", cls=Command)
def engine_(
    ctx: typer.Context,
    engine: Measured = "reference",
    size: TrueSize = None,
    checkpoint: Checkpoint = None,
    precision: Precisions = None,
    rounds: Rounds = None,
    frames: Frames = None,
    seconds: Seconds = None,
    context: Contexts = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also PyTorch under torch.compile (needs a C++ compiler, and minutes).")
    ] = False,
    proof: Proof = ProofName.strict,
    threads: Threads = None,
    providers: Providers = None,
    cache_dir: CacheDir = None,
    quick: Quick = False,
    json: JsonFile = None,
    markdown: Markdown = None,
    svg: Svg = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare PyTorch and what this package makes of it: steps, codec, speech, memory."""
    from .. import benchmark

    given = _of_an_engine(engine, size, checkpoint, frames, seconds, json, markdown, svg)
    given |= {"rounds": rounds, "proof": proof.value, "threads": threads, "cache_dir": cache_dir, "quick": quick}
    given |= {"precisions": _fixed(precision), "contexts": tuple(context) if context else None, "compiled": compiled}
    if (asked := engines.split_providers(providers)) is not None:
        given["providers"] = (asked,) if isinstance(asked, str) else tuple(asked)
    _measure(ctx, benchmark, benchmark.BenchOptions(**_known(given)), json, markdown, svg)


@app.command("serving", cls=Command)
def serving_(
    ctx: typer.Context,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", help=f"{_SCENARIOS}; repeatable. [default: all]")
    ] = None,
    engine: Measured = "reference",
    size: Size = None,
    checkpoint: Checkpoint = None,
    precision: Annotated[
        list[PrecisionName] | None, typer.Option("--precision", help="One. [default: this machine's]")
    ] = None,
    rounds: FewRounds = None,
    frames: SegmentFrames = None,
    seconds: Seconds = None,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Of each process of `neighbours`. [default: 60]")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="10,000 words and 1,000 requests, too.")] = False,
    proof: Proof = ProofName.strict,
    threads: Threads = None,
    cache_dir: CacheDir = None,
    quick: Quick = False,
    json: JsonFile = None,
    markdown: Markdown = None,
    svg: Svg = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure batches, streams, known voices, long text, callers, memory, and processes beside each other."""
    from ..benchmark import serving

    given = _of_an_engine(engine, size, checkpoint, frames, seconds, json, markdown, svg)
    given |= {"rounds": rounds, "proof": proof.value, "threads": threads, "cache_dir": cache_dir, "quick": quick}
    if precision and len(precision) > 1:
        raise typer.BadParameter("serving is measured at one precision", param_hint="--precision")
    given |= {"requests": requests}
    given |= {"scenarios": tuple(scenario or ()), "full": full, "precision": (_fixed(precision) or [None])[0]}
    _measure(ctx, serving, serving.ServingOptions(**_known(given)), json, markdown, svg)


@app.command("quality", cls=Command)
def quality_(
    ctx: typer.Context,
    engine: Annotated[
        str, typer.Option("--engine", help="reference, the voice in the box; or another one with --checkpoint.")
    ] = "reference",
    checkpoint: VoiceFile = None,
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option(
            "--precision",
            help="Repeat it for several. [default: reference: all; other engines: what the optimizer chooses]",
        ),
    ] = None,
    sentences: Annotated[
        int | None,
        typer.Option("--sentences", min=1, help="How many are said. [default: 200; reference: 120, of the held-out]"),
    ] = None,
    recogniser: Annotated[
        str | None,
        typer.Option("--recogniser", help="moonshine, whisper or pocketsphinx. [default: the best that is installed]"),
    ] = None,
    whisper: Annotated[
        Path | None,
        typer.Option("--whisper", help="A folder with a Whisper, as faster-whisper reads it, that listens as well."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="A file of what is said, a sentence a line. [default: plain English]")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Of that text, for Whisper: de, ja, ... [default: en]")
    ] = None,
    voice: VoiceName = None,
    reference: Reference = None,
    reference_text: ReferenceText = None,
    proof: Annotated[
        ProofName | None, typer.Option("--proof", help="warn lets be heard what the proof rejects. [default: strict]")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="Of reference: also this way of storing weights; repeatable.")
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("--draws", min=1, help="Of reference: how often each is said, by other seeds. [default: 1]"),
    ] = None,
    cache_dir: CacheDir = None,
    json: JsonFile = None,
    markdown: Markdown = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure how well a trained voice speaks, not how fast: what each way to run it costs in words understood.

    Needs the extra `hearing`; for the voice in the box also flite.
    """
    from ..benchmark import listening, quality

    _check_targets(json, markdown)
    given: dict[str, Any] = {"sentences": sentences, "recogniser": recogniser, "whisper": whisper}
    given |= {"precisions": _fixed(precision), "cache_dir": cache_dir}
    of_others = {
        "text": text,
        "language": language,
        "voice": voice,
        "reference": reference,
        "reference_text": reference_text,
        "proof": None if proof is None else proof.value,
    }
    of_reference = {"recipes": tuple(recipe) if recipe else None, "draws": draws}
    _check_of(engine, of_others if engine == "reference" else of_reference)
    if engine == "reference":
        options = quality.QualityOptions(voice=checkpoint, **_known(given | of_reference))
        _measure(ctx, quality, options, json, markdown)
        return
    engines.check_choice(engine, None, checkpoint)
    given |= {"engine": engine, "checkpoint": checkpoint}
    _measure(ctx, listening, listening.ListeningOptions(**_known(given | of_others)), json, markdown)


def _check_of(engine: str, others: Mapping[str, Any]) -> None:
    """Refuse options that another kind of engine has."""
    for name, value in others.items():
        if value is not None:
            option = f"--{name.rstrip('s') if name == 'recipes' else name}".replace("_", "-")
            raise typer.BadParameter(f"{option} is not for --engine {engine}", param_hint=option)


@app.command("recipes", cls=Command)
def recipes_(
    ctx: typer.Context,
    checkpoint: VoiceFile = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="Only this one; repeatable. [default: all]")
    ] = None,
    sentences: Annotated[
        int | None, typer.Option("--sentences", min=1, help="Held-out sentences. [default: 12]")
    ] = None,
    cache_dir: CacheDir = None,
    json: JsonFile = None,
    markdown: Markdown = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare what ways of storing weights cost the trained voice."""
    from ..benchmark import recipes

    _check_targets(json, markdown)
    given: dict[str, Any] = {"voice": checkpoint, "recipes": tuple(recipe) if recipe else None}
    given |= {"sentences": sentences, "cache_dir": cache_dir}
    _measure(ctx, recipes, recipes.RecipeOptions(**_known(given)), json, markdown)


@app.command("llama-cpp", cls=Command)
def llama_cpp_(
    ctx: typer.Context,
    engine: Annotated[
        str, typer.Option("--engine", help="reference, or fish-speech or spark-tts with --checkpoint.")
    ] = "reference",
    size: TrueSize = None,
    checkpoint: Checkpoint = None,
    precision: Annotated[
        list[PrecisionName] | None, typer.Option("--precision", help="Repeat it for several. [default: int4, int8]")
    ] = None,
    rounds: Rounds = None,
    frames: Steps = None,
    context: Annotated[
        list[int] | None,
        typer.Option(
            "--context", min=1, help="Positions before the first frame; repeatable. [default: 200, 600, 1500]"
        ),
    ] = None,
    proof: Proof = ProofName.strict,
    threads: Threads = None,
    cache_dir: CacheDir = None,
    quick: Quick = False,
    json: JsonFile = None,
    markdown: Markdown = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the language model's steps beside llama.cpp (needs llama-cpp-python and gguf)."""
    from ..benchmark import BenchOptions, yardstick

    given = _of_an_engine(engine, size, checkpoint, frames, None, json, markdown, also=("spark-tts",))
    given |= {"rounds": rounds, "proof": proof.value, "threads": threads, "cache_dir": cache_dir, "quick": quick}
    given |= {"precisions": _fixed(precision), "contexts": tuple(context) if context else None}
    _measure(ctx, yardstick, BenchOptions(**{**yardstick.DEFAULTS, **_known(given)}), json, markdown)


@app.command("feed-forward", cls=Command)
def feed_forward_(
    ctx: typer.Context,
    engine: Annotated[
        str, typer.Option("--engine", help="vits; or spark-tts with --checkpoint, whose codec is measured alone.")
    ] = "vits",
    checkpoint: Checkpoint = None,
    rounds: FewRounds = None,
    threads: Threads = None,
    cache_dir: CacheDir = None,
    quick: Quick = False,
    json: JsonFile = None,
    markdown: Markdown = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure VITS, and long texts on a pool of threads (needs transformers); or the decoder of a codec.

    A codec's decoder is measured in PyTorch and on each backend that was proven here, in one run.
    """
    from ..benchmark import codec, feed_forward

    _check_targets(json, markdown)
    given = _known({"rounds": rounds, "threads": threads, "cache_dir": cache_dir, "quick": quick})
    if engine == "vits":
        _check_of(engine, {"checkpoint": checkpoint})
        _measure(ctx, feed_forward, feed_forward.FeedForwardOptions(**given), json, markdown)
        return
    if engine not in codec.ENGINES or checkpoint is None:
        raise typer.BadParameter("vits, or spark-tts with --checkpoint", param_hint="--engine")
    _measure(ctx, codec, codec.CodecOptions(checkpoint, engine, **given), json, markdown)


@app.command("peers", cls=Command)
def peers_(
    ctx: typer.Context,
    engine: Annotated[str, typer.Option("--engine", help=f"{', '.join(WITH_PEERS)}, with --checkpoint.")] = "piper",
    checkpoint: Checkpoint = None,
    voice: VoiceName = None,
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option("--precision", help="Repeat it for several. [default: what the optimizer chooses]"),
    ] = None,
    rounds: Rounds = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", min=1, help="Of an engine that clones: of a text at most. [default: its own end]"),
    ] = None,
    proof: Proof = ProofName.strict,
    threads: Threads = None,
    cache_dir: CacheDir = None,
    json: JsonFile = None,
    markdown: Markdown = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare an engine as it ships, other runtimes with the same voice, and this package: speed and first audio.

    Peers whose package is not installed are left out: sherpa-onnx and openvino.
    Without --checkpoint kitten is measured with random weights. Engines that clone voices are given a synthetic
    recording, and measured with a voice that is known, and one that is new.
    """
    from ..benchmark import peers
    from ..benchmark.peers_arms import PEERS

    if checkpoint is not None or engine not in PEERS or PEERS[engine].random is None:
        engines.check_choice(engine, None, checkpoint)
    _check_targets(json, markdown)
    given: dict[str, Any] = {"engine": engine, "checkpoint": checkpoint, "voice": voice, "rounds": rounds}
    given |= {"threads": threads, "precisions": _fixed(precision), "cache_dir": cache_dir}
    given |= {"frames": frames, "proof": proof.value}
    _measure(ctx, peers, peers.PeerOptions(**_known(given)), json, markdown)


@app.command("tables", cls=Command)
def tables_(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Has the page, index.md, and records, results/DATE-CPU/NAME.json.")
    ] = Path("docs/benchmarks"),
    check: Annotated[bool, typer.Option("--check", help="Only say whether the page is what it should be.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Make the tables of the page of benchmarks from what benchmarks wrote by --json."""
    from ..benchmark.page import updated

    page = folder / "index.md"
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"{str(page)!r} cannot be read: {error.strerror or error}: name its folder") from error
    wanted = updated(text, folder / "results")
    if wanted == text:
        ctx.obj.line(f"{page} is up to date")
    elif check:
        raise InvalidOption(f"{page} differs from its records: run `accelerator bench tables {folder}`")
    else:
        _write(page, wanted)
        ctx.obj.line(f"wrote {page}")


def _of_an_engine(
    engine: str,
    size: SizeName | None,
    checkpoint: Path | None,
    frames: int | None,
    seconds: float | None,
    *targets: Path | None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """What the options that choose an engine, and how much it speaks, say to a benchmark.

    also: engines with peers that it knows as well.
    """
    if engine == "vits":
        raise typer.BadParameter("VITS is measured by `bench feed-forward`", param_hint="--engine")
    if engine in WITH_PEERS and engine not in also:
        raise typer.BadParameter(f"{engine} is measured by `bench peers`", param_hint="--engine")
    engines.check_choice(engine, size, checkpoint)
    if frames is not None and seconds is not None:
        raise typer.BadParameter("give --frames or --seconds, not both", param_hint="--seconds")
    _check_targets(*targets)
    if seconds is not None:
        frames = math.ceil(seconds * _frame_rate(engine, size))
    return {
        "engine": engine,
        "size": size.value if size is not None else None,
        "checkpoint": checkpoint,
        "frames": frames,
    }


def _check_targets(*targets: Path | None) -> None:
    for target in targets:
        if target is not None:
            check_target(target)


def _fixed(precision: list[PrecisionName] | None) -> tuple[str, ...] | None:
    given = precision or []
    if PrecisionName.auto in given:
        raise typer.BadParameter("a benchmark compares fixed precisions: int4, int8, fp32", param_hint="--precision")
    return tuple(p.value for p in given) or None


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _measure(
    ctx: typer.Context,
    benchmark: Any,
    options: Any,
    json: Path | None,
    markdown: Path | None,
    svg: Path | None = None,
) -> None:
    """Run one of the benchmark's modules, which all have the same three functions; print its table, write its files."""
    out = ctx.obj
    result = {"command": ctx.meta[COMMAND], **benchmark.run(options, report=out.note)}
    table = benchmark.to_markdown(result)
    for target, text in (
        (json, lambda: jsonlib.dumps(formats.plain(result), indent=2, allow_nan=False) + "\n"),
        (markdown, lambda: table),
        (svg, lambda: benchmark.to_svg(result)),
    ):
        if target is not None:
            _write(target, text())
            out.note(f"wrote {target}")
    out.line(table.rstrip("\n"))


def _frame_rate(engine: str, size: SizeName | None) -> float:
    """Frames a second; other engines are of the family whose dimensions the size s1-mini has."""
    from ..reference import SIZES

    codec = SIZES[size.value if engine == "reference" and size is not None else "s1-mini"].codec
    return codec.sample_rate / codec.hop


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"{str(target)!r} cannot be written: {error.strerror or error}") from error
