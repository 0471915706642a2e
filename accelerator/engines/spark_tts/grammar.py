"""The engine's prompts where it is not there to write them: what a conversion is asked."""

from __future__ import annotations

import numpy as np

from .stages import GENDERS, LEVELS

__all__ = ["cloning", "controlled"]


def cloning(text: str, codes: np.ndarray, semantics: np.ndarray | None, said: str) -> str:
    """To speak as a voice, codes int64 [G]; and on after a recording, semantics int64 [T], that says `said`."""
    voice = "".join(f"<|bicodec_global_{code}|>" for code in codes)
    prompt = f"<|task_tts|>{_content(text, said)}<|start_global_token|>{voice}<|end_global_token|>"
    if semantics is None:
        return prompt
    return f"{prompt}<|start_semantic_token|>{''.join(f'<|bicodec_semantic_{code}|>' for code in semantics)}"


def controlled(text: str, gender: str, pitch: str, speed: str) -> str:
    """To speak as a voice that is described."""
    labels = f"<|pitch_label_{LEVELS.index(pitch)}|><|speed_label_{LEVELS.index(speed)}|>"
    style = f"<|start_style_label|><|gender_{GENDERS.index(gender)}|>{labels}<|end_style_label|>"
    return f"<|task_controllable_tts|>{_content(text)}{style}"


def _content(text: str, said: str = "") -> str:
    return f"<|start_content|>{said}{text}<|end_content|>"
