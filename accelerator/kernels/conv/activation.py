"""Snake (Ziyin et al. 2020, arXiv:2006.08195) in one pass, for float32 and bfloat16: z + sin(z)^2 for z = alpha x."""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import njit, types

from .. import tiles as at
from ..instructions import bits_of, float_of, pointer
from ..scalars import F32, floats

__all__ = ["narrow", "snake", "snaked"]

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
def _wide(value):
    """A bfloat16's bits as float32."""
    return float_of(types.int32(types.int32(value) << types.int32(16)))


@njit(inline="always")
def narrow(value):
    """The bits of the nearest bfloat16, ties to even; what is no number stays none."""
    bits = bits_of(value)
    rounded = (bits + types.int32(0x7FFF) + ((bits >> types.int32(16)) & types.int32(1))) >> types.int32(16)
    return types.uint16(rounded if value == value else 0x7FC0)


@njit(nogil=True, error_model="numpy", fastmath={"contract"})  # reordered, pi in two parts would be one again
def snake(address, begin, end, scratch):
    """Rows begin .. end of [rows, channels]; the factors are float32 [channels], or at 0. kinds: bit 0, x is bfloat16;
    bit 1, the answer is."""
    plan = numba.carray(pointer(address), (at.SNAKE_SIZE,), np.int64)
    x, alpha, out, channels, kinds = (
        plan[at.SNAKE_X], plan[at.SNAKE_ALPHA], plan[at.SNAKE_Y], plan[at.SNAKE_CHANNELS], plan[at.SNAKE_KINDS],
    )  # fmt: skip
    factors = floats(alpha if alpha else x, channels)
    for row in range(begin, end):
        first = row * channels
        given, low = floats(x + 4 * first, channels), numba.carray(pointer(x + 2 * first), (channels,), np.uint16)
        answer, short = (
            floats(out + 4 * first, channels),
            numba.carray(pointer(out + 2 * first), (channels,), np.uint16),
        )
        if kinds == 0 and alpha:
            for k in range(channels):
                answer[k] = snaked(given[k] * factors[k])
        elif kinds == 0:
            for k in range(channels):
                answer[k] = snaked(given[k])
        elif kinds == 2 and alpha:
            for k in range(channels):
                short[k] = narrow(snaked(given[k] * factors[k]))
        elif kinds == 2:
            for k in range(channels):
                short[k] = narrow(snaked(given[k]))
        elif kinds == 3 and not alpha:
            for k in range(channels):
                short[k] = narrow(snaked(_wide(low[k])))
        elif kinds == 3:
            for k in range(channels):
                short[k] = narrow(snaked(_wide(low[k]) * factors[k]))
        elif alpha:
            for k in range(channels):
                answer[k] = snaked(_wide(low[k]) * factors[k])
        else:
            for k in range(channels):
                answer[k] = snaked(_wide(low[k]))
