"""Convolutions by compiled kernels that do all the multiplications: see `kernels.conv.layers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import kernels

__all__ = ["Dense", "Single"]


class Dense:
    """y = conv(x, w) + b of stride 1 by products of int16: [B, rows, in] that holds the context -> [B, rows', out]."""

    def __init__(self, shape: Sequence[int], read: Callable[[], Tensor], bias: Tensor | None, dilation: int) -> None:
        """shape: [out, taps, in] of what `read` gives, float32, once; one that `kernels.Dense` takes.

        Raises SessionError.
        """
        self._lost, self._out = (shape[1] - 1) * dilation, shape[0]  # rows
        self._dense = kernels.Dense(shape, lambda: read().numpy(), None if bias is None else bias.numpy(), dilation)

    def __call__(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        y = torch.empty(x.shape[0], x.shape[1] - self._lost, self._out)
        for one, answer in zip(x.contiguous(), y, strict=True):
            self._dense(one.data_ptr(), len(one), answer.data_ptr(), threads=torch.get_num_threads())
        return y


class Single:
    """y = conv(x, w) + b with one output, of stride 1: [B, rows, in] that holds the context -> [B, rows', 1]."""

    def __init__(self, kernel: Tensor, bias: Tensor | None) -> None:
        """kernel: float32 [1, taps, in]. Raises SessionError."""
        self._lost = kernel.shape[1] - 1
        self._single = kernels.Single(kernel.numpy(), None if bias is None else bias.numpy())

    def __call__(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        y = torch.empty(x.shape[0], x.shape[1] - self._lost, 1)
        for one, answer in zip(x.contiguous(), y, strict=True):
            self._single(one.data_ptr(), len(one), answer.data_ptr(), threads=torch.get_num_threads())
        return y
