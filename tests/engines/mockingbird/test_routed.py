"""The engine's own entry points on routed parts: the same types and values as before."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.engines.mockingbird import MockingBird


def counted(fast: UniversalOptimizer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that are asked."""
    asked: list[str] = []
    for name, route in fast._routes.items():
        once = "_stream" if route.part.streams else "_once"
        monkeypatch.setattr(route, once, functools.partial(_noting, asked, name, getattr(route, once)))
    return asked


def _noting(asked: list[str], name: str, own: Any, *args: Any, **options: Any) -> Any:
    asked.append(name)
    return own(*args, **options)


def test_a_recording_is_embedded_by_the_part(
    engine: MockingBird, fast: UniversalOptimizer, recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(fast, monkeypatch)
    wav = fast.encoder.preprocess_wav(*recording)
    mine, expected = fast.encoder.embed_utterance(wav), engine.encoder.embed_utterance(wav)
    assert (type(mine), mine.dtype, mine.shape) == (type(expected), expected.dtype, expected.shape)
    np.testing.assert_allclose(mine, expected, atol=1e-6)
    assert asked == ["encoder"]


def test_a_spectrogram_is_made_by_the_parts(
    engine: MockingBird, fast: UniversalOptimizer, voice: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(fast, monkeypatch)
    given: dict[str, Any] = {"return_alignments": True, "style_idx": 2, "steps": 30}
    torch.manual_seed(9)
    expected, alignments = engine.synthesizer.synthesize_spectrograms(["你好 there"], [voice], **given)
    torch.manual_seed(9)
    mine, own = fast.synthesizer.synthesize_spectrograms(["你好 there"], [voice], **given)
    assert asked == ["text", "loop", "postnet"]
    np.testing.assert_allclose(mine[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(own, alignments.detach(), atol=1e-5)
    assert isinstance(own, torch.Tensor)


def test_several_at_once_are_the_models_own(
    engine: MockingBird, fast: UniversalOptimizer, voice: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is padded, and attends to its padding: the engine's answer, which no part gives."""
    asked = counted(fast, monkeypatch)
    torch.manual_seed(9)
    expected = engine.synthesizer.synthesize_spectrograms(["one two", "three"], [voice, voice], steps=20)
    torch.manual_seed(9)
    mine = fast.synthesizer.synthesize_spectrograms(["one two", "three"], [voice, voice], steps=20)
    assert asked == []
    for one, other in zip(mine, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_audio_is_made_by_the_part(
    engine: MockingBird, fast: UniversalOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(fast, monkeypatch)
    mel = np.random.default_rng(0).uniform(-4, 4, (20, 31)).astype(np.float32)
    (mine, rate), (expected, _) = fast.vocoder.infer_waveform(mel), engine.vocoder.infer_waveform(mel)
    assert (rate, mine.dtype, mine.shape) == (16_000, np.float32, expected.shape)
    np.testing.assert_allclose(mine, expected, atol=1e-5)
    assert asked == ["vocoder"]


def test_it_is_a_mockingbird_for_everybody_else(fast: UniversalOptimizer) -> None:
    assert isinstance(fast._bound.engine, MockingBird)
    assert fast.settings.styled
    assert fast.is_gan
