"""Weights of convolutions -> the order in which products read them, evaluated (see `minimal`), as levels or bfloat16.

It is what an engine does between being loaded and its first word, so it is compiled, too.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit

from .. import tiles as at
from ..instructions import pointer
from ..scalars import F32, OPTIONS, floats
from ..tiles import CHUNK, MOST_LEVEL, TOGETHER
from .activation import narrow

__all__ = ["ordered"]

_ROOM = (2**31 - 2**23) / (MOST_LEVEL + 1)


@njit(**OPTIONS)
def _scale(values, size, run):
    """What levels of these numbers are multiples of, inverted: so that no sum over `TOGETHER` chunks leaves int32,
    whatever the inputs are. run: numbers that are multiplied before others are."""
    most, largest = 0.0, 0.0
    for start in range(0, size, run):
        for first in range(start, start + run, TOGETHER * CHUNK):
            total = 0.0
            for c in range(first, min(first + TOGETHER * CHUNK, start + run)):
                total += abs(values[c])
                most = max(most, abs(values[c]))
            largest = max(largest, total)
    return min(_ROOM / largest, MOST_LEVEL / most) if largest > 0.0 else 1.0


@njit(**OPTIONS)
def ordered(address, begin, end, scratch):
    """Blocks begin .. end of CHUNK columns of the weights float32 [columns, taps, channels] that the array there
    describes: [points, blocks, channels, CHUNK], each point's values the taps' sum by its factors. As bfloat16 two
    channels lie side by side, as int16 those that are 16 apart."""
    plan = numba.carray(pointer(address), (at.ORDER_SIZE,), np.int64)
    taps, channels, points, blocks, kind = (
        plan[at.ORDER_TAPS], plan[at.ORDER_IN], plan[at.ORDER_POINTS], plan[at.ORDER_BLOCKS], plan[at.ORDER_KIND],
    )  # fmt: skip
    factors = numba.carray(pointer(plan[at.ORDER_FACTORS]), (points * taps,), np.float64)
    step, size = channels + at.ORDER_APART, channels * CHUNK
    values = numba.carray(pointer(scratch), ((CHUNK + 1) * step,), np.float64)
    scales = values[CHUNK * step :]
    for block in range(begin, end):
        for point in range(points):
            place = point * blocks + block
            for column in range(CHUNK):
                given = floats(plan[at.ORDER_KERNEL] + 4 * taps * channels * (block * CHUNK + column), taps * channels)
                row = values[column * step : column * step + channels]
                for c in range(channels):
                    row[c] = factors[point * taps] * given[c]
                for tap in range(1, taps):
                    for c in range(channels):
                        row[c] += factors[point * taps + tap] * given[tap * channels + c]
                if kind == at.LEVELED:
                    scales[column] = _scale(row, channels, plan[at.ORDER_RUN])
                    floats(plan[at.ORDER_UNITS] + 4 * CHUNK * place, CHUNK)[column] = F32(1.0 / scales[column])
            if kind == at.LEVELED:
                levels = numba.carray(pointer(plan[at.ORDER_Y] + 2 * size * place), (size,), np.int16)
                for c in range(channels):
                    half, j = c // (CHUNK // 2) % 2, c % (CHUNK // 2)
                    to = levels[(c // CHUNK * CHUNK + 2 * j) * CHUNK + half :]
                    for column in range(CHUNK):
                        to[2 * column] = np.int16(np.rint(values[column * step + c] * scales[column]))
            elif kind == at.LOW:
                halves = numba.carray(pointer(plan[at.ORDER_Y] + 2 * size * place), (size,), np.uint16)
                for c in range(channels):
                    to = halves[c // 2 * 2 * CHUNK + c % 2 :]
                    for column in range(CHUNK):
                        to[2 * column] = narrow(F32(values[column * step + c]))
            else:
                out = floats(plan[at.ORDER_Y] + 4 * size * place, size)
                for c in range(channels):
                    for column in range(CHUNK):
                        out[c * CHUNK + column] = F32(values[column * step + c])
