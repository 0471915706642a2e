"""Convolutions as plain matrix products of int16, and those with a single output, compiled.

For layers whose weights are large and whose rows are few: a thread takes some columns of the weights, and reads each of
them once for a dozen rows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..scalars import OPTIONS as REORDERED
from ..scalars import floats
from ..tiles import CHUNK, SQUARE, TOGETHER
from ..views import dense_at, row_place, single_at, square_place
from .blocks import MATMUL_INT16, OPTIONS, QUANTIZE, ROWS

__all__ = ["dense", "quantize_rows", "single"]


@njit(**OPTIONS)
def quantize_rows(address, x, given):
    """float32 [given, channels] at x -> [channels / CHUNK, room, CHUNK], half of which are used, and scales [room]."""
    plan = dense_at(address)
    channels, step = plan.channels, 4 * CHUNK * plan.room
    for row in range(given):
        source, to = x + 4 * channels * row, plan.values + 4 * CHUNK * row
        QUANTIZE(source, 4 * CHUNK, channels // CHUNK, to, step, plan.value_scales + 4 * row)


@njit(**OPTIONS)
def dense(address, begin, end, scratch):
    """Columns CHUNK begin .. CHUNK end of all rows."""
    plan = dense_at(address)
    values, scales, room, rows = plan.values, plan.value_scales, plan.room, plan.rows
    chunks, taps, dilation, columns = plan.channels // CHUNK, plan.taps, plan.dilation, plan.columns
    y, sums = floats(plan.y, rows * columns), floats(scratch, ROWS * CHUNK)
    for block in range(begin, end):
        own, start = plan.weight_scales + 4 * CHUNK * block, CHUNK * block
        bias = floats(plan.bias + 4 * start, CHUNK)
        for row in range(0, rows, ROWS):
            for tap in range(taps):
                first = row + tap * dilation
                for c in range(0, chunks, TOGETHER):
                    here, some = values + 4 * CHUNK * row_place(room, c, first), min(TOGETHER, chunks - c)
                    weights = plan.weights + 2 * SQUARE * square_place(1, taps * chunks, 0, block, tap * chunks + c)
                    new = tap == 0 and c == 0
                    MATMUL_INT16(here, 4 * CHUNK * room, weights, some, scratch, scales + 4 * first, own, new)
            for i in range(min(ROWS, rows - row)):
                to = y[(row + i) * columns + start : (row + i) * columns + start + CHUNK]
                for k in range(CHUNK):
                    to[k] = sums[i * CHUNK + k] + bias[k]


@njit(**REORDERED)
def single(address, begin, end, scratch):
    """y[r] = the sum of the values behind x[step r] by the weights, and the weight behind these."""
    plan = single_at(address)
    terms, step = plan.terms, 4 * plan.step
    answers, factors = floats(plan.y, end), floats(plan.weights, terms + 1)
    for row in range(begin, end):
        values, total = floats(plan.x + step * row, terms), np.float32(0)
        for k in range(terms):
            total += values[k] * factors[k]
        answers[row] = total + factors[terms]
