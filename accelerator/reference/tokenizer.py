"""Text -> tokens: UTF-8 bytes, and the columns of a prompt.

A turn is `im_start, text bytes, voice, semantic frames, im_end`, with the token of a speaker chosen by name behind
`im_start`. A reference is a finished turn before the one to be
spoken, whose frames the model has yet to give.
"""

from __future__ import annotations

import numpy as np

from .config import LanguageModelConfig

__all__ = ["build_prompt", "encode_bytes", "frame_columns", "text_columns", "unconditional"]


def encode_bytes(text: str) -> list[int]:
    """The text's UTF-8 bytes as token ids. Raises UnicodeEncodeError for lone surrogates."""
    return list(text.encode("utf-8"))


def text_columns(tokens: list[int], config: LanguageModelConfig) -> np.ndarray:
    """Tokens -> int64 [1+C, T] with no codes."""
    columns = np.zeros((1 + config.codebooks, len(tokens)), dtype=np.int64)
    columns[0] = tokens
    return columns


def frame_columns(codes: np.ndarray, config: LanguageModelConfig) -> np.ndarray:
    """Codes [C, n] -> int64 [1+C, n]: each frame with the semantic token of its first code."""
    return np.concatenate((codes[:1] + config.semantic_begin, codes)).astype(np.int64)


def build_prompt(
    text: str,
    reference_codes: np.ndarray | None,
    reference_text: str,
    config: LanguageModelConfig,
    speaker: int | None = None,
) -> np.ndarray:
    """The columns int64 [1+C, T] after which the model speaks `text`; `speaker` is the token of one chosen by name."""
    parts = []
    if reference_codes is not None:
        parts.append(text_columns([config.im_start, *encode_bytes(reference_text), config.voice], config))
        parts.append(frame_columns(reference_codes, config))
        parts.append(text_columns([config.im_end], config))
    named = [] if speaker is None else [speaker]
    parts.append(text_columns([config.im_start, *named, *encode_bytes(text), config.voice], config))
    return np.concatenate(parts, axis=1)


def unconditional(columns: np.ndarray, config: LanguageModelConfig) -> np.ndarray:
    """A copy of columns [1+C, T] with every byte of text hidden; the model must have a token for that."""
    assert config.untold is not None
    hidden = columns.copy()
    hidden[0, columns[0] < 256] = config.untold
    return hidden
