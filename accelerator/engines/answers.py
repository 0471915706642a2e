"""What unknown engines answer with -> audio: arrays, pairs, mappings, objects, files, and iterators of these."""

from __future__ import annotations

import array
import os
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from ..audio.checks import MAX_RATE, MIN_RATE, mono, read_audio
from ..errors import EngineError
from ..speech import AudioChunk
from .asynchronous import as_it_comes, is_asynchronous

__all__ = ["chunks_of", "rate_of"]

_AUDIO = ("audio_float_array", "audio", "wav", "waveform", "samples")
_RATES = ("output_sample_rate", "sample_rate", "sampling_rate", "sr")  # the first of them that is there
_HOLDERS = ("config", "synthesizer", "model", "audio", "vocoder", "hps", "data")  # of what may have the rate
_FILES = (str, bytes, bytearray, memoryview, os.PathLike)


def chunks_of(answer: Any, engine: Any, who: str, rate: int = 0) -> Generator[AudioChunk, None, None]:
    """The audio of an answer, chunk by chunk if it is an iterator, which is closed with this one.

    rate: Hz, if already found around the answer; otherwise the engine is asked, now that it has spoken. who: the
    answering engine, for messages. Raises EngineError for what is not audio.
    """
    if is_asynchronous(answer):
        answer = as_it_comes(answer, who)
    if _is_pair(answer):
        audio, hertz = reversed(answer[:2]) if _is_number(answer[0]) else answer[:2]
        yield from chunks_of(audio, engine, who, int(hertz))
    elif not hasattr(answer, "__array__") and (found := _first(answer, _AUDIO)) is not None:
        yield from chunks_of(found, engine, who, rate_of(answer) or rate)
    elif _is_stream(answer):
        items = iter(answer)
        try:
            for each in items:
                yield from chunks_of(each, engine, who, rate)
        finally:
            if callable(close := getattr(items, "close", None)):
                close()
    else:
        yield _chunk(answer, engine, who, rate)


def rate_of(owner: Any) -> int:
    """The sample rate that an object, or one that it holds, has under a usual name; 0 if none. The nearest wins."""
    owners = [owner]
    for _ in range(3):
        for each in owners:
            for name in _RATES:
                if _is_number(rate := _value(each, name)) and rate > 0:
                    return int(rate)
        owners = [held for each in owners for name in _HOLDERS if (held := _value(each, name)) is not None]
    return 0


def _is_pair(answer: Any) -> bool:
    """(audio, rate), in either order, maybe with more behind it."""
    return isinstance(answer, (tuple, list)) and len(answer) >= 2 and _is_number(answer[0]) != _is_number(answer[1])


def _is_number(value: Any) -> bool:
    """Also one of numpy's, or a tensor without axes."""
    return not isinstance(value, bool) and (isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0)


def _is_stream(answer: Any) -> bool:
    """Whether it has one item for each text or sentence: an iterator, or a list of anything but numbers."""
    if isinstance(answer, (list, tuple)):
        return len(answer) > 0 and not _is_number(answer[0])
    whole = isinstance(answer, (*_FILES, Mapping, array.array))
    samples = hasattr(answer, "__array__") or hasattr(answer, "detach") or hasattr(answer, "read")
    return isinstance(answer, Iterable) and not whole and not samples


def _chunk(audio: Any, engine: Any, who: str, rate: int) -> AudioChunk:
    try:
        if isinstance(audio, _FILES) or hasattr(audio, "read"):
            if hasattr(audio, "seek"):
                audio.seek(0)  # where writing it has ended is no audio
            return AudioChunk(*read_audio(audio))
        samples = mono(audio).copy()  # the engine may reuse the memory for the next item
    except (TypeError, ValueError) as error:
        raise EngineError(
            f"{who} answered {type(audio).__name__}, not audio: wrap a function that answers samples, "
            "(samples, Hz), or a file"
        ) from error
    hertz = rate or rate_of(engine)
    if not MIN_RATE <= hertz <= MAX_RATE:
        raise EngineError(
            f"the sample rate of {who} is {f'{hertz} Hz' if hertz else 'unknown'}: give it a `sample_rate` in Hz "
            "(engine.sample_rate = 24000, say, of the object that is wrapped), or let it answer (samples, Hz)"
        )
    return AudioChunk(samples, hertz)


def _first(answer: Any, names: tuple[str, ...]) -> Any:
    """Of a mapping's entries or an object's attributes, the first that is there."""
    return next((found for name in names if (found := _value(answer, name)) is not None), None)


def _value(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)
