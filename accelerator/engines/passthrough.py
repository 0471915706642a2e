"""Engines nobody knows: nothing is replaced, the engine speaks for itself, and the result says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import EngineError, InvalidOption
from ..metrics import current_meter
from ..speech import AudioChunk, SpeechRequest
from .base import Call, Part

__all__ = ["PassThroughAdapter"]

logger = logging.getLogger(__name__)

_METHODS = ("synthesize", "tts", "generate", "__call__")


class PassThroughAdapter:
    """Hands every request to the engine's own `synthesize`, `tts`, `generate` or call, whichever comes first."""

    name = "pass-through"

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.engine = engine
        self.sample_rate = int(getattr(engine, "sample_rate", 0) or 0)
        kind = type(engine)
        logger.warning(
            "%s.%s is not an engine this package knows: it is passed through and runs as before",
            kind.__module__,
            kind.__qualname__,
        )

    def parts(self) -> Sequence[Part]:
        return ()

    def bind(self, calls: Mapping[str, Call]) -> PassThroughAdapter:
        return self

    def stream(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        return self.original(request)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Raises EngineError if the engine has no known method or answers with something that is not audio."""
        method = next((m for name in _METHODS if callable(m := getattr(self._engine, name, None))), None)
        if method is None:
            raise EngineError(f"{type(self._engine).__name__} has none of {', '.join(_METHODS)}: pass adapter=")
        options = {k: v for k, v in vars(request.sampling).items() if v is not None}
        if request.reference is not None:
            options |= {"reference_audio": request.reference.audio, "reference_text": request.reference.text}
        try:
            answer = method(request.text, **options)
        except TypeError as error:
            if options and "unexpected keyword argument" in str(error):
                raise InvalidOption(f"{type(self._engine).__name__} refuses an option: {error}") from error
            raise
        current_meter().used("engine", "pytorch")
        yield self._chunk(answer)

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _chunk(self, answer: Any) -> AudioChunk:
        audio, rate = answer, self.sample_rate
        if isinstance(answer, tuple) and len(answer) >= 2:
            audio, rate = (answer[1], answer[0]) if isinstance(answer[0], int) else (answer[0], answer[1])
        elif hasattr(answer, "audio"):
            audio, rate = answer.audio, getattr(answer, "sample_rate", rate)
        try:
            samples = np.asarray(audio.detach().cpu() if hasattr(audio, "detach") else audio)
            integer = np.issubdtype(samples.dtype, np.integer)
            scale = np.iinfo(samples.dtype).max if integer else 1.0
            samples = (samples.astype(np.float32) / scale).reshape(-1)
            rate = int(rate)
        except (TypeError, ValueError) as error:
            raise EngineError(f"{type(self._engine).__name__} answered {type(answer).__name__}, not audio") from error
        if rate <= 0:
            raise EngineError(f"the sample rate of {type(self._engine).__name__} is unknown: give it a `sample_rate`")
        return AudioChunk(samples, rate)
