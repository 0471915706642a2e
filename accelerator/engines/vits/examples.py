"""What VITS's exports are traced and proven with: inputs, and the engine's own answers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...parts.sentences import SENTENCES
from .traceable import Decoder, Text, answer, speaker_input

__all__ = ["decoder_inputs", "of_decoder", "of_sentences", "of_speech", "of_text", "text_inputs"]

_FEWEST = 5  # tokens: fewer are left of a sentence whose letters the model does not know

Example = tuple[tuple[np.ndarray, ...], np.ndarray]
Named = tuple[Mapping[str, np.ndarray], Sequence[np.ndarray]]


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


def of_sentences(model: Any, tokenized: Callable[[str], np.ndarray]) -> Iterator[Named]:
    """Inputs of the text part, by name, as real sentences lead to them, and the engine's answers. tokenized: text ->
    [1, T].

    A model of another script is given tokens at random instead.
    """
    text, config = Text(model), model.config
    for seed, sentence in enumerate(SENTENCES):
        random, speaker = np.random.default_rng(seed), speaker_input(model, seed % config.num_speakers)
        tokens = tokenized(sentence)
        if tokens.shape[1] < _FEWEST:
            tokens = random.integers(0, config.vocab_size, (1, 12 * (seed + 1)))
        noise = config.noise_scale_duration * random.standard_normal((1, 2, tokens.shape[1])).astype(np.float32)
        inputs = {"tokens": tokens, "noise": noise}
        given = inputs if speaker is None else {**inputs, "speaker": speaker}
        yield given, [answer(text, *given.values())]


def of_speech(model: Any, tokenized: Callable[[str], np.ndarray]) -> Iterator[Named]:
    """The same of the decoder: latents are drawn as what the text part says leads to them."""
    decoder, config = Decoder(model), model.config
    for seed, (said, (answered,)) in enumerate(of_sentences(model, tokenized)):
        random, speaker, prior = np.random.default_rng((seed, 1)), said.get("speaker"), answered[0]  # [T, 2C + 1]
        frames = prior.repeat(np.maximum(np.ceil(np.exp(prior[:, -1])), 1).astype(np.int64), axis=0).T
        means, variances = frames[: config.flow_size], frames[config.flow_size : -1]
        latents = means + random.standard_normal(means.shape) * np.exp(variances) * config.noise_scale
        inputs = {"latents": latents[None].astype(np.float32)}
        given = inputs if speaker is None else {**inputs, "speaker": speaker}
        yield given, [answer(decoder, given["latents"], speaker)]


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
