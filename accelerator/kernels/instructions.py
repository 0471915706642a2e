"""Processor instructions as functions that numba compiles: attention's matrix products, atomic counters, bits.

numba has no vectors of its own, so the innermost loops are written in LLVM's language here, and what calls them in
Python (`kernels`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vectors import AVX512, FLOAT, FLOATS, I8, I32, I64, INTS, LANES, REGISTER, WIDTH, Code, function, switch, zeros

__all__ = [
    "add",
    "attend_16",
    "attend_64",
    "attend_eight_16",
    "attend_eight_32",
    "bits_of",
    "cycles",
    "float_of",
    "load",
    "pause",
    "pointer",
    "scores",
    "scores_of_tiles",
    "store",
    "swap",
    "transposed",
    "wait",
    "wake",
]

_FUTEX, _WAIT, _WAKE = 202, 128, 129  # Linux's call and what it is asked for, of one process's threads
_ALL = 2**31 - 1
_SUMS = 16 if AVX512 else 8  # registers that hold sums; there are twice as many


def _scores(is_int8: bool, heads: int) -> Callable[..., None]:
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

            for h, total in enumerate(c.loop(chunks, zeros(FLOATS, heads), part)):
                c.put(c.reduced("fadd", total), c.plus(b.add(out, b.mul(out_step, c.number(h))), j, 4))
            return []

        c.loop(count, [], key)

    return generate


def _attend(is_int8: bool, heads: int, chunks: int) -> Callable[..., None]:
    """(weights, weight_step, values, row, count, out, out_step): out[h] = sum over j of weights[h, j] values[j], of
    16 `chunks` dimensions; rows of values are `row` bytes apart."""
    size = WIDTH * (1 if is_int8 else 4)
    together = _SUMS // heads  # registers of a head that are summed at a time

    def generate(
        c: Code, weights: Any, weight_step: Any, values: Any, row: Any, count: Any, out: Any, out_step: Any
    ) -> None:
        b = c.b

        def some(pieces: Sequence[int]) -> None:
            """The sums of these registers of each head."""

            def value(j: Any, totals: list[Any]) -> list[Any]:
                here, at = b.add(values, b.mul(j, row)), c.plus(weights, j, 4)
                parts = [c.floats(c.plus(here, size * k), is_int8, REGISTER) for k in pieces]
                new = []
                for h in range(heads):
                    weight = c.all(c.at(b.add(at, b.mul(weight_step, c.number(h))), FLOAT, 4), REGISTER)
                    new += [c.fma(weight, p, totals[h * len(parts) + k]) for k, p in enumerate(parts)]
                return new

            for i, total in enumerate(c.loop(count, zeros(REGISTER, heads * len(pieces)), value)):
                h, k = divmod(i, len(pieces))
                c.put(total, c.plus(b.add(out, b.mul(out_step, c.number(h))), 4 * WIDTH * pieces[k]))

        pieces = range(chunks * LANES // WIDTH)
        for first in range(0, len(pieces), together):
            some(pieces[first : first + together])

    return generate


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
            for part in range(0, 4 * LANES, 4 * WIDTH):

                def dimension(k: Any, totals: list[Any], part: int = part) -> list[Any]:
                    keys = c.at(c.plus(c.plus(here, part), k, 4 * LANES), REGISTER, 4)
                    each = [c.all(c.at(c.plus(row, k, 4), FLOAT, 4), REGISTER) for row in rows]
                    return [c.fma(query, keys, total) for query, total in zip(each, totals, strict=True)]

                for q, total in enumerate(c.loop(dims, zeros(REGISTER, 8), dimension)):
                    c.put(total, c.plus(c.plus(b.add(out, b.mul(out_step, c.number(q))), part), i, 4 * LANES))
            return []

        c.loop(count, [], tile)

    return function(7, generate)


def _transposed(is_int8: bool) -> Callable[..., None]:
    """(keys, row, out): sixteen values of each of sixteen keys, `row` bytes apart -> float32 [16 values, 16 keys]."""
    kind = ir.VectorType(I8 if is_int8 else FLOAT, LANES)
    low, high = ([h + i // 2 + LANES * (i % 2) for i in range(LANES)] for h in (0, LANES // 2))

    def generate(c: Code, keys: Any, row: Any, out: Any) -> None:
        b = c.b
        rows = [c.at(b.add(keys, b.mul(row, c.number(i))), kind) for i in range(LANES)]
        masks = [ir.Constant(ir.VectorType(I32, LANES), mask) for mask in (low, high)]
        for _ in range(4):  # rows i and i + 8 by turns, four times over
            rows = [b.shuffle_vector(rows[i], rows[i + 8], mask) for i in range(LANES // 2) for mask in masks]
        for i, values in enumerate(rows):
            floats = b.sitofp(b.sext(values, INTS), FLOATS) if is_int8 else values
            c.put(floats, c.plus(out, 4 * LANES * i))

    return generate


def _of_either_cache(count: int, generator: Callable[[bool], Callable[..., None]]) -> Any:
    """A function of `count` int64, the first of which says whether the cache is int8."""
    return function(count, switch({is_int8: generator(bool(is_int8)) for is_int8 in (1, 0)}))


def _attend_of(heads: Sequence[int], chunks: int) -> Any:
    """(is_int8, one of `heads`, and what `_attend` takes)"""
    return _of_either_cache(9, lambda is_int8: switch({n: _attend(is_int8, n, chunks) for n in heads}))


scores_of_tiles = _scores_of_tiles()
transposed = _of_either_cache(4, _transposed)
scores = _of_either_cache(8, lambda is_int8: switch({heads: _scores(is_int8, heads) for heads in (1, 2)}))
attend_16, attend_64 = _attend_of((1, 2), 1), _attend_of((1, 2), 4)
attend_eight_16, attend_eight_32 = (
    _of_either_cache(8, functools.partial(_attend, heads=8, chunks=chunks)) for chunks in (1, 2)
)


@intrinsic
def add(context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address; answers what it was before. Ordered before and after everything else."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def swap(context: Any, address: Any, value: Any) -> Any:
    """Put an int64; answers what was there before."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], I64.as_pointer())
        return builder.atomic_rmw("xchg", pointer, values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def load(context: Any, address: Any) -> Any:
    """The int64 at an address that others change."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(values[0], I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), code


@intrinsic
def store(context: Any, address: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], builder.inttoptr(values[0], I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def pause(context: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        Code(builder).call("llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), code


def _futex(code: Code, address: Any, operation: int, value: Any) -> None:
    """The C library's `syscall`."""
    kind = ir.FunctionType(I64, [I64], var_arg=True)
    known = code.b.module.globals.get("syscall") or ir.Function(code.b.module, kind, "syscall")
    code.b.call(known, [code.number(_FUTEX), address, code.number(operation), value, *[code.number(0)] * 3])


@intrinsic
def wait(context: Any, address: Any, value: Any) -> Any:
    """Sleep until woken, if the lower half of the int64 at an address is that of `value`; may end for no reason."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _futex(Code(builder), values[0], _WAIT, values[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def wake(context: Any, address: Any) -> Any:
    """Wake all that sleep at an address."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _futex(Code(builder), values[0], _WAKE, Code(builder).number(_ALL))
        return context.get_dummy_value()

    return types.void(types.int64), code


@intrinsic
def cycles(context: Any) -> Any:
    """The processor's clock."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return Code(builder).call("llvm.readcyclecounter", I64)

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
        return builder.bitcast(values[0], I32)

    return types.int32(types.float32), code


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    """For `numba.carray`."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], I8.as_pointer())

    return types.voidptr(types.int64), code
