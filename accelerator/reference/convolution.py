"""Causal convolutions and the blocks made of them. Everything maps [B, channels, T] and never looks ahead.

Sources: DAC (Kumar et al. 2023) for Snake and the residual unit, ConvNeXt (Liu et al. 2022) as Vocos (Siuzdak 2023) has
it. Weight normalisation is a training device: weights here are what is left after folding it.

`reach(n)` of a layer: how many of its last inputs the last n outputs depend on.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, empty, nn, sin
from torch.nn import Parameter

__all__ = ["CausalConv", "CausalConvTranspose", "ConvNeXtBlock", "ResidualUnit", "Snake"]


class CausalConv(nn.Module):
    """Convolution padded on the left only: [B, in, T] -> [B, out, T / stride]; T is a multiple of the stride."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride=stride, dilation=dilation, groups=groups)
        self.left = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.left, 0)))

    def reach(self, n: int) -> int:
        stride = self.conv.stride[0]
        return n * stride + self.left


class CausalConvTranspose(nn.Module):
    """Upsampling by `stride` with a kernel of `overlap` strides: [B, in, T] -> [B, out, T * stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, overlap: int = 2) -> None:
        super().__init__()
        self.stride, self.overlap = stride, overlap
        self.conv = nn.ConvTranspose1d(inputs, outputs, overlap * stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., : x.shape[2] * self.stride]

    def reach(self, n: int) -> int:
        return -(-n // self.stride) + self.overlap - 1


class Snake(nn.Module):
    """x + sin^2(a x) / a with one a per channel (Ziyin et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = Parameter(empty(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + sin(self.alpha * x).square() / (self.alpha + 1e-9)

    def reach(self, n: int) -> int:
        return n


class ResidualUnit(nn.Module):
    """DAC's residual unit: a dilated and a pointwise convolution, each behind a Snake."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake(channels),
            CausalConv(channels, channels, 7, dilation=dilation),
            Snake(channels),
            CausalConv(channels, channels, 1),
        )
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)

    def reach(self, n: int) -> int:
        return n + 6 * self.dilation


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a two-layer network at each step; `scale` [channels] weighs the branch."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = CausalConv(channels, channels, 7, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up = nn.Linear(channels, hidden)
        self.down = nn.Linear(hidden, channels)
        self.scale = Parameter(empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))  # [B, T, channels]
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.transpose(1, 2)

    def reach(self, n: int) -> int:
        return n + 6
