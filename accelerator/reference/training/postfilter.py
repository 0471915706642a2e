"""A postfilter in the decoder's last weights: what the decoder has averaged away is put back.

A decoder that was trained to be near on average makes spectra that are too smooth. So their cepstra are stretched, as
HMM synthesis does it (Yoshimura, Tokuda, Masuko, Kobayashi and Kitamura 2005, "Incorporating a mixed excitation model
and postfilter into HMM-based text-to-speech synthesis"): c'[k] = (1 + beta) c[k], here of the log magnitude spectrum,
for the quefrencies of formants: beyond the level and the tilt, below the pitch. That is linear in the log magnitudes,
which are linear in the head's weights: it costs nothing when the voice speaks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..codec import ISTFTDecoder

__all__ = ["LOWEST", "SHORTEST_PERIOD_S", "matrix", "stretch"]

LOWEST = 2  # the first coefficient that is stretched
SHORTEST_PERIOD_S = 0.0025  # of a voice's pitch, 400 Hz: quefrencies below this are its spectrum's envelope


def matrix(n_fft: int, sample_rate: int, factor: float) -> Tensor:
    """float64 [bins, bins]: from log magnitudes to those whose cepstra are `factor` times as large."""
    bins = n_fft // 2 + 1
    quefrency = np.minimum(np.arange(n_fft), n_fft - np.arange(n_fft))
    stretched = (quefrency >= LOWEST) & (quefrency <= SHORTEST_PERIOD_S * sample_rate)
    cepstra = np.fft.irfft(np.eye(bins), axis=1) * np.where(stretched, factor, 1.0)
    return torch.from_numpy(np.fft.rfft(cepstra, axis=1).real.T.copy())


@torch.no_grad()
def stretch(decoder: ISTFTDecoder, sample_rate: int, factor: float) -> None:
    """Change a decoder's head so that its spectra's cepstra are `factor` times as large; 1 / factor takes it back."""
    bins = decoder.config.n_fft // 2 + 1
    change = matrix(decoder.config.n_fft, sample_rate, factor)
    for rows in (decoder.head.weight[:bins], decoder.head.bias[:bins]):
        rows.copy_((change @ rows.double()).to(rows.dtype))
