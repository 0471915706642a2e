"""What the bundled voice is beside its size "small": whose voices it has, and what it has read."""

from __future__ import annotations

from dataclasses import replace

from ..config import SIZES
from .corpus import SPEAKERS

__all__ = ["SPEAKER_TOKENS", "VOICE"]

_SMALL = SIZES["small"]

VOICE = replace(
    _SMALL,
    language_model=replace(
        _SMALL.language_model,
        speakers=SPEAKERS,
        speaker_begin=259,
        untold=262,
        repetition_aware=False,  # a held vowel and a pause repeat themselves
    ),
    temperature=0.4,
    top_p=0.5,
    text="sounds",
    longest_text=120,
    guidance=2.0,
    plausible=0.35,
)

SPEAKER_TOKENS = {name: VOICE.language_model.speaker_begin + i for i, name in enumerate(SPEAKERS)}
