"""Blocks of matrix products: `ROWS` rows of values by `CHUNK` columns of weights, summed over channels in registers.

Values lie chunk by chunk of channels: [channels / CHUNK, rows, CHUNK], rows 4 CHUNK bytes apart (2 CHUNK, if each is
half as large and two share a lane). Those quantized to int16 have scales of their own: of a row, and of a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir

from .. import tiles as at
from ..tiles import CHUNK, LARGEST_INT16
from ..vectors import AVX512, BF16, FLOAT, FLOATS, INT_REGISTER, INTS, LANES, REGISTER, WIDTH, Code, function, zeros

__all__ = ["MATMUL", "MATMUL_INT16", "OPTIONS", "QUANTIZE", "ROWS", "VECTORS", "quantize_at"]

_HALVES = CHUNK // LANES  # of a chunk: once quantized they share lanes
ROWS, VECTORS = at.ROWS, CHUNK // WIDTH  # of a block
_TALL, _ACROSS = (ROWS, VECTORS) if AVX512 else (6, 2)  # of what registers hold of it
_PARTS = [(row, vector) for row in range(0, ROWS, _TALL) for vector in range(0, VECTORS, _ACROSS)]
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}  # as for snake


def _summed(
    c: Code,
    values: Any,
    step: Any,
    weights: Any,
    chunks: Any,
    kind: Any,
    row: int,
    part: tuple[int, int],
    combine: Any,
    none: list[Any],
) -> Iterator[tuple[int, int, Any]]:
    """combine(value, weights, sum) over all channels, for the rows, `row` bytes apart, and columns of a part.

    kind: of vectors; one of their lanes holds a channel, or two of half the size. values: [chunks, rows, lanes], chunks
    `step` bytes apart. weights: [chunks, lanes, CHUNK]. Gives each row's number, its vector's, and the sums.
    """
    lanes = CHUNK if kind == REGISTER else CHUNK // 2
    unrolled, (first, across) = 2, part

    def chunk(i: Any, totals: list[Any]) -> list[Any]:
        here = c.plus(c.b.add(values, c.b.mul(i, step)), row * first)
        factors = c.plus(c.plus(weights, 4 * WIDTH * across), i, 4 * lanes * CHUNK)

        def lane(j: Any, sums: list[Any]) -> list[Any]:
            sums = list(sums)
            for u in range(unrolled):
                columns = c.plus(c.plus(factors, j, 4 * unrolled * CHUNK), 4 * u * CHUNK)
                parts = [c.at(c.plus(columns, 4 * WIDTH * k), kind, 4 * WIDTH) for k in range(_ACROSS)]
                for r in range(_TALL):
                    value = c.all(c.at(c.plus(c.plus(here, j, 4 * unrolled), 4 * u + row * r), kind.element, 4), kind)
                    for k, part in enumerate(parts):
                        sums[r * _ACROSS + k] = combine(value, part, sums[r * _ACROSS + k])
            return sums

        return c.loop(c.number(lanes // unrolled), totals, lane)

    for i, total in enumerate(c.loop(chunks, none * (_TALL * _ACROSS), chunk)):
        yield first + i // _ACROSS, across + i % _ACROSS, total


def _matmul(low: bool) -> Any:
    """(values, step, weights, chunks, out): `ROWS` rows by `CHUNK` columns of float32, or of pairs of bfloat16."""
    kind, row = (INT_REGISTER, 2 * CHUNK) if low else (REGISTER, 4 * CHUNK)

    def generate(c: Code, values: Any, step: Any, weights: Any, chunks: Any, out: Any) -> None:
        combine, none = c.dot_bf16 if low else c.fma, zeros(REGISTER, 1)
        for part in _PARTS:
            for r, k, total in _summed(c, values, step, weights, chunks, kind, row, part, combine, none):
                c.put(total, c.plus(out, 4 * (r * CHUNK + k * WIDTH)))

    return function(5, generate)


def _matmul_int16() -> Any:
    """(values, step, weights, chunks, out, scales, columns, first): as `_matmul`, for pairs of int16, few chunks.

    The sums times scales, float32 [ROWS], and columns, float32 [CHUNK], are added to what is at `out`, or stored there
    if first.
    """

    def generate(
        c: Code, values: Any, step: Any, weights: Any, chunks: Any, out: Any, scales: Any, columns: Any, first: Any
    ) -> None:
        b, none, kind = c.b, zeros(INT_REGISTER, 1), INT_REGISTER
        new = b.icmp_signed("!=", first, c.number(0))
        for part in _PARTS:
            for r, k, total in _summed(c, values, step, weights, chunks, kind, 4 * CHUNK, part, c.dot_int16, none):
                scale = c.all(c.at(c.plus(scales, 4 * r), FLOAT, 4), REGISTER)
                own = c.at(c.plus(columns, 4 * WIDTH * k), REGISTER, 4)
                address = c.plus(out, 4 * (r * CHUNK + k * WIDTH))
                before = b.select(new, *zeros(REGISTER, 1), c.at(address, REGISTER, 4 * WIDTH))
                c.put(c.fma(b.sitofp(total, REGISTER), b.fmul(scale, own), before), address)

    return function(8, generate)


def quantize_at(places: Sequence[int]) -> Any:
    """(values, step, chunks, out, out_step, scale): float32 at some places of each chunk -> int16 there, j beside j +
    16 in the place's first half.

    places: in bytes, of `CHUNK` values each. scale: gets theirs, which is no number if any of the values is none. `out`
    may be `values`.
    """

    def generate(c: Code, values: Any, step: Any, chunks: Any, out: Any, out_step: Any, scale: Any) -> None:
        b, (zero,) = c.b, zeros(FLOATS, 1)

        def largest(j: Any, before: list[Any]) -> list[Any]:
            most, check = before
            for place in (place + 4 * LANES * k for place in places for k in range(_HALVES)):
                value = c.at(c.plus(b.add(values, b.mul(j, step)), place), FLOATS, 4)
                most = c.call("llvm.maxnum.v16f32", FLOATS, most, c.call("llvm.fabs.v16f32", FLOATS, value))
                check = c.fma(value, zero, check)
            return [most, check]

        values_, checks = c.loop(chunks, [zero] * 2, largest)
        check = c.reduced("fadd", checks)
        most = c.call("llvm.maxnum.f32", FLOAT, c.reduced("fmax", values_), ir.Constant(FLOAT, 1e-30))
        inverse = c.all(b.fdiv(ir.Constant(FLOAT, float(LARGEST_INT16)), most), FLOATS)
        b.store(
            b.fadd(b.fdiv(most, ir.Constant(FLOAT, float(LARGEST_INT16))), check), b.inttoptr(scale, FLOAT.as_pointer())
        )

        def rounded(j: Any, _: list[Any]) -> list[Any]:
            for place in places:
                here = c.plus(b.add(values, b.mul(j, step)), place)
                both = [b.fmul(c.at(c.plus(here, 4 * LANES * k), FLOATS, 4), inverse) for k in range(_HALVES)]
                low, high = (b.fptosi(c.call("llvm.rint.v16f32", FLOATS, v), INTS) for v in both)
                mask, bits = (ir.Constant(INTS, [n] * LANES) for n in (0xFFFF, 16))
                c.put(b.or_(b.and_(low, mask), b.shl(high, bits)), c.plus(b.add(out, b.mul(j, out_step)), place))
            return []

        c.loop(chunks, [], rounded)

    return function(6, generate)


MATMUL = {low: _matmul(low) for low in (False, True) if BF16 or not low}
MATMUL_INT16 = _matmul_int16()
QUANTIZE = quantize_at([0])  # rows that are not evaluated at points
