"""A trace: what PyTorch generated, for a proof to compare an export with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Trace"]


@dataclass(frozen=True)
class Trace:
    """What PyTorch did: prompt int64 [1+C, T], frames int64 [n, 1+C], logits [n, rows] and [n, C-1, codes].

    key_range, value_range: the largest magnitudes in the slow model's key-value cache afterwards, keys after rotation,
    float32 [layers, kv_heads, head_dim] each; without them that cache cannot be quantized.
    """

    prompt: np.ndarray
    frames: np.ndarray
    main_logits: np.ndarray
    code_logits: np.ndarray
    key_range: np.ndarray | None = None
    value_range: np.ndarray | None = None
