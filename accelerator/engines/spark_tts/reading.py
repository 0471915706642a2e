"""How a request is read: its text as a prompt, its recording as values; by the engine itself, or by its files alone.

    InEngine    asks the engine, whose methods they are
    FromFiles   does the same without it: `tokenizers` reads its tokenizer.json, NumPy does the rest

Importing an engine takes seconds, and PyTorch with it. So what was seen to be the same once is read from files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ...audio.reference import Reference
from . import examples, grammar, prompts
from .recording import clipped, levelled, standardised
from .stages import Spoken, wav

__all__ = ["FromFiles", "InEngine", "Reading", "alike"]

_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " Çà et là: 27 €, 5 %!\nA…",
    "你好，世界。",
    "naïve 🙂 <|x|> 'don't'",
)


class Reading(Protocol):
    """See `stages.Own`. values: what wav2vec2 is given of a recording float64 [n], float32 [1, n]."""

    def tokens(self) -> Mapping[str, int]: ...

    def heard(self, reference: Reference) -> tuple[np.ndarray, np.ndarray]: ...

    def prompt(self, text: str, voice: Spoken) -> np.ndarray: ...

    def values(self, audio: np.ndarray) -> np.ndarray: ...


class InEngine:
    """engine: opens it, where it is still on disk."""

    def __init__(self, engine: Callable[[], Any]) -> None:
        self._engine = engine

    def tokens(self) -> Mapping[str, int]:
        found: Mapping[str, int] = self._engine().tokenizer.get_vocab()
        return found

    def heard(self, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
        audio = self._engine().audio_tokenizer
        whole, clip = audio.process_audio(wav(reference.audio, reference.sample_rate))
        return whole, np.asarray(clip[0])

    def prompt(self, text: str, voice: Spoken) -> np.ndarray:
        engine = self._engine()
        if voice.style is not None:
            return prompts.ids(engine, prompts.controlled(engine, text, *voice.style))
        assert voice.codes is not None
        return prompts.ids(engine, prompts.cloning(engine, text, voice.codes, voice.semantics, voice.text))

    def values(self, audio: np.ndarray) -> np.ndarray:
        engine = self._engine()
        return examples.values(engine.audio_tokenizer.processor, audio, int(engine.sample_rate))


class FromFiles:
    """tokenizer: of `folder.tokenizer`. clip: samples of a recording that say who speaks. level: whether recordings are
    brought to one."""

    def __init__(self, tokenizer: Any, *, clip: int, level: bool) -> None:
        self._tokenizer, self._clip, self._level = tokenizer, clip, level

    def tokens(self) -> Mapping[str, int]:
        found: Mapping[str, int] = self._tokenizer.get_vocab()
        return found

    def heard(self, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
        audio = reference.audio.astype(np.float64)
        audio = levelled(audio) if self._level else audio
        return audio, clipped(audio, self._clip)

    def prompt(self, text: str, voice: Spoken) -> np.ndarray:
        if voice.style is not None:
            prompt = grammar.controlled(text, *voice.style)
        else:
            assert voice.codes is not None
            prompt = grammar.cloning(text, voice.codes, voice.semantics, voice.text)
        return np.array(self._tokenizer.encode(prompt).ids, np.int64)

    def values(self, audio: np.ndarray) -> np.ndarray:
        return standardised(audio)[None]


def alike(one: Reading, other: Reading, count: int, rate: int) -> bool:
    """Whether both read texts and recordings of all kinds as the same. count: codes of a voice."""
    codes, semantics = np.arange(count), np.arange(9)
    voices = (Spoken(codes), Spoken(codes, semantics, "It says so."), Spoken(style=("female", "moderate", "very_high")))
    asked = [(text, voice) for text in _TEXTS for voice in voices]
    if not all(np.array_equal(one.prompt(*each), other.prompt(*each)) for each in asked):
        return False
    for seconds in (0.4, 7.3):  # shorter than the clip that says who speaks, and longer
        audio = examples.noise(seconds, rate).astype(np.float32) / 8
        reference = Reference(audio, rate, "", "")
        whole = one.heard(reference)[0]
        heard = [(*each.heard(reference), each.values(whole)) for each in (one, other)]
        if not all(a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(*heard, strict=True)):
            return False
    return one.tokens() == other.tokens()
