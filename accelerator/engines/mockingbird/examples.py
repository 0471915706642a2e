"""What MockingBird's exports are traced and proven with: seeded inputs, and the engine's own answers to them.

The tracer sees the first of each only; the others have lengths that it never saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .traceable import STATE, STEP, Postnet, Speaker, Step, Text, Vocoder, answer, state_widths

__all__ = ["mel", "of_postnet", "of_speaker", "of_step", "of_text", "of_vocoder", "speaker_inputs", "text_inputs"]

Example = tuple[tuple[np.ndarray, ...], Sequence[np.ndarray]]

_LOUDEST = 4.0  # a mel spectrogram's values are within


def speaker_inputs(rows: int, length: int) -> np.ndarray:
    """Mel spectrograms as the encoder takes them: not of logarithms, float32 [rows, length, 40]."""
    random = np.random.default_rng((rows, length))
    return np.exp(random.normal(-5, 2, (rows, length, 40))).astype(np.float32)


def of_speaker(encoder: Any) -> Iterator[Example]:
    module = Speaker(encoder)
    for rows, length in ((3, 160), (1, 160), (5, 77)):
        given = (speaker_inputs(rows, length),)
        yield given, answer(module, *given)


def text_inputs(tacotron: Any, length: int) -> tuple[np.ndarray, ...]:
    """Symbols, a voice, a style and two masks."""
    random, own = np.random.default_rng(length), tacotron.encoder
    symbols = random.integers(1, own.embedding.num_embeddings, (1, length))
    voice = np.abs(random.normal(size=(1, tacotron.speaker_embedding_size)))
    masks = [_mask(random, (1, length, fc.out_features), own.pre_net.p) for fc in (own.pre_net.fc1, own.pre_net.fc2)]
    return (symbols, (voice / np.linalg.norm(voice)).astype(np.float32), np.array([length % 11 - 1]), *masks)


def of_text(tacotron: Any, *settings: Any) -> Iterator[Example]:
    module = Text(tacotron, *settings)
    for length in (29, 11, 96):  # in three styles, the second of which is the speaker's own
        given = text_inputs(tacotron, length)
        yield given, answer(module, *given)


def of_step(tacotron: Any) -> Iterator[Example]:
    """Several rows, of which the last has fewer symbols than the others."""
    module = Step(tacotron.decoder)
    for rows, length in ((3, 29), (1, 11), (2, 96)):
        given = _step_inputs(tacotron, rows, length)
        yield given, answer(module, *given)


def _step_inputs(tacotron: Any, rows: int, length: int) -> tuple[np.ndarray, ...]:
    random, decoder = np.random.default_rng((rows, length)), tacotron.decoder
    widths = state_widths(tacotron)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.5, shape).astype(np.float32)

    given = {"memory": normal(rows, length, widths["context"])}
    with torch.inference_mode():
        given["keys"] = tacotron.encoder_proj(torch.from_numpy(given["memory"])).numpy()
    given["beyond"] = np.zeros((rows, length), np.float32)
    if rows > 1:
        given["beyond"][-1, length // 2 :] = -np.inf
    for name, layer in (("mask1", decoder.prenet.fc1), ("mask2", decoder.prenet.fc2)):
        given[name] = _mask(random, (rows, layer.out_features), decoder.prenet.p)
    for name in STATE[:-1]:
        given[name] = normal(rows, widths[name])
    given["cumulated"] = np.abs(normal(rows, length)) * (given["beyond"] == 0)
    return tuple(given[name] for name in STEP)


def mel(length: int, mels: int = 80) -> np.ndarray:
    """A mel spectrogram of noise that swells and fades, float32 [mels, length]."""
    random = np.random.default_rng(length)
    swell = np.sin(np.arange(length) / 7) * 2 - 1
    return np.clip(swell + random.normal(0, 1.5, (mels, length)), -_LOUDEST, _LOUDEST).astype(np.float32)


def of_postnet(tacotron: Any) -> Iterator[Example]:
    module = Postnet(tacotron)
    for length in (38, 10, 130):
        given = (mel(length, int(tacotron.decoder.n_mels))[None],)
        yield given, answer(module, *given)


def of_vocoder(generator: Any) -> Iterator[Example]:
    module = Vocoder(generator)
    for length in (37, 9, 120):
        given = (mel(length, int(generator.conv_pre.in_channels))[None],)
        yield given, answer(module, *given)


def _mask(random: np.random.Generator, shape: tuple[int, ...], rate: float) -> np.ndarray:
    return ((random.random(shape) >= rate) / max(1 - rate, 1e-6)).astype(np.float32)
