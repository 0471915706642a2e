"""Greedy speech, blocking and in pieces, and when it is the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from accelerator import UniversalOptimizer

FRAMES = 12
GREEDY: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": FRAMES}
TEXT = "Hi there."


def speak(optimizer: UniversalOptimizer, how: str, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    options = GREEDY | options
    if how == "blocking":
        audio, _, metrics = optimizer.synthesize(TEXT, **options)
        return audio, metrics
    stream = optimizer.stream(TEXT, **options)
    chunks = list(stream)
    assert len(chunks) == 2, "twelve frames in pieces of eight"
    return np.concatenate([chunk.audio for chunk in chunks]), stream.metrics


def same(audio: np.ndarray, expected: np.ndarray) -> None:
    """Equal, but for the rounding of windows of other lengths."""
    np.testing.assert_allclose(audio, expected, rtol=0, atol=2e-6)
