"""Processor instructions as functions that numba compiles: products of int8 (AVX512-VNNI), attention, atomic counters.

numba has no vectors of its own, so the innermost loops are written in LLVM's language here, and what calls them in
Python (`kernels`). All addresses are int64. Levels of weights are unsigned, those of activations signed, and what the
weights' zero points add is taken off by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compiled import multiplies_bf16
from .plan import LANES

__all__ = [
    "BF16",
    "FLOAT",
    "FLOATS",
    "INTS",
    "LANES",
    "Code",
    "add",
    "attend",
    "bits_of",
    "cycles",
    "float_of",
    "function",
    "load",
    "pause",
    "pointer",
    "product",
    "scores",
    "scores_of_tiles",
    "store",
    "swap",
    "transposed",
]

_I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
FLOAT, _HALF = ir.FloatType(), ir.HalfType()
INTS, FLOATS, _BYTES = (ir.VectorType(t, n) for t, n in ((_I32, LANES), (FLOAT, LANES), (_I8, 4 * LANES)))
BF16 = multiplies_bf16()


class _BFloat(ir.Type):
    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    __hash__ = ir.Type.__hash__


class Code:
    """What the generators share: an instruction builder and shorthands for it."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        known = self.b.module.globals.get(name)
        kind = ir.FunctionType(result, [a.type for a in arguments])
        return self.b.call(known or ir.Function(self.b.module, kind, name), arguments)

    def at(self, address: Any, kind: Any, align: int = 1) -> Any:
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def put(self, value: Any, address: Any) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = 4

    def number(self, value: int) -> Any:
        return ir.Constant(_I64, value)

    def plus(self, address: Any, count: Any, size: int = 1) -> Any:
        """address + count * size; count: a value or an int."""
        if isinstance(count, int):
            return self.b.add(address, self.number(count * size)) if count * size else address
        return self.b.add(address, self.b.mul(count, self.number(size)) if size != 1 else count)

    def all(self, value: Any, kind: Any) -> Any:
        """A vector of one value."""
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(
            one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
        )

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return self.call("llvm.fma.v16f32", FLOATS, x, y, z)

    def product_of_pairs(self, x: Any, y: Any, z: Any) -> Any:
        """z + the products of bfloat16, two beside each other in a lane of integers."""
        x, y = (self.b.bitcast(v, ir.VectorType(_BFloat(), 2 * LANES)) for v in (x, y))
        return self.call("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, z, x, y)

    def levels_of_pairs(self, x: Any, y: Any, z: Any) -> Any:
        """z + the products of int16, two beside each other in a lane."""
        return self.call("llvm.x86.avx512.vpdpwssd.512", INTS, z, x, y)

    def reduced(self, name: str, x: Any) -> Any:
        """The sum ("fadd") or the largest ("fmax") of a vector of floats."""
        full = f"llvm.vector.reduce.{name}.v{LANES}f32"
        given = [ir.Constant(FLOAT, 0.0), x] if name == "fadd" else [x]
        known = self.b.module.globals.get(full)
        known = known or ir.Function(self.b.module, ir.FunctionType(FLOAT, [v.type for v in given]), full)
        return self.b.call(known, given, fastmath=("reassoc",))

    def floats(self, address: Any, is_int8: bool) -> Any:
        """`LANES` values of a key-value cache."""
        if not is_int8:
            return self.at(address, FLOATS, 4)
        return self.b.sitofp(self.b.sext(self.at(address, ir.VectorType(_I8, LANES)), INTS), FLOATS)

    def loop(self, count: Any, values: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """`count` times (at least once) body(index, values) -> the next values; answers the last."""
        before, inside = self.b.block, self.b.append_basic_block("loop")
        self.b.branch(inside)
        self.b.position_at_end(inside)
        index = self.b.phi(_I64)
        index.add_incoming(self.number(0), before)
        carried = [self.b.phi(value.type) for value in values]
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, before)
        after = body(index, carried)
        following = self.plus(index, 1)
        index.add_incoming(following, self.b.block)
        for phi, value in zip(carried, after, strict=True):
            phi.add_incoming(value, self.b.block)
        more, end = self.b.icmp_signed("<", following, count), self.b.append_basic_block("end")
        self.b.cbranch(more, inside, end)
        self.b.position_at_end(end)
        return after


def _zeros(kind: Any, count: int) -> list[Any]:
    return [ir.Constant(kind, [0] * LANES)] * count


def function(count: int, generate: Callable[..., None]) -> Any:
    """An intrinsic of `count` int64 that answers nothing; generate: writes it, given a `Code` and the values."""
    names = ", ".join(f"a{i}" for i in range(count))

    def typed(context: Any, *arguments: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            generate(Code(builder), *values)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * count), code

    namespace = {"typed": typed}
    exec(f"def function(context, {names}): return typed(context, {names})", namespace)  # numba reads the signature
    return intrinsic(namespace["function"])


def _product(bits: int, rows: int) -> Any:
    """(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, out_step).

    `LANES` rows of weights by `rows` of activations. Of each block of 32 `pairs` weights lie, one behind the other: the
    levels, 4 of each row side by side (with 4 bits the next 4 in the upper halves of the bytes), scales float16, zero
    points uint8. values: int8 levels of activations, value_step bytes a row; scales, sums: float32 of their blocks.
    """
    size = 32 * LANES * bits // 8  # bytes of 32 levels
    chains = 4 // rows or 1  # sums in flight

    def generate(
        c: Code, weights: Any, blocks: Any, pairs: Any, values: Any, scales: Any, sums: Any, factor: Any, out: Any,
        value_step: Any, scale_step: Any, out_step: Any,
    ) -> None:  # fmt: skip
        b = c.b
        low, four = ir.Constant(INTS, [0x0F0F0F0F] * LANES), ir.Constant(INTS, [4] * LANES)
        length, width = b.mul(pairs, c.number(32)), b.mul(pairs, c.number(size))
        step = c.plus(width, 3 * LANES)

        def block(i: Any, totals: list[Any]) -> list[Any]:
            base = b.add(weights, b.mul(i, step))
            begin = b.add(values, b.mul(i, length))

            def part(j: Any, accumulated: list[Any]) -> list[Any]:
                sums_ = list(accumulated)
                here, first = c.plus(base, j, size), c.plus(begin, j, 32)
                for k in range(size // 64):
                    raw = c.at(c.plus(here, 64 * k), INTS, 16)
                    both = [b.and_(raw, low), b.and_(b.lshr(raw, four), low)] if bits == 4 else [raw]
                    for half, levels in enumerate(both):
                        group = len(both) * k + half
                        for row in range(rows):
                            four_values = c.at(c.plus(b.add(first, b.mul(value_step, c.number(row))), 4 * group), _I32)
                            at = row * chains + group % chains
                            sums_[at] = c.call(
                                "llvm.x86.avx512.vpdpbusd.512",
                                INTS,
                                sums_[at],
                                b.bitcast(levels, _BYTES),
                                b.bitcast(c.all(four_values, INTS), _BYTES),
                            )
                return sums_

            answer = c.loop(pairs, _zeros(INTS, rows * chains), part)
            behind = b.add(base, width)
            scale = b.fpext(c.at(behind, ir.VectorType(_HALF, LANES), 16), FLOATS)
            zero = b.uitofp(b.zext(c.at(c.plus(behind, 2 * LANES), ir.VectorType(_I8, LANES), 16), INTS), FLOATS)
            new = []
            for row in range(rows):
                total = answer[row * chains]
                for other in answer[row * chains + 1 : (row + 1) * chains]:
                    total = b.add(total, other)
                at = b.add(b.mul(scale_step, c.number(row)), b.mul(i, c.number(4)))
                sum_ = c.all(c.at(b.add(sums, at), FLOAT, 4), FLOATS)
                own = c.all(c.at(b.add(scales, at), FLOAT, 4), FLOATS)
                dot = c.fma(b.fneg(zero), sum_, b.sitofp(total, FLOATS))
                new.append(c.fma(dot, b.fmul(scale, own), totals[row]))
            return new

        totals = c.loop(blocks, _zeros(FLOATS, rows), block)
        factors = c.at(factor, FLOATS, 4)
        for row, total in enumerate(totals):
            c.put(b.fmul(total, factors), b.add(out, b.mul(out_step, c.number(row))))

    return function(11, generate)


def _scores(is_int8: bool, heads: int) -> Any:
    """(queries, keys, count, chunks, out, out_step): out[h, j] = queries[h] . keys[j], of 16 `chunks` dimensions."""
    size = LANES * (1 if is_int8 else 4)

    def generate(c: Code, queries: Any, keys: Any, count: Any, chunks: Any, out: Any, out_step: Any) -> None:
        b = c.b
        width, row = b.mul(chunks, c.number(4 * LANES)), b.mul(chunks, c.number(size))

        def key(j: Any, _: list[Any]) -> list[Any]:
            here = b.add(keys, b.mul(j, row))

            def part(k: Any, totals: list[Any]) -> list[Any]:
                values, at = c.floats(c.plus(here, k, size), is_int8), c.plus(queries, k, 4 * LANES)
                query = [c.at(b.add(at, b.mul(width, c.number(h))), FLOATS, 4) for h in range(heads)]
                return [c.fma(q, values, total) for q, total in zip(query, totals, strict=True)]

            for h, total in enumerate(c.loop(chunks, _zeros(FLOATS, heads), part)):
                c.put(c.reduced("fadd", total), c.plus(b.add(out, b.mul(out_step, c.number(h))), j, 4))
            return []

        c.loop(count, [], key)

    return function(6, generate)


def _attend(is_int8: bool, heads: int, chunks: int) -> Any:
    """(weights, weight_step, values, row, count, out, out_step): out[h] = sum over j of weights[h, j] values[j], of
    16 `chunks` dimensions; rows of values are `row` bytes apart."""
    size = LANES * (1 if is_int8 else 4)

    def generate(
        c: Code, weights: Any, weight_step: Any, values: Any, row: Any, count: Any, out: Any, out_step: Any
    ) -> None:
        b = c.b

        def value(j: Any, totals: list[Any]) -> list[Any]:
            here, at = b.add(values, b.mul(j, row)), c.plus(weights, j, 4)
            parts = [c.floats(c.plus(here, size * k), is_int8) for k in range(chunks)]
            new = []
            for h in range(heads):
                weight = c.all(c.at(b.add(at, b.mul(weight_step, c.number(h))), FLOAT, 4), FLOATS)
                new += [c.fma(weight, p, totals[h * chunks + k]) for k, p in enumerate(parts)]
            return new

        for i, total in enumerate(c.loop(count, _zeros(FLOATS, heads * chunks), value)):
            h, k = divmod(i, chunks)
            c.put(total, c.plus(b.add(out, b.mul(out_step, c.number(h))), 4 * LANES * k))

    return function(7, generate)


def _scores_of_tiles() -> Any:
    """(queries, query_step, tiles, count, dims, out, out_step): out[q, j] = queries[q] . keys[j] for eight queries and
    the keys of `count` tiles, each of which holds a value of `LANES` keys side by side, float32 [dims, LANES]."""

    def generate(
        c: Code, queries: Any, query_step: Any, tiles: Any, count: Any, dims: Any, out: Any, out_step: Any
    ) -> None:
        b = c.b
        rows = [b.add(queries, b.mul(query_step, c.number(q))) for q in range(8)]

        def tile(i: Any, _: list[Any]) -> list[Any]:
            here = b.add(tiles, b.mul(b.mul(i, dims), c.number(4 * LANES)))

            def dimension(k: Any, totals: list[Any]) -> list[Any]:
                keys = c.at(c.plus(here, k, 4 * LANES), FLOATS, 4)
                each = [c.all(c.at(c.plus(row, k, 4), FLOAT, 4), FLOATS) for row in rows]
                return [c.fma(query, keys, total) for query, total in zip(each, totals, strict=True)]

            for q, total in enumerate(c.loop(dims, _zeros(FLOATS, 8), dimension)):
                c.put(total, c.plus(b.add(out, b.mul(out_step, c.number(q))), i, 4 * LANES))
            return []

        c.loop(count, [], tile)

    return function(7, generate)


def _transposed(is_int8: bool) -> Any:
    """(keys, row, out): sixteen values of each of sixteen keys, `row` bytes apart -> float32 [16 values, 16 keys]."""
    kind = ir.VectorType(_I8 if is_int8 else FLOAT, LANES)
    low, high = ([h + i // 2 + LANES * (i % 2) for i in range(LANES)] for h in (0, LANES // 2))

    def generate(c: Code, keys: Any, row: Any, out: Any) -> None:
        b = c.b
        rows = [c.at(b.add(keys, b.mul(row, c.number(i))), kind) for i in range(LANES)]
        masks = [ir.Constant(ir.VectorType(_I32, LANES), mask) for mask in (low, high)]
        for _ in range(4):  # rows i and i + 8 by turns, four times over
            rows = [b.shuffle_vector(rows[i], rows[i + 8], mask) for i in range(LANES // 2) for mask in masks]
        for i, values in enumerate(rows):
            floats = b.sitofp(b.sext(values, INTS), FLOATS) if is_int8 else values
            c.put(floats, c.plus(out, 4 * LANES * i))

    return function(3, generate)


scores_of_tiles = _scores_of_tiles()
transposed = {is_int8: _transposed(is_int8) for is_int8 in (True, False)}
product = {(bits, rows): _product(bits, rows) for bits in (4, 8) for rows in (1, 2, 4, 8)}
scores = {(is_int8, heads): _scores(is_int8, heads) for is_int8 in (True, False) for heads in (1, 2)}
attend = {
    (is_int8, heads, chunks): _attend(is_int8, heads, chunks)
    for is_int8 in (True, False)
    for heads, chunks in ((1, 1), (1, 4), (2, 1), (2, 4), (8, 1), (8, 2))
}


@intrinsic
def add(context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address; answers what it was before. Ordered before and after everything else."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def swap(context: Any, address: Any, value: Any) -> Any:
    """Put an int64; answers what was there before."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], _I64.as_pointer())
        return builder.atomic_rmw("xchg", pointer, values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def load(context: Any, address: Any) -> Any:
    """The int64 at an address that others change."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(values[0], _I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), code


@intrinsic
def store(context: Any, address: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], builder.inttoptr(values[0], _I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def pause(context: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        Code(builder).call("llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def cycles(context: Any) -> Any:
    """The processor's clock."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return Code(builder).call("llvm.readcyclecounter", _I64)

    return types.int64(), code


@intrinsic
def float_of(context: Any, bits: Any) -> Any:
    """The float32 of these 32 bits."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], FLOAT)

    return types.float32(types.int32), code


@intrinsic
def bits_of(context: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], _I32)

    return types.int32(types.float32), code


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    """For `numba.carray`."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], _I8.as_pointer())

    return types.voidptr(types.int64), code
