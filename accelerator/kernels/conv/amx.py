"""A chain of convolutions over one tile of rows, multiplied in bfloat16 by AMX and summed in float32.

A link multiplies 32 rows by 32 columns at a time in the processor's eight tiles, and finishes them at once: bias, what
is to be added, the leaky rectifier or WaveNet's gate, and the rounding for the next link. What lies between two links
stays in a core's own cache. `codec.chain` makes the records that say what to do.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit

from ..descriptors import CHAIN, LINK
from ..instructions import pointer
from ..scalars import floats
from ..tiles import CHUNK
from ..vectors import FLOAT, FLOATS, I8, I16, I32, INTS, LANES, Code, bfloats, function, switch
from ..views import chain_at, link_at
from .activation import shifted
from .blocks import OPTIONS

__all__ = ["chain"]

_TILE, _SIDE = 1024, 16  # bytes and rows of one
_ACROSS = 4 * CHUNK  # bytes of a row of sums
_CHAIN, _LINK = CHAIN.itemsize, LINK.itemsize
_SUMS = 64  # where they lie in a thread's memory, behind the configuration that was there before
_GATED = 1 << 5  # in the number of a way to finish
_STEEP = 10.0, 30.0  # beyond which tanh and the logistic function are 1 to within float32
_TAYLOR = tuple(1 / math.factorial(n) for n in range(6, -1, -1))  # of e^y for |y| <= ln(2) / 2: within 2e-7


def _tile(c: Code, what: str, *given: Any) -> None:
    """given: numbers of tiles, and addresses or distances."""
    pointers = [ir.Constant(I8, v) if isinstance(v, int) else v for v in given]
    c.call(f"llvm.x86.{what}", ir.VoidType(), *pointers)


def _place(c: Code, address: Any) -> Any:
    return c.b.inttoptr(address, I8.as_pointer())


def _configure(c: Code, configuration: Any, before: Any) -> None:
    """Others, as oneDNN, remember how they have configured the tiles of a thread: it is put back afterwards."""
    _tile(c, "sttilecfg", _place(c, before))
    _tile(c, "ldtilecfg", _place(c, configuration))


def _restore(c: Code, before: Any) -> None:
    _tile(c, "ldtilecfg", _place(c, before))


def _multiply(c: Code, x: Any, step: Any, table: Any, count: Any, weights: Any, out: Any) -> None:
    """32 rows of x, `step` bytes apart, by 32 columns: the sum over `count` places of x and of weights, in `table`."""
    for tile in range(4):
        _tile(c, "tilezero", tile)

    def product(i: Any, _: list[Any]) -> list[Any]:
        entry = c.plus(table, i, 16)
        rows, columns = (
            c.plus(base, c.at(c.plus(entry, k), c.number(0).type, 8)) for base, k in ((x, 0), (weights, 8))
        )
        _tile(c, "tileloadd64", 4, _place(c, rows), step)
        _tile(c, "tileloadd64", 6, _place(c, columns), c.number(64))
        _tile(c, "tileloadd64", 7, _place(c, c.plus(columns, _TILE)), c.number(64))
        _tile(c, "tileloadd64", 5, _place(c, c.plus(rows, step, _SIDE)), step)
        for tile in range(4):
            _tile(c, "tdpbf16ps", tile, 4 + tile // 2, 6 + tile % 2)
        return []

    c.loop(count, [], product)
    for tile in range(4):
        start = c.plus(out, _SIDE * _ACROSS * (tile // 2) + 64 * (tile % 2))
        _tile(c, "tilestored64", tile, _place(c, start), c.number(_ACROSS))


def _finish(which: int) -> Any:
    """(sums, rows, bias, add, more, y, step, low, rest, low_step, slope, low_slope): see `descriptors.Link`.

    v = sums + bias + add + more; y = v, and low = v, rectified with their own slopes (bits of a float32); rest: what
    rounding has left of low. which: a bit for each of add, more, y, low and rest that there is. step, low_step: bytes
    from row to row.
    """
    has_add, has_more, has_y, has_low, has_rest = (bool(which & 1 << bit) for bit in range(5))

    def generate(
        c: Code,
        sums: Any,
        rows: Any,
        bias: Any,
        add: Any,
        more: Any,
        y: Any,
        step: Any,
        low: Any,
        rest: Any,
        low_step: Any,
        *slopes: Any,
    ) -> None:
        b = c.b
        factors = [c.all(b.bitcast(b.trunc(bits, I32), FLOAT), FLOATS) for bits in slopes]
        shifts = [c.at(c.plus(bias, 4 * LANES * k), FLOATS) for k in range(CHUNK // LANES)]

        def row(i: Any, _: list[Any]) -> list[Any]:
            full, short = b.mul(i, step), b.mul(i, low_step)
            for k, shift in enumerate(shifts):
                v = b.fadd(c.at(c.plus(c.plus(sums, i, _ACROSS), 4 * LANES * k), FLOATS), shift)
                for there in [add] * has_add + [more] * has_more:
                    v = b.fadd(v, c.at(c.plus(b.add(there, full), 4 * LANES * k), FLOATS))
                if has_y:
                    c.put(_rectified(c, v, factors[0]), c.plus(b.add(y, full), 4 * LANES * k))
                if has_low:
                    there = [c.plus(b.add(each, short), 2 * LANES * k) for each in ([low, rest] if has_rest else [low])]
                    _put_low(c, _rectified(c, v, factors[1]), *there)
            return []

        c.loop(rows, [], row)

    return generate


def _gate(which: int) -> Any:
    """As `_finish`, of 16 columns u and 16 columns g: low = tanh(u) s(g), s being the logistic function."""
    has_rest = bool(which & 1 << 4)

    def generate(c: Code, sums: Any, rows: Any, bias: Any, *given: Any) -> None:
        low, rest, low_step = given[4:7]
        shifts = [c.at(c.plus(bias, 4 * LANES * k), FLOATS) for k in range(2)]

        def row(i: Any, _: list[Any]) -> list[Any]:
            up, gate = (
                c.b.fadd(c.at(c.plus(c.plus(sums, i, _ACROSS), 4 * LANES * k), FLOATS), shift)
                for k, shift in enumerate(shifts)
            )
            short = c.b.mul(i, low_step)
            _put_low(c, _gated(c, up, gate), *(c.b.add(each, short) for each in ([low, rest] if has_rest else [low])))
            return []

        c.loop(rows, [], row)

    return generate


def _gated(c: Code, up: Any, gate: Any) -> Any:
    """tanh(up) / (1 + e^-gate), as (1 - e^-2up) / ((1 + e^-2up) (1 + e^-gate))."""
    b, one = c.b, _constant(1.0)
    u = _exp(c, b.fmul(_bounded(c, up, _STEEP[0]), _constant(-2.0)))
    g = _exp(c, b.fmul(_bounded(c, gate, _STEEP[1]), _constant(-1.0)))
    return b.fdiv(b.fsub(one, u), b.fmul(b.fadd(one, u), b.fadd(one, g)))


def _exp(c: Code, x: Any) -> Any:
    """e^x to 3e-7 for |x| <= 87: 2^whole, times a polynomial for the rest."""
    b = c.b
    whole = c.call("llvm.rint.v16f32", FLOATS, b.fmul(x, _constant(math.log2(math.e))))
    y = c.fma(whole, _constant(-math.log(2)), x)
    p = _constant(_TAYLOR[0])
    for factor in _TAYLOR[1:]:
        p = c.fma(p, y, _constant(factor))
    exponent = b.shl(b.add(b.fptosi(whole, INTS), _constant(127, INTS)), _constant(23, INTS))
    return b.fmul(p, b.bitcast(exponent, FLOATS))


def _bounded(c: Code, v: Any, most: float) -> Any:
    least = c.call("llvm.maxnum.v16f32", FLOATS, v, _constant(-most))
    return c.call("llvm.minnum.v16f32", FLOATS, least, _constant(most))


def _constant(value: float, kind: Any = FLOATS) -> Any:
    exact = float(np.float32(value)) if kind is FLOATS else value  # LLVM takes only what a float32 can be
    return ir.Constant(kind, [exact] * LANES)


def _put_low(c: Code, v: Any, low: Any, rest: Any = None) -> None:
    """v as bfloat16 at low, and at rest what rounding has left of it."""
    b, high = c.b, _rounded(c, v)
    c.put(high, low, 2)
    if rest is not None:
        bits = b.shl(b.zext(high, INTS), _constant(16, INTS))
        c.put(_rounded(c, b.fsub(v, b.bitcast(bits, FLOATS))), rest, 2)


def _rectified(c: Code, v: Any, slope: Any) -> Any:
    return c.call("llvm.maxnum.v16f32", FLOATS, v, c.b.fmul(v, slope))


def _rounded(c: Code, v: Any) -> Any:
    """The bits of the nearest bfloat16."""
    low = c.call("llvm.x86.avx512bf16.cvtneps2bf16.512", bfloats(LANES), v)
    return c.b.bitcast(low, ir.VectorType(I16, LANES))


_GATES = {_GATED | which: _gate(which) for which in (1 << 3, 1 << 3 | 1 << 4)}
_FINISHES = switch({**{which: _finish(which) for which in range(1 << 5)}, **_GATES})
_CONFIGURE, _RESTORE, _MULTIPLY, _FINISH = (
    function(count, generate) for count, generate in ((2, _configure), (1, _restore), (6, _multiply), (13, _FINISHES))
)


@njit(**OPTIONS)
def _base(plan, where, begin, size, scratch):
    """The address of row 0 of a buffer whose rows have `size` bytes: memory of all, or of a thread for its tile."""
    return where if where >= 0 else scratch - where + (plan.margin - begin) * size


@njit(**OPTIONS)
def _clear(low, first, after, size):
    """Rows of `size` bytes."""
    if first < after:
        values = numba.carray(pointer(low + size * first), (size * (after - first),), np.uint8)
        for i in range(size * (after - first)):
            values[i] = 0


@njit(**OPTIONS)
def _measured(y, rows, channels, moments):
    """Means and sums of squares about them, of each channel of [rows, channels]."""
    means, squares = floats(moments, channels), floats(moments + 4 * channels, channels)
    for k in range(channels):
        means[k] = squares[k] = 0
    for row in range(rows):
        values = floats(y + 4 * channels * row, channels)
        for k in range(channels):
            means[k] += values[k]
    for k in range(channels):
        means[k] /= rows
    for row in range(rows):
        values = floats(y + 4 * channels * row, channels)
        for k in range(channels):
            squares[k] += (values[k] - means[k]) * (values[k] - means[k])


@njit(**OPTIONS)
def _activated(link, x, first, after, rows):
    """Make x of the signal; beyond both ends it is nought."""
    step = link.step
    for row in range(max(0, first), min(rows, after)):
        shifted(link.signal + 2 * step * row, link.factor, link.shift, x + step * row, step // 2)
    _clear(x, first, 0, step)
    _clear(x, rows, after, step)


@njit(**OPTIONS)
def _linked(plan, link, begin, end, scratch):
    rate, step, rest, last = link.rate, link.step, link.rest, plan.rows
    width = CHUNK >> link.gated  # channels that 32 columns make
    channels = (link.columns >> link.gated) // rate
    full, short = 4 * channels, 2 * channels + rest  # bytes of a row
    x, low = _base(plan, link.x, begin, step, scratch), _base(plan, link.low, begin, short, scratch)
    add, more, y = (
        _base(plan, link.add, begin, full, scratch), _base(plan, link.more, begin, full, scratch),
        _base(plan, link.y, begin, full, scratch),
    )  # fmt: skip
    first = (max(0, begin - link.halo) + link.pad) // rate
    after = (min(last, end + link.halo) + link.pad + rate - 1) // rate
    sums = scratch + _SUMS
    if link.signal:
        _activated(link, x, begin - link.halo - link.reach, end + link.halo + link.reach, last)
    which = (link.add != 0) | (link.more != 0) << 1 | (link.y != 0) << 2 | (link.low != 0) << 3 | (rest != 0) << 4
    which |= _GATED * link.gated
    for block in range(link.columns // CHUNK):
        phase, column = width * block // channels - link.pad, width * block % channels
        for row in range(first, after, CHUNK):
            _MULTIPLY(x + row * step, step, link.places, link.terms, link.weights + block * link.panel, sums)
            there = full * (row * rate + phase) + 4 * column
            here = low + short * (row * rate + phase) + 2 * column
            _FINISH(
                which, sums, min(CHUNK, after - row), link.bias + 4 * CHUNK * block, add + there, more + there,
                y + there, rate * full, here, here + rest, rate * short, link.slope, link.low_slope,
            )  # fmt: skip
    if link.moments:
        _measured(y + full * begin, end - begin, channels, link.moments + 2 * full * (begin // plan.tile))
    if link.low < 0:  # a convolution finds noughts beyond both ends
        _clear(low, begin - link.halo, 0, short)
        _clear(low, last, end + link.halo, short)


@njit(**OPTIONS)
def chain(address, begin, end, scratch):
    """All links, for rows begin .. end of the last one."""
    plan = chain_at(address)
    _CONFIGURE(plan.tiles, scratch)
    for i in range(plan.links):
        _linked(plan, link_at(address + _CHAIN + i * _LINK), begin, end, scratch)
    _RESTORE(scratch)
