"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) over a key-value cache in int8 or float32."""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, types

from . import instructions
from . import plan as at
from .instructions import float_of, pointer
from .rows import F32, OPTIONS, QUERIES, exp, floats, normalise

__all__ = ["attention"]

_S1, _S2, _SF1, _SF2 = (instructions.scores[i, n] for i in (True, False) for n in (1, 2))
_A11, _A14, _A21, _A24 = (instructions.attend[True, n, c] for n in (1, 2) for c in (1, 4))
_F11, _F14, _F21, _F24 = (instructions.attend[False, n, c] for n in (1, 2) for c in (1, 4))


@njit(**OPTIONS)
def _head(plan, layer, x, weight, position):
    """A query's or key's head in place: its norm, if the model has one, and its rotation."""
    size = plan[at.HEAD_DIM]
    if plan[layer + at.QK_NORM]:
        normalise(x, plan[layer + at.QK_NORM] + 4 * weight, size, float_of(types.int32(plan[at.EPS])), x)
    half = size // 2
    values, cos, sin = (
        floats(x, size),
        floats(plan[at.COS] + 4 * half * position, half),
        floats(plan[at.SIN] + 4 * half * position, half),
    )
    for k in range(half):
        even, odd = values[2 * k], values[2 * k + 1]
        values[2 * k] = even * cos[k] - odd * sin[k]
        values[2 * k + 1] = odd * cos[k] + even * sin[k]


@njit(**OPTIONS)
def _keep(plan, x, scale, cache, offset):
    """Put a head's key or value float32 [head_dim] offset x into the cache, offset its value number `offset`."""
    size = plan[at.HEAD_DIM]
    source = floats(x, size)
    if plan[at.INT8_CACHE]:
        into, step = numba.carray(pointer(cache + offset), (size,), np.int8), floats(scale, size)
        for k in range(size):
            level = np.floor(source[k] / step[k] + F32(0.5))
            into[k] = types.int8(min(max(level, F32(-128)), F32(127)))
    else:
        copy = floats(cache + 4 * offset, size)
        for k in range(size):
            copy[k] = source[k]


@njit(**OPTIONS)
def _softmax(scores, count):
    values = floats(scores, count)
    largest = values[0]
    for j in range(count):
        largest = max(largest, values[j])
    total = F32(0)
    for j in range(count):
        values[j] = exp(values[j] - largest)
        total += values[j]
    inverse = F32(1) / total
    for j in range(count):
        values[j] *= inverse


@njit(**OPTIONS)
def _weighted(int8_cache, heads, weights, weight_step, values, row, count, out, out_step, size):
    """The sum of `count` values by their weights, for one or two heads."""
    item = 1 if int8_cache else 4
    for start in range(0, size, 64):
        begin, to = values + start * item, out + 4 * start
        if size - start >= 64:
            if int8_cache:
                if heads == 1:
                    _A14(weights, weight_step, begin, row, count, to, out_step)
                else:
                    _A24(weights, weight_step, begin, row, count, to, out_step)
            elif heads == 1:
                _F14(weights, weight_step, begin, row, count, to, out_step)
            else:
                _F24(weights, weight_step, begin, row, count, to, out_step)
        else:
            for more in range(0, size - start, 16):
                if int8_cache:
                    if heads == 1:
                        _A11(weights, weight_step, begin + more, row, count, to + 4 * more, out_step)
                    else:
                        _A21(weights, weight_step, begin + more, row, count, to + 4 * more, out_step)
                elif heads == 1:
                    _F11(weights, weight_step, begin + 4 * more, row, count, to + 4 * more, out_step)
                else:
                    _F21(weights, weight_step, begin + 4 * more, row, count, to + 4 * more, out_step)


@njit(**OPTIONS)
def attention(plan, layer, begin, end, scratch):
    """Grouped-query attention of key-value heads begin .. end: keys and values into the cache, then all queries."""
    size, heads, kv_heads = plan[at.HEAD_DIM], plan[at.HEADS], plan[at.KV_HEADS]
    group, width, length = heads // kv_heads, (heads + 2 * kv_heads) * size, plan[at.LENGTH]
    capacity, int8_cache = plan[at.CAPACITY], plan[at.INT8_CACHE]
    item = 1 if int8_cache else 4
    last = numba.carray(pointer(plan[at.SEQLENS]), (plan[at.BATCH],), np.int32)
    root = F32(1) / np.sqrt(F32(size))
    scores = scratch + plan[at.SCRATCH_SCORES]
    for head in range(begin, end):
        for b in range(plan[at.BATCH]):
            slot = ((plan[at.ROW] + b) * kv_heads + head) * capacity * size
            start = last[b] - plan[at.BACK]
            for s in range(length):
                key = plan[at.QKV_OUT] + 4 * ((b * length + s) * width + (heads + head) * size)
                _head(plan, layer, key, (heads + head) * size, start + s)
                place = slot + (start + s) * size
                _keep(plan, key, plan[layer + at.KEY_SCALE] + 4 * head * size, plan[layer + at.KEYS], place)
                value = key + 4 * kv_heads * size
                _keep(plan, value, plan[layer + at.VALUE_SCALE] + 4 * head * size, plan[layer + at.VALUES], place)
            for s in range(length):
                count = start + s + 1
                token = b * length + s
                for h in range(0, group, 2):
                    pair = min(2, group - h)
                    for i in range(pair):
                        query = plan[at.QKV_OUT] + 4 * (token * width + (head * group + h + i) * size)
                        _head(plan, layer, query, (head * group + h + i) * size, start + s)
                        source, into = floats(query, size), floats(scratch + QUERIES + 4 * i * size, size)
                        if int8_cache:
                            step = floats(plan[layer + at.KEY_SCALE] + 4 * head * size, size)
                            for k in range(size):
                                into[k] = source[k] * root * step[k]
                        else:
                            for k in range(size):
                                into[k] = source[k] * root
                    keys = plan[layer + at.KEYS] + slot * item
                    if int8_cache:
                        if pair == 1:
                            _S1(scratch + QUERIES, keys, count, size // 16, scores, 4 * capacity)
                        else:
                            _S2(scratch + QUERIES, keys, count, size // 16, scores, 4 * capacity)
                    elif pair == 1:
                        _SF1(scratch + QUERIES, keys, count, size // 16, scores, 4 * capacity)
                    else:
                        _SF2(scratch + QUERIES, keys, count, size // 16, scores, 4 * capacity)
                    for i in range(pair):
                        _softmax(scores + 4 * i * capacity, count)
                    out = plan[at.ATTENDED] + 4 * (token * heads + head * group + h) * size
                    values = plan[layer + at.VALUES] + slot * item
                    _weighted(int8_cache, pair, scores, 4 * capacity, values, size * item, count, out, 4 * size, size)
                    if int8_cache:
                        step = floats(plan[layer + at.VALUE_SCALE] + 4 * head * size, size)
                        for i in range(pair):
                            attended = floats(out + 4 * i * size, size)
                            for k in range(size):
                                attended[k] *= step[k]
