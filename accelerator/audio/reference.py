"""A recording of somebody whose voice is to be imitated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Reference"]


@dataclass(frozen=True)
class Reference:
    """A voice to imitate: float32 mono `audio` [n] at `sample_rate` Hz, and what it says."""

    audio: np.ndarray
    sample_rate: int
    text: str
    digest: str  # sha256 of the samples and the rate; names the voice in caches
    source: Any = field(default=None, repr=False, compare=False)  # what the caller gave
