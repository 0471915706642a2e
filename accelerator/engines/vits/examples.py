"""What VITS's exports are traced and proven with: inputs, and the engine's own answers to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .traceable import Decoder, Text, answer, speaker_input

__all__ = ["decoder_inputs", "of_decoder", "of_text", "text_inputs"]

Example = tuple[tuple[np.ndarray, ...], np.ndarray]


def of_text(model: Any) -> Iterator[Example]:
    """The tracer sees the first length only, here and below."""
    module = Text(model)
    for length in (29, 11, 96):
        yield _example(module, text_inputs(model, length))


def of_decoder(model: Any, *lengths: int) -> Iterator[Example]:
    """lengths: further ones."""
    module = Decoder(model)
    for length in (37, 9, 120, *lengths):
        yield _example(module, decoder_inputs(model, length))


def _example(module: Any, inputs: tuple[np.ndarray | None, ...]) -> Example:
    return tuple(each for each in inputs if each is not None), answer(module, *inputs)


def text_inputs(model: Any, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Tokens, noise, and a speaker if there are several."""
    random, config = np.random.default_rng(length), model.config
    tokens = random.integers(0, config.vocab_size, (1, length))
    noise = config.noise_scale_duration * random.standard_normal((1, 2, length)).astype(np.float32)
    return tokens, noise, speaker_input(model, length % config.num_speakers)


def decoder_inputs(model: Any, length: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Latents, and a speaker if there are several."""
    random, config = np.random.default_rng(length), model.config
    latents = random.standard_normal((1, config.flow_size, length)).astype(np.float32)
    return latents, speaker_input(model, length % config.num_speakers)
