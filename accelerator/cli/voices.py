"""`accelerator engines`, `voices` and `options`: what can be spoken with, in whose voice, and how."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import asdict
from typing import Any

import typer

from . import engine as opened
from .console import Output
from .options import Checkpoint, Debug, Engine, Json, Size, Verbose

__all__ = ["engine_state", "engines", "known_engines", "options", "voices"]

_HINTS = {  # top-level module -> how it comes to be there
    "cli": "a checkout of SparkAudio/Spark-TTS on PYTHONPATH",
    "fish_speech": "pip install -e . in a checkout of it",
    "kittenml": "pip install kittenml",
    "kittentts": "pip install kittentts==0.1.3, or a wheel of KittenTTS' releases",
    "kokoro_onnx": "pip install kokoro-onnx",
    "piper": "pip install piper-tts",
    "spark_tts_lib": "pip install --no-deps spark-tts-lib, see docs/spark-tts.md",
    "transformers": "pip install transformers",
}


def engines(ctx: typer.Context, json: Json = False, verbose: Verbose = False, debug: Debug = False) -> None:
    """List the engines that there are adapters for, and what those that cannot be used here lack."""
    out: Output = ctx.obj
    found = known_engines()
    out.document({"engines": found})
    rows = [[e["name"], "yes" if e["available"] else "no", _opened_by(e), e["type"]] for e in found]
    out.table(("engine", "here", "command line", "wrapped in Python"), rows)
    for engine in found:
        if not engine["available"]:
            out.line(f"{engine['name']}: {engine_state(engine)}")


def voices(
    ctx: typer.Context,
    engine: Engine = "reference",
    size: Size = None,
    checkpoint: Checkpoint = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """List the voices that an engine knows by name, for --voice.

    The reference engine speaks in the first one unless told otherwise.
    """
    out: Output = ctx.obj
    with opened.open_engine(out, engine, size, checkpoint) as optimizer:
        names = list(getattr(optimizer.adapter, "voices", tuple)())
        imitates = optimizer.adapter.cloning is not None
    out.document({"engine": engine, "voices": names})
    for name in names:
        out.line(name)
    if not names:
        instead = "--reference takes a recording to imitate" if imitates else "it speaks in the one it has"
        out.note(f"{engine} knows no voices by name here: {instead}.")


def options(
    ctx: typer.Context,
    engine: Engine = "reference",
    size: Size = None,
    checkpoint: Checkpoint = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """List the options that an engine has of its own, for --option."""
    out: Output = ctx.obj
    with opened.open_engine(out, engine, size, checkpoint) as optimizer:
        known = optimizer.adapter.options or {}
    out.document(
        {
            "engine": engine,
            "options": {name: {**asdict(each), "kind": each.kind.__name__} for name, each in known.items()},
        }
    )
    if known:
        rows = [[name, each.values, _default(each.default), each.help] for name, each in known.items()]
        out.table(("option", "value", "default", "what it is"), rows)
    else:
        out.note(f"{engine} has no options of its own.")


def _default(value: Any) -> str:
    return "the engine's" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def known_engines() -> list[dict[str, Any]]:
    """Every engine with an adapter, and whether its own package is here; nothing of it is imported."""
    from ..engines import ADAPTERS, CHECKPOINTS, ENTRY_POINTS

    third_party = {e.name: e.value for e in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    names = {target: name for name, target in CHECKPOINTS.items()}
    found = []
    for type_name, target in {**ADAPTERS, **third_party}.items():
        module = target.partition(":")[0]
        name = next((name for known, name in names.items() if known.startswith(f"{module}:")), None)
        needed = (type_name.partition(".")[0], module)
        missing = next((each for each in needed if not _found(each)), None)
        found.append(
            {
                "name": name or module.rpartition(".")[2].replace("_", "-"),
                "type": type_name,
                "adapter": target,
                "checkpoints": name is not None,
                "missing": missing,
                "available": missing is None,
            }
        )
    return found


def engine_state(engine: dict[str, Any]) -> str:
    """Whether it can be used here, or what is missing and how it is installed."""
    if engine["available"]:
        return "available"
    hint = _HINTS.get(engine["missing"])
    return f"not available: no module {engine['missing']}" + (f" ({hint})" if hint else "")


def _opened_by(engine: dict[str, Any]) -> str:
    if engine["name"] == "reference":
        return "--engine reference"
    return (
        f"--engine {engine['name']} --checkpoint {opened.checkpoint_kind(engine['name'])}"
        if engine["checkpoints"]
        else "-"
    )


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
