"""What engines nobody knows answer with -> audio: arrays, pairs, mappings, objects, files, and iterators of these."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..audio.checks import read_audio
from ..errors import EngineError, InvalidReference
from ..speech import AudioChunk

__all__ = ["chunks_of", "rate_of"]

_AUDIO = ("audio_float_array", "audio", "wav", "waveform", "samples")
_RATES = ("sample_rate", "sampling_rate", "sr", "output_sample_rate")
_NUMBER = (int, float, np.integer, np.floating)
_MAX_CHANNELS = 8


def chunks_of(answer: Any, rate: int, who: str) -> Iterator[AudioChunk]:
    """The audio of an answer, piece by piece where it is an iterator. rate: Hz, where the answer does not tell.

    who: answered, for messages. Raises EngineError for what is not audio.
    """
    if inspect.iscoroutine(answer) or inspect.isasyncgen(answer):
        answer = _awaited(answer, who)
    if isinstance(answer, (list, tuple)) and answer and not _is_pair(answer) and not isinstance(answer[0], _NUMBER):
        answer = iter(answer)  # one for each text, or each sentence
    if _is_stream(answer):
        for each in answer:
            yield from chunks_of(each, rate, who)
        return
    yield _chunk(answer, rate, who)


def rate_of(owner: Any) -> int:
    """The sample rate that an object, or its `config`, tells under a usual name; 0 if it tells none."""
    for each in (owner, _value(owner, "config")):
        for name in _RATES:
            rate = _value(each, name)
            if isinstance(rate, _NUMBER) and not isinstance(rate, bool) and rate > 0:
                return int(rate)
    return 0


def _awaited(answer: Any, who: str) -> Any:
    """What a coroutine or an asynchronous generator comes to. Raises EngineError within a running event loop."""

    async def collected() -> list[Any]:
        return [each async for each in answer]

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(answer if inspect.iscoroutine(answer) else collected())
    if inspect.iscoroutine(answer):
        answer.close()
    raise EngineError(f"{who} is asynchronous, and an event loop is running here: use `await asynthesize(...)`")


def _is_pair(answer: Any) -> bool:
    """(audio, rate), in either order, maybe with more behind it."""
    return isinstance(answer, tuple) and len(answer) >= 2 and any(isinstance(each, _NUMBER) for each in answer[:2])


def _is_stream(answer: Any) -> bool:
    whole = isinstance(answer, (str, bytes, bytearray, Mapping, list, tuple, os.PathLike))
    array = hasattr(answer, "__array__") or hasattr(answer, "detach") or hasattr(answer, "read")
    return isinstance(answer, Iterable) and not whole and not array and _first(answer, _AUDIO) is None


def _chunk(answer: Any, rate: int, who: str) -> AudioChunk:
    audio: Any = answer
    hertz: Any = rate
    if _is_pair(answer):
        audio, hertz = (answer[1], answer[0]) if isinstance(answer[0], _NUMBER) else (answer[0], answer[1])
    elif not hasattr(answer, "__array__") and (found := _first(answer, _AUDIO)) is not None:
        audio, hertz = found, rate_of(answer) or rate
    try:
        if isinstance(audio, (str, os.PathLike, bytes, bytearray)):
            samples, hertz = read_audio(audio)
        else:
            samples, hertz = _mono(_array(audio)), int(hertz)
    except (TypeError, ValueError, InvalidReference) as error:
        raise EngineError(f"{who} answered {type(answer).__name__}, not audio") from error
    if hertz <= 0:
        raise EngineError(f"the sample rate of {who} is unknown: give it a `sample_rate`")
    return AudioChunk(samples, hertz)


def _first(answer: Any, names: tuple[str, ...]) -> Any:
    """Of a mapping's entries or an object's attributes, the first that is there."""
    return next((found for name in names if (found := _value(answer, name)) is not None), None)


def _value(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)


def _array(audio: Any) -> np.ndarray:
    if hasattr(audio, "detach"):
        audio = audio.detach().cpu()
        audio = audio.float() if audio.is_floating_point() else audio  # numpy has no bfloat16
    return np.asarray(audio)


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
