"""Convolutions over time with fewer multiplications, float32: see `kernels.conv.minimal` for how, and how exact.

    Minimal   by compiled kernels, with snake in the same pass; F(8, 7) and F(5, 2)
    Winograd  by large matrix products in PyTorch, with small ones before and after; F(6, 7) and F(6, 3)

A convolution with dilation d is d convolutions over every d-th row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import kernels
from ..hardware.forks import Lock
from ..kernels import filters
from .buffers import scratch

__all__ = ["TAPS", "Minimal", "Winograd"]

_OUTPUTS = 6  # of a tile; 8 would be a tenth faster and a third as exact
TAPS = (3, 7)
_WORKED_ON = 1_000_000  # evaluated inputs at a time, to stay in a core's own cache
_ROWS = 64  # tiles at a time, at least: the weights are read once for all of them

_LOCK = Lock()


class Minimal:
    """y = conv(x, w) + b of stride 1 in float32: [B, rows, in] that holds the context -> [B, rows', out].

    It keeps (m + r - 1) / r of the weights' memory, and reads the weights themselves once, when it is first called.
    """

    def __init__(
        self,
        shape: Sequence[int],
        read: Callable[[], Tensor],
        bias: Tensor | None,
        dilation: int,
        *,
        int16: bool = False,
    ) -> None:
        """shape: [out, taps, in] of what `read` gives, one that `kernels.Filter` takes; int16: as there.

        Raises SessionError.
        """
        self._lost, self._out = (shape[1] - 1) * dilation, shape[0]  # rows
        given = None if bias is None else bias.numpy()
        self._filter = kernels.Filter(shape, lambda: read().numpy(), given, dilation, int16=int16)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """out: memory for the answer."""
        y = torch.empty(x.shape[0], x.shape[1] - self._lost, self._out) if out is None else out
        self._run(x, y, snake=False)
        return y

    def snaked(self, x: Tensor, out: Tensor) -> None:
        """out = y + sin(y)^2 of the answer y: contiguous [B, rows', out], float32 or bfloat16."""
        self._run(x, out, snake=True)

    def residual(self, x: Tensor, mix: kernels.Mix, y: Tensor) -> None:
        """y += mix(a + sin(a)^2) of the answer a, for contiguous [B, rows', mix's columns]."""
        rows, threads = y.shape[1], torch.get_num_threads()
        values = scratch("mixed", (mix.space(rows),))
        for one, answer in zip(x.contiguous(), y, strict=True):
            self._filter(one.data_ptr(), len(one), values.data_ptr(), threads=threads, snake=True, to=mix)
            mix(values.data_ptr(), rows, answer.data_ptr(), threads=threads)

    def _run(self, x: Tensor, out: Tensor, *, snake: bool) -> None:
        assert x.dtype == torch.float32
        low, threads = out.dtype == torch.bfloat16, torch.get_num_threads()
        for one, answer in zip(x.contiguous(), out, strict=True):
            self._filter(one.data_ptr(), len(one), answer.data_ptr(), threads=threads, snake=snake, low=low)


class Winograd:
    """y = conv(x, w) + b of stride 1 in float32: [B, rows, in] that holds the context -> [B, rows', out].

    It keeps (m + r - 1) / r of the weights' memory, and reads the weights themselves once, when it is first called.
    """

    def __init__(self, shape: Sequence[int], read: Callable[[], Tensor], bias: Tensor | None, dilation: int) -> None:
        """shape: [out, taps, in] of what `read` gives, in float32; taps one of `TAPS`."""
        self._shape, self._read, self._bias, self._dilation = tuple(shape), read, bias, dilation
        outputs, _, inputs = filters(_OUTPUTS, self._shape[1])
        self._outputs, self._inputs = torch.from_numpy(outputs).float(), torch.from_numpy(inputs).float()
        self._weights: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        out, taps, channels = self._shape
        batch, given, _ = x.shape
        apart, size = self._dilation, len(self._inputs)
        rows = given - (taps - 1) * apart
        sequences, length = batch * apart, -(-rows // apart)  # each sequence has every `apart`-th row
        if sequences > 1:
            length += taps - 1  # room for tiles that reach beyond a sequence's end, so that each one begins with a tile
        tiles = -(-length // _OUTPUTS)
        x = self._apart(x, sequences, tiles * _OUTPUTS)
        y = torch.empty(sequences * tiles, _OUTPUTS, out)
        step = max(_ROWS, _WORKED_ON // (size * channels))
        windows = x.as_strided((sequences * tiles, size, channels), (_OUTPUTS * channels, channels, 1))
        for part, answer in zip(windows.split(step), y.split(step), strict=True):
            self._multiply(part, answer)
        y = y.view(batch, apart, tiles * _OUTPUTS, out)
        y = y[:, 0] if apart == 1 else y.transpose(1, 2).reshape(batch, -1, out)
        y = y[:, :rows]
        return y if self._bias is None else y.add_(self._bias)

    def _apart(self, x: Tensor, sequences: int, length: int) -> Tensor:
        """The sequences one after the other, each of `length` rows, and what the last window reads beyond them.

        This is the input itself where possible.
        """
        batch, given, channels = x.shape
        apart, count = self._dilation, sequences * length
        needed = count + len(self._inputs) - _OUTPUTS
        if sequences == 1 and given >= needed:
            return x.contiguous()
        laid = scratch("rows", (needed, channels))
        if sequences == 1:
            laid[:given], laid[given:] = x[0], 0
            return laid
        laid[count:] = 0
        target = laid[:count].view(batch, apart, length, channels).transpose(1, 2)
        whole, rest = divmod(given, apart)
        target[:, :whole] = x[:, : whole * apart].unflatten(1, (whole, apart))
        target[:, whole:] = 0
        if rest:
            target[:, whole, :rest] = x[:, whole * apart :]
        return laid

    def _multiply(self, windows: Tensor, answer: Tensor) -> None:
        """Windows [N, n, in] -> answer [N, m, out]."""
        count, size, channels = windows.shape
        weights = self._evaluated()
        values = scratch("values", (count, size, channels))
        torch.bmm(self._inputs.expand(count, -1, -1), windows, out=values)
        multiplied = scratch("multiplied", (size, count, weights.shape[2]))
        torch.bmm(values.transpose(0, 1), weights, out=multiplied)
        torch.bmm(self._outputs.expand(count, -1, -1), multiplied.transpose(0, 1), out=answer)

    def _evaluated(self) -> Tensor:
        """[n, in, out]."""
        if self._weights is None:
            with _LOCK:
                if self._weights is None:
                    _, taps, channels = self._shape
                    kernel = self._read().permute(1, 2, 0).reshape(taps, -1)  # [r, in * out]
                    matrix = torch.from_numpy(filters(_OUTPUTS, taps).weights).float()
                    self._weights = (matrix @ kernel).view(-1, channels, self._shape[0])
        return self._weights
