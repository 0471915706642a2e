"""Reference audio: from a file or an array to float32 mono at the engine's rate."""

from __future__ import annotations

import os

import numpy as np

from .errors import ReferenceEngineError

__all__ = ["check_waveform", "load_audio"]


def load_audio(path: str | os.PathLike[str], sample_rate: int) -> np.ndarray:
    """A sound file -> float32 mono [n] at `sample_rate`. Raises ReferenceEngineError if it cannot be read."""
    import soundfile
    import soxr

    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise ReferenceEngineError(f"cannot read the reference audio {path}: {error}") from error
    mono = audio.mean(axis=1)
    return check_waveform(mono if rate == sample_rate else soxr.resample(mono, rate, sample_rate))


def check_waveform(audio: np.ndarray) -> np.ndarray:
    """The samples as float32 [n]. Raises ReferenceEngineError unless they are finite, mono and there at all."""
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.size == 0 or not np.issubdtype(samples.dtype, np.floating):
        raise ReferenceEngineError("audio must be a non-empty mono array of floating point samples in [-1, 1]")
    if not np.isfinite(samples).all():
        raise ReferenceEngineError("audio must be finite")
    return samples.astype(np.float32, copy=False)
