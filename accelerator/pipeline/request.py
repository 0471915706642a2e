"""A caller's arguments -> a `SpeechRequest`: every check that can refuse a request, before anything is generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..audio.reference import Reference
from ..engines import Adapter
from ..engines.base import Bound, Stages
from ..engines.options import check_options
from ..errors import InvalidOption, InvalidReference
from ..metrics import Meter
from ..speech import SamplingParams, SpeechRequest
from ..text.check import UNSPEAKABLE, Unread, Unspeakable, check_text, readable

__all__ = ["ANY_RATE", "Asked", "check_unspeakable", "make_request"]

ANY_RATE = 16_000  # Hz, for checking a reference when the engine (one passed through) does not say its rate
_SAMPLING = tuple(each.name for each in fields(SamplingParams))


@dataclass(frozen=True)
class Asked:
    """What a caller of the optimizer asks for, unchecked. See `UniversalOptimizer.synthesize`.

    options: those of sampling, and the engine's own. streaming: audio as soon as there is any.
    """

    text: str
    audio: Any = None
    reference_text: str | None = None
    voice: str | None = None
    unspeakable: Unspeakable | None = None
    streaming: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def make_request(
    adapter: Adapter, bound: Bound, meter: Meter, asked: Asked, *, unspeakable: Unspeakable, split_text: bool
) -> SpeechRequest:
    """The request, checked. unspeakable, split_text: the defaults.

    Raises InvalidText, InvalidReference, InvalidOption.
    """
    unspeakable = unspeakable if asked.unspeakable is None else asked.unspeakable
    check_unspeakable(unspeakable)
    stages = bound.stages
    for name, value in (("voice", asked.voice), ("reference_text", asked.reference_text)):
        if value is not None and not isinstance(value, str):
            raise InvalidOption(f"{name} must be a text, not {type(value).__name__}")
    sampling, options = _options(adapter, asked.options)
    with meter.stage("text"):
        text = check_text(asked.text)
        text, skipped = readable(text, Unread() if stages is None else stages.unread(text), unspeakable)
    request = SpeechRequest(
        text,
        None,
        sampling,
        asked.voice,
        options,
        streaming=asked.streaming,
        whole=not split_text,
        skipped=tuple(skipped),
    )
    if asked.voice is not None:
        _check_voice(adapter, stages, request, asked.audio)
    if asked.audio is None:
        if asked.reference_text is not None:
            raise InvalidReference("reference_text without reference_audio: give both or neither")
        return request
    with meter.stage("reference"):
        return replace(request, reference=_reference(adapter, stages, asked.audio, asked.reference_text))


def check_unspeakable(value: Any) -> None:
    """Raises InvalidOption for what is no way to deal with text that a voice cannot speak."""
    if value not in UNSPEAKABLE:
        raise InvalidOption(f"unspeakable must be {' or '.join(map(repr, UNSPEAKABLE))}, not {value!r}")


def _options(adapter: Adapter, given: Mapping[str, Any]) -> tuple[SamplingParams, dict[str, Any]]:
    """What is asked of sampling, and of the engine. Raises InvalidOption."""
    sampling = SamplingParams(**{name: value for name, value in given.items() if name in _SAMPLING})
    own = {name: value for name, value in given.items() if name != "seed" and value is not None}
    if adapter.options is None:
        if unknown := [name for name in own if name not in _SAMPLING]:
            raise InvalidOption(f"{unknown[0]} is no option of synthesize(): set it on the engine itself")
        return sampling, {}
    checked = check_options(adapter.name, adapter.options, own)
    return sampling, {name: value for name, value in checked.items() if name not in _SAMPLING}


def _check_voice(adapter: Adapter, stages: Stages | None, request: SpeechRequest, audio: Any) -> None:
    if audio is not None:
        raise InvalidOption("voice and reference_audio both name a voice: give one of them")
    if stages is None:
        if adapter.parts():
            raise InvalidOption(f"{adapter.name} knows no voices by name here: give reference_audio")
        return  # passed through: its own methods decide
    if not stages.accepts(request):
        raise InvalidOption(f"{adapter.name} knows no voices by name here: give reference_audio")
    known = getattr(adapter, "voices", None)
    if known is not None and request.voice not in known():
        stages.voice(request, None)  # raises a precise error; known names are not opened, which may take time


def _reference(adapter: Adapter, stages: Stages | None, audio: Any, text: str | None) -> Reference:
    from ..audio.checks import load_reference

    cloning = adapter.cloning
    if cloning is None:
        raise InvalidOption(f"{adapter.name} does not imitate voices: leave reference_audio out")
    said = (text or "").strip()
    if not said and cloning.transcript == "needed":
        raise InvalidReference("this voice has to know what the recording says: give reference_text, word for word")
    if said and stages is not None and (foreign := stages.unread(said)).foreign:
        raise InvalidReference(
            f"reference_text has what this voice cannot read, {foreign.foreign[0]}; it speaks {foreign.speaks}"
        )
    # Without a transcript the beginning of a recording serves as well as all of it.
    low, high = cloning.seconds
    rate = cloning.sample_rate or adapter.sample_rate or ANY_RATE
    reference = load_reference(
        audio,
        text,
        sample_rate=rate,
        min_s=low,
        max_s=high,
        cut=not said,
        bandwidth=cloning.bandwidth,
        contrast=cloning.contrast,
    )
    return replace(reference, source=audio)
