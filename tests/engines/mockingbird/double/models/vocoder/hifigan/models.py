"""HiFi-GAN by the names of its layers, small."""

import torch
import torch.nn.functional as F
from torch import nn


def same(before, after, size, dilation=1):
    return nn.Conv1d(before, after, size, dilation=dilation, padding=dilation * (size - 1) // 2)


class Block(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.convs1 = nn.ModuleList(same(width, width, size, dilation) for dilation in (1, 3))
        self.convs2 = nn.ModuleList(same(width, width, size) for _ in range(2))

    def forward(self, x):
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Single(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.convs = nn.ModuleList(same(width, width, size, dilation) for dilation in (1, 3))

    def forward(self, x):
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, 0.1))
        return x


class Generator(nn.Module):
    def __init__(self, mels=20, width=16, rates=(5, 4), block=Block):
        super().__init__()
        self.num_kernels, self.num_upsamples = 2, len(rates)
        self.conv_pre, self.ups, self.resblocks = same(mels, width, 7), nn.ModuleList(), nn.ModuleList()
        for rate in rates:
            odd = rate % 2
            self.ups.append(
                nn.ConvTranspose1d(width, width // 2, 2 * rate, rate, padding=rate // 2 + odd, output_padding=odd)
            )
            width //= 2
            self.resblocks.extend(block(width, size) for size in (3, 5))
        self.conv_post = same(width, 1, 7)

    def forward(self, x):
        x = self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(block(x) for block in self.resblocks[2 * i : 2 * i + 2]) / 2
        return torch.tanh(self.conv_post(F.leaky_relu(x)))
