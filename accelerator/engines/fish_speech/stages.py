"""fish-speech's stages one by one, so that segments of a text share the decode loop and audio comes while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ...audio.reference import Reference
from ...errors import InvalidOption, InvalidText
from ...export.graph.dual_ar import DualARSpec
from ...metrics import current_meter
from ...parts.decoding import Decoding
from ...parts.language_model import LANGUAGE_MODEL
from ...parts.part import Call
from ...speech import SamplingParams, SpeechRequest
from ...text.check import Unread
from ...text.segments import Segment, speech_weight, split
from ..base import Arrays, Job
from . import language_model as lm
from .layouts import Layout
from .weights import Held

__all__ = ["FishSpeechStages", "Turns", "Wrapped"]

_MARKUP = "<|speaker:"  # turns of several speakers, which are a conversation and not segments
_COMFORTABLE, _LONGEST = 200, 400  # letters; 200 is fish-speech's own chunk_length
_LETTERS_A_SECOND = 40.0  # people speak 12 to 20: faster nobody does

Turns = Sequence[tuple[np.ndarray, str]]
"""A voice: what it said before, as codes [C, m] and text each; without any, whichever comes out."""


class Wrapped(Protocol):
    """What a routed copy, and its stages, know of the engine that was wrapped; its adapter says it."""

    engine: Any
    layout: Layout
    module: Any  # fish-speech's own code for inference
    model: Held
    codec: Held
    spec: DualARSpec
    sample_rate: int
    samples_per_frame: int
    context_frames: int

    @property
    def defaults(self) -> SamplingParams: ...


class FishSpeechStages:
    """See `base.Stages`. What fish-speech does around these stages is done here in the same way.

    Units are frames of codes [1 + C], voices are `Turns`.
    """

    schedule: Literal["batched", "pooled"] = "batched"
    windows: Sequence[int] = (4, 8, 16, 32, 64)  # the first audio soon, then less of it decoded twice

    def __init__(self, wrapped: Wrapped, engine: Any, calls: Mapping[str, Call]) -> None:
        self._wrapped, self._engine, self._calls = wrapped, engine, calls
        self.unit_s: float | None = wrapped.samples_per_frame / wrapped.sample_rate

    def accepts(self, request: SpeechRequest) -> bool:
        return _MARKUP not in request.text

    def unread(self, text: str) -> Unread:
        return Unread()  # any script has tokens

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return split(request.text, comfortable=_COMFORTABLE, longest=_LONGEST)

    def shortest(self, text: str) -> float:
        return speech_weight(text) / _LETTERS_A_SECOND

    def encode(self, reference: Reference) -> Arrays:
        return {"codes": np.asarray(self._calls["encoder"](reference.audio), np.int64)}

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> Turns:
        if request.voice is not None:
            return self._named(request.voice)
        if kept is None:
            return ()
        assert request.reference is not None
        return ((kept["codes"], request.reference.text),)

    def _named(self, name: str) -> Turns:
        known = self._engine.list_reference_ids()
        if name not in known:  # to ask for it would make a folder of that name
            raise InvalidOption(f"there is no voice {name!r}; this engine knows {', '.join(sorted(known)) or 'none'}")
        codes, texts = self._engine.load_by_id(name, "on")
        return tuple((c.numpy().astype(np.int64), text) for c, text in zip(codes, texts, strict=True))

    def generate(
        self, segment: Segment, voice: Turns, job: Job, *, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[Sequence[np.ndarray]]:
        meter = current_meter()
        with meter.stage("text"):
            prompt = self._prompt(segment.text.strip(), voice)
        # n tokens are n - 1 frames: fish-speech drops the last token, be it the end or the limit's.
        room = self._wrapped.spec.slow.positions - prompt.shape[1]
        params = job.sampling.over(self._wrapped.defaults)
        limit = min((params.max_new_tokens or room) + 1, room)
        params = replace(params, max_new_tokens=limit)
        batching = "invariant" if job.invariant else "on"
        count, end = len(resume), self._wrapped.spec.end_id
        for frame in self._calls[LANGUAGE_MODEL](prompt, params, batching=batching, resume=list(resume)):
            count += 1
            if count == limit or (frame[0] == end and count > 1):  # an end that comes first is spoken over
                return
            meter.add_frames(1)
            yield (frame,)

    def _prompt(self, text: str, voice: Turns) -> np.ndarray:
        wrapped = self._wrapped
        turns = [(torch.from_numpy(np.array(codes, np.int64)), said) for codes, said in voice]
        try:
            return lm.prompt_of(wrapped.module, wrapped.model.shell, text, turns)
        except ValueError as error:
            if "too long" in str(error) or "exceeds max_seq_len" in str(error):
                raise InvalidText(f"text and reference are too long for the model: {error}") from error
            raise

    def decoder(self, voice: Turns, job: Job) -> Decoding:
        return Decoding(self._calls["decoder"], self._wrapped.context_frames, self._wrapped.samples_per_frame)

    def waits(self, voice: Turns) -> bool:
        return not voice

    def continued(self, segment: Segment, units: Sequence[np.ndarray], voice: Turns) -> Turns:
        return ((np.stack(units, axis=1)[1:], segment.text.strip()),)
