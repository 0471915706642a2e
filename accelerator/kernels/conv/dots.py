"""32 rows by 32 columns of a convolution by products of vectors, where there is no AMX: see `chain`.

Inputs and weights are bfloat16, two beside each other in a lane (AVX512_BF16), or float32 in exact products. Eight rows
at a time have their sums in registers.
"""

from __future__ import annotations

from typing import Any

from ..tiles import CHUNK
from ..vectors import FLOATS, I64, INTS, LANES, Code, function, switch, zeros

__all__ = ["CONFIGURE", "MULTIPLY", "RESTORE"]

_ACROSS = 4 * CHUNK  # bytes of a row of sums
_HALVES = range(CHUNK // LANES)  # of the columns: a register each
_TALL, _UNROLLED = 8, 2  # rows, and lanes of an input's row, for which code is written out


def _nothing(c: Code, *given: Any) -> None:
    pass


def _multiply(low: bool) -> Any:
    """See `chain.Multiplier`. low: of bfloat16."""
    kind, lanes = (INTS, CHUNK // 2) if low else (FLOATS, CHUNK)
    # Bytes from the weights of one lane to those of the next, and from one half of the columns to the other.
    lane, half = (4 * LANES, 4 * LANES * lanes) if low else (4 * CHUNK, 4 * LANES)

    def generate(c: Code, x: Any, step: Any, table: Any, count: Any, weights: Any, out: Any) -> None:
        combine = c.dot_bf16 if low else c.fma

        def rows(i: Any, _: list[Any]) -> list[Any]:
            totals = c.loop(count, zeros(FLOATS, _TALL * len(_HALVES)), lambda n, sums: place(i, n, sums))
            for n, total in enumerate(totals):
                row, k = divmod(n, len(_HALVES))
                c.put(total, c.plus(c.plus(out, i, _TALL * _ACROSS), _ACROSS * row + 4 * LANES * k), 64)
            return []

        def place(i: Any, n: Any, sums: list[Any]) -> list[Any]:
            entry = c.plus(table, n, 16)
            first = c.b.add(c.b.add(x, c.b.mul(step, c.b.mul(i, c.number(_TALL)))), c.at(entry, I64, 8))
            places = [c.b.add(first, c.b.mul(step, c.number(row))) for row in range(_TALL)]
            columns = c.b.add(weights, c.at(c.plus(entry, 8), I64, 8))

            def some(j: Any, sums: list[Any]) -> list[Any]:
                sums = list(sums)
                for u in range(_UNROLLED):
                    here = c.plus(c.plus(columns, j, _UNROLLED * lane), u * lane)
                    parts = [c.at(c.plus(here, half * k), kind, 64) for k in _HALVES]
                    for row, there in enumerate(places):
                        value = c.all(c.at(c.plus(c.plus(there, j, 4 * _UNROLLED), 4 * u), kind.element, 4), kind)
                        for k, part in enumerate(parts, len(_HALVES) * row):
                            sums[k] = combine(value, part, sums[k])
                return sums

            return c.loop(c.number(lanes // _UNROLLED), sums, some)

        c.loop(c.number(CHUNK // _TALL), [], rows)

    return generate


CONFIGURE, RESTORE = function(2, _nothing), function(1, _nothing)
MULTIPLY = function(7, switch({0: _multiply(True), 1: _multiply(False)}))
