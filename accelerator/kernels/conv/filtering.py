"""Minimal filtering (see `minimal`) for float32 [rows, channels], with the passes around it: a bias, snake, bfloat16.

`TILES` tiles of a layer are worked on at a time. Their inputs are evaluated at all points; then, for `PANEL` columns of
the answer after the other, multiplied by the evaluated weights and interpolated, so that products stay in a core's own
cache. PyTorch's products of small matrices around large ones take up to twice the time of all this.

A residual unit goes on with a product over the channels of each row (`mixed`), which finds its inputs chunk by chunk:
[channels / CHUNK, rows, CHUNK]; levels of int16 have a unit for each row of each chunk.

A convolution that is dilated by d is d convolutions of every d-th row: tile t begins at row m d (t // d) + t % d.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit

from .. import tiles as at
from ..instructions import pointer
from ..scalars import floats
from ..tiles import CHUNK, FILTERS, PANEL, TILES, TOGETHER, filter_layout
from ..vectors import BF16, REGISTER, WIDTH, Code, function
from .activation import narrow, snaked
from .blocks import LEVELS, OPTIONS, PRODUCTS, PRODUCTS_OF_LEVELS, ROWS, VECTORS, level
from .minimal import filters

__all__ = ["filtered", "mixed"]


def _combined(c: Code, values: list[Any], factors: np.ndarray, total: Any = None) -> Any:
    for value, factor in zip(values, factors, strict=True):
        if abs(factor) > 1e-12:
            constant = ir.Constant(REGISTER, [float(np.float32(factor))] * WIDTH)
            total = c.b.fmul(value, constant) if total is None else c.fma(value, constant, total)
    return total


def _evaluate(taps: int) -> Any:
    """(x, step, out, chunks): rows of channels `step` bytes apart -> values at the points, chunk by chunk."""
    matrix = filters(FILTERS[taps], taps).inputs
    points = len(matrix)
    _, pitch, _ = filter_layout(taps)

    def generate(c: Code, x: Any, step: Any, out: Any, chunks: Any) -> None:
        rows = [x]
        for _ in range(points - 1):
            rows.append(c.b.add(rows[-1], step))

        def chunk(j: Any, _: list[Any]) -> list[Any]:
            to = c.plus(out, j, points * pitch)
            for vector in range(VECTORS):
                at_ = 4 * WIDTH * vector
                values = [c.at(c.plus(c.plus(row, j, 4 * CHUNK), at_), REGISTER, 4) for row in rows]
                answers = [_combined(c, values, matrix[0])]
                for k in range(1, points - 1, 2):  # at p and at -p: the even and the odd part, added and subtracted
                    even = _combined(c, values, (matrix[k] + matrix[k + 1]) / 2)
                    odd = _combined(c, values, (matrix[k] - matrix[k + 1]) / 2)
                    answers += [c.b.fadd(even, odd), c.b.fsub(even, odd)]
                answers.append(_combined(c, values, matrix[-1]))
                for k, answer in enumerate(answers):
                    c.put(answer, c.plus(to, k * pitch + at_))
            return []

        c.loop(chunks, [], chunk)

    return function(4, generate)


def _interpolate(taps: int) -> Any:
    """(sums, chunks, bias, out): a tile's sums at the points -> its rows, float32 [outputs, PANEL]."""
    matrix = filters(FILTERS[taps], taps).outputs
    points, _, panel = filter_layout(taps)

    def generate(c: Code, sums: Any, chunks: Any, bias: Any, out: Any) -> None:
        def chunk(j: Any, _: list[Any]) -> list[Any]:
            for vector in range(VECTORS):
                at_ = 4 * WIDTH * vector
                here = c.plus(c.plus(sums, j, 4 * CHUNK * TILES), at_)
                values = [c.at(c.plus(here, k * panel), REGISTER, 4 * WIDTH) for k in range(points)]
                pairs = range(1, points - 1, 2)
                parts = [
                    [c.b.fadd(values[k], values[k + 1]) for k in pairs],  # what even powers take
                    [c.b.fsub(values[k], values[k + 1]) for k in pairs],
                ]
                start = c.at(c.plus(c.plus(bias, j, 4 * CHUNK), at_), REGISTER, 4)
                for i, row in enumerate(matrix):
                    total = _combined(c, [values[0], values[-1]], row[[0, -1]], start)
                    total = _combined(c, parts[i % 2], row[1:-1:2], total)
                    c.put(total, c.plus(c.plus(out, j, 4 * CHUNK), 4 * PANEL * i + at_))
            return []

        c.loop(chunks, [], chunk)

    return function(4, generate)


@njit(**OPTIONS)
def _finish(x, out, count, kind):
    """A row's part at x -> out, as `kind` says: snake of it, or as bfloat16, or both."""
    given, answer = floats(x, count), floats(out, count)
    low = numba.carray(pointer(out), (count,), np.uint16)
    kind &= at.SNAKED | at.LOW
    if kind == 0:
        for k in range(count):
            answer[k] = given[k]
    elif kind == 1:
        for k in range(count):
            answer[k] = snaked(given[k])
    elif kind == 2:
        for k in range(count):
            low[k] = narrow(given[k])
    else:
        for k in range(count):
            low[k] = narrow(snaked(given[k]))


@njit(**OPTIONS)
def _first_row(tile, outputs, dilation):
    whole = tile // dilation
    return whole * (outputs - 1) * dilation + tile  # m d (t // d) + t % d


def _filter(taps: int, leveled: bool = False) -> Any:
    """leveled: its products are those of int16."""
    outputs, (points, pitch, panel) = FILTERS[taps], filter_layout(taps)
    evaluate, interpolate, multiply = _evaluate(taps), _interpolate(taps), PRODUCTS[False]
    to_levels, size_of_weight = level([k * pitch for k in range(points)]), 2 if leveled else 4

    @njit(**OPTIONS)
    def evaluated(plan, first, count, values, units, beside):
        """The values of tiles first .. first + count at the points."""
        x, channels, given, dilation = (
            plan[at.FILTER_X], plan[at.FILTER_IN], plan[at.FILTER_GIVEN], plan[at.FILTER_DILATION],
        )  # fmt: skip
        for t in range(count):
            row, source, step = _first_row(first + t, outputs, dilation), x, 4 * channels * dilation
            if row + dilation * (points - 1) < given:
                source += 4 * row * channels
            else:
                copied, all_ = floats(beside, points * channels), floats(x, given * channels)
                for i in range(points):
                    from_ = row + dilation * i
                    for k in range(channels):
                        copied[i * channels + k] = all_[from_ * channels + k] if from_ < given else np.float32(0)
                source, step = beside, 4 * channels
            here = values + 4 * CHUNK * t
            evaluate(source, step, here, channels // CHUNK)
            if leveled:
                to_levels(here, points * pitch, channels // CHUNK, here, points * pitch, units + 4 * t)

    @njit(**OPTIONS)
    def multiplied(plan, start, parts, count, values, products, units):
        """Their products with `parts` chunks of columns behind `start`."""
        channels, blocks = plan[at.FILTER_IN], plan[at.FILTER_OUT] // CHUNK
        chunks, step = channels // CHUNK, points * pitch
        for point in range(points):
            for part in range(parts):
                block = point * blocks + start // CHUNK + part
                weights = plan[at.FILTER_WEIGHTS] + size_of_weight * CHUNK * channels * block
                for t in range(0, count, ROWS):
                    here = values + point * pitch + 4 * CHUNK * t
                    to = products + point * panel + 4 * CHUNK * (part * TILES + t)
                    if leveled:
                        own = plan[at.FILTER_UNITS] + 4 * CHUNK * block
                        for c in range(0, chunks, TOGETHER):
                            some, from_ = min(TOGETHER, chunks - c), weights + 2 * CHUNK * CHUNK * c
                            PRODUCTS_OF_LEVELS(here + c * step, step, from_, some, to, units + 4 * t, own, c == 0)
                    else:
                        multiply(here, step, weights, chunks, to)

    @njit(**OPTIONS)
    def finished(plan, first, start, parts, count, products, beside):
        """The answer's rows of those columns, finished and put where they belong."""
        out, columns, kind, dilation = (
            plan[at.FILTER_Y], plan[at.FILTER_OUT], plan[at.FILTER_KIND], plan[at.FILTER_DILATION],
        )  # fmt: skip
        rows, size = plan[at.FILTER_GIVEN] - (taps - 1) * dilation, 2 if kind & at.LOW else 4
        for t in range(count):
            interpolate(products + 4 * CHUNK * t, parts, plan[at.FILTER_BIAS] + 4 * start, beside)
            row = _first_row(first + t, outputs, dilation)
            for i in range(outputs):
                here = beside + 4 * PANEL * i
                if row < rows and kind & at.MIXED:
                    for part in range(parts):
                        from_, place = here + 4 * CHUNK * part, (start // CHUNK + part) * plan[at.FILTER_ROOM] + row
                        if kind & at.LEVELED:
                            _finish(from_, from_, CHUNK, kind)
                            LEVELS(from_, 0, 1, out + 4 * CHUNK * place, 0, plan[at.FILTER_OWN] + 4 * place)
                        else:
                            _finish(from_, out + size * CHUNK * place, CHUNK, kind)
                elif row < rows:
                    _finish(here, out + size * (row * columns + start), CHUNK * parts, kind)
                row += dilation

    @njit(**OPTIONS)
    def run(address, begin, end, scratch):
        plan = numba.carray(pointer(address), (at.FILTER_SIZE,), np.int64)
        channels, columns, values = plan[at.FILTER_IN], plan[at.FILTER_OUT], scratch
        products = values + channels // CHUNK * points * pitch
        units = products + points * panel
        beside = units + 4 * TILES  # a tile's rows, which may lie partly behind the end
        most = TILES if channels > 256 else TILES // 2  # narrow ones stay in the second cache then
        blocks = (end - begin + most - 1) // most
        alike = ((end - begin + blocks - 1) // blocks + ROWS - 1) // ROWS * ROWS
        for first in range(begin, end, alike):
            count = min(alike, end - first)
            evaluated(plan, first, count, values, units, beside)
            for start in range(0, columns, PANEL):
                parts = min(PANEL, columns - start) // CHUNK
                multiplied(plan, start, parts, count, values, products, units)
                finished(plan, first, start, parts, count, products, beside)

    return run


def _plain(low: bool) -> Any:
    multiply, size = PRODUCTS[low], 2 if low else 4

    @njit(**OPTIONS)
    def run(plan, row, start, out):
        """A block of a mix's products."""
        chunks, step = plan[at.MIX_IN] // CHUNK, size * CHUNK * plan[at.MIX_ROOM]
        values, weights = plan[at.MIX_VALUES] + size * CHUNK * row, plan[at.MIX_WEIGHTS] + size * CHUNK * chunks * start
        multiply(values, step, weights, chunks, out)

    return run


@njit(**OPTIONS)
def _leveled(plan, row, start, out):
    chunks, own = plan[at.MIX_IN] // CHUNK, plan[at.MIX_SCALES] + 4 * start
    weights = plan[at.MIX_WEIGHTS] + 2 * CHUNK * chunks * start
    for c in range(chunks):
        place = plan[at.MIX_ROOM] * c + row
        values, units = plan[at.MIX_VALUES] + 4 * CHUNK * place, plan[at.MIX_UNITS] + 4 * place
        PRODUCTS_OF_LEVELS(values, 0, weights + 2 * CHUNK * CHUNK * c, 1, out, units, own, c == 0)


def _mix(multiply: Any) -> Any:
    @njit(**OPTIONS)
    def run(address, begin, end, scratch):
        plan = numba.carray(pointer(address), (at.MIX_SIZE,), np.int64)
        columns, rows = plan[at.MIX_OUT], plan[at.MIX_ROWS]
        x, bias = floats(plan[at.MIX_X], rows * columns), floats(plan[at.MIX_BIAS], columns)
        sums = floats(scratch, ROWS * CHUNK)
        for first in range(begin, end, TILES):
            for start in range(0, columns, CHUNK):
                for row in range(first, min(first + TILES, end), ROWS):
                    multiply(plan, row, start, scratch)
                    for i in range(min(ROWS, rows - row)):
                        to = x[(row + i) * columns + start : (row + i) * columns + start + CHUNK]
                        for k in range(CHUNK):
                            to[k] += sums[i * CHUNK + k] + bias[start + k]

    return run


_SEVEN, _TWO, _TWO_LEVELED = _filter(7), _filter(2), _filter(2, leveled=True)
_MIX, _MIX_LEVELED = _mix(_plain(False)), _mix(_leveled)
_MIX_LOW = _mix(_plain(True)) if BF16 else _MIX


@njit(**OPTIONS)
def filtered(address, begin, end, scratch):
    """Tiles begin .. end of the filter that the array there describes."""
    plan = numba.carray(pointer(address), (at.FILTER_SIZE,), np.int64)
    if plan[at.FILTER_TAPS] == 7:
        _SEVEN(address, begin, end, scratch)
    elif plan[at.FILTER_LEVELED]:
        _TWO_LEVELED(address, begin, end, scratch)
    else:
        _TWO(address, begin, end, scratch)


@njit(**OPTIONS)
def mixed(address, begin, end, scratch):
    """Rows begin .. end of x += values W + b; begin is a multiple of `ROWS`, as the room for rows is."""
    kind = numba.carray(pointer(address), (at.MIX_SIZE,), np.int64)[at.MIX_KIND]
    if kind == at.LOW:
        _MIX_LOW(address, begin, end, scratch)
    elif kind == at.LEVELED:
        _MIX_LEVELED(address, begin, end, scratch)
    else:
        _MIX(address, begin, end, scratch)
