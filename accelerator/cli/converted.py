"""Speaking from a converted Spark-TTS, without PyTorch: `synth --engine spark-tts-onnx` and `demo spark-tts`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ..errors import InvalidOption
from . import convert, formats
from .console import Output

__all__ = ["ENGINE", "SPARK_TTS", "demonstrated", "speak"]

ENGINE, SPARK_TTS = "spark-tts-onnx", "spark-tts"
_STYLE = ("gender", "pitch", "speed")
_DESCRIBED = {"gender": "female", "pitch": "moderate", "speed": "moderate"}  # of a demonstration without a recording


def speak(
    text: str,
    model_dir: Path | None,
    recording: Path | None,
    says: str | None,
    *,
    options: Mapping[str, str],
    sampling: Mapping[str, Any],
    threads: int | None,
    refused: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Audio float32 [n] and what is told of it. refused: options that mean nothing here, if given.

    Raises BadParameter, InvalidOption and what speaking raises.
    """
    if given := [name for name, value in refused.items() if value]:
        raise typer.BadParameter(f"{ENGINE} has no such option: leave it out", param_hint=given[0])
    if model_dir is None:
        raise typer.BadParameter(f"{ENGINE} needs --model-dir DIR, a converted checkpoint", param_hint="--model-dir")
    if unknown := sorted(set(options) - set(_STYLE)):
        raise InvalidOption(f"{ENGINE} has no option {unknown[0]!r}: its options are {', '.join(_STYLE)}")
    from ..engines.spark_tts import SparkTTSONNX

    engine = SparkTTSONNX(model_dir, threads=threads)
    how: dict[str, Any] = {**options, **sampling}
    return engine.inference(text, says, None, recording, **how)


def demonstrated(
    out: Output, model_dir: Path | None, text: str, recording: Path | None, says: str | None, cache_dir: Path | None
) -> tuple[Any, dict[str, Any]]:
    """Convert the checkpoint unless it is, and speak. Raises ExportError for a conversion that is not faithful."""
    if model_dir is None:
        raise typer.BadParameter(f"demo {SPARK_TTS} needs --model-dir DIR, a checkpoint", param_hint="--model-dir")
    folder = model_dir / convert.FOLDER
    if not folder.exists():
        out.note(f"Converting {model_dir} into {folder}: this takes minutes, once.")
        if error := convert.failure(convert.run(out, model_dir, folder, cache_dir)):
            raise error
    start = time.perf_counter()
    style = _DESCRIBED if recording is None else {}
    audio, info = speak(text, folder, recording, says, options=style, sampling={}, threads=None, refused={})
    out.note(f"Loaded and spoken in {formats.seconds(time.perf_counter() - start)}.")
    return audio, info
