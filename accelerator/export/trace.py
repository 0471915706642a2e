"""A trace: what PyTorch generated, for a proof to compare an export with."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ExportError

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

    def save(self, path: Path) -> None:
        """Write it as a .npz file."""
        np.savez(path, allow_pickle=False, **{name: each for name, each in vars(self).items() if each is not None})

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read what `save` has written. Raises ExportError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**file)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ExportError(f"{path} is no trace: {error}") from error
