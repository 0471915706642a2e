"""A reference recording as Spark-TTS's graphs take it, in NumPy: its level, wav2vec2's input, the mel spectrogram."""

from __future__ import annotations

import numpy as np

__all__ = ["clipped", "levelled", "magnitudes", "standardised"]

_LOUD, _QUIET, _SILENT = 0.2, 0.1, 1e-3  # of full scale: the level aimed at, the least peak, what is no signal
_HEARD = 0.01  # quieter samples do not count for the level
_GAIN = (0.1, 10.0)
_FEW = 10  # samples that are no measure


def levelled(audio: np.ndarray) -> np.ndarray:
    """Float64 [n] with its loud passages at a fifth of full scale; they are the top tenth but for the very loudest."""
    sizes = np.sort(np.abs(audio))
    if sizes[-1] < _QUIET:
        audio = audio / max(sizes[-1], _SILENT) * _QUIET
    heard = sizes[sizes > _HEARD]
    if len(heard) <= _FEW:
        return audio
    level = heard[int(0.9 * len(heard)) : int(0.99 * len(heard))].mean()
    audio = audio * np.clip(_LOUD / level, *_GAIN)
    return audio / max(np.abs(audio).max(), 1.0)


def clipped(audio: np.ndarray, length: int) -> np.ndarray:
    """The first samples, float32 [length]; a shorter recording is repeated."""
    return np.resize(audio[:length], length).astype(np.float32)


def standardised(audio: np.ndarray) -> np.ndarray:
    """float32 [n] with mean 0 and variance 1, as wav2vec2 is given it."""
    values = audio.astype(np.float32)
    return np.asarray((values - values.mean()) / np.sqrt(values.var() + 1e-7))


def magnitudes(audio: np.ndarray, window: np.ndarray, filters: np.ndarray, size: int, hop: int) -> np.ndarray:
    """The mel spectrogram of magnitudes, float32 [F, bands], of audio [n]: centred frames, its ends mirrored.

    window: [at most size]; filters: [size // 2 + 1, bands].
    """
    before = (size - len(window)) // 2
    whole = np.pad(window, (before, size - len(window) - before))
    padded = np.pad(audio, size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return np.asarray(np.abs(np.fft.rfft(frames * whole)) @ filters, np.float32)
