"""Reference audio: from a file or an array to float32 mono at the engine's rate, and as a trained voice heard it."""

from __future__ import annotations

import os

import numpy as np

from ..audio.checks import load_reference
from .errors import ReferenceEngineError

__all__ = ["as_learnt", "check_waveform", "load_audio"]

FRAME_S = 0.02
LOUD = 95  # percentile of the frames' powers: that of the loudest vowels
LEVELS = (0.1, 0.3)  # root mean squares of these, in whose range the voices' own lie: 0.13 to 0.33
SILENT = 1e-6  # of that power, 60 dB below it: less than the noise of any room


def load_audio(path: str | os.PathLike[str], sample_rate: int) -> np.ndarray:
    """A sound file -> float32 mono [n] at `sample_rate`. Raises ReferenceEngineError if it cannot be read or used."""
    try:
        return check_waveform(load_reference(path, sample_rate=sample_rate, min_s=0.0).audio)
    except ValueError as error:
        raise ReferenceEngineError(str(error)) from error


def check_waveform(audio: np.ndarray) -> np.ndarray:
    """The samples as float32 [n]. Raises ReferenceEngineError unless they are finite, mono and there at all."""
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.size == 0 or not np.issubdtype(samples.dtype, np.floating):
        raise ReferenceEngineError("audio must be a non-empty mono array of floating point samples in [-1, 1]")
    if not np.isfinite(samples).all():
        raise ReferenceEngineError("audio must be finite")
    return samples.astype(np.float32, copy=False)


def as_learnt(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Speech [n] without its digital silence, and at a level at which the trained voice's speakers were heard.

    By silence and by level it would tell speakers apart rather than by how they sound: pauses are silent in one's
    recordings only, and another one's are twice as loud as the others'.
    """
    length = round(FRAME_S * sample_rate)
    whole = len(audio) // length * length
    frames = audio[:whole].reshape(-1, length)
    powers = np.square(frames, dtype=np.float64).mean(axis=1)
    loud = float(np.percentile(powers, LOUD)) if len(powers) else 0.0
    if loud == 0:  # shorter than a frame, or nearly all of it silent
        return audio
    heard = np.concatenate((frames[powers > SILENT * loud].reshape(-1), audio[whole:]))
    level = loud**0.5
    gain = min(max(level, LEVELS[0]), LEVELS[1]) / level
    return heard if gain == 1 else (heard * np.float32(gain)).astype(np.float32)
