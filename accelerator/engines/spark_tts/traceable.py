"""Spark-TTS's modules between its language model and audio, so that `torch.export` can follow them.

    First      input values [1, n] of wav2vec2 -> its state [1, T, C] half way
    Rest       that state -> codes [1, T]
    Globals    a clip [1, n] -> the voice's codes [1, G]
    Audio      codes [1, T], the voice's codes [1, G] -> audio [1, T * hop]

They run on the engine's own modules. Sources: Spark-TTS (Wang et al. 2025, arXiv:2503.01710); wav2vec 2.0 (Baevski et
al. 2020, arXiv:2006.11477); finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from ...errors import UnsupportedEngine

__all__ = ["LAYERS", "Audio", "First", "Globals", "Rest", "Semantics", "made"]

LAYERS = (11, 14, 16)  # whose hidden states are averaged: the engine runs all 24 and drops what follows
_HALF = 8  # of the layers: as many weights before as behind


def made(kind: Any, *owners: Any) -> nn.Module:
    """A module, of functions that give the engine's. Weight norms are computed now, and not each time."""
    module: nn.Module = kind(*(owner() for owner in owners))
    plain = (each for owner in module.modules() for each in vars(owner).values() if isinstance(each, Tensor))
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers(), *plain)}
    return _folded(copy.deepcopy(module, shared).eval())


def _folded(module: nn.Module) -> nn.Module:
    """The package leaves its codec's weight norms in place: of two kinds, and what it calls removes only the older.

    A copy of a parametrized module has the class that was made for the original, from which PyTorch's own
    `remove_parametrizations` would take the original's weights, too.
    """
    for each in list(module.modules()):
        if parametrize.is_parametrized(each):
            weights = {name: getattr(each, name).detach() for name in each.parametrizations}  # type: ignore[union-attr]
            each.__class__ = parametrize.type_before_parametrizations(each)
            del each.parametrizations
            for name, weight in weights.items():
                each.register_parameter(name, nn.Parameter(weight))
        elif any(isinstance(hook, WeightNorm) for hook in each._forward_pre_hooks.values()):
            nn.utils.remove_weight_norm(each)
    return module


class Semantics(nn.Module):
    """What is said: two halves, of which each is a graph, so that one of them is in memory at a time."""

    def __init__(self, wav2vec2: Any, bicodec: Any) -> None:
        super().__init__()
        stable = getattr(wav2vec2.config, "do_stable_layer_norm", False)
        if not stable or len(wav2vec2.encoder.layers) < LAYERS[-1]:
            raise UnsupportedEngine("its wav2vec2 is not built as wav2vec2-large-xlsr-53 is: it stays in PyTorch")
        self.first, self.rest = First(wav2vec2), Rest(wav2vec2, bicodec)

    def forward(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.rest(self.first(values)))


class First(nn.Module):
    """The layers of which the engine keeps no state."""

    def __init__(self, wav2vec2: Any) -> None:
        super().__init__()
        self.convolutions, self.projection = wav2vec2.feature_extractor, wav2vec2.feature_projection
        self.positions = wav2vec2.encoder.pos_conv_embed
        self.layers = nn.ModuleList(wav2vec2.encoder.layers[:_HALF])

    def forward(self, values: Tensor) -> Tensor:
        x, _ = self.projection(self.convolutions(values).transpose(1, 2))  # [1, T, C]
        x = x + self.positions(x)
        for layer in self.layers:
            x = _state(layer(x))
        return torch.as_tensor(x)


class Rest(nn.Module):
    """From there on to codes."""

    def __init__(self, wav2vec2: Any, bicodec: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(wav2vec2.encoder.layers[_HALF : LAYERS[-1]])
        self.encoder, self.quantizer = bicodec.encoder, bicodec.quantizer

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.zeros_like(x)
        for number, layer in enumerate(self.layers, _HALF + 1):
            x = _state(layer(x))
            if number in LAYERS:
                mixed = mixed + x
        z = self.encoder((mixed / len(LAYERS)).transpose(1, 2))
        return torch.as_tensor(self.quantizer.tokenize(z))


def _state(answer: Any) -> Tensor:
    """Some versions of transformers answer with more than it."""
    return torch.as_tensor(answer[0] if isinstance(answer, tuple) else answer)


class Globals(nn.Module):
    """Who says it."""

    def __init__(self, bicodec: Any) -> None:
        super().__init__()
        self.mel, self.speaker = _Mel(bicodec.mel_transformer), bicodec.speaker_encoder

    def forward(self, clip: Tensor) -> Tensor:
        codes = self.speaker.tokenize(self.mel(clip))  # int32 [1, 1, G]
        return torch.as_tensor(codes).to(torch.int64)[:, 0]


class Audio(nn.Module):
    """Both, heard."""

    def __init__(self, bicodec: Any) -> None:
        super().__init__()
        self.quantizer, self.speaker = bicodec.quantizer, bicodec.speaker_encoder
        self.prenet, self.decoder = bicodec.prenet, bicodec.decoder

    def forward(self, semantics: Tensor, codes: Tensor) -> Tensor:
        voice = self.speaker.detokenize(codes[:, None])  # [1, D]
        x = self.prenet(self.quantizer.detokenize(semantics), voice) + voice[..., None]
        return torch.as_tensor(self.decoder(x))[:, 0]


class _Mel(nn.Module):
    """torchaudio's mel spectrogram, its Fourier transform as a convolution: audio [1, n] -> [1, F, mels]."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        spectrum = own.spectrogram
        odd = spectrum.pad or spectrum.normalized or spectrum.power != 1 or not spectrum.center
        if odd or spectrum.pad_mode != "reflect":
            raise UnsupportedEngine("its spectrogram is not of magnitudes of centred frames: it stays in PyTorch")
        size, length = int(spectrum.n_fft), int(spectrum.win_length)
        self.margin, self.hop, self.bins = size // 2, int(spectrum.hop_length), size // 2 + 1
        before = (size - length) // 2
        window = np.pad(spectrum.window.detach().double().numpy(), (before, size - length - before))
        angles = 2 * np.pi * np.outer(np.arange(self.bins), np.arange(size)) / size
        waves = np.concatenate([np.cos(angles), np.sin(angles)]) * window
        self.register_buffer("waves", torch.from_numpy(waves[:, None]).float())  # [2 * bins, 1, size]
        self.register_buffer("filters", own.mel_scale.fb.detach().float())  # [bins, mels]

    def forward(self, audio: Tensor) -> Tensor:
        waves, filters = torch.as_tensor(self.waves), torch.as_tensor(self.filters)
        padded = F.pad(audio[:, None], (self.margin, self.margin), mode="reflect")
        parts = F.conv1d(padded, waves, stride=self.hop).square()
        return (parts[:, : self.bins] + parts[:, self.bins :]).sqrt().transpose(1, 2) @ filters
