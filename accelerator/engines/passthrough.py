"""Engines nobody knows: nothing is replaced, the engine speaks for itself, and the result says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import EngineError, InvalidOption
from ..metrics import current_meter
from ..speech import AudioChunk, SpeechRequest
from .base import Call, Part, Voice

__all__ = ["PassThroughAdapter"]

logger = logging.getLogger(__name__)

_METHODS = ("synthesize", "tts", "generate", "__call__")
_NUMBER = (int, float, np.integer, np.floating)
_MAX_CHANNELS = 8


class PassThroughAdapter:
    """Hands every request to the engine's own `synthesize`, `tts`, `generate` or call, whichever comes first."""

    name = "pass-through"

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.engine = engine
        rate = getattr(engine, "sample_rate", 0)
        self.sample_rate = int(rate) if isinstance(rate, _NUMBER) and rate > 0 else 0  # 0: it says so when it speaks
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

    def stream(self, request: SpeechRequest, voice: Voice | None = None) -> Iterator[AudioChunk]:
        return self.original(request)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Raises EngineError if the engine has no known method or answers with something that is not audio."""
        method = next((m for name in _METHODS if callable(m := getattr(self._engine, name, None))), None)
        if method is None:
            raise EngineError(f"{type(self._engine).__name__} has none of {', '.join(_METHODS)}: pass adapter=")
        options = {k: v for k, v in vars(request.sampling).items() if v is not None}
        if request.reference is not None:
            options |= {"reference_audio": request.reference.source, "reference_text": request.reference.text or None}
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
        audio: Any = answer
        rate: Any = self.sample_rate
        if isinstance(answer, tuple) and len(answer) >= 2:
            audio, rate = (answer[1], answer[0]) if isinstance(answer[0], _NUMBER) else (answer[0], answer[1])
        elif isinstance(answer, Mapping):
            audio, rate = answer.get("audio"), answer.get("sampling_rate", rate)
        elif hasattr(answer, "audio"):
            audio, rate = answer.audio, getattr(answer, "sample_rate", rate)
        try:
            if hasattr(audio, "detach"):
                audio = audio.detach().cpu()
                audio = audio.float() if audio.is_floating_point() else audio  # numpy has no bfloat16
            samples = _mono(np.asarray(audio))
            rate = int(rate)
        except (TypeError, ValueError) as error:
            raise EngineError(f"{type(self._engine).__name__} answered {type(answer).__name__}, not audio") from error
        if rate <= 0:
            raise EngineError(f"the sample rate of {type(self._engine).__name__} is unknown: give it a `sample_rate`")
        return AudioChunk(samples, rate)


def _mono(samples: np.ndarray) -> np.ndarray:
    """Audio of one or a few channels, floats or signed integers -> float32 [n]. Raises ValueError for anything else."""
    if not samples.ndim:
        raise ValueError("a number is no audio")
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif samples.dtype.kind != "f":
        raise ValueError(f"samples of type {samples.dtype} have no known scale")
    if samples.ndim > 1:
        samples = samples.squeeze()
    if samples.ndim == 2 and min(samples.shape) <= _MAX_CHANNELS:
        samples = samples.mean(axis=int(samples.shape[0] >= samples.shape[1]))  # the shorter axis is the channels
    if samples.ndim > 1:
        raise ValueError(f"samples of shape {samples.shape} are not mono")
    return samples.astype(np.float32).reshape(-1)
