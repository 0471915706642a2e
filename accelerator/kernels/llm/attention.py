"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) over a key-value cache in int8 or float32."""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, types

from .. import descriptors as at
from .. import instructions
from ..arithmetic import F32, OPTIONS, QUERIES, exp, floats, normalise
from ..instructions import float_of, pointer

__all__ = ["attention"]

_S1, _S2, _SF1, _SF2 = (instructions.scores[i, n] for i in (True, False) for n in (1, 2))
_A11, _A14, _A21, _A24 = (instructions.attend[True, n, c] for n in (1, 2) for c in (1, 4))
_F11, _F14, _F21, _F24 = (instructions.attend[False, n, c] for n in (1, 2) for c in (1, 4))
_A81, _A82, _F81, _F82 = (instructions.attend[i, 8, c] for i in (True, False) for c in (1, 2))
_ST = instructions.scores_of_tiles
_T8, _TF = instructions.transposed[True], instructions.transposed[False]


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
def _query(plan, layer, token, head, of, position, into):
    """Query number `of` of key-value head `head`, in units of the keys' levels, as float32 [head_dim]."""
    size, heads, kv_heads = plan[at.HEAD_DIM], plan[at.HEADS], plan[at.KV_HEADS]
    number = head * (heads // kv_heads) + of
    query = plan[at.QKV_OUT] + 4 * (token * (heads + 2 * kv_heads) + number) * size
    _head(plan, layer, query, number * size, position)
    source, target, root = floats(query, size), floats(into, size), F32(1) / np.sqrt(F32(size))
    if plan[at.INT8_CACHE]:
        step = floats(plan[layer + at.KEY_SCALE] + 4 * head * size, size)
        for k in range(size):
            target[k] = source[k] * root * step[k]
    else:
        for k in range(size):
            target[k] = source[k] * root


@njit(**OPTIONS)
def _in_units(plan, layer, head, out):
    """Levels of values float32 [head_dim] at out -> values."""
    if plan[at.INT8_CACHE]:
        size = plan[at.HEAD_DIM]
        attended, step = floats(out, size), floats(plan[layer + at.VALUE_SCALE] + 4 * head * size, size)
        for k in range(size):
            attended[k] *= step[k]


@njit(**OPTIONS)
def _step(plan, layer, head, token, position, keys, values, scratch):
    """All queries of a key-value head at one position, two at a time: bound by reading keys and values."""
    size, heads, capacity, int8_cache = plan[at.HEAD_DIM], plan[at.HEADS], plan[at.CAPACITY], plan[at.INT8_CACHE]
    group, item, count = heads // plan[at.KV_HEADS], 1 if int8_cache else 4, position + 1
    queries, scores = scratch + QUERIES, scratch + plan[at.SCRATCH_SCORES]
    for h in range(0, group, 2):
        pair = min(2, group - h)
        for i in range(pair):
            _query(plan, layer, token, head, h + i, position, queries + 4 * i * size)
        if int8_cache:
            if pair == 1:
                _S1(queries, keys, count, size // 16, scores, 4 * capacity)
            else:
                _S2(queries, keys, count, size // 16, scores, 4 * capacity)
        elif pair == 1:
            _SF1(queries, keys, count, size // 16, scores, 4 * capacity)
        else:
            _SF2(queries, keys, count, size // 16, scores, 4 * capacity)
        for i in range(pair):
            _softmax(scores + 4 * i * capacity, count)
        out = plan[at.ATTENDED] + 4 * (token * heads + head * group + h) * size
        _weighted(int8_cache, pair, scores, 4 * capacity, values, size * item, count, out, 4 * size, size)
        for i in range(pair):
            _in_units(plan, layer, head, out + 4 * i * size)


@njit(**OPTIONS)
def _side_by_side(int8_cache, keys, count, capacity, size, out):
    """Keys [capacity, size] -> tiles of 16 of the first `count`, float32 [tiles, size, 16]; what fills the last one up
    does not matter."""
    item = 1 if int8_cache else 4
    for first in range(0, count, 16):
        if first + 16 <= capacity:
            for k in range(0, size, 16):
                begin, to = keys + (first * size + k) * item, out + 4 * (first * size + 16 * k)
                if int8_cache:
                    _T8(begin, size, to)
                else:
                    _TF(begin, 4 * size, to)
        else:
            tile = floats(out + 4 * first * size, 16 * size)
            levels, values = numba.carray(pointer(keys), (count * size,), np.int8), floats(keys, count * size)
            for j in range(first, count):
                for k in range(size):
                    tile[16 * k + j - first] = F32(levels[j * size + k]) if int8_cache else values[j * size + k]


@njit(**OPTIONS)
def _prompt(plan, layer, head, first, start, keys, values, scratch):
    """All queries of a key-value head at positions start, start + 1, ..., those of tokens first, first + 1, ...: eight
    positions at a time share what is read. A position's answer is the same whatever the other seven are."""
    size, heads, length, int8_cache = plan[at.HEAD_DIM], plan[at.HEADS], plan[at.LENGTH], plan[at.INT8_CACHE]
    group, row, step = heads // plan[at.KV_HEADS], size * (1 if int8_cache else 4), 4 * heads * size
    queries, scores, tiles = scratch + QUERIES, scratch + plan[at.SCRATCH_SCORES], scratch + plan[at.SCRATCH_KEYS]
    width = 4 * (-(-plan[at.CAPACITY] // 16) * 16)
    _side_by_side(int8_cache, keys, start + length, plan[at.CAPACITY], size, tiles)
    for h in range(group):
        for s in range(0, length, 8):
            some = min(8, length - s)
            count = start + s + some  # of keys that the last of them sees
            for i in range(some):
                _query(plan, layer, first + s + i, head, h, start + s + i, queries + 4 * i * size)
            _ST(queries, 4 * size, tiles, -(-count // 16), size, scores, width)
            for i in range(some):
                seen = start + s + i + 1
                _softmax(scores + i * width, seen)
                rest = floats(scores + i * width + 4 * seen, count - seen)
                for j in range(count - seen):
                    rest[j] = F32(0)
            out = plan[at.ATTENDED] + 4 * ((first + s) * heads + head * group + h) * size
            for k in range(0, size, 32):
                begin, to = values + k * (1 if int8_cache else 4), out + 4 * k
                if size - k >= 32:
                    if int8_cache:
                        _A82(scores, width, begin, row, count, to, step)
                    else:
                        _F82(scores, width, begin, row, count, to, step)
                elif int8_cache:
                    _A81(scores, width, begin, row, count, to, step)
                else:
                    _F81(scores, width, begin, row, count, to, step)
            for i in range(some):
                _in_units(plan, layer, head, out + i * step)


@njit(**OPTIONS)
def attention(plan, layer, begin, end, scratch):
    """Key-value heads begin .. end: keys and values into the cache, then all queries."""
    size, heads, kv_heads = plan[at.HEAD_DIM], plan[at.HEADS], plan[at.KV_HEADS]
    width, length = (heads + 2 * kv_heads) * size, plan[at.LENGTH]
    item = 1 if plan[at.INT8_CACHE] else 4
    last = numba.carray(pointer(plan[at.SEQLENS]), (plan[at.BATCH],), np.int32)
    for head in range(begin, end):
        for b in range(plan[at.BATCH]):
            slot = ((plan[at.ROW] + b) * kv_heads + head) * plan[at.CAPACITY] * size
            start, first = last[b] - plan[at.BACK], b * length
            for s in range(length):
                key = plan[at.QKV_OUT] + 4 * ((first + s) * width + (heads + head) * size)
                _head(plan, layer, key, (heads + head) * size, start + s)
                place = slot + (start + s) * size
                _keep(plan, key, plan[layer + at.KEY_SCALE] + 4 * head * size, plan[layer + at.KEYS], place)
                value = key + 4 * kv_heads * size
                _keep(plan, value, plan[layer + at.VALUE_SCALE] + 4 * head * size, plan[layer + at.VALUES], place)
            keys, values = plan[layer + at.KEYS] + slot * item, plan[layer + at.VALUES] + slot * item
            if length >= at.PROMPT:
                _prompt(plan, layer, head, first, start, keys, values, scratch)
            else:
                for s in range(length):
                    _step(plan, layer, head, first + s, start + s, keys, values, scratch)
