"""fish-speech's stages one by one, so that segments of a text share the decode loop and audio comes while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import InvalidOption, InvalidText
from ...inference.sequence import Batching
from ...metrics import current_meter
from ...parts.language_model import LANGUAGE_MODEL
from ...speech import SamplingParams, SpeechRequest
from ...text.check import Unread
from ..base import Call, Decoding, Voice
from . import language_model as lm

if TYPE_CHECKING:
    from .adapter import FishSpeechAdapter

__all__ = ["FishSpeechPieces"]

_MARKUP = "<|speaker:"  # turns of several speakers, which are a conversation and not segments


class FishSpeechPieces:
    """See `base.Pieces`. What fish-speech does around these stages is done here in the same way."""

    comfortable, longest = 200, 400  # letters; 200 is fish-speech's own chunk_length
    read = None  # it is given the text as it is
    fastest = 40.0  # letters a second: people speak 12 to 20

    def __init__(self, adapter: FishSpeechAdapter, engine: Any, calls: Mapping[str, Call]) -> None:
        self._adapter, self._engine, self._calls = adapter, engine, calls
        self.samples_per_frame = adapter.samples_per_frame

    def unread(self, text: str) -> Unread:
        return Unread()  # any script has tokens

    def takes(self, request: SpeechRequest) -> bool:
        return _MARKUP not in request.text

    def encode(self, audio: np.ndarray) -> np.ndarray:
        return np.asarray(self._calls["encoder"](audio))

    def named_voice(self, name: str) -> Voice:
        known = self._engine.list_reference_ids()
        if name not in known:  # to ask for it would make a folder of that name
            raise InvalidOption(f"there is no voice {name!r}; this engine knows {', '.join(sorted(known)) or 'none'}")
        codes, texts = self._engine.load_by_id(name, "on")
        return Voice(tuple((c.numpy().astype(np.int64), text) for c, text in zip(codes, texts, strict=True)), name)

    def own_voice(self) -> Voice:
        return Voice()

    def prompt(self, text: str, voice: Voice) -> np.ndarray:
        adapter = self._adapter
        turns = [(torch.from_numpy(np.array(codes, np.int64)), said) for codes, said in voice.turns]
        try:
            return lm.prompt_of(adapter.module, adapter.model.shell, text, turns)
        except ValueError as error:
            if "too long" in str(error) or "exceeds max_seq_len" in str(error):
                raise InvalidText(f"text and reference are too long for the model: {error}") from error
            raise

    def frames(
        self, prompt: np.ndarray, sampling: SamplingParams, *, batching: Batching, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[np.ndarray]:
        # n tokens are n - 1 frames: fish-speech drops the last token, be it the end or the limit's.
        room = self._adapter.spec.slow.positions - prompt.shape[1]
        params = sampling.over(self._adapter.defaults)
        limit = min((params.max_new_tokens or room) + 1, room)
        params = replace(params, max_new_tokens=limit)
        meter, count, end = current_meter(), len(resume), self._adapter.spec.end_id
        for frame in self._calls[LANGUAGE_MODEL](prompt, params, batching=batching, resume=list(resume)):
            count += 1
            if count == limit or (frame[0] == end and count > 1):  # an end that comes first is spoken over
                return
            meter.add_frames(1)
            yield frame

    def decoding(self) -> Decoding:
        adapter = self._adapter
        return Decoding(self._calls["decoder"], adapter.context_frames, adapter.samples_per_frame)
