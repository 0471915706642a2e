"""The double, whose BiCodec decodes as the package's does: small, in sizes that there are kernels for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engines.spark_tts import double, toy

__all__ = ["BiCodec", "SparkTTS", "Stage"]

RATES = ((8, 16), (5, 11), (4, 8), (2, 4))  # and sizes
CHANNELS = 512  # of the wave's decoder, halved by each stage
WIDTH, DIM, INNER = 32, 64, 96  # of latents and voices; of Vocos
BOOK = 8  # of a code's embedding


class Snake(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(1, channels, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class Unit(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        first = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.block = nn.Sequential(Snake(channels), first, Snake(channels), nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Stage(nn.Module):
    def __init__(self, channels: int, rate: int, size: int) -> None:
        super().__init__()
        out = channels // 2
        up = nn.utils.parametrizations.weight_norm(
            nn.ConvTranspose1d(channels, out, size, stride=rate, padding=(size - rate) // 2)
        )
        self.block = nn.Sequential(Snake(channels), up, *(Unit(out, dilation) for dilation in (1, 3, 9)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.block(x))


class Wave(nn.Module):
    def __init__(self, inputs: int = WIDTH, channels: int = CHANNELS) -> None:
        super().__init__()
        stages = [Stage(channels >> i, rate, size) for i, (rate, size) in enumerate(RATES)]
        out = channels >> len(RATES)
        first, last = nn.Conv1d(inputs, channels, 7, padding=3), nn.Conv1d(out, 1, 7, padding=3)
        self.model = nn.Sequential(first, *stages, Snake(out), last, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.model(x))


class Adaptive(nn.Module):
    def __init__(self, condition: int, dim: int) -> None:
        super().__init__()
        self.eps, self.dim = 1e-6, dim
        self.scale, self.shift = nn.Linear(condition, dim), nn.Linear(condition, dim)

    def forward(self, x: Tensor, voice: Tensor) -> Tensor:
        normal = F.layer_norm(x, (self.dim,), eps=self.eps)
        return normal * self.scale(voice).unsqueeze(1) + self.shift(voice).unsqueeze(1)


class Block(nn.Module):
    def __init__(self, dim: int, inner: int, condition: int | None) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm: Any = nn.LayerNorm(dim, eps=1e-6) if condition is None else Adaptive(condition, dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.gamma = nn.Parameter(torch.rand(dim) + 0.5)

    def forward(self, x: Tensor, voice: Tensor | None) -> Tensor:
        y = self.dwconv(x).transpose(1, 2)
        y = self.norm(y) if voice is None else self.norm(y, voice)
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).transpose(1, 2)


class Backbone(nn.Module):
    def __init__(self, dim: int, inner: int, condition: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Conv1d(dim, dim, 7, padding=3)
        self.norm: Any = nn.LayerNorm(dim, eps=1e-6) if condition is None else Adaptive(condition, dim)
        self.convnext = nn.ModuleList(Block(dim, inner, condition) for _ in range(2))
        self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, voice: Tensor | None = None) -> Tensor:
        y = self.embed(x).transpose(1, 2)
        x = (self.norm(y) if voice is None else self.norm(y, voice)).transpose(1, 2)
        for block in self.convnext:
            x = block(x, voice)
        return torch.as_tensor(self.final_layer_norm(x.transpose(1, 2)))


class Sampling(nn.Module):
    upsample_scale = downsample_scale = 1

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x.transpose(1, 2)


class Prenet(nn.Module):
    use_tanh_at_final = False

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.linear_pre, self.linear = nn.Linear(WIDTH, dim), nn.Linear(dim, WIDTH)
        self.downsample = nn.Sequential(*(nn.Sequential(Sampling(), Backbone(dim, INNER)) for _ in range(2)))
        self.vocos_backbone = Backbone(dim, INNER, WIDTH)

    def forward(self, x: Tensor, voice: Tensor) -> Tensor:
        x = self.downsample(self.linear_pre(x.transpose(1, 2))).transpose(1, 2)
        return torch.as_tensor(self.linear(self.vocos_backbone(x, voice)).transpose(1, 2))


class Quantizer(double.Quantizer):
    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Embedding(self.codebook_size, BOOK)
        self.in_project, self.out_project = nn.Conv1d(double.WIDTH, BOOK, 1), nn.Conv1d(BOOK, WIDTH, 1)

    def tokenize(self, z: Tensor) -> Tensor:
        return super().tokenize(self.in_project(z))

    def detokenize(self, codes: Tensor) -> Tensor:
        return torch.as_tensor(self.out_project(super().detokenize(codes)))


class Levels(nn.Module):
    codebook_size = toy.GLOBAL_IDS

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Embedding(self.codebook_size, BOOK)

    def get_output_from_indices(self, codes: Tensor) -> Tensor:
        """[1, G, 1] -> [1, G, C]"""
        return torch.as_tensor(self.levels(codes[..., 0]))


class Speaker(double.Speaker):
    def __init__(self) -> None:
        super().__init__()
        self.quantizer, self.project = Levels(), nn.Linear(toy.GLOBALS * BOOK, WIDTH)  # type: ignore[assignment]

    def detokenize(self, codes: Tensor) -> Tensor:
        quantized = self.quantizer.get_output_from_indices(codes.transpose(1, 2)).transpose(1, 2)  # type: ignore[attr-defined]
        return torch.as_tensor(self.project(quantized.flatten(1)))


class BiCodec(double.BiCodec):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.quantizer, self.speaker_encoder = Quantizer(), Speaker()
        self.prenet, self.decoder = Prenet(), Wave()  # type: ignore[assignment]


class SparkTTS(double.SparkTTS):
    __module__, __qualname__ = double.SparkTTS.__module__, double.SparkTTS.__qualname__

    def __init__(self, tokens: Any, model: Any) -> None:
        super().__init__(tokens, model)
        self.audio_tokenizer.model = BiCodec().eval()
