"""Activations quantized to int8, and matrix products of quantized weights with them, by the processor's instructions.

Quantized weights are unsigned, quantized activations signed and at most 127, and what the weights' zero points add is
taken off by block. AVX512-VNNI sums four products of bytes in 32 bits. AVX2 sums two in 16, which hold eight such sums
of weights in 4 bits; of weights in 8, only one, and only if they are signed: they are taken 128 smaller there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..tiles import TOKENS, block_layout
from ..vectors import AVX512, FLOAT, FLOATS, HALF, I8, I16, I32, INTS, LANES, Code, function, switch, zeros

__all__ = ["matmul", "place", "quantize_block"]

_EIGHT, _SHORTS, _BYTES = ir.VectorType(I32, 8), ir.VectorType(I16, 16), ir.VectorType(I8, 32)  # of AVX2's registers
_ALL_BYTES = ir.VectorType(I8, 4 * LANES)


def _matmul(bits: int, rows: int) -> Callable[..., None]:
    """(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, out_step).

    A tile of `LANES` rows of weights by `rows` of activations. Quantized weights of 4 columns lie side by side for each
    row (with 4 bits the next 4 columns in the upper halves of the bytes); `block_layout` says where the rest of a block
    of 32 `pairs` columns lies. values: int8, value_step bytes a row; scales, sums: float32 of their blocks, scale_step
    bytes a row.
    """
    size, zeros_at, end = block_layout(32, bits)  # only the first part of a block is the larger the longer it is
    add, count = (_added, rows * (4 // rows or 1)) if AVX512 else (_added_by_pairs, 2 * rows)
    kind, less = (INTS, 0) if AVX512 else (_EIGHT, 128 if bits == 8 else 0)

    def generate(
        c: Code, weights: Any, blocks: Any, pairs: Any, values: Any, scales: Any, sums: Any, factor: Any, out: Any,
        value_step: Any, scale_step: Any, out_step: Any,
    ) -> None:  # fmt: skip
        b = c.b
        length, width = b.mul(pairs, c.number(32)), b.mul(pairs, c.number(size))
        step = c.plus(width, end - size)

        def block(i: Any, totals: list[Any]) -> list[Any]:
            base = b.add(weights, b.mul(i, step))
            begin = b.add(values, b.mul(i, length))

            def part(j: Any, accumulated: list[Any]) -> list[Any]:
                first = c.plus(begin, j, 32)
                given = [b.add(first, b.mul(value_step, c.number(row))) for row in range(rows)]
                return add(c, bits, c.plus(base, j, size), given, accumulated)

            answer = c.loop(pairs, zeros(kind, count), part)
            behind = b.add(base, width)
            scale = b.fpext(c.at(behind, ir.VectorType(HALF, LANES), 16), FLOATS)
            points = b.zext(c.at(c.plus(behind, zeros_at - size), ir.VectorType(I8, LANES), 16), INTS)
            zero = b.sitofp(b.sub(points, ir.Constant(INTS, [less] * LANES)), FLOATS)
            new = []
            for row in range(rows):
                total = _together(c, answer[row * count // rows : (row + 1) * count // rows])
                at = b.add(b.mul(scale_step, c.number(row)), b.mul(i, c.number(4)))
                sum_ = c.all(c.at(b.add(sums, at), FLOAT, 4), FLOATS)
                own = c.all(c.at(b.add(scales, at), FLOAT, 4), FLOATS)
                dot = c.fma(b.fneg(zero), sum_, b.sitofp(total, FLOATS))
                new.append(c.fma(dot, b.fmul(scale, own), totals[row]))
            return new

        totals = c.loop(blocks, zeros(FLOATS, rows), block)
        factors = c.at(factor, FLOATS, 4)
        for row, total in enumerate(totals):
            c.put(b.fmul(total, factors), b.add(out, b.mul(out_step, c.number(row))))

    return generate


def _unpacked(c: Code, raw: Any, bits: int) -> list[Any]:
    """The four quantized values of each row that a load holds, or twice four."""
    if bits == 8:
        return [raw]
    low, four = (ir.Constant(raw.type, [n] * raw.type.count) for n in (0x0F0F0F0F, 4))
    return [c.b.and_(raw, low), c.b.and_(c.b.lshr(raw, four), low)]


def _added(c: Code, bits: int, weights: Any, given: list[Any], before: list[Any]) -> list[Any]:
    """32 columns of `LANES` rows of weights by as many of each row that is given: sums int32 [LANES], some for each."""
    sums, chains = list(before), len(before) // len(given)
    for k in range(LANES * bits // 16):
        for half, own in enumerate(both := _unpacked(c, c.at(c.plus(weights, 64 * k), INTS, 16), bits)):
            group = len(both) * k + half
            for row, values in enumerate(given):
                four = c.b.bitcast(c.all(c.at(c.plus(values, 4 * group), I32), INTS), _ALL_BYTES)
                at = row * chains + group % chains
                bytes_ = c.b.bitcast(own, _ALL_BYTES)
                sums[at] = c.call("llvm.x86.avx512.vpdpbusd.512", INTS, sums[at], bytes_, four)
    return sums


def _added_by_pairs(c: Code, bits: int, weights: Any, given: list[Any], before: list[Any]) -> list[Any]:
    """As `_added`: two sums int32 [LANES / 2] for each row that is given, one after the other if they are many."""
    b, sums, ones = c.b, list(before), ir.Constant(_SHORTS, [1] * 16)

    def widened(at: int, pairs: Any) -> None:
        sums[at] = b.add(sums[at], c.call("llvm.x86.avx2.pmadd.wd", _EIGHT, pairs, ones))

    for sides in [(0, 1)] if len(given) <= 4 else [(0,), (1,)]:
        given, shorts = [c.again(values) for values in given], dict[int, Any]()
        for k in range(LANES * bits // 16):
            raw = [_unpacked(c, c.at(c.plus(weights, 64 * k + 32 * side), _EIGHT, 16), bits) for side in sides]
            for half, both in enumerate(zip(*raw, strict=True)):
                weights_, signed = [b.bitcast(v, _BYTES) for v in both], []
                if bits == 8:
                    signed = [b.xor(v, ir.Constant(_BYTES, [-128] * 32)) for v in weights_]
                    weights_ = [c.call("llvm.abs.v32i8", _BYTES, v, ir.Constant(ir.IntType(1), 0)) for v in signed]
                for row, values in enumerate(given):
                    four = c.at(c.plus(values, 4 * (len(raw[0]) * k + half)), I32)
                    bytes_ = b.bitcast(c.all(four, _EIGHT), _BYTES)
                    for i, (side, own) in enumerate(zip(sides, weights_, strict=True)):
                        turned = c.call("llvm.x86.avx2.psign.b", _BYTES, bytes_, signed[i]) if signed else bytes_
                        pairs, sum_ = c.call("llvm.x86.avx2.pmadd.ub.sw", _SHORTS, own, turned), 2 * row + side
                        if bits == 8:
                            widened(sum_, pairs)
                        else:
                            shorts[sum_] = c.kept(b.add(shorts[sum_], pairs) if sum_ in shorts else pairs)
        for sum_, pairs in shorts.items():
            widened(sum_, pairs)
    return sums


def _together(c: Code, sums: list[Any]) -> Any:
    """Some sums of the same, or those of either half of the rows -> int32 [LANES]."""
    if sums[0].type == _EIGHT:
        return c.b.shuffle_vector(*sums, ir.Constant(INTS, list(range(LANES))))
    total = sums[0]
    for other in sums[1:]:
        total = c.b.add(total, other)
    return total


def _quantize_block() -> Callable[..., None]:
    """(values, count, quantized, scale, total): 16 `count` float32 -> int8; scale: float32, which is no number if any
    of the values is none; total: float32, the sum of the quantized values."""

    def generate(c: Code, values: Any, count: Any, quantized: Any, scale: Any, total: Any) -> None:
        b, (zero,) = c.b, zeros(FLOATS, 1)

        def largest(j: Any, before: list[Any]) -> list[Any]:
            value = c.at(c.plus(values, j, 4 * LANES), FLOATS, 4)
            size = c.call("llvm.fabs.v16f32", FLOATS, value)
            return [b.select(b.fcmp_ordered(">", size, before[0]), size, before[0]), c.fma(value, zero, before[1])]

        sizes, checks = c.loop(count, [zero] * 2, largest)
        most, check = c.reduced("fmax", sizes), c.reduced("fadd", checks)
        some = b.fcmp_ordered(">", most, ir.Constant(FLOAT, 1e-30))
        inverse = b.select(some, b.fdiv(ir.Constant(FLOAT, 127.0), most), ir.Constant(FLOAT, 0.0))

        def rounded(j: Any, before: list[Any]) -> list[Any]:
            scaled = b.fmul(c.at(c.plus(values, j, 4 * LANES), FLOATS, 4), c.all(inverse, FLOATS))
            whole = b.fptosi(c.call("llvm.rint.v16f32", FLOATS, scaled), INTS)
            c.put(b.trunc(whole, ir.VectorType(I8, LANES)), c.plus(quantized, j, LANES), 1)
            return [b.add(before[0], whole)]

        (sums,) = c.loop(count, zeros(INTS, 1), rounded)
        sum_ = c.call("llvm.vector.reduce.add.v16i32", I32, sums)
        c.put(b.fadd(b.fdiv(most, ir.Constant(FLOAT, 127.0)), check), scale)
        c.put(b.sitofp(sum_, FLOAT), total)

    return generate


def _place(biased: bool, adds: bool) -> Callable[..., None]:
    """(products, rows, bias, out, step): float32 [rows, LANES], with a bias [LANES] or without, put where rows are
    `step` bytes apart, or added to what is there."""

    def generate(c: Code, products: Any, rows: Any, bias: Any, out: Any, step: Any) -> None:
        own = c.at(bias, FLOATS, 4) if biased else None

        def row(i: Any, _: list[Any]) -> list[Any]:
            value, to = c.at(c.plus(products, i, 4 * LANES), FLOATS, 4), c.b.add(out, c.b.mul(i, step))
            if own is not None:
                value = c.b.fadd(value, own)
            c.put(c.b.fadd(value, c.at(to, FLOATS, 4)) if adds else value, to)
            return []

        c.loop(rows, [], row)

    return generate


def _by_rows(bits: int) -> Callable[..., None]:
    """By how many rows of activations there are: for three as for four, and for five to eight as for eight."""
    made = {rows: _matmul(bits, rows) for rows in (1, 2, 4, TOKENS)}
    return switch({rows: made[min(most for most in made if most >= rows)] for rows in range(1, TOKENS + 1)})


# (bits, rows, and what `_matmul` takes)
matmul = function(13, switch({bits: _by_rows(bits) for bits in (4, 8)}))
# (whether there is a bias, whether it is added, and what `_place` takes)
place = function(
    7, switch({biased: switch({adds: _place(bool(biased), bool(adds)) for adds in (0, 1)}) for biased in (0, 1)})
)
quantize_block = function(5, _quantize_block())
