"""Convolutions in float64, and how far others are from them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["decibels", "exact", "seeded"]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """In float64."""
    given = x.double().transpose(1, 2), kernel.double().permute(0, 2, 1), None if bias is None else bias.double()
    return torch.nn.functional.conv1d(*given, dilation=dilation).transpose(1, 2)


def decibels(got: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().mean() / (got.double() - expected).square().mean()))
