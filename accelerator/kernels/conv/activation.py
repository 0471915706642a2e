"""Snake (Ziyin et al. 2020, arXiv:2006.08195) in one pass, for float32 and bfloat16: z + sin(z)^2 for z = alpha x."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba import njit, types

from ..instructions import bits_of, float_of, pointer
from ..scalars import F32, floats
from ..views import snake_at

__all__ = ["shifted", "snake", "snaked", "to_bf16"]

# pi in two parts, the first of so few bits that its multiples are exact (Cody and Waite 1980).
_PI_HIGH = np.float32(3.140625)
_PI_LOW = np.float32(math.pi - 3.140625)
# sin(f) / f in f^2 on [-pi/2, pi/2], by least squares at Chebyshev's nodes: within 3e-8
_SINE = tuple(np.float32(c) for c in (-2.3841988e-08, 2.7522303e-06, -1.9840797e-04, 8.3333300e-03, -1.6666667e-01))


@njit(inline="always")
def snaked(z):
    """z + sin(z)^2."""
    turns = np.floor(z * F32(1 / math.pi) + F32(0.5))
    f = z - turns * _PI_HIGH
    f = f - turns * _PI_LOW
    square = f * f
    p = _SINE[0] * square + _SINE[1]
    p = p * square + _SINE[2]
    p = p * square + _SINE[3]
    p = p * square + _SINE[4]
    sine = f + f * square * p
    return z + sine * sine


@njit(inline="always")
def _of_bf16(value):
    """A bfloat16's bits as float32."""
    return float_of(types.int32(types.int32(value) << types.int32(16)))


@njit(inline="always")
def to_bf16(value):
    """The bits of the nearest bfloat16, ties to even; what is no number stays none."""
    bits = bits_of(value)
    rounded = (bits + types.int32(0x7FFF) + ((bits >> types.int32(16)) & types.int32(1))) >> types.int32(16)
    return types.uint16(rounded if value == value else 0x7FC0)


_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}  # reordered, pi would be in one part again


def _row(x_is_bf16: bool, y_is_bf16: bool, is_scaled: bool) -> Any:
    """A row of `snake`, compiled for these kinds of values."""

    @njit(**_OPTIONS)
    def row(x, alpha, y, channels):
        given, short = floats(x, channels), numba.carray(pointer(x), (channels,), np.uint16)
        answer, low = floats(y, channels), numba.carray(pointer(y), (channels,), np.uint16)
        factors = floats(alpha, channels)
        for k in range(channels):
            z = _of_bf16(short[k]) if x_is_bf16 else given[k]
            if is_scaled:
                z = z * factors[k]
            if y_is_bf16:
                low[k] = to_bf16(snaked(z))
            else:
                answer[k] = snaked(z)

    return row


@njit(**_OPTIONS)
def shifted(x, alpha, shift, y, channels):
    """A row of float32 as bfloat16, of z = alpha x + shift."""
    given, low = floats(x, channels), numba.carray(pointer(y), (channels,), np.uint16)
    factors, terms = floats(alpha, channels), floats(shift, channels)
    for k in range(channels):
        low[k] = to_bf16(snaked(given[k] * factors[k] + terms[k]))


def _one_of(kinds: Sequence[Any]) -> Any:
    """A compiled function (number, *arguments) that calls one of these."""
    first, *others = kinds
    if not others:

        @njit(**_OPTIONS)
        def last(number, *arguments):
            first(*arguments)

        return last

    rest = _one_of(others)

    @njit(**_OPTIONS)
    def chosen(number, *arguments):
        if number == 0:
            first(*arguments)
        else:
            rest(number - 1, *arguments)

    return chosen


_ROW = _one_of([_row(*kinds) for kinds in itertools.product((False, True), repeat=3)])


@njit(**_OPTIONS)
def snake(address, begin, end, scratch):
    """Rows begin .. end of what a `Snake` describes."""
    plan = snake_at(address)
    x, alpha, y, channels = plan.x, plan.alpha, plan.y, plan.channels
    x_step, y_step = channels * (2 if plan.x_is_bf16 else 4), channels * (2 if plan.y_is_bf16 else 4)
    kind = 4 * plan.x_is_bf16 + 2 * plan.y_is_bf16 + (1 if alpha else 0)
    for row in range(begin, end):
        _ROW(kind, x + row * x_step, alpha, y + row * y_step, channels)
