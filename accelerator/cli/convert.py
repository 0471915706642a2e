"""`accelerator convert`: a checkpoint as a folder of ONNX files that speak by themselves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ExportError
from . import formats
from .console import Output
from .group import Command, Listing
from .options import BOTH_SPELLINGS, CacheDir, Debug, Json, PrecisionName, Verbose

if TYPE_CHECKING:
    from ..engines.spark_tts.convert import Verdict

__all__ = ["FOLDER", "app", "failure", "run"]

FOLDER = "onnx"  # of a checkpoint, where its conversion lies

app = typer.Typer(
    cls=Listing,
    help="Turn a checkpoint into ONNX files that speak without PyTorch.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("spark-tts", cls=Command, context_settings=BOTH_SPELLINGS)
def spark_tts(
    ctx: typer.Context,
    model_dir: Annotated[Path, typer.Option("--model-dir", help="The checkpoint, as of SparkAudio/Spark-TTS-0.5B.")],
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", help="The folder to write. [default: onnx in the checkpoint]"),
    ] = None,
    dynamic_axes: Annotated[
        bool,
        typer.Option(
            "--dynamic-axes/--no-dynamic-axes",
            help="Graphs of any length; or of exactly 100 frames, which cannot speak.",
        ),
    ] = True,
    opset_version: Annotated[
        int,
        typer.Option("--opset-version", min=7, help="The graphs' operator set, but the language model's."),
    ] = 17,
    precision: Annotated[
        PrecisionName, typer.Option("--precision", help="Of the language model: fp32, int8 or int4.")
    ] = PrecisionName.fp32,
    skip_verification: Annotated[
        bool, typer.Option("--skip-verification", help="Do not compare with PyTorch's answers.")
    ] = False,
    cpu_only: Annotated[
        bool,
        typer.Option("--cpu-only", help="Accepted for scripts that say so: it always runs on the CPU."),
    ] = False,
    cache_dir: CacheDir = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Convert a Spark-TTS: its modules, its language model, and all that speaking needs beside them.

    Each file is compared with PyTorch, at two lengths that the exporter never saw. The folder appears when all of it is
    there and passes; exit code 1 otherwise. Options may be spelled with "_", too, as --model_dir.
    """
    out: Output = ctx.obj
    if precision is PrecisionName.auto:
        raise typer.BadParameter("choose one of fp32, int8, int4: files have one precision", param_hint="--precision")
    start, folder = time.perf_counter(), output_dir or model_dir / FOLDER
    verdicts = run(
        out,
        model_dir,
        folder,
        cache_dir,
        dynamic=dynamic_axes,
        opset=opset_version,
        verify=not skip_verification,
        precision=precision.value,
    )
    elapsed = time.perf_counter() - start
    files = [
        {"name": each.name, "passed": each.passed, "proof": dict(each.figures), "error": each.error or None}
        for each in verdicts
    ]
    told = {"output_dir": str(folder), "opset": opset_version, "dynamic": dynamic_axes, "files": files}
    if error := failure(verdicts):
        if not out.json:
            out.failed(error)
        out.document({**told, "elapsed_s": elapsed, "error": {"type": "ExportError", "message": str(error)}})
        raise typer.Exit(1)
    out.line(
        f"Wrote {folder}, which speaks by itself ({formats.seconds(elapsed)})" if dynamic_axes else f"Wrote {folder}"
    )
    out.document({**told, "elapsed_s": elapsed})


def run(out: Output, model_dir: Path, folder: Path, cache_dir: Path | None, **how: Any) -> list[Verdict]:
    """Convert and show the table of differences. how: of `engines.spark_tts.convert.convert`."""
    from ..cache import ContentCache
    from ..engines.spark_tts import SparkAdapter
    from ..engines.spark_tts.convert import convert

    with out.progress() as progress:
        adapter = SparkAdapter.from_checkpoint(model_dir, cache=ContentCache(cache_dir))
        verdicts = convert(adapter, folder, progress=progress, **how)
    out.table(("file", "lengths", "difference to PyTorch", ""), [_row(each) for each in verdicts])
    return verdicts


def failure(verdicts: list[Verdict]) -> ExportError | None:
    """Of a conversion that was not written."""
    failed = [each for each in verdicts if not each.passed]
    reasons = "; ".join(_reason(each) for each in failed)
    return ExportError(f"nothing was written: {reasons}") if failed else None


def _reason(verdict: Verdict) -> str:
    """In a line: the exporter's own errors have dozens."""
    differs = f"{verdict.name} differs from PyTorch, {formats.figures(verdict.figures)}"
    return verdict.error.partition("\n")[0] or differs


def _row(verdict: Verdict) -> list[str]:
    figures = verdict.figures
    lengths = ", ".join(str(length) for length in figures.get("lengths", ()))
    said = verdict.error.partition("\n")[0] or formats.figures(figures) or "not compared"
    return [verdict.name, lengths or "-", said, "passed" if verdict.passed else "failed"]
