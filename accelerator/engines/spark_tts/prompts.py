"""The engine's own prompts: its methods are called, on a copy for which a recording's tokens are known already."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...hardware.forks import Lock
from ..shadow import shadow

__all__ = ["cloning", "controlled", "ids"]

_ONE_AT_A_TIME = Lock()


def cloning(engine: Any, text: str, codes: np.ndarray, semantics: np.ndarray | None, said: str | None) -> str:
    """To speak as a voice, codes int64 [G]; and on after a recording, semantics int64 [T], that says `said`."""
    import torch

    known = torch.from_numpy(codes)[None, None], torch.from_numpy(np.zeros(0) if semantics is None else semantics)[None]
    copy = shadow(engine, audio_tokenizer=shadow(engine.audio_tokenizer, tokenize=lambda path: known))
    prompt, _ = copy.process_prompt(text, None, said if semantics is not None else None)
    return str(prompt)


def controlled(engine: Any, text: str, gender: str, pitch: str, speed: str) -> str:
    """To speak as a voice that is described."""
    return str(engine.process_prompt_control(gender, pitch, speed, text))


def ids(engine: Any, prompt: str) -> np.ndarray:
    """A prompt's tokens, int64 [T]."""
    with _ONE_AT_A_TIME:  # two threads in one tokenizer: "Already borrowed"
        return np.asarray(engine.tokenizer([prompt])["input_ids"][0], np.int64)
