"""Spectra as losses and measures: multi-resolution magnitudes, mel bands, cepstra. Everything in float32.

Sources: multi-resolution STFT loss (Yamamoto et al. 2020), multi-scale mel loss (Kumar et al. 2023), HTK's mel scale.
B batch, n samples, F bins, T windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SCALES", "log_mel", "mel_bands", "reconstruction_loss", "stft"]

SCALES = ((128, 12), (256, 24), (512, 48), (1024, 80), (2048, 120))  # window, mel bands


def stft(audio: Tensor, n_fft: int) -> Tensor:
    """[B, n] -> complex [B, F, T], four windows deep."""
    window = torch.hann_window(n_fft, device=audio.device)
    return torch.stft(audio.float(), n_fft, n_fft // 4, window=window, return_complex=True)


@cache
def mel_bands(bands: int, n_fft: int, sample_rate: int) -> Tensor:
    """Triangular filters [bands, F], each of unit peak."""
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, 1, bands + 2, dtype=torch.float64) * top / 2595) - 1)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()


def log_mel(audio: Tensor, *, bands: int, n_fft: int, sample_rate: int) -> Tensor:
    """[B, n] -> natural logarithm of mel magnitudes [B, bands, T]."""
    magnitude = stft(audio, n_fft).abs()
    return (mel_bands(bands, n_fft, sample_rate).to(audio.device) @ magnitude).clamp(min=1e-4).log()


def reconstruction_loss(audio: Tensor, target: Tensor, sample_rate: int, scales: Sequence[int] | None = None) -> Tensor:
    """Mean over resolutions of the L1 distance of log mel bands and of magnitudes. `scales`: only those of `SCALES`."""
    total = audio.new_zeros(())
    chosen = SCALES if scales is None else [SCALES[i] for i in scales]
    for n_fft, bands in chosen:
        filters = mel_bands(bands, n_fft, sample_rate).to(audio.device)
        ours, theirs = (_magnitude(signal, n_fft) for signal in (audio, target))
        total = total + F.l1_loss((filters @ ours).clamp(min=1e-3).log(), (filters @ theirs).clamp(min=1e-3).log())
        total = total + (ours - theirs).abs().sum() / theirs.sum().clamp(min=1e-3)
    return total / len(chosen)


def _magnitude(audio: Tensor, n_fft: int) -> Tensor:
    return (torch.view_as_real(stft(audio, n_fft)).square().sum(-1) + 1e-9).sqrt()  # smooth at zero
