"""`accelerator tune`: measure how an engine's parts run fastest on this machine, and change to that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

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
    Providers,
    Prune,
    Size,
    SynthesizerFile,
    Threads,
    Verbose,
    VocoderFile,
)

__all__ = ["tune"]


def tune(
    ctx: typer.Context,
    again: Annotated[bool, typer.Option("--again", help="Measure also what is known and was measured calmly.")] = False,
    engine: Engine = "reference",
    size: Size = None,
    checkpoint: Checkpoint = None,
    encoder: EncoderFile = None,
    synthesizer: SynthesizerFile = None,
    vocoder: VocoderFile = None,
    precision: Precision = PrecisionName.auto,
    prune: Prune = None,
    threads: Threads = None,
    providers: Providers = None,
    cache_dir: CacheDir = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure how an engine's parts run fastest here, and change to that, also where a seed then sounds different.

    The first use of an engine measures by itself, and later starts measure again
    what a busy machine measured. But what would change the audio of a seed waits
    for this command. Run it when nothing else runs: what is measured while others
    are busy does not replace what was measured calmly.

    Give the options that the engine is used with: each --precision, --prune,
    --threads and --providers has a tuning of its own.
    """
    from ..hardware.busy import BusyClock
    from ..pipeline.tuning import BUSY

    out: Output = ctx.obj
    start = time.perf_counter()
    models = {"encoder": encoder, "synthesizer": synthesizer, "vocoder": vocoder}
    place: dict[str, Any] = {"precision": precision.value, "prune": prune, "threads": threads, "cache_dir": cache_dir}
    place["providers"] = providers
    with (
        out.progress() as progress,
        engines.open_engine(out, engine, size, checkpoint, models, progress=progress, **place) as optimizer,
    ):
        clock = BusyClock()
        tuned = optimizer.tune(again=again)
        others = clock.others_cpus() if any(map(_is_new, tuned.values())) else None
        status = optimizer.status()
    failed = engines.export_errors(status["parts"])
    parts = {name: {**each, "result": _result(**each)} for name, each in tuned.items()}
    out.table(
        ("part", "before", "now", "machine", "result"),
        [
            [name, _way(each["before"]), _way(each["after"]), _machine(each["after"]), failed.get(name, each["result"])]
            for name, each in parts.items()
        ],
    )
    busiest = max(filter(None, (others, *(each["after"].get("others_cpus") for each in tuned.values()))), default=0.0)
    if others is not None and busiest > BUSY:
        out.note(
            f"Warning: others kept {busiest:g} CPUs busy meanwhile: run it again when nothing else runs. "
            "What a busy machine measured is used until then, and later starts measure it again."
        )
    elif others is not None:
        out.line("The machine was calm: this is believed.")
    answer = {
        "engine": status["engine"],
        "cache": status["cache"],
        "others_cpus": others,
        "parts": parts,
        "elapsed_s": time.perf_counter() - start,
    }
    if failed:
        error = ExportError("; ".join(f"{part} stays in PyTorch: {why}" for part, why in failed.items()))
        if not out.json:
            out.failed(error)
        out.document({**answer, "error": {"type": "ExportError", "message": str(error)}})
        raise typer.Exit(1)
    out.document(answer)


def _is_new(tuned: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether something was measured."""
    return tuned["after"].get("measured_at") != tuned["before"].get("measured_at")


def _way(tuning: Mapping[str, Any]) -> str:
    """ "native-2: 1.9 ms", or "-" where there is none."""
    if not tuning:
        return "-"
    from ..pipeline.tuning import ORIGINAL, SEGMENTS, Way

    way = Way.from_dict(tuning)
    name = "one by one" if (tuning["part"], way) == (SEGMENTS, ORIGINAL) else way.name
    return f"{name}: {formats.seconds(tuning['seconds'].get(way.name))}"


def _machine(tuning: Mapping[str, Any]) -> str:
    if not tuning:
        return "-"
    others = tuning["others_cpus"]
    return "unknown" if others is None else "calm" if tuning["calm"] else f"busy: {others:g} CPUs"


def _result(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What came of it: what is different, and whether it is heard."""
    if not after:
        return "not measured"
    if not before:
        return "measured for the first time"
    from ..pipeline.tuning import Way

    old, new = Way.from_dict(before), Way.from_dict(after)
    if old.sound != new.sound:
        return "changed: a seed sounds different"
    if old != new:
        return "changed: a seed sounds the same"
    if after["measured_at"] == before["measured_at"]:
        return "known; --again measures it"
    same = after["seconds"] == before["seconds"]
    return "the same: the machine was busier than when it was measured" if same else "the same"
