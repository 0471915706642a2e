"""`demo spark-tts`: a checkpoint converted to ONNX files, and what these say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from . import convert, formats
from .console import Output

__all__ = ["SPARK_TTS", "demonstrated"]

SPARK_TTS = "spark-tts"
_DESCRIBED = {"gender": "female", "pitch": "moderate", "speed": "moderate"}  # without a recording


def demonstrated(
    out: Output, model_dir: Path | None, text: str, recording: Path | None, says: str | None, cache_dir: Path | None
) -> tuple[Any, dict[str, Any]]:
    """Audio float32 [n] and what is told of it, of a checkpoint that is converted unless it was.

    Raises BadParameter, ExportError for a conversion that is not faithful, and what speaking raises.
    """
    if model_dir is None:
        raise typer.BadParameter(f"demo {SPARK_TTS} needs --model-dir DIR, a checkpoint", param_hint="--model-dir")
    folder = model_dir / convert.FOLDER
    if not folder.exists():
        out.note(f"Converting {model_dir} into {folder}: this takes minutes, once.")
        if error := convert.failure(convert.run(out, model_dir, folder, cache_dir)):
            raise error
    from ..engines.spark_tts import SparkTTSONNX

    start = time.perf_counter()
    style: dict[str, Any] = _DESCRIBED if recording is None else {}
    with out.progress() as progress:
        engine = SparkTTSONNX(folder, cache_dir=cache_dir, progress=progress)
        audio, info = engine.inference(text, says, None, recording, **style)
    out.note(f"Loaded and spoken in {formats.seconds(time.perf_counter() - start)}.")
    return audio, info
