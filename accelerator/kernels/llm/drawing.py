"""Logits to tokens, compiled: what `sampling.draw` does.

Between two steps of a model the interpreter and numpy take longer than their work: a step drives all that they need out
of the processor's cache. So there is little code here, and no sorting. The nucleus is found by halving: which is the
largest logit that, with all that are as large, is too likely or too many?
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, types

from ..arithmetic import exp
from ..instructions import bits_of, float_of, pointer
from ..scalars import F32, OPTIONS, floats
from ..views import draw_at

__all__ = ["draw"]


@njit(inline="always")
def _key(value):
    """A number that is larger the larger a float32 is."""
    bits = types.int64(bits_of(value))
    return bits if bits >= 0 else types.int64(-0x80000000) - bits - 1


@njit(inline="always")
def _value(key):
    return float_of(types.int32(key if key >= 0 else types.int64(-0x80000000) - key - 1))


@njit(**OPTIONS)
def _penalise(x, recent, window, penalty):
    """As `sampling.penalise`."""
    for i in range(window):
        row, known = recent[i], False
        for j in range(i):
            known |= recent[j] == row
        if not known and 0 <= row < len(x):
            x[row] = x[row] * penalty if x[row] < 0 else x[row] / penalty


@njit(**OPTIONS)
def _above(x, shares, least):
    """How many are at least that large, and their mass."""
    count, mass = 0, F32(0)
    for k in range(len(x)):
        inside = x[k] >= least
        count += inside
        mass += shares[k] if inside else F32(0)
    return count, mass


@njit(**OPTIONS)
def _boundary(x, shares, lowest, largest, limit, bound):
    """The largest value that is too much together with all that are at least as large, if there is one; and how many of
    its equals are not."""
    count, mass = _above(x, shares, lowest)
    if count <= limit and mass <= bound:
        return lowest, count
    low, high = _key(lowest), _key(largest) + 1
    count, mass = 0, F32(0)  # above
    while high - low > 1:
        middle = (low + high) >> 1
        some, their = _above(x, shares, _value(middle))
        if some > limit or their > bound:
            low = middle
        else:
            high, count, mass = middle, some, their
    boundary, allowed = _value(low), 0
    share = exp(boundary - largest)
    while count + allowed < limit and mass + share <= bound:
        allowed += 1
        mass += share
    return boundary, allowed if count + allowed else 1  # the likeliest always stays


@njit(**OPTIONS)
def draw(address, space):
    """The index that is drawn, or -1 where nothing can be. space: memory, `DRAW_SPACE` bytes for each logit."""
    plan = draw_at(address)
    count, window, temperature, top_p = plan.count, plan.window, F32(plan.temperature), plan.top_p
    given, x, shares = floats(plan.logits, count), floats(space, count), floats(space + 4 * count, count)
    for k in range(count):
        x[k] = given[k]
    if window:
        _penalise(x, numba.carray(pointer(plan.recent), (window,), np.int64), window, F32(plan.penalty))
    largest, lowest, none = x[0], x[0], 0
    for k in range(count):
        largest, lowest = max(largest, x[k]), min(lowest, x[k])
        none += x[k] != x[k]
    if none or bits_of(largest) & 0x7F800000 == 0x7F800000:
        return -1
    first = 0
    while x[first] != largest:
        first += 1
    if temperature == 0:
        return first
    limit, boundary, allowed = plan.top_k, lowest, count
    if top_p < 1 or limit < count:
        total, bound = F32(0), F32(np.inf)  # at 1, rounding must not cut it
        for k in range(count):
            shares[k] = exp(x[k] - largest)
            total += shares[k]
        if top_p < 1:
            bound = F32(top_p * total)
        boundary, allowed = _boundary(x, shares, lowest, largest, limit, bound)
    kept, n = numba.carray(pointer(space + 8 * count), (count,), np.int32), 0
    for k in range(count):
        if x[k] >= boundary:
            equal = x[k] == boundary
            if not equal or allowed > 0:
                kept[n] = k
                n += 1
            allowed -= equal
    if n == 1:
        return types.int64(kept[0])
    total = 0.0
    for i in range(n):
        shares[i] = exp((x[kept[i]] - largest) / temperature)
        total += shares[i]
    goal = total * numba.carray(pointer(plan.uniforms), (plan.used + 1,), np.float64)[plan.used]
    plan.used += 1
    total = 0.0
    for i in range(n):
        total += shares[i]
        if total > goal:
            return types.int64(kept[i])
    return first
