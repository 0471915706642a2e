"""What the codec's exports are traced and proven with: inputs, and the engine's own answers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch

from .structure import computing

__all__ = ["codes", "examples", "noise"]

LENGTHS = (5, 13, 29)  # frames; the tracer sees the first length only


def examples(
    part: Literal["encoder", "decoder"], codec: Callable[[], Any], method: str, codebooks: int
) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Inputs, and the engine's own answers in float32. Two rows are traced, so that no axis has length 1.

    method: the codec's own from codes to audio.
    """
    own = codec()
    for rows, frames in zip((2, 1, 1), LENGTHS, strict=True):
        with computing():
            if part == "encoder":
                audio = np.stack([noise(own, frames, seed) for seed in range(rows)])
                answer = own.encode(torch.from_numpy(audio)[:, None])[0].numpy()
                yield (audio.reshape(rows, frames, -1),), answer
                continue
            given = np.stack([codes(own, codebooks, frames, seed) for seed in range(rows)])
            lengths = {"feature_lengths": torch.tensor([frames] * rows)} if method == "decode" else {}
            answer = getattr(own, method)(indices=torch.from_numpy(given.copy()), **lengths)
            audio = (answer[0] if method == "decode" else answer)[:, 0].numpy()
        yield (given,), audio


def codes(codec: Any, codebooks: int, frames: int, seed: int = 0) -> np.ndarray:
    """Seeded codes [C, frames] within each codebook; the codec may be without weights, here and below."""
    quantizer = codec.quantizer
    sizes = [quantizer.semantic_quantizer.codebook_size] + [quantizer.quantizer.codebook_size] * (codebooks - 1)
    return np.random.default_rng([frames, seed]).integers(0, np.array(sizes)[:, None], (len(sizes), frames))


def noise(codec: Any, frames: int, seed: int = 0) -> np.ndarray:
    """Seeded noise under a tone, float32 [n], whole frames."""
    n = frames * int(codec.frame_length)
    random = np.random.default_rng([n, seed]).standard_normal(n) * 0.05
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(n) / int(codec.sample_rate)) + random).astype(np.float32)
