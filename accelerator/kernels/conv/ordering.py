"""Weights of convolutions -> the order in which kernels read them, evaluated (see `minimal`), as int16 or bfloat16.

It is what an engine does between being loaded and its first word, so it is compiled, too.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit

from .. import descriptors as at
from ..instructions import pointer
from ..scalars import F32, OPTIONS, floats
from ..tiles import CHUNK, LARGEST_INT16, SQUARE, TOGETHER
from ..views import order_at, order_scratch, square_place
from .activation import to_bf16

__all__ = ["ordered"]

_ROOM = (2**31 - 2**23) / (LARGEST_INT16 + 1)


@njit(**OPTIONS)
def _scale(values, size, run):
    """The inverse of these numbers' scale in int16: so that no sum over `TOGETHER` chunks leaves int32, whatever the
    inputs are. run: numbers that are multiplied before others are."""
    most, largest = 0.0, 0.0
    for start in range(0, size, run):
        for first in range(start, start + run, TOGETHER * CHUNK):
            total = 0.0
            for c in range(first, min(first + TOGETHER * CHUNK, start + run)):
                total += abs(values[c])
                most = max(most, abs(values[c]))
            largest = max(largest, total)
    return min(_ROOM / largest, LARGEST_INT16 / most) if largest > 0.0 else 1.0


@njit(**OPTIONS)
def ordered(address, begin, end, scratch):
    """Blocks begin .. end of CHUNK columns of the weights that an `Order` describes. As bfloat16 two channels lie side
    by side, as int16 those that are 16 apart."""
    plan = order_at(address)
    taps, channels, points, blocks, kind = plan.taps, plan.channels, plan.points, plan.blocks, plan.kind
    factors = numba.carray(pointer(plan.factors), (points * taps,), np.float64)
    step, scales_at, count = order_scratch(channels)
    chunks, size = channels // CHUNK, channels * CHUNK
    values = numba.carray(pointer(scratch), (count,), np.float64)
    scales = values[scales_at:]
    for block in range(begin, end):
        for point in range(points):
            place = square_place(blocks, chunks, point, block, 0)
            for column in range(CHUNK):
                given = floats(plan.kernel + 4 * taps * channels * (block * CHUNK + column), taps * channels)
                row = values[column * step : column * step + channels]
                for c in range(channels):
                    row[c] = factors[point * taps] * given[c]
                for tap in range(1, taps):
                    for c in range(channels):
                        row[c] += factors[point * taps + tap] * given[tap * channels + c]
                if kind == at.AS_INT16:
                    scales[column] = _scale(row, channels, plan.run)
                    y_scales = floats(plan.y_scales + 4 * CHUNK * square_place(blocks, 1, point, block, 0), CHUNK)
                    y_scales[column] = F32(1.0 / scales[column])
            if kind == at.AS_INT16:
                quantized = numba.carray(pointer(plan.y + 2 * SQUARE * place), (size,), np.int16)
                for c in range(channels):
                    half, j = c // (CHUNK // 2) % 2, c % (CHUNK // 2)
                    to = quantized[(c // CHUNK * CHUNK + 2 * j) * CHUNK + half :]
                    for column in range(CHUNK):
                        to[2 * column] = np.int16(np.rint(values[column * step + c] * scales[column]))
            elif kind == at.AS_BF16:
                halves = numba.carray(pointer(plan.y + 2 * SQUARE * place), (size,), np.uint16)
                for c in range(channels):
                    to = halves[c // 2 * 2 * CHUNK + c % 2 :]
                    for column in range(CHUNK):
                        to[2 * column] = to_bf16(F32(values[column * step + c]))
            else:
                out = floats(plan.y + 4 * SQUARE * place, size)
                for c in range(channels):
                    for column in range(CHUNK):
                        out[c * CHUNK + column] = F32(values[column * step + c])
