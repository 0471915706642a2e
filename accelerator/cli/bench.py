"""`accelerator bench`: the options of `accelerator.benchmark` and its `serving`, and files for their results."""

from __future__ import annotations

import json as jsonlib
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidOption
from . import engine as engines
from . import formats
from .console import Output
from .options import CacheDir, Checkpoint, Debug, Engine, PrecisionName, ProofName, Size, Threads, Verbose
from .synth import check_target

__all__ = ["bench"]


def bench(
    ctx: typer.Context,
    engine: Engine = "reference",
    size: Size = None,
    checkpoint: Checkpoint = None,
    precision: Annotated[
        list[PrecisionName] | None, typer.Option("--precision", help="Repeat it for several. [default: all]")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds that medians are taken of.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Frames to generate.")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", min=0.1, help="The same as speech.")] = None,
    context: Annotated[
        list[int] | None, typer.Option("--context", min=1, help="Positions before the first frame; repeatable.")
    ] = None,
    proof: Annotated[
        ProofName,
        typer.Option("--proof", help="warn also times what the proof rejects, as it may random weights."),
    ] = ProofName.strict,
    threads: Threads = None,
    cache_dir: CacheDir = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only shows that everything runs.")] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="Measure how well the trained voice speaks, not how fast (needs flite).")
    ] = False,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="Compare what ways of storing weights cost the trained voice.")
    ] = False,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="With --quality: also this one. With --recipes: only this one. Repeatable."),
    ] = None,
    voice: Annotated[
        Path | None, typer.Option("--voice", help="With --quality, --recipes: the voice's file. [bundled]")
    ] = None,
    sentences: Annotated[
        int | None,
        typer.Option("--sentences", min=1, help="Held-out sentences. [120 with --quality, 12 with --recipes]"),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("--draws", min=1, help="With --quality: how often each sentence is said, by other seeds. [1]"),
    ] = None,
    serving: Annotated[
        bool, typer.Option("--serving", help="Measure batches, streams, voices, long text, callers and memory.")
    ] = False,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", help="With --serving: only this one; repeatable. [default: all]")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also PyTorch under torch.compile (needs a C++ compiler, and minutes).")
    ] = False,
    llama_cpp: Annotated[
        bool,
        typer.Option("--llama-cpp", help="Measure the language model's steps beside llama.cpp, which must be there."),
    ] = False,
    feed_forward: Annotated[
        bool,
        typer.Option("--feed-forward", help="Measure VITS, and long texts on a pool of threads (needs transformers)."),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="With --serving: 10,000 words and 1,000 requests, too.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the table to this file.")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Write the chart to this file.")] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare PyTorch and ONNX Runtime on this machine."""
    out: Output = ctx.obj
    if engine == "vits":
        raise typer.BadParameter("VITS is measured by --feed-forward, without --engine", param_hint="--engine")
    engines.check_choice(engine, size, checkpoint)
    if frames is not None and seconds is not None:
        raise typer.BadParameter("give --frames or --seconds, not both", param_hint="--seconds")
    if precision and PrecisionName.auto in precision:
        raise typer.BadParameter("a benchmark compares fixed precisions: int4, int8, fp32", param_hint="--precision")
    for target in (json, markdown, svg):
        if target is not None:
            check_target(target)
    for own, asked in (("--llama-cpp", llama_cpp), ("--feed-forward", feed_forward)):
        if asked and (quality or recipes or serving or svg is not None or (llama_cpp and feed_forward)):
            other = "--quality" if quality else "--recipes" if recipes else "--serving" if serving else "--svg"
            other = "--feed-forward" if llama_cpp and feed_forward else other
            raise typer.BadParameter(f"{own} prints a table of its own, without {other}", param_hint=own)
    if compiled and (quality or recipes or serving or llama_cpp or feed_forward):
        raise typer.BadParameter("only the comparison with PyTorch has such an arm", param_hint="--compile")
    if draws is not None and not quality:
        raise typer.BadParameter("only --quality draws several times", param_hint="--draws")
    if recipe and not (quality or recipes):
        raise typer.BadParameter("only --quality and --recipes have recipes", param_hint="--recipe")
    if quality or recipes:
        if quality and recipes:
            raise typer.BadParameter("these are two measures: give one", param_hint="--recipes")
        if engine != "reference":
            what = "quality is" if quality else "recipes are"
            raise typer.BadParameter(f"{what} measured of the reference engine's voice", param_hint="--engine")
        of_voice: dict[str, Any] = {"voice": voice, "recipes": tuple(recipe) if recipe else None}
        of_voice |= {"sentences": sentences, "cache_dir": cache_dir}
        if quality:
            of_voice |= {"precisions": tuple(p.value for p in precision) if precision else None, "draws": draws}
        _of_a_voice(out, "quality" if quality else "recipes", _known(of_voice), json, markdown)
        return
    if feed_forward:
        from ..benchmark import feed_forward as vits

        known = _known({"rounds": rounds, "threads": threads, "cache_dir": cache_dir, "quick": quick})
        _print(out, vits, vits.run(vits.FeedForwardOptions(**known), report=out.note), json, markdown)
        return
    if (scenario or full) and not serving:
        raise typer.BadParameter("only --serving has scenarios", param_hint="--scenario" if scenario else "--full")
    if seconds is not None:
        frames = math.ceil(seconds * _frame_rate(engine, size))
    if serving and (context or (precision and len(precision) > 1)):
        raise typer.BadParameter("--serving measures one precision, and no --context", param_hint="--serving")
    given: dict[str, Any] = {
        "size": size.value if size is not None else None,
        "checkpoint": checkpoint,
        "rounds": rounds,
        "frames": frames,
        "proof": proof.value,
        "threads": threads,
        "cache_dir": cache_dir,
        "quick": quick,
    }
    measure: Any
    options: Any
    if serving:
        from ..benchmark import serving as measure

        given |= {"scenarios": tuple(scenario or ()), "full": full}
        given |= {"precision": precision[0].value if precision else None}
        options = measure.ServingOptions(engine=engine, **_known(given))
    else:
        from .. import benchmark as measure
        from ..benchmark import BenchOptions

        given |= {"precisions": tuple(p.value for p in precision) if precision else None}
        given |= {"contexts": tuple(context) if context else None, "compiled": compiled}
        if llama_cpp:
            from ..benchmark import yardstick as measure

            given = {**measure.DEFAULTS, **_known(given)}
        options = BenchOptions(engine=engine, **_known(given))
    result = measure.run(options, report=out.note)
    table = measure.to_markdown(result)
    for target, text in (
        (json, lambda: jsonlib.dumps(formats.plain(result), indent=2, allow_nan=False) + "\n"),
        (markdown, lambda: table),
        (svg, lambda: measure.to_svg(result)),
    ):
        if target is not None:
            _write(target, text())
            out.note(f"wrote {target}")
    out.line(table.rstrip("\n"))


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _of_a_voice(out: Output, measured: str, given: dict[str, Any], json: Path | None, markdown: Path | None) -> None:
    from ..benchmark import quality, recipes

    measure: Any = quality if measured == "quality" else recipes
    options = (quality.QualityOptions if measured == "quality" else recipes.RecipeOptions)(**given)
    _print(out, measure, measure.run(options, report=out.note), json, markdown)


def _print(out: Output, measure: Any, result: Any, json: Path | None, markdown: Path | None) -> None:
    table = measure.to_markdown(result)
    if json is not None:
        _write(json, jsonlib.dumps(formats.plain(result), indent=2, allow_nan=False) + "\n")
    if markdown is not None:
        _write(markdown, table)
    out.line(table.rstrip("\n"))


def _frame_rate(engine: str, size: Any) -> float:
    """Frames a second; other engines are of the family whose dimensions the size s1-mini has."""
    from ..reference import SIZES

    codec = SIZES[size.value if engine == "reference" and size is not None else "s1-mini"].codec
    return codec.sample_rate / codec.hop


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"{str(target)!r} cannot be written: {error.strerror or error}") from error
