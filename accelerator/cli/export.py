"""`accelerator export`: everything that the first request would otherwise wait for."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from ..errors import ExportError
from . import engine as engines
from . import formats
from .console import Output
from .options import (
    CacheDir,
    Checkpoint,
    Debug,
    EncoderFile,
    Engine,
    Json,
    Precision,
    PrecisionName,
    ProofName,
    Providers,
    Prune,
    Size,
    SynthesizerFile,
    Threads,
    Verbose,
    VocoderFile,
)

__all__ = ["export"]


def export(
    ctx: typer.Context,
    engine: Engine = "reference",
    size: Size = None,
    checkpoint: Checkpoint = None,
    encoder: EncoderFile = None,
    synthesizer: SynthesizerFile = None,
    vocoder: VocoderFile = None,
    precision: Precision = PrecisionName.auto,
    proof: Annotated[
        ProofName, typer.Option("--proof", help="strict rejects exports that differ from PyTorch, warn only says so.")
    ] = ProofName.strict,
    prune: Prune = None,
    threads: Threads = None,
    providers: Providers = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Export an engine's parts to ONNX, prove them against PyTorch, and measure which is faster here.

    What is there already is only checked. Exit code 1 if a part could not be exported; it then stays in PyTorch.
    """
    out: Output = ctx.obj
    start = time.perf_counter()
    with (
        out.progress() as progress,
        engines.open_engine(
            out,
            engine,
            size,
            checkpoint,
            {"encoder": encoder, "synthesizer": synthesizer, "vocoder": vocoder},
            precision=precision.value,
            proof=proof.value,
            prune=prune,
            threads=threads,
            providers=providers,
            cache_dir=cache_dir,
            progress=progress,
        ) as optimizer,
    ):
        optimizer.prepare()
        status = optimizer.status()
    elapsed = time.perf_counter() - start
    failed = engines.export_errors(status["parts"])
    out.table(engines.PART_COLUMNS, engines.part_rows(status["parts"]))
    tier = status["tier"] or {}
    out.line(
        f"{status['engine']} is prepared in {status['cache']} ({formats.seconds(elapsed)}, tier {tier.get('name')})"
    )
    if failed:
        error = ExportError("; ".join(f"{part} stays in PyTorch: {why}" for part, why in failed.items()))
        if not out.json:
            out.failed(error)
        out.document({**status, "elapsed_s": elapsed, "error": {"type": "ExportError", "message": str(error)}})
        raise typer.Exit(1)
    out.document({**status, "elapsed_s": elapsed})
