"""What Spark-TTS's exports are traced and proven with: inputs, and the engine's own answers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["PROOF_TEXT", "Example", "codes", "decoded", "encoded", "in_engine", "noise", "said", "values", "who"]

PROOF_TEXT = "The quick brown fox jumps over the lazy dog."

Example = tuple[tuple[np.ndarray, ...], np.ndarray]
_SECONDS = (1.3, 0.71, 2.9)  # the tracer sees the first only


def noise(seconds: float, rate: int) -> np.ndarray:
    """Seeded noise under a tone that rises and falls, float64 [n]: as the engine has its recordings."""
    n = round(seconds * rate)
    t = np.arange(n) / rate
    return 0.3 * np.sin(2 * np.pi * (180 * t + 8 * np.sin(5 * t))) + 0.05 * np.random.default_rng(n).standard_normal(n)


def codes(length: int, size: int) -> np.ndarray:
    """Seeded codes of a codebook, int64 [length]."""
    return np.random.default_rng(length).integers(0, size, length)


def values(processor: Any, audio: np.ndarray, rate: int) -> np.ndarray:
    """What wav2vec2 is given of a recording, float32 [1, n]."""
    given = processor(audio, sampling_rate=rate, return_tensors="np", padding=True).input_values
    return np.asarray(given, np.float32)


def in_engine(tokenizer: Any, audio: np.ndarray, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A recording float64 [n] and a clip of it float32 [m] -> semantic codes int64 [T], the voice's int64 [G]."""
    import torch

    with torch.no_grad():
        features = tokenizer.extract_wav2vec2_features(audio)
        batch = {"wav": torch.from_numpy(audio)[None].float(), "ref_wav": torch.from_numpy(clip)[None]}
        semantics, codes = tokenizer.model.tokenize({**batch, "feat": features})
    return np.asarray(semantics.numpy(), np.int64).reshape(-1), np.asarray(codes.numpy(), np.int64).reshape(-1)


def said(tokenizer: Callable[[], Any], rate: int) -> Iterator[Example]:
    """Values for wav2vec2, and the engine's semantic codes."""
    own = tokenizer()
    for audio, semantics, _ in encoded(own, rate):
        yield (values(own.processor, audio, rate),), semantics[None]


def who(tokenizer: Callable[[], Any], rate: int) -> Iterator[Example]:
    """Clips, and the engine's codes of who speaks."""
    own = tokenizer()
    for audio, _, codes in encoded(own, rate):
        yield (_clip(own, audio)[None],), codes[None]


def encoded(tokenizer: Any, rate: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Recordings float64 [n], and the engine's codes: semantic int64 [T], of who speaks int64 [G]."""
    for seconds in _SECONDS:
        audio = noise(seconds, rate)
        yield (audio, *in_engine(tokenizer, audio, _clip(tokenizer, audio)))


def _clip(tokenizer: Any, audio: np.ndarray) -> np.ndarray:
    return np.asarray(tokenizer.get_ref_clip(audio), np.float32)


def decoded(
    detokenize: Callable[[np.ndarray, np.ndarray], np.ndarray], sizes: tuple[int, int], count: int
) -> Iterator[Example]:
    """Codes, and the engine's audio. sizes: of the codebooks. count: codes of a voice."""
    for length in (37, 9, 120):
        given = codes(length, sizes[0]), codes(count, sizes[1])
        yield (given[0][None], given[1][None]), detokenize(*given)[None]
