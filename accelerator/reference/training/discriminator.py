"""Discriminators over complex spectra of several resolutions, switched on late in the codec's training.

Sources: EnCodec (Defossez et al. 2022) and Vocos (Siuzdak 2023); hinge losses and feature matching.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ..spectra import stft

__all__ = ["SpectralDiscriminator", "discriminator_loss", "generator_losses"]


class SpectralDiscriminator(nn.Module):
    """[B, n] -> for each resolution the outputs of all its layers, the last of which is the judgement."""

    def __init__(self, windows: Sequence[int] = (256, 512, 1024), channels: int = 16) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.stacks = nn.ModuleList(nn.ModuleList(_layers(channels)) for _ in self.windows)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        return [self._judge(audio, n_fft, stack) for n_fft, stack in zip(self.windows, self.stacks, strict=True)]

    def _judge(self, audio: Tensor, n_fft: int, stack: nn.Module) -> list[Tensor]:
        x = torch.view_as_real(stft(audio, n_fft)).permute(0, 3, 2, 1)  # [B, 2, T, F]
        x = x / x.square().mean((1, 2, 3), keepdim=True).add(1e-6).sqrt()
        features = []
        *layers, last = stack.children()
        for layer in layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        return [*features, last(x)]


def _layers(channels: int) -> list[nn.Module]:
    return [
        weight_norm(nn.Conv2d(2, channels, (3, 9), stride=(1, 2), padding=(1, 4))),
        weight_norm(nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), padding=(1, 4))),
        weight_norm(nn.Conv2d(channels, 2 * channels, (3, 9), stride=(1, 2), padding=(1, 4))),
        weight_norm(nn.Conv2d(2 * channels, 2 * channels, (3, 3), padding=(1, 1))),
        weight_norm(nn.Conv2d(2 * channels, 1, (3, 3), padding=(1, 1))),
    ]


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    terms = [
        F.relu(1 - r[-1].float()).mean() + F.relu(1 + f[-1].float()).mean() for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).mean()


def generator_losses(real: list[list[Tensor]], fake: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """(adversarial, feature matching)."""
    adversarial = torch.stack([-f[-1].float().mean() for f in fake]).mean()
    matching = [
        F.l1_loss(f.float(), r.detach().float()) / r.detach().float().abs().mean().clamp(min=1e-3)
        for rs, fs in zip(real, fake, strict=True)
        for r, f in zip(rs[:-1], fs[:-1], strict=True)
    ]
    return adversarial, torch.stack(matching).mean()
