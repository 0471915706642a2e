"""The engine's copy on routed parts: what it asks of its models, it asks the parts; all else is the engine's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from ...errors import InvalidOption
from ...metrics import current_meter
from ...parts.language_model import LANGUAGE_MODEL
from ...parts.part import Call
from ...speech import SamplingParams
from ..shadow import shadow
from .multinomial import Multinomial
from .stages import DECODER, ENCODER

__all__ = ["Wrapped", "routed"]

logger = logging.getLogger(__name__)

_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
_ASKED = {"input_ids", "attention_mask", "do_sample", *_SAMPLING}


class Wrapped(Protocol):
    """What the copy knows of the engine that was wrapped; its adapter says it."""

    positions: int  # of the language model
    tokens: int  # that the language model knows
    sizes: tuple[int, int]  # of the semantic codebook, and of the voice's
    count: int  # codes of a voice

    @property
    def engine(self) -> Any: ...

    def outdated(self) -> str | None:
        """Why the parts are not the engine's any more; None if they are."""
        ...


def routed(own: Wrapped, calls: Mapping[str, Call]) -> Any:
    """A copy of the engine on other parts; every setting is the wrapped engine's own."""
    engine = own.engine
    audio = engine.audio_tokenizer
    told = set[str]()

    def current() -> bool:
        """Whether the parts are the engine's; what was changed is said once."""
        reason = own.outdated()
        if reason is not None and reason not in told:
            told.add(reason)
            logger.warning("the engine's own models speak: %s", reason)
        return reason is None

    def generate(*args: Any, **options: Any) -> Any:
        prompt, params = _asked(own, args, options)
        if prompt is None or params is None or not current():  # the engine itself answers, or says what is wrong
            return engine.model.generate(*args, **options)
        tokens, chance = [], None
        if params.temperature != 0:
            chance = Multinomial(own.tokens, state=torch.get_rng_state())
            # Drawn where the engine would draw: who has seeded PyTorch gets the same speech again.
            params = replace(params, seed=int(torch.randint(2**62, (1,))))
        for token in calls[LANGUAGE_MODEL](prompt, params, chance=chance):
            current_meter().add_frames(1)
            tokens.append(token)
        if chance is not None and chance.drew:
            torch.set_rng_state(chance.state)
        return torch.tensor([[*prompt.tolist(), *tokens]])

    def tokenize(path: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not current():
            return audio.tokenize(path)
        whole, clip = audio.process_audio(path)
        semantics, codes = calls[ENCODER](whole, np.asarray(clip[0]))
        return torch.from_numpy(codes.astype(np.int32))[None, None], torch.from_numpy(semantics)[None]

    def detokenize(semantics: Any, codes: Any) -> Any:
        if not _known(own, semantics, codes) or not current():
            return audio.model.detokenize(semantics, codes)
        given = (each.reshape(-1).numpy().astype(np.int64) for each in (semantics, codes))
        return torch.from_numpy(calls[DECODER](*given))[None, None]

    bicodec = shadow(audio.model, detokenize=detokenize)
    return shadow(
        engine,
        model=shadow(engine.model, generate=generate),
        audio_tokenizer=shadow(audio, model=bicodec, tokenize=tokenize),
    )


def _asked(own: Wrapped, args: Any, options: Mapping[str, Any]) -> tuple[np.ndarray | None, SamplingParams | None]:
    """A prompt int64 [T] and how to go on from it; None for what is not asked of the part."""
    ids, mask = options.get("input_ids"), options.get("attention_mask")
    if args or not options.keys() <= _ASKED or ids is None or ids.ndim != 2 or len(ids) != 1:
        return None, None
    if (mask is not None and not bool((mask == 1).all())) or not 0 < ids.shape[1] < own.positions:
        return None, None
    asked = {name: options[name] for name in _SAMPLING if options.get(name) is not None}
    sampled = options.get("do_sample") is True
    if sampled and asked.get("temperature") == 0:
        return None, None
    if not sampled:
        asked["temperature"] = 0.0
    try:
        return ids[0].numpy().astype(np.int64), SamplingParams(**asked)
    except InvalidOption:
        return None, None


def _known(own: Wrapped, semantics: Any, codes: Any) -> bool:
    """Whether these are codes of one recording, and of one voice."""
    if not (isinstance(semantics, torch.Tensor) and isinstance(codes, torch.Tensor)):
        return False
    if semantics.ndim != 2 or len(semantics) != 1 or tuple(codes.shape) != (1, 1, own.count):
        return False
    return all(
        each.numel() > 0
        and each.dtype in (torch.int32, torch.int64)
        and int(each.min()) >= 0
        and int(each.max()) < size
        for each, size in zip((semantics, codes), own.sizes, strict=True)
    )
