"""What goes in and what comes out: requests, sampling parameters, audio chunks and the result."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from .audio.reference import Reference
from .errors import InvalidOption
from .text.check import Stretch

__all__ = ["AudioChunk", "SamplingParams", "Speech", "SpeechRequest", "is_finite", "segment_seed"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. `None` means: whatever the engine does by default.

    temperature: softmax temperature, 0 is greedy. top_p: nucleus mass in (0, 1]. top_k: candidates kept, at least 1.
    repetition_penalty: divisor of the logits of recent tokens, at least 1. seed: 0 .. 2**63-1. max_new_tokens: frames
    at most. Raises InvalidOption for values out of range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_range("repetition_penalty", self.repetition_penalty, 1.0, 10.0)
        _check_int("top_k", self.top_k, 1)
        _check_int("seed", self.seed, 0)
        _check_int("max_new_tokens", self.max_new_tokens, 1)

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """These parameters, with `defaults` where this one says None."""
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(defaults, **given)


def segment_seed(sampling: SamplingParams, number: int) -> SamplingParams:
    """Sampling of a text's segment: each has a seed of its own, or all would draw the same random numbers."""
    if sampling.seed is None or number == 0:
        return sampling
    digest = hashlib.sha256(f"{sampling.seed} {number}".encode()).digest()
    return replace(sampling, seed=int.from_bytes(digest[:7], "little"))


def _check_range(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidOption(f"{name} must be a number, not {type(value).__name__}")
    if not is_finite(value) or value < low or value > high or (low_open and value == low):
        raise InvalidOption(f"{name} must be in {'(' if low_open else '['}{low:g}, {high:g}], not {value!r}")


def is_finite(value: Any) -> bool:
    """Whether a number is one that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _check_int(name: str, value: Any, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidOption(f"{name} must be an integer, not {type(value).__name__}")
    if value < low or value >= 2**63:
        raise InvalidOption(f"{name} must be at least {low}, not {value!r}")


@dataclass(frozen=True)
class SpeechRequest:
    """One thing to say, already checked: see `pipeline.request`.

    voice: one that the engine knows by name. options: the engine's own. streaming: audio as soon as there is any.
    whole: the text is not to be cut into segments. skipped: what was left out of it, as the voice cannot speak it.
    """

    text: str
    reference: Reference | None = None
    sampling: SamplingParams = SamplingParams()
    voice: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    streaming: bool = False
    whole: bool = False
    skipped: tuple[Stretch, ...] = ()


class AudioChunk(NamedTuple):
    """A chunk of speech in order: float32 mono [n] in [-1, 1] at `sample_rate` Hz."""

    audio: np.ndarray
    sample_rate: int


class Speech(NamedTuple):
    """The result: float32 mono [n] in [-1, 1], Hz, and the metrics that `docs/operations.md` lists."""

    audio: np.ndarray
    sample_rate: int
    metrics: dict[str, Any]

    def __repr__(self) -> str:
        seconds, rtf = len(self.audio) / self.sample_rate if self.sample_rate else 0.0, self.metrics.get("rtf")
        paced = "" if rtf is None else f", rtf {rtf:.3g}"
        return f"<Speech of {seconds:.2f} s at {self.sample_rate} Hz{paced}>"

    def save(self, path: str | os.PathLike[str], format: str | None = None) -> None:
        """Write it to a file of the format that the suffix, or `format`, says: wav, flac, mp3, ogg, opus or m4a.

        Raises InvalidOption for another format, OSError where the file cannot be written.
        """
        from .audio.files import write_audio

        write_audio(path, self.audio, self.sample_rate, format)
