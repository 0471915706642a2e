"""A chain of convolutions over one tile of rows, multiplied in bfloat16 or float32 and summed in float32.

A link multiplies 32 rows by 32 columns at a time, by AMX (`amx`) or by products of vectors (`dots`), and finishes them
at once: bias, what is to be added, the leaky rectifier or WaveNet's gate, and the rounding for the next link. What lies
between two links stays in a core's own cache. `codec.chain` makes the records that say what to do.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import njit

from ..descriptors import CHAIN, LINK
from ..instructions import pointer
from ..scalars import floats
from ..tiles import CHUNK
from ..vectors import FLOAT, FLOATS, I16, I32, INTS, LANES, Code, bfloats, function, switch
from ..views import chain_at, link_at
from .activation import shifted
from .blocks import OPTIONS

__all__ = ["Multiplier", "chain_by"]

_ACROSS = 4 * CHUNK  # bytes of a row of sums
_CHAIN, _LINK = CHAIN.itemsize, LINK.itemsize
_SUMS = 64  # where they lie in a thread's memory, behind the configuration that was there before
_GATED = 1 << 5  # in the number of a way to finish
_STEEP = 10.0, 30.0  # beyond which tanh and the logistic function are 1 to within float32
_TAYLOR = tuple(1 / math.factorial(n) for n in range(6, -1, -1))  # of e^y for |y| <= ln(2) / 2: within 2e-7


class Multiplier(NamedTuple):
    """How 32 rows are multiplied by 32 columns: intrinsics.

    configure(configuration, before), restore(before): around a chain. multiply(exact, x, step, places, terms, weights,
    sums): see `descriptors.Link`. floats: whether what an exact product takes is float32, and not pairs of bfloat16.
    """

    configure: Any
    restore: Any
    multiply: Any
    floats: bool


def _finish(which: int, in_floats: bool) -> Any:
    """(sums, rows, bias, add, more, y, step, low, rest, low_step, slope, low_slope): see `descriptors.Link`.

    v = sums + bias + add + more; y = v, and low = v, rectified with their own slopes (bits of a float32); rest: what
    rounding has left of low, or in_floats, that low is float32. which: a bit for each of add, more, y, low and rest
    that there is. step, low_step: bytes from row to row.
    """
    has_add, has_more, has_y, has_low, has_rest = (bool(which & 1 << bit) for bit in range(5))
    put = _putting(has_rest, in_floats)

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
                    put(c, _rectified(c, v, factors[1]), b.add(low, short), b.add(rest, short), k)
            return []

        c.loop(rows, [], row)

    return generate


def _gate(which: int, in_floats: bool) -> Any:
    """As `_finish`, of 16 columns u and 16 columns g: low = tanh(u) s(g), s being the logistic function."""
    put = _putting(bool(which & 1 << 4), in_floats)

    def generate(c: Code, sums: Any, rows: Any, bias: Any, *given: Any) -> None:
        low, rest, low_step = given[4:7]
        shifts = [c.at(c.plus(bias, 4 * LANES * k), FLOATS) for k in range(2)]

        def row(i: Any, _: list[Any]) -> list[Any]:
            up, gate = (
                c.b.fadd(c.at(c.plus(c.plus(sums, i, _ACROSS), 4 * LANES * k), FLOATS), shift)
                for k, shift in enumerate(shifts)
            )
            short = c.b.mul(i, low_step)
            put(c, _gated(c, up, gate), c.b.add(low, short), c.b.add(rest, short), 0)
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


def _putting(has_rest: bool, in_floats: bool) -> Any:
    """What puts v, the k-th `LANES` values of a row, as bfloat16 at low, and at rest what rounding has left of it if
    that is wanted; or then, in_floats, as it is at low."""

    def put(c: Code, v: Any, low: Any, rest: Any, k: int) -> None:
        b = c.b
        if has_rest and in_floats:
            c.put(v, c.plus(low, 4 * LANES * k))
            return
        high = _rounded(c, v)
        c.put(high, c.plus(low, 2 * LANES * k), 2)
        if has_rest:
            bits = b.shl(b.zext(high, INTS), _constant(16, INTS))
            c.put(_rounded(c, b.fsub(v, b.bitcast(bits, FLOATS))), c.plus(rest, 2 * LANES * k), 2)

    return put


def _rectified(c: Code, v: Any, slope: Any) -> Any:
    return c.call("llvm.maxnum.v16f32", FLOATS, v, c.b.fmul(v, slope))


def _rounded(c: Code, v: Any) -> Any:
    """The bits of the nearest bfloat16."""
    low = c.call("llvm.x86.avx512bf16.cvtneps2bf16.512", bfloats(LANES), v)
    return c.b.bitcast(low, ir.VectorType(I16, LANES))


def _finishing(in_floats: bool) -> Any:
    """An intrinsic: `_finish` or `_gate`, by the number of a way to finish."""
    gates = {_GATED | which: _gate(which, in_floats) for which in (1 << 3, 1 << 3 | 1 << 4)}
    return function(13, switch({**{which: _finish(which, in_floats) for which in range(1 << 5)}, **gates}))


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


def _linking(multiplier: Multiplier) -> Any:
    finish, multiply, in_floats = _finishing(multiplier.floats), multiplier.multiply, multiplier.floats

    @njit(**OPTIONS)
    def linked(plan, link, begin, end, scratch):
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
        sums, size = scratch + _SUMS, 4 if in_floats and rest else 2
        if link.signal:
            _activated(link, x, begin - link.halo - link.reach, end + link.halo + link.reach, last)
        which = (link.add != 0) | (link.more != 0) << 1 | (link.y != 0) << 2 | (link.low != 0) << 3 | (rest != 0) << 4
        which |= _GATED * link.gated
        for block in range(link.columns // CHUNK):
            phase, column = width * block // channels - link.pad, width * block % channels
            for row in range(first, after, CHUNK):
                multiply(
                    link.exact, x + row * step, step, link.places, link.terms, link.weights + block * link.panel, sums
                )
                there = full * (row * rate + phase) + 4 * column
                here = low + short * (row * rate + phase) + size * column
                finish(
                    which, sums, min(CHUNK, after - row), link.bias + 4 * CHUNK * block, add + there, more + there,
                    y + there, rate * full, here, here + rest, rate * short, link.slope, link.low_slope,
                )  # fmt: skip
        if link.moments:
            _measured(y + full * begin, end - begin, channels, link.moments + 2 * full * (begin // plan.tile))
        if link.low < 0:  # a convolution finds noughts beyond both ends
            _clear(low, begin - link.halo, 0, short)
            _clear(low, last, end + link.halo, short)

    return linked


def chain_by(multiplier: Multiplier) -> Any:
    """What does all links for rows begin .. end of the last one, compiled."""
    configure, restore, linked = multiplier.configure, multiplier.restore, _linking(multiplier)

    @njit(**OPTIONS)
    def chain(address, begin, end, scratch):
        plan = chain_at(address)
        configure(plan.tiles, scratch)
        for i in range(plan.links):
            linked(plan, link_at(address + _CHAIN + i * _LINK), begin, end, scratch)
        restore(scratch)

    return chain
