"""MockingBird's stages one by one: text -> segments -> mel spectrogram -> audio."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ...audio.reference import Reference
from ...errors import InvalidOption, InvalidReference, InvalidText
from ...metrics import current_meter
from ...parts.decoding import Lookahead
from ...parts.part import Call
from ...speech import SpeechRequest
from ...text.check import Unread, stretches
from ...text.segments import Segment, split
from ..base import Arrays, Decoder, Job
from .engine import trimmed
from .routed import POSTNET, VOCODER, Wrapped, routed, said

__all__ = ["DEFAULTS", "MockingBirdStages", "Spoken", "cut", "embedding_of"]

DEFAULTS = {"style_idx": 0, "min_stop_token": 5, "steps": 2000}
"""The engine's own."""
_COMFORTABLE, _LONGEST = 100, 200  # letters: what attention does not lose its way in
_SOON = 50  # letters of a stream's first segment, at most if a clause ends there


class Spoken(NamedTuple):
    """A voice: an embedding float32 [256], and how it speaks."""

    embedding: np.ndarray
    options: Mapping[str, int]


def cut(text: str, *, soon: bool = False) -> list[Segment]:
    """A text in segments."""
    return split(text, comfortable=_COMFORTABLE, longest=_LONGEST, first=_SOON if soon else None)


def embedding_of(engine: Any, reference: Reference) -> np.ndarray:
    """The embedding of a recording, float32 [256]. Raises InvalidReference for one in which nobody speaks."""
    encoder = engine.encoder
    audio = encoder.preprocess_wav(reference.audio, reference.sample_rate)
    if not len(audio):
        raise InvalidReference("nobody speaks in this recording, as MockingBird hears it: give another one")
    return np.asarray(encoder.embed_utterance(audio), np.float32)


class MockingBirdStages:
    """See `base.Stages`. Units are the columns of a mel spectrogram, all at a segment's end: its postnet reads all of
    it, forwards and backwards. Voices are `Spoken`.
    """

    schedule: Literal["batched", "pooled"] = "batched"

    def __init__(self, own: Wrapped, calls: Mapping[str, Call]) -> None:
        self._own, self._calls, self.engine = own, calls, routed(own, calls)
        self.unit_s: float | None = own.hop / own.engine.sample_rate
        # The first one as soon as there is audio; later ones so large that most of what is decoded is new.
        self.windows: Sequence[int] = () if own.reach is None else (own.reach + 16, 64, 128, 256)
        self._lacks = functools.lru_cache(4096)(lambda char: len(own.engine.symbols(char)) < 2)

    def accepts(self, request: SpeechRequest) -> bool:
        return True

    def unread(self, text: str) -> Unread:
        return Unread(stretches(text, self._lacks), speaks="Chinese, and what is written in Latin letters and digits")

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return cut(request.text, soon=soon)

    def shortest(self, text: str) -> float:
        return 0.0

    def encode(self, reference: Reference) -> Arrays:
        return {"embedding": embedding_of(self.engine, reference)}

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> Spoken:
        if request.voice is not None:
            raise InvalidOption(f"there is no voice {request.voice!r}: MockingBird knows none by name")
        if kept is None:
            raise InvalidOption("MockingBird has no voice of its own: give reference_audio")
        return Spoken(kept["embedding"], {**DEFAULTS, **request.options})

    def generate(
        self, segment: Segment, voice: Spoken, job: Job, *, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[Sequence[np.ndarray]]:
        with current_meter().stage("text"):
            symbols = self._own.engine.symbols(segment.text.strip())
        if len(symbols) < 2:
            raise InvalidText(f"MockingBird reads nothing in {segment.text.strip()!r}")
        blocks = []
        options: Any = voice.options
        for block in said(self._own, self._calls, symbols, voice.embedding, job.sampling.seed, **options):
            blocks.append(block.mel)
            yield ()
        mel = self._calls[POSTNET](np.concatenate(blocks, axis=1)[None])[0]
        yield list(trimmed(mel, self._own.engine.settings.threshold).T)[len(resume) :]

    def decoder(self, voice: Spoken, job: Job) -> Decoder:
        call = self._calls[VOCODER]
        if self._own.engine.is_gan:
            return Lookahead(lambda window: window.heard(np.asarray(call(window.units[None])[0])), self._own.reach)
        return _Whole(functools.partial(call, seed=job.sampling.seed))

    def waits(self, voice: Spoken) -> bool:
        return False

    def continued(self, segment: Segment, units: Sequence[np.ndarray], voice: Spoken) -> Spoken:
        return voice


class _Whole:
    """One segment's columns on their way to a vocoder that takes all of them, WaveRNN."""

    def __init__(self, call: Call) -> None:
        self._call, self._columns = call, list[np.ndarray]()

    def push(self, units: Sequence[np.ndarray], *, final: bool) -> np.ndarray:
        self._columns += units
        if not final or not self._columns:
            return np.zeros(0, np.float32)
        return np.asarray(self._call(np.stack(self._columns, axis=1)[None])[0])
