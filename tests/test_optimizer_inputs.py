"""Options, texts and references that cannot be: a clear error, at once, and nobody falls back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.cache import ContentCache
from accelerator.errors import (
    InvalidOption,
    InvalidReference,
    InvalidText,
)
from accelerator.pipeline.voices import KnownVoices
from accelerator.voices import DiskVoices
from tests.doubles import replica

TEXT = "Hello there."
SHORT: dict[str, Any] = {"max_new_tokens": 10}


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int3"},
        {"precision": None},
        {"proof": "lenient"},
        {"threads": 0},
        {"threads": -1},
        {"threads": 1.5},
        {"threads": True},
        {"threads": "2"},
    ],
)
def test_bad_options_are_refused(tiny: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        UniversalOptimizer(tiny, **options)


def test_unknown_options_are_refused(tiny: Any, fast: UniversalOptimizer) -> None:
    with pytest.raises(TypeError, match="quantisation"):
        UniversalOptimizer(tiny, quantisation="int8")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="speed"):
        fast.synthesize(TEXT, speed=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidOption, match="speed"):
        fast.stream(TEXT, speed=2)
    with pytest.raises(InvalidOption, match="no part called 'vocoder'"):
        fast.prepare(["vocoder"])


SAMPLING_ERRORS = [
    {"temperature": -0.1},
    {"temperature": 2.1},
    {"temperature": math.nan},
    {"temperature": "hot"},
    {"top_p": 0.0},
    {"top_p": 1.01},
    {"top_k": 0},
    {"top_k": 1.5},
    {"repetition_penalty": 0.9},
    {"seed": -1},
    {"seed": 2**63},
    {"max_new_tokens": 0},
    {"max_new_tokens": True},
]


@pytest.mark.parametrize("options", SAMPLING_ERRORS, ids=str)
def test_sampling_out_of_range(fast: UniversalOptimizer, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        fast.synthesize(TEXT, **options)
    with pytest.raises(InvalidOption, match=next(iter(options))):
        fast.stream(TEXT, **options)


# Bad input: a clear error, at once, and nobody falls back

BAD_TEXTS: list[Any] = ["", "  \n\t", "?!...", "🙂🙂", "nul\0byte", "half \ud83d", "a" * 1_000_000, b"bytes", None, 7]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda t: repr(t)[:20])
def test_texts_that_cannot_be_spoken(tiny: Any, text: Any) -> None:
    optimizer = replica(tiny)
    with pytest.raises(InvalidText):
        optimizer.synthesize(text)
    with pytest.raises(InvalidText):
        optimizer.stream(text)
    assert all(not part["errors"] for part in optimizer.status()["parts"].values())


@pytest.mark.parametrize("text", ["emoji 🙂 too", "שלום עולם", "你好。", "a\u0301 b\r\n c\x07", "1"])
def test_texts_of_all_kinds_are_spoken(fast: UniversalOptimizer, text: str) -> None:
    audio, _, metrics = fast.synthesize(text, seed=1, max_new_tokens=3)
    assert len(audio) == 3 * fast.hop
    assert metrics["fallback"] == []


def bad_references(tmp_path: Path) -> dict[str, Any]:
    tone = np.sin(np.arange(16_000) / 9).astype(np.float32) * 0.3
    text = tmp_path / "not audio.wav"
    text.write_text("This is no audio.")
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    broken = tone.copy()
    broken[5] = np.nan
    return {
        "empty": (np.zeros(0, np.float32), 16_000),
        "too short": (tone[:800], 16_000),
        "too long": (np.tile(tone, 600), 16_000),
        "NaN": (broken, 16_000),
        "silent": (np.zeros(16_000, np.float32), 16_000),
        "no scale": (tone * 32_768, 16_000),
        "rate of zero": (tone, 0),
        "missing": tmp_path / "missing.wav",
        "a directory": tmp_path,
        "not audio": text,
        "an empty file": empty,
        "bytes": b"RIFF....",
        "a number": 5,
    }


BAD_REFERENCES = (
    *("empty", "too short", "too long", "NaN", "silent", "no scale", "rate of zero"),
    *("missing", "a directory", "not audio", "an empty file", "bytes", "a number"),
)


@pytest.mark.parametrize("kind", BAD_REFERENCES)
def test_references_that_cannot_be_used(tiny: Any, tmp_path: Path, kind: str) -> None:
    optimizer = replica(tiny)
    with pytest.raises(InvalidReference):
        optimizer.synthesize(TEXT, bad_references(tmp_path)[kind], "what it says")
    assert all(not part["errors"] for part in optimizer.status()["parts"].values())


def test_a_transcript_without_a_voice(fast: UniversalOptimizer) -> None:
    with pytest.raises(InvalidReference, match="reference_text without"):
        fast.synthesize(TEXT, reference_text="hello")


def test_references_of_any_rate_and_shape(
    fast: UniversalOptimizer, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fast._dispatcher.voices, "_store", KnownVoices(DiskVoices(ContentCache(tmp_path)), "nothing known")
    )
    t = np.arange(8000) / 8000
    stereo = np.stack([np.sin(1000 * t), np.sin(1000 * t)], axis=1).astype(np.float32) * 0.3
    audio, _, metrics = fast.synthesize(TEXT, (stereo, 8000), "a voice", temperature=0, **SHORT)
    mono = fast.synthesize(TEXT, (8000, (stereo[:, 0] * 32768).astype(np.int16)), "a voice", temperature=0, **SHORT)
    assert len(audio) == 10 * tiny.hop
    np.testing.assert_allclose(mono.audio, audio, atol=0.02)
    assert metrics["backends"]["encoder"] == "onnxruntime"
    assert metrics["stages"]["reference"] > 0
