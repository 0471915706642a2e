"""The reference engine's copy on routed parts, and its stages one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...audio.reference import Reference
from ...errors import InvalidOption, InvalidText
from ...metrics import current_meter
from ...parts.decoding import Decoding
from ...parts.language_model import LANGUAGE_MODEL
from ...parts.part import Call
from ...speech import SamplingParams, SpeechRequest
from ...text.check import Stretch, Unread
from ...text.segments import Segment, split
from ..base import Arrays, Job
from ..shadow import shadow

__all__ = ["ReferenceStages", "Spoken", "routed", "voice_options"]

_LETTERS_A_SECOND = 40.0  # its teachers speak 12 to 20: faster nobody does


@dataclass(frozen=True)
class Spoken:
    """A voice: codes [C, m] of a recording and what it says, or a speaker's name, or neither."""

    codes: np.ndarray | None = None
    text: str = ""
    speaker: str | None = None


def routed(engine: Any, calls: Mapping[str, Call]) -> Any:
    """A copy of the engine on other parts; every setting is the wrapped engine's own."""

    def generate(prompt: np.ndarray, *, codes_so_far: np.ndarray | None = None, **options: Any) -> Iterator[np.ndarray]:
        try:
            params = SamplingParams(**{k: v for k, v in options.items() if v is not None})
        except InvalidOption:  # the engine may take what a request may not, or say itself what is wrong
            params = None
        if params is None or codes_so_far is not None:  # a caller's own continuation is not the route's
            yield from engine.generate(prompt, codes_so_far=codes_so_far, **options)
            return
        for frame in calls[LANGUAGE_MODEL](prompt, params):
            current_meter().add_frames(1)
            yield frame

    def decode(codes: np.ndarray) -> np.ndarray:
        # No codes are no question: the engine itself answers with no audio, which from a part would be a failure.
        return np.asarray((calls["decoder"] if np.size(codes) else engine.decode)(codes))

    return shadow(engine, generate=generate, decode=decode, encode_reference=calls["encoder"])


def voice_options(request: SpeechRequest) -> dict[str, Any]:
    """The voice that a request asks for, as the engine's own methods take it."""
    if request.reference is not None:
        return {"reference_audio": request.reference.audio, "reference_text": request.reference.text or None}
    return {} if request.voice is None else {"speaker": request.voice}


class ReferenceStages:
    """See `base.Stages`. Units are frames of codes [1 + C], voices are `Spoken`."""

    schedule: Literal["batched", "pooled"] = "batched"
    windows: Sequence[int] = (4, 8, 16, 32, 64)  # the first audio soon, then less of it decoded twice

    def __init__(self, engine: Any, calls: Mapping[str, Call]) -> None:
        """engine: the copy that is `routed` to the calls."""
        self._engine, self._calls = engine, calls
        self.unit_s: float | None = engine.hop / engine.sample_rate
        self._longest = engine.config.longest_text or 320  # letters; a voice may have learnt shorter turns only
        self._comfortable = min(160, 2 * self._longest // 3)  # ten seconds of everyday speech
        self._words = engine.words if engine.config.text != "as_given" else None

    def accepts(self, request: SpeechRequest) -> bool:
        return True

    def unread(self, text: str) -> Unread:
        if self._words is None:
            return Unread()
        from ...reference.spoken import read

        reading = read(text)
        foreign = tuple(Stretch(each.text, each.start) for each in reading.foreign)
        marks = tuple(Stretch(each.text, each.start) for each in reading.skipped)
        return Unread(foreign, marks, "English, in Latin letters")

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return split(request.text, comfortable=self._comfortable, longest=self._longest, read=self._words)

    def shortest(self, text: str) -> float:
        return 0.0 if self._words is None else len(self._words(text)) / _LETTERS_A_SECOND

    def encode(self, reference: Reference) -> Arrays:
        audio = self._engine.prepared(reference.audio)
        return {"codes": np.asarray(self._engine.encode_reference(audio), np.int64)}

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> Spoken:
        if request.voice is not None:
            known = self._engine.speakers
            if request.voice not in known:
                names = ", ".join(known) or "none"
                raise InvalidOption(f"there is no voice {request.voice!r}; this engine knows {names}")
            return Spoken(speaker=request.voice)
        if kept is not None:
            assert request.reference is not None
            return Spoken(kept["codes"], request.reference.text)
        return Spoken(speaker=self._engine.default_speaker)

    def generate(
        self, segment: Segment, voice: Spoken, job: Job, *, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[Sequence[np.ndarray]]:
        meter = current_meter()
        with meter.stage("text"):
            prompt = self._prompt(segment.text.strip(), voice)
        batching = "invariant" if job.invariant else "on"
        for frame in self._calls[LANGUAGE_MODEL](prompt, job.sampling, batching=batching, resume=list(resume)):
            meter.add_frames(1)
            yield (frame,)

    def _prompt(self, text: str, voice: Spoken) -> np.ndarray:
        from ...reference import ReferenceEngineError

        named = {} if voice.speaker is None else {"speaker": voice.speaker}
        try:
            return np.asarray(self._engine.encode_text(text, voice.codes, voice.text or None, **named))
        except ReferenceEngineError as error:
            raise InvalidText(str(error)) from error

    def decoder(self, voice: Spoken, job: Job) -> Decoding:
        config = self._engine.config
        context = min(self._engine.codec.receptive_field_frames - 1, config.stream_context)
        return Decoding(self._calls["decoder"], context, self._engine.hop, config.codec.lag)

    def waits(self, voice: Spoken) -> bool:
        return voice.codes is None and voice.speaker is None

    def continued(self, segment: Segment, units: Sequence[np.ndarray], voice: Spoken) -> Spoken:
        return Spoken(np.stack(units, axis=1)[1:], segment.text.strip())
