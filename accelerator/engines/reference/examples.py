"""What exports of the reference engine are made and proven with: inputs, and its own answers to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...export.trace import Trace

__all__ = ["PROOF_TEXT", "codes", "decoded", "encoded", "noise", "trace"]

PROOF_TEXT = "The quick brown fox jumps over the lazy dog."
PROOF_FRAMES = 96

Example = tuple[tuple[np.ndarray, ...], np.ndarray]


def trace(engine: Any) -> Trace:
    """Greedy frames and the engine's own logits at each, from its own modules."""
    import torch

    model, lm = engine.language_model, engine.config.language_model
    prompt = engine.encode_text(PROOF_TEXT)
    count = min(PROOF_FRAMES, lm.max_seq_len - prompt.shape[1])
    frames, main, codes = [], [], []
    with torch.inference_mode():
        cache, fast_cache = model.slow_cache(prompt.shape[1] + count), model.fast_cache()
        step, position = torch.from_numpy(prompt)[None], 0
        for _ in range(count):
            logits, hidden = model.slow(step, cache, position)
            position += step.shape[2]
            main.append(logits[0].numpy().copy())
            first = int(logits[0, :-1].argmax())  # the end would end the trace: the best code goes on
            x = torch.cat((hidden[:, None], model.fast_embeddings(torch.tensor([[first]]))), dim=1)
            frame, at = [lm.semantic_begin + first, first], 0
            for _ in range(lm.codebooks - 1):
                fast_logits = model.fast(x, fast_cache, at)
                at += x.shape[1]
                codes.append(fast_logits[0].numpy().copy())
                frame.append(int(fast_logits[0].argmax()))
                x = model.fast_embeddings(torch.tensor([[frame[-1]]]))
            frames.append(np.array(frame, np.int64))
            step = torch.from_numpy(frames[-1])[None, :, None]
        keys, values = ([t[0, :, :position].abs().amax(1).numpy() for t in ts] for ts in (cache.keys, cache.values))
    logits = np.stack(main), np.stack(codes).reshape(count, lm.codebooks - 1, -1)
    return Trace(prompt, np.stack(frames), *logits, np.stack(keys), np.stack(values))


def decoded(engine: Any) -> Iterator[Example]:
    """Codes, and the audio that the engine makes of them; the tracer sees the first length only, here and below."""
    for frames in (7, 19, 40):
        given = codes(engine, frames)
        yield (given[None],), engine.decode(given)[None]


def encoded(engine: Any) -> Iterator[Example]:
    """Audio, and the engine's codes."""
    rate = engine.sample_rate
    for samples in (int(0.7 * rate), int(0.4 * rate) + 1, int(1.3 * rate) + engine.hop // 3):
        audio = noise(engine, samples / rate)
        yield (audio[None],), engine.encode_reference(audio)[None]


def codes(engine: Any, frames: int) -> np.ndarray:
    """Seeded codes [C, frames] within each codebook."""
    sizes = np.array(engine.config.codec.quantizer.codebook_sizes)
    return np.random.default_rng(frames).integers(0, sizes[:, None], (len(sizes), frames))


def noise(engine: Any, seconds: float) -> np.ndarray:
    """Seeded noise under a tone, float32 [n]."""
    n = round(seconds * engine.sample_rate)
    t = np.arange(n) / engine.sample_rate
    random = np.random.default_rng(n).standard_normal(n) * 0.05
    return (0.3 * np.sin(2 * np.pi * 220 * t) + random).astype(np.float32)
