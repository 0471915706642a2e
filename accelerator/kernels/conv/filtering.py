"""Minimal filtering (see `minimal`) for float32 [rows, channels], with the passes around it: a bias, snake, bfloat16.

`TILES` tiles of a layer are worked on at a time. Their inputs are evaluated at all points; then, for `PANEL` columns of
the answer after the other, multiplied by the evaluated weights and interpolated, so that products stay in a core's own
cache. PyTorch's small matrix products around large ones take up to twice the time of all this.

A residual unit goes on with a matrix product over the channels of each row (`mixed`), which finds its inputs chunk by
chunk: [channels / CHUNK, rows, CHUNK]; those quantized to int16 have a scale for each row of each chunk.

A convolution that is dilated by d is d convolutions of every d-th row: tile t begins at row m d (t // d) + t % d.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit

from .. import descriptors as at
from ..instructions import pointer
from ..scalars import floats
from ..tiles import CHUNK, FILTERS, PANEL, SQUARE, TILES, TOGETHER, filter_layout
from ..vectors import BF16, REGISTER, WIDTH, Code, function
from ..views import filter_at, filter_scratch, mix_at, row_place, square_place
from .activation import snaked, to_bf16
from .blocks import MATMUL, MATMUL_INT16, OPTIONS, QUANTIZE, ROWS, VECTORS, quantize_at
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
    kind &= at.SNAKED | at.AS_BF16
    if kind == 0:
        for k in range(count):
            answer[k] = given[k]
    elif kind == at.SNAKED:
        for k in range(count):
            answer[k] = snaked(given[k])
    elif kind == at.AS_BF16:
        for k in range(count):
            low[k] = to_bf16(given[k])
    else:
        for k in range(count):
            low[k] = to_bf16(snaked(given[k]))


@njit(**OPTIONS)
def _first_row(tile, outputs, dilation):
    whole = tile // dilation
    return whole * (outputs - 1) * dilation + tile  # m d (t // d) + t % d


def _filter(taps: int, is_int16: bool = False) -> Any:
    """is_int16: its matrix products are those of int16."""
    outputs, (points, pitch, panel) = FILTERS[taps], filter_layout(taps)
    evaluate, interpolate, multiply = _evaluate(taps), _interpolate(taps), MATMUL[False]
    quantize, size_of_weight = quantize_at([k * pitch for k in range(points)]), 2 if is_int16 else 4

    @njit(**OPTIONS)
    def evaluated(plan, first, count, values, scales, beside):
        """The values of tiles first .. first + count at the points."""
        x, channels, given, dilation = plan.x, plan.channels, plan.given, plan.dilation
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
            if is_int16:
                quantize(here, points * pitch, channels // CHUNK, here, points * pitch, scales + 4 * t)

    @njit(**OPTIONS)
    def multiplied(plan, start, parts, count, values, products, scales):
        """Their matrix products with `parts` chunks of columns behind `start`."""
        blocks, chunks, step = plan.columns // CHUNK, plan.channels // CHUNK, points * pitch
        for point in range(points):
            for part in range(parts):
                block = start // CHUNK + part
                weights = plan.weights + size_of_weight * SQUARE * square_place(blocks, chunks, point, block, 0)
                for t in range(0, count, ROWS):
                    here = values + point * pitch + 4 * CHUNK * t
                    to = products + point * panel + 4 * CHUNK * (part * TILES + t)
                    if is_int16:
                        own = plan.weight_scales + 4 * CHUNK * square_place(blocks, 1, point, block, 0)
                        for c in range(0, chunks, TOGETHER):
                            some, from_ = min(TOGETHER, chunks - c), weights + 2 * SQUARE * c
                            MATMUL_INT16(here + c * step, step, from_, some, to, scales + 4 * t, own, c == 0)
                    else:
                        multiply(here, step, weights, chunks, to)

    @njit(**OPTIONS)
    def finished(plan, first, start, parts, count, products, beside):
        """The answer's rows of those columns, finished and put where they belong."""
        out, columns, kind, dilation = plan.y, plan.columns, plan.kind, plan.dilation
        rows, size = plan.given - (taps - 1) * dilation, 2 if kind & at.AS_BF16 else 4
        for t in range(count):
            interpolate(products + 4 * CHUNK * t, parts, plan.bias + 4 * start, beside)
            row = _first_row(first + t, outputs, dilation)
            for i in range(outputs):
                here = beside + 4 * PANEL * i
                if row < rows and kind & at.FOR_MIX:
                    for part in range(parts):
                        from_, place = here + 4 * CHUNK * part, row_place(plan.room, start // CHUNK + part, row)
                        if kind & at.AS_INT16:
                            _finish(from_, from_, CHUNK, kind)
                            QUANTIZE(from_, 0, 1, out + 4 * CHUNK * place, 0, plan.y_scales + 4 * place)
                        else:
                            _finish(from_, out + size * CHUNK * place, CHUNK, kind)
                elif row < rows:
                    _finish(here, out + size * (row * columns + start), CHUNK * parts, kind)
                row += dilation

    @njit(**OPTIONS)
    def run(plan, begin, end, scratch):
        channels, columns = plan.channels, plan.columns
        products_at, scales_at, beside_at, _ = filter_scratch(channels, outputs, points, pitch, panel)
        values, products, scales = scratch, scratch + products_at, scratch + scales_at
        beside = scratch + beside_at  # a tile's rows, which may lie partly behind the end
        most = TILES if channels > 256 else TILES // 2  # those of fewer channels stay in the second cache then
        blocks = (end - begin + most - 1) // most
        alike = ((end - begin + blocks - 1) // blocks + ROWS - 1) // ROWS * ROWS
        for first in range(begin, end, alike):
            count = min(alike, end - first)
            evaluated(plan, first, count, values, scales, beside)
            for start in range(0, columns, PANEL):
                parts = min(PANEL, columns - start) // CHUNK
                multiplied(plan, start, parts, count, values, products, scales)
                finished(plan, first, start, parts, count, products, beside)

    return run


def _plain(low: bool) -> Any:
    multiply, size = MATMUL[low], 2 if low else 4

    @njit(**OPTIONS)
    def run(plan, row, start, out):
        """A block of a mix's matrix product."""
        chunks, step = plan.channels // CHUNK, size * CHUNK * plan.room
        weights = plan.weights + size * SQUARE * square_place(1, chunks, 0, start // CHUNK, 0)
        multiply(plan.values + size * CHUNK * row, step, weights, chunks, out)

    return run


@njit(**OPTIONS)
def _of_int16(plan, row, start, out):
    chunks, own = plan.channels // CHUNK, plan.weight_scales + 4 * start
    for c in range(chunks):
        place = row_place(plan.room, c, row)
        values, scales = plan.values + 4 * CHUNK * place, plan.value_scales + 4 * place
        weights = plan.weights + 2 * SQUARE * square_place(1, chunks, 0, start // CHUNK, c)
        MATMUL_INT16(values, 0, weights, 1, out, scales, own, c == 0)


def _mix(multiply: Any) -> Any:
    @njit(**OPTIONS)
    def run(plan, begin, end, scratch):
        columns, rows = plan.columns, plan.rows
        x, bias = floats(plan.x, rows * columns), floats(plan.bias, columns)
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


_SEVEN, _TWO, _TWO_OF_INT16 = _filter(7), _filter(2), _filter(2, is_int16=True)
_MIX, _MIX_INT16 = _mix(_plain(False)), _mix(_of_int16)
_MIX_BF16 = _mix(_plain(True)) if BF16 else _MIX


@njit(**OPTIONS)
def filtered(address, begin, end, scratch):
    """Tiles begin .. end of what a `Filter` describes."""
    plan = filter_at(address)
    if plan.taps == 7:
        _SEVEN(plan, begin, end, scratch)
    elif plan.is_int16:
        _TWO_OF_INT16(plan, begin, end, scratch)
    else:
        _TWO(plan, begin, end, scratch)


@njit(**OPTIONS)
def mixed(address, begin, end, scratch):
    """Rows begin .. end of what a `Mix` describes; begin is a multiple of `ROWS`, as the room for rows is."""
    plan = mix_at(address)
    if plan.kind == at.AS_BF16:
        _MIX_BF16(plan, begin, end, scratch)
    elif plan.kind == at.AS_INT16:
        _MIX_INT16(plan, begin, end, scratch)
    else:
        _MIX(plan, begin, end, scratch)
