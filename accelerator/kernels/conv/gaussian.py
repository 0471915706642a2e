"""GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) in one pass for float32: x (1 + erf(x / sqrt(2))) / 2."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ..scalars import F32, floats
from ..tiles import CHUNK
from ..views import gelu_at, row_place

__all__ = ["gelu"]

# erf(x) / x as a quotient of polynomials in x^2 for |x| <= 4, beyond which it is 1: within 7e-8, by least squares at
# Chebyshev's nodes, each weighted by the last denominator
_ABOVE = tuple(
    np.float32(c)
    for c in (1.9051502e-08, -1.9383173e-06, 1.4714202e-04, 3.9914286e-03, 5.1533173e-02, 2.0719641e-01, 1.1283791)
)
_BELOW = tuple(np.float32(c) for c in (1.0207516e-03, 1.4962327e-02, 1.1799883e-01, 5.1695437e-01, 1.0))
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


@njit(inline="always")
def _erf(x):
    x = F32(4) if x > F32(4) else x  # what is no number stays none
    x = F32(-4) if x < F32(-4) else x
    t = x * x
    p = _ABOVE[0] * t + _ABOVE[1]
    p = p * t + _ABOVE[2]
    p = p * t + _ABOVE[3]
    p = p * t + _ABOVE[4]
    p = p * t + _ABOVE[5]
    p = p * t + _ABOVE[6]
    q = _BELOW[0] * t + _BELOW[1]
    q = q * t + _BELOW[2]
    q = q * t + _BELOW[3]
    q = q * t + _BELOW[4]
    return x * p / q


@njit(**_OPTIONS)
def gelu(address, begin, end, scratch):
    """Rows begin .. end of what a `Gelu` describes."""
    plan = gelu_at(address)
    channels, room = plan.channels, plan.room
    for row in range(begin, end):
        for chunk in range(channels // CHUNK):
            x = floats(plan.x + 4 * (channels * row + CHUNK * chunk), CHUNK)
            place = CHUNK * row_place(room, chunk, row) if room else channels * row + CHUNK * chunk
            y = floats(plan.y + 4 * place, CHUNK)
            for k in range(CHUNK):
                y[k] = F32(0.5) * x[k] * (F32(1) + _erf(x[k] * F32(1 / math.sqrt(2))))
