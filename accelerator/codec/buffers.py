"""Scratch memory for each thread, reused between layers: allocating it costs more than filling it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["KEPT", "scratch"]

KEPT = 4_000_000  # values that a thread keeps for each use; larger buffers are allocated each time

_KEPT = threading.local()


def scratch(use: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised array, valid until the thread asks for the same use and dtype again."""
    size = math.prod(shape)
    if size > KEPT:
        return torch.empty(tuple(shape), dtype=dtype)
    kept: Tensor | None = getattr(_KEPT, use + str(dtype), None)
    if kept is None or len(kept) < size:
        with torch.inference_mode(False):  # otherwise it could not be written outside that mode
            kept = torch.empty(size, dtype=dtype)
        setattr(_KEPT, use + str(dtype), kept)
    return kept[:size].view(tuple(shape))
