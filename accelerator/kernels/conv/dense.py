"""Convolutions as plain products of levels (int16), and those with a single output, compiled.

For layers whose weights are large and whose rows are few: a thread takes some columns of the weights, and reads each of
them once for a dozen rows.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit

from .. import tiles as at
from ..instructions import pointer
from ..scalars import OPTIONS as REORDERED
from ..scalars import floats
from ..tiles import CHUNK, TOGETHER
from .blocks import LEVELS, OPTIONS, PRODUCTS_OF_LEVELS, ROWS

__all__ = ["dense", "levels", "single"]


@njit(**OPTIONS)
def levels(address, x, given):
    """float32 [given, channels] at x -> [channels / CHUNK, room, CHUNK], half of which are used, and units [room]."""
    plan = numba.carray(pointer(address), (at.DENSE_SIZE,), np.int64)
    channels, step = plan[at.DENSE_IN], 4 * CHUNK * plan[at.DENSE_ROOM]
    for row in range(given):
        source, to = x + 4 * channels * row, plan[at.DENSE_VALUES] + 4 * CHUNK * row
        LEVELS(source, 4 * CHUNK, channels // CHUNK, to, step, plan[at.DENSE_UNITS] + 4 * row)


@njit(**OPTIONS)
def dense(address, begin, end, scratch):
    """Columns CHUNK begin .. CHUNK end of all rows."""
    plan = numba.carray(pointer(address), (at.DENSE_SIZE,), np.int64)
    values, units, room, rows = (
        plan[at.DENSE_VALUES], plan[at.DENSE_UNITS], plan[at.DENSE_ROOM], plan[at.DENSE_ROWS],
    )  # fmt: skip
    chunks, taps, dilation, columns = (
        plan[at.DENSE_IN] // CHUNK, plan[at.DENSE_TAPS], plan[at.DENSE_DILATION], plan[at.DENSE_OUT],
    )  # fmt: skip
    y, sums, size = floats(plan[at.DENSE_Y], rows * columns), floats(scratch, ROWS * CHUNK), 2 * CHUNK * CHUNK
    for block in range(begin, end):
        own, start = plan[at.DENSE_SCALES] + 4 * CHUNK * block, CHUNK * block
        bias = floats(plan[at.DENSE_BIAS] + 4 * start, CHUNK)
        for row in range(0, rows, ROWS):
            for tap in range(taps):
                weights = plan[at.DENSE_WEIGHTS] + size * chunks * (taps * block + tap)
                first = row + tap * dilation
                for c in range(0, chunks, TOGETHER):
                    here, some = values + 4 * CHUNK * (room * c + first), min(TOGETHER, chunks - c)
                    new = tap == 0 and c == 0
                    PRODUCTS_OF_LEVELS(
                        here, 4 * CHUNK * room, weights + size * c, some, scratch, units + 4 * first, own, new
                    )
            for i in range(min(ROWS, rows - row)):
                to = y[(row + i) * columns + start : (row + i) * columns + start + CHUNK]
                for k in range(CHUNK):
                    to[k] = sums[i * CHUNK + k] + bias[k]


@njit(**REORDERED)
def single(address, begin, end, scratch):
    """y[r] = the sum of the values behind x[step r] by the weights, and the weight behind these."""
    plan = numba.carray(pointer(address), (at.SINGLE_SIZE,), np.int64)
    terms, step = plan[at.SINGLE_TERMS], 4 * plan[at.SINGLE_STEP]
    answers, factors = floats(plan[at.SINGLE_Y], end), floats(plan[at.SINGLE_WEIGHTS], terms + 1)
    for row in range(begin, end):
        values, total = floats(plan[at.SINGLE_X] + step * row, terms), np.float32(0)
        for k in range(terms):
            total += values[k] * factors[k]
        answers[row] = total + factors[terms]
