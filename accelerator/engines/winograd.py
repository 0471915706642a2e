"""Convolutions over time with fewer multiplications: minimal filtering after Toom, Cook and Winograd.

`F(m, r)` gives m outputs of a filter with r taps for m + r - 1 multiplications instead of m r: both are taken for
polynomials, evaluated at as many points, multiplied there, and the answer is interpolated (Winograd 1980, "Arithmetic
Complexity of Computations"; Lavin and Gray 2016, arXiv:1509.09308). Over many channels a multiplication is a matrix
product, which is nearly all of a layer, and evaluating its inputs and outputs costs little beside it:

    y[n] = A^T  sum over channels of  (G w) * (B^T x[n])      x[n]: m + r - 1 rows, r - 1 of which the next has as well

How exact it is depends on the points: those below, chosen by trial among small fractions, are ten times as far from
float64 as a plain float32 sum is, at 100 dB (Barabasz et al. 2020, arXiv:1803.10986, say why pairs of them do well). A
convolution that is dilated by d is d convolutions of every d-th row.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .scratch import scratch

__all__ = ["TAPS", "Filters", "Winograd", "filters"]

_OUTPUTS = 6  # of a tile; 8 are a tenth faster, and a third as exact
_POINTS = {  # by taps: these and their negatives; 0 and infinity are two more
    3: (Fraction(1), Fraction(2), Fraction(1, 2)),
    7: (Fraction(1), Fraction(3, 2), Fraction(2, 3), Fraction(3), Fraction(3, 8)),
}
TAPS = tuple(_POINTS)
_WORKED_ON = 1_000_000  # evaluated inputs at a time: they should stay in a core's own cache
_ROWS = 64  # tiles at a time, at least: the weights are read once for so many

_LOCK = threading.Lock()


class Filters(NamedTuple):
    """The three matrices of F(m, r), float64: A^T [m, n], G [n, r] and B^T [n, n], where n = m + r - 1."""

    outputs: np.ndarray
    weights: np.ndarray
    inputs: np.ndarray


@functools.cache
def filters(taps: int) -> Filters:
    """Those of `_OUTPUTS` outputs, worked out in fractions; rows are scaled by powers of two to like sizes."""
    points = [Fraction(0), *(sign * point for point in _POINTS[taps] for sign in (1, -1))]
    count = len(points) + 1
    assert count == _OUTPUTS + taps - 1

    def values(length: int) -> list[list[Fraction]]:
        """Of each power below `length` at each point; at infinity only the highest counts."""
        infinity = [Fraction(int(power == length - 1)) for power in range(length)]
        return [[point**power for power in range(length)] for point in points] + [infinity]

    outputs, weights = (np.array(values(n), float) for n in (_OUTPUTS, taps))
    inputs = np.array(_inverse(values(count)), float).T
    for size, matrix in ((np.abs(inputs).sum(1), inputs), (np.sqrt((outputs**2).sum(1)), outputs)):
        scale = 2.0 ** np.round(np.log2(size))[:, None]
        matrix /= scale
        weights *= scale
    return Filters(outputs.T, weights, inputs)


def _inverse(matrix: Sequence[Sequence[Fraction]]) -> list[list[Fraction]]:
    """By Gauss and Jordan."""
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(size):
            if i != column and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]


class Winograd:
    """y = conv(x, w) + b of stride 1 in float32: [B, rows, in] that holds the context -> [B, rows', out].

    It keeps (m + r - 1) / r of the weights' memory, and reads the weights themselves once, when it is first called.
    """

    def __init__(self, shape: Sequence[int], read: Callable[[], Tensor], bias: Tensor | None, dilation: int) -> None:
        """shape: [out, taps, in] of what `read` gives, in float32; taps one of `TAPS`."""
        self._shape, self._read, self._bias, self._dilation = tuple(shape), read, bias, dilation
        outputs, _, inputs = filters(self._shape[1])
        self._outputs, self._inputs = torch.from_numpy(outputs).float(), torch.from_numpy(inputs).float()
        self._weights: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        out, taps, channels = self._shape
        batch, given, _ = x.shape
        apart, size = self._dilation, len(self._inputs)
        rows = given - (taps - 1) * apart
        sequences, length = batch * apart, -(-rows // apart)  # each sequence has every `apart`-th row
        if sequences > 1:
            length += taps - 1  # the last tiles of one would be behind its end, so that the next begins with a tile
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
        """The sequences one behind the other, each of `length` rows, and what the last window reads beyond: the input
        itself where it can be."""
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
        products = scratch("products", (size, count, weights.shape[2]))
        torch.bmm(values.transpose(0, 1), weights, out=products)
        torch.bmm(self._outputs.expand(count, -1, -1), products.transpose(0, 1), out=answer)

    def _evaluated(self) -> Tensor:
        """[n, in, out]."""
        if self._weights is None:
            with _LOCK:
                if self._weights is None:
                    _, taps, channels = self._shape
                    kernel = self._read().permute(1, 2, 0).reshape(taps, -1)  # [r, in * out]
                    matrix = torch.from_numpy(filters(taps).weights).float()
                    self._weights = (matrix @ kernel).view(-1, channels, self._shape[0])
        return self._weights
