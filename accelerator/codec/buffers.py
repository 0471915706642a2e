"""A thread's memory for what is worked on within a layer; new memory costs more than what fills it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["KEPT", "scratch"]

KEPT = 4_000_000  # values that a thread keeps for a use: more is asked for anew each time

_KEPT = threading.local()


def scratch(use: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An array of anything, which lives until the thread asks for the same use and dtype again."""
    size = math.prod(shape)
    if size > KEPT:
        return torch.empty(tuple(shape), dtype=dtype)
    kept: Tensor | None = getattr(_KEPT, use + str(dtype), None)
    if kept is None or len(kept) < size:
        with torch.inference_mode(False):  # else it could not be written to outside that mode
            kept = torch.empty(size, dtype=dtype)
        setattr(_KEPT, use + str(dtype), kept)
    return kept[:size].view(tuple(shape))
