"""A caller's arguments -> a `SpeechRequest`: every check that can refuse a request, before anything is generated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..audio.reference import Reference
from ..engines import Adapter
from ..engines.base import Bound, Cloning, Pieces, Utterer
from ..errors import InvalidOption, InvalidReference
from ..metrics import Meter
from ..speech import SamplingParams, SpeechRequest
from ..text.check import UNSPEAKABLE, Unread, Unspeakable, check_text, readable

__all__ = ["ANY_RATE", "check_unspeakable", "make_request"]

ANY_RATE = 16_000  # Hz, for checking a reference when the engine (one passed through) does not say its rate


def make_request(
    adapter: Adapter,
    bound: Bound,
    meter: Meter,
    text: str,
    audio: Any,
    reference_text: str | None,
    *,
    voice: str | None,
    sampling: SamplingParams,
    unspeakable: Unspeakable,
) -> SpeechRequest:
    """The request, checked; what is left out of its text is noted in the meter.

    Raises InvalidText, InvalidReference, InvalidOption.
    """
    check_unspeakable(unspeakable)
    reader = _reader(bound)
    with meter.stage("text"):
        text = check_text(text)
        text, meter.skipped = readable(text, Unread() if reader is None else reader.unread(text), unspeakable)
    if voice is not None:
        _check_voice(adapter, bound, SpeechRequest(text), audio)
    if audio is None:
        if reference_text is not None:
            raise InvalidReference("reference_text without reference_audio: give both or neither")
        return SpeechRequest(text, None, sampling, voice)
    with meter.stage("reference"):
        return SpeechRequest(text, _reference(adapter, reader, audio, reference_text), sampling, voice)


def check_unspeakable(value: Any) -> None:
    """Raises InvalidOption for what is no way to deal with text that a voice cannot speak."""
    if value not in UNSPEAKABLE:
        raise InvalidOption(f"unspeakable must be {' or '.join(map(repr, UNSPEAKABLE))}, not {value!r}")


def _reader(bound: Bound) -> Pieces | Utterer | None:
    """Who knows what the engine can read; None if nobody does."""
    return getattr(bound, "pieces", None) or getattr(bound, "utterer", None)


def _check_voice(adapter: Adapter, bound: Bound, request: SpeechRequest, audio: Any) -> None:
    if audio is not None:
        raise InvalidOption("voice and reference_audio both name a voice: give one of them")
    reader = _reader(bound)
    if reader is None and not adapter.parts():
        return  # passed through: its own methods decide
    if reader is None or (isinstance(reader, Pieces) and not reader.takes(request)):
        raise InvalidOption(f"{adapter.name} knows no voices by name here: give reference_audio")


def _reference(adapter: Adapter, reader: Pieces | Utterer | None, audio: Any, text: str | None) -> Reference:
    from ..audio.checks import load_reference

    cloning = getattr(adapter, "cloning", Cloning())
    if cloning is None:
        raise InvalidOption(f"{adapter.name} imitates nobody: leave reference_audio out")
    said = (text or "").strip()
    if not said and cloning.transcript == "needed":
        raise InvalidReference("this voice has to know what the recording says: give reference_text, word for word")
    if said and reader is not None and (foreign := reader.unread(said)).foreign:
        raise InvalidReference(
            f"reference_text has what this voice cannot read ({foreign.foreign[0].text!r}); it speaks {foreign.speaks}"
        )
    # Without a transcript a part of a recording does as well as all of it.
    low, high = cloning.seconds
    rate = adapter.sample_rate or ANY_RATE
    return replace(load_reference(audio, text, sample_rate=rate, min_s=low, max_s=high, cut=not said), source=audio)
