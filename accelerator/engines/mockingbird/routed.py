"""The engine's copy on routed parts: what it asks of its models, it asks the parts; all else is the engine's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ...metrics import current_meter
from ...parts.part import Call
from ..shadow import shadow
from .engine import MockingBird
from .instances import instance
from .loop import Block, Sentence
from .masks import Masks

__all__ = ["ENCODER", "LOOP", "POSTNET", "TEXT", "VOCODER", "Wrapped", "routed", "said"]

ENCODER, TEXT, LOOP, POSTNET, VOCODER = "encoder", "text", "loop", "postnet", "vocoder"
_NAMED = {"steps": 2000, "style_idx": 0, "min_stop_token": 5}  # of `Tacotron.generate`


class Wrapped(Protocol):
    """What the copy and its stages know of the engine that was wrapped; its adapter says it."""

    engine: MockingBird
    reach: int | None  # frames to both sides that a frame's audio depends on
    hop: int  # samples of a frame

    def masks(self, seed: int | None) -> Masks: ...


def said(
    own: Wrapped,
    calls: Mapping[str, Call],
    symbols: np.ndarray,
    embedding: np.ndarray,
    seed: int | None,
    *,
    style_idx: int,
    min_stop_token: int,
    steps: int,
) -> Any:
    """A text's blocks, one by one; see `loop`. symbols int64 [T], embedding float32 [256]. seed: see `Masks`."""
    masks = own.masks(seed)
    memory, keys = calls[TEXT](
        symbols[None], embedding[None], np.array([style_idx], np.int64), *masks.text(len(symbols))
    )
    for block in calls[LOOP](Sentence(memory, keys, steps, min_stop_token), masks):
        current_meter().add_frames(block.mel.shape[1])
        yield block


def routed(own: Wrapped, calls: Mapping[str, Call]) -> MockingBird:
    """A copy of the engine on other parts; every setting is the wrapped engine's own."""
    engine = own.engine
    encoder, tacotron = engine.encoder._model, engine.synthesizer._model

    def embedded(frames: Any, hidden_init: Any = None) -> Any:
        if hidden_init is not None or frames.dtype != torch.float32:
            return encoder(frames, hidden_init)
        return torch.from_numpy(calls[ENCODER](frames.numpy()))

    def generated(x: Any, speaker_embedding: Any, *asked: Any, **named: Any) -> Any:
        options = {**_NAMED, **dict(zip(_NAMED, asked, strict=False)), **named}
        if len(x) != 1 or not bool((x > 0).all()) or options.keys() != _NAMED.keys():
            return tacotron.generate(x, speaker_embedding, *asked, **named)  # several at once, one of them padded
        arrays = x[0].numpy().astype(np.int64), speaker_embedding[0].numpy().astype(np.float32)
        blocks: Sequence[Block] = list(said(own, calls, *arrays, None, **options))
        mel = np.concatenate([block.mel for block in blocks], axis=1)[None]
        scores = np.stack([block.scores for block in blocks])[None]
        answers = mel, calls[POSTNET](mel), scores
        return tuple(map(torch.from_numpy, answers))

    synthesizer = copy.copy(engine.synthesizer)
    synthesizer._model = shadow(tacotron, generate=generated)
    vocoder = engine.vocoder
    if engine.is_gan:
        generator = engine.generator

        def spoken(mel: Any) -> Any:
            if len(mel) != 1 or mel.dtype != torch.float32:
                return generator(mel)
            return torch.from_numpy(calls[VOCODER](mel.numpy()))[None]

        vocoder = instance(vocoder, generator=shadow(generator, forward=spoken))
    return shadow(
        engine,
        encoder=instance(engine.encoder, _model=shadow(encoder, forward=embedded)),
        synthesizer=synthesizer,
        vocoder=vocoder,
    )
