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
from .options import CacheDir, Debug, Json, PrecisionName, Verbose

if TYPE_CHECKING:
    from ..engines.spark_tts.convert import Verdict

__all__ = ["app"]

app = typer.Typer(
    cls=Listing,
    help="Turn a checkpoint into ONNX files that speak without PyTorch.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("spark-tts", cls=Command)
def spark_tts(
    ctx: typer.Context,
    model_dir: Annotated[
        Path, typer.Option("--model-dir", "--model_dir", help="The checkpoint, as of SparkAudio/Spark-TTS-0.5B.")
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "--output_dir", help="The folder to write. [default: onnx in the checkpoint]"),
    ] = None,
    dynamic_axes: Annotated[
        bool,
        typer.Option(
            "--dynamic-axes/--no-dynamic-axes",
            "--dynamic_axes/--no-dynamic_axes",
            help="Graphs of any length; or of exactly 100 frames, which cannot speak.",
        ),
    ] = True,
    opset_version: Annotated[
        int,
        typer.Option(
            "--opset-version", "--opset_version", min=7, help="The graphs' operator set, but the language model's."
        ),
    ] = 17,
    precision: Annotated[
        PrecisionName, typer.Option("--precision", help="Of the language model: fp32, int8 or int4.")
    ] = PrecisionName.fp32,
    skip_verification: Annotated[
        bool, typer.Option("--skip-verification", "--skip_verification", help="Do not compare with PyTorch's answers.")
    ] = False,
    cpu_only: Annotated[
        bool,
        typer.Option("--cpu-only", "--cpu_only", help="Accepted for scripts that say so: it always runs on the CPU."),
    ] = False,
    cache_dir: CacheDir = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Convert a Spark-TTS: its modules, its language model, and all that speaking needs beside them.

    Each file is compared with PyTorch, at two lengths that the exporter never saw. The folder appears when all of it is
    there and passes; exit code 1 otherwise.
    """
    out: Output = ctx.obj
    if precision is PrecisionName.auto:
        raise typer.BadParameter("choose one of fp32, int8, int4: files have one precision", param_hint="--precision")
    from ..cache import ContentCache
    from ..engines.spark_tts import SparkAdapter
    from ..engines.spark_tts.convert import convert

    start, folder = time.perf_counter(), output_dir or model_dir / "onnx"
    with out.progress() as progress:
        adapter = SparkAdapter.from_checkpoint(model_dir, cache=ContentCache(cache_dir))
        verdicts = convert(
            adapter,
            folder,
            dynamic=dynamic_axes,
            opset=opset_version,
            verify=not skip_verification,
            precision=precision.value,
            progress=progress,
        )
    _report(out, folder, verdicts, {"opset": opset_version, "dynamic": dynamic_axes}, time.perf_counter() - start)


def _report(out: Output, folder: Path, verdicts: list[Verdict], asked: dict[str, Any], elapsed: float) -> None:
    out.table(("file", "lengths", "difference to PyTorch", ""), [_row(each) for each in verdicts])
    files = [
        {"name": each.name, "passed": each.passed, "proof": dict(each.figures), "error": each.error or None}
        for each in verdicts
    ]
    told = {"output_dir": str(folder), **asked, "files": files, "elapsed_s": elapsed}
    if failed := [each for each in verdicts if not each.passed]:
        reasons = "; ".join(_reason(each) for each in failed)
        error = ExportError(f"nothing was written: {reasons}")
        if not out.json:
            out.failed(error)
        out.document({**told, "error": {"type": "ExportError", "message": str(error)}})
        raise typer.Exit(1)
    out.line(f"{folder} speaks by itself ({formats.seconds(elapsed)})" if asked["dynamic"] else f"Wrote {folder}.")
    out.document(told)


def _reason(verdict: Verdict) -> str:
    """In a line: the exporter's own errors have dozens."""
    differs = f"{verdict.name} differs from PyTorch, {formats.figures(verdict.figures)}"
    return verdict.error.partition("\n")[0] or differs


def _row(verdict: Verdict) -> list[str]:
    figures = verdict.figures
    lengths = ", ".join(str(length) for length in figures.get("lengths", ()))
    said = verdict.error.partition("\n")[0] or formats.figures(figures) or "not compared"
    return [verdict.name, lengths or "-", said, "passed" if verdict.passed else "failed"]
