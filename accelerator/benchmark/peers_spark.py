"""Spark-TTS as it ships, for `peers`: the engine's own class, its own calls, one text at a time and no streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .peer import Given, package, recording

__all__ = ["Shipped"]

_CHECKOUT, _PACKAGE = "cli.SparkTTS", "spark_tts_lib.SparkTTS"


class Shipped:
    """A `SparkTTS`; dtype: of its language model, which transformers 5 opens in what its configuration says.

    It knows no voices: each text has its recording encoded again. Replies are as long as `given.frames`, by the limit
    of `generate`, which the engine itself sets to 3,000.
    """

    streams = False  # what it has, it has at the end

    def __init__(self, given: Given, dtype: str) -> None:
        import torch

        made = _module().SparkTTS(given.checkpoint, torch.device("cpu"))
        made.model.to(getattr(torch, dtype))
        if given.frames is not None:
            generate, limit = made.model.generate, given.frames
            made.model.generate = lambda **asked: generate(**{**asked, "max_new_tokens": limit})
        self._engine, self._reference = made, recording(given.scratch)
        self.about = f"Spark-TTS as it ships, its language model in {dtype}; it encodes the voice with each text"
        self.sample_rate = int(made.sample_rate)

    def whole(self, text: str) -> np.ndarray:
        return np.asarray(self._engine.inference(text, self._reference), np.float32)

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        yield self.whole(text)

    def encode(self, path: Path, said: str) -> None:
        """It encodes all of a recording, whether what is said will be needed or not."""
        import torch

        with torch.no_grad():  # as its `inference` does
            self._engine.audio_tokenizer.tokenize(path)


def _module() -> Any:
    """Of the package, or of a checkout on the path."""
    try:
        return package(_PACKAGE, "spark-tts-lib")
    except EngineError:
        return package(_CHECKOUT, "spark-tts-lib")
