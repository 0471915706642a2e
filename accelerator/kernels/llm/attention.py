"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) over a key-value cache in int8 or float32."""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, types

from ..arithmetic import exp, rms_norm
from ..instructions import (
    attend_16,
    attend_64,
    attend_eight_16,
    attend_eight_32,
    pointer,
    scores,
    scores_of_tiles,
    transposed,
)
from ..scalars import F32, OPTIONS, floats
from ..tiles import LANES, PROMPT, QUERIES

__all__ = ["attention"]


@njit(**OPTIONS)
def _head(plan, layer, x, weight, position):
    """A query's or key's head in place: its norm, if the model has one, and its rotation."""
    size = plan.head_dim
    if layer.qk_norm:
        rms_norm(x, layer.qk_norm + 4 * weight, size, plan.eps, x)
    half = size // 2
    values, cos, sin = (
        floats(x, size),
        floats(plan.cos + 4 * half * position, half),
        floats(plan.sin + 4 * half * position, half),
    )
    for k in range(half):
        even, odd = values[2 * k], values[2 * k + 1]
        values[2 * k] = even * cos[k] - odd * sin[k]
        values[2 * k + 1] = odd * cos[k] + even * sin[k]


@njit(**OPTIONS)
def _keep(plan, x, scale, cache, offset):
    """Put a head's key or value float32 [head_dim] offset x into the cache, offset its value number `offset`."""
    size = plan.head_dim
    source = floats(x, size)
    if plan.int8_cache:
        into, step = numba.carray(pointer(cache + offset), (size,), np.int8), floats(scale, size)
        for k in range(size):
            nearest = np.floor(source[k] / step[k] + F32(0.5))
            into[k] = types.int8(min(max(nearest, F32(-128)), F32(127)))
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
            attend_64(int8_cache, heads, weights, weight_step, begin, row, count, to, out_step)
        else:
            for more in range(0, size - start, 16):
                here, there = begin + more * item, to + 4 * more
                attend_16(int8_cache, heads, weights, weight_step, here, row, count, there, out_step)


@njit(**OPTIONS)
def _query(plan, layer, token, head, of, position, into):
    """Query number `of` of key-value head `head`, in units of the quantized keys, as float32 [head_dim]."""
    size, heads, kv_heads = plan.head_dim, plan.heads, plan.kv_heads
    number = head * (heads // kv_heads) + of
    query = plan.qkv_out + 4 * (token * (heads + 2 * kv_heads) + number) * size
    _head(plan, layer, query, number * size, position)
    source, target, root = floats(query, size), floats(into, size), F32(1) / np.sqrt(F32(size))
    if plan.int8_cache:
        step = floats(layer.key_scale + 4 * head * size, size)
        for k in range(size):
            target[k] = source[k] * root * step[k]
    else:
        for k in range(size):
            target[k] = source[k] * root


@njit(**OPTIONS)
def _dequantize(plan, layer, head, out):
    """Dequantize a sum of quantized values, float32 [head_dim] at out."""
    if plan.int8_cache:
        size = plan.head_dim
        attended, step = floats(out, size), floats(layer.value_scale + 4 * head * size, size)
        for k in range(size):
            attended[k] *= step[k]


@njit(**OPTIONS)
def _step(plan, layer, head, token, position, keys, values, scratch):
    """All queries of a key-value head at one position, two at a time: bound by reading keys and values."""
    size, heads, capacity, int8_cache = plan.head_dim, plan.heads, plan.capacity, plan.int8_cache
    group, item, count = heads // plan.kv_heads, 1 if int8_cache else 4, position + 1
    queries, weights = scratch + QUERIES, scratch + plan.scratch_scores
    for h in range(0, group, 2):
        pair = min(2, group - h)
        for i in range(pair):
            _query(plan, layer, token, head, h + i, position, queries + 4 * i * size)
        scores(int8_cache, pair, queries, keys, count, size // LANES, weights, 4 * capacity)
        for i in range(pair):
            _softmax(weights + 4 * i * capacity, count)
        out = plan.attended + 4 * (token * heads + head * group + h) * size
        _weighted(int8_cache, pair, weights, 4 * capacity, values, size * item, count, out, 4 * size, size)
        for i in range(pair):
            _dequantize(plan, layer, head, out + 4 * i * size)


@njit(**OPTIONS)
def _side_by_side(int8_cache, keys, count, capacity, size, out):
    """Keys [capacity, size] -> tiles of 16 of the first `count`, float32 [tiles, size, 16]; what fills the last one up
    does not matter."""
    item = 1 if int8_cache else 4
    for first in range(0, count, 16):
        if first + 16 <= capacity:
            for k in range(0, size, 16):
                transposed(int8_cache, keys + (first * size + k) * item, item * size, out + 4 * (first * size + 16 * k))
        else:
            tile = floats(out + 4 * first * size, 16 * size)
            quantized, values = numba.carray(pointer(keys), (count * size,), np.int8), floats(keys, count * size)
            for j in range(first, count):
                for k in range(size):
                    tile[16 * k + j - first] = F32(quantized[j * size + k]) if int8_cache else values[j * size + k]


@njit(**OPTIONS)
def _prompt(plan, layer, head, first, start, keys, values, scratch):
    """All queries of a key-value head at positions start, start + 1, ..., those of tokens first, first + 1, ...: eight
    positions at a time share what is read. A position's answer is the same whatever the other seven are."""
    size, heads, length, int8_cache = plan.head_dim, plan.heads, plan.length, plan.int8_cache
    item, group, step = 1 if int8_cache else 4, heads // plan.kv_heads, 4 * heads * size
    queries, weights, tiles = scratch + QUERIES, scratch + plan.scratch_scores, scratch + plan.scratch_keys
    row, width = item * size, 4 * (-(-plan.capacity // LANES) * LANES)
    _side_by_side(int8_cache, keys, start + length, plan.capacity, size, tiles)
    for h in range(group):
        for s in range(0, length, 8):
            some = min(8, length - s)
            count = start + s + some  # of keys that the last of them sees
            for i in range(some):
                _query(plan, layer, first + s + i, head, h, start + s + i, queries + 4 * i * size)
            scores_of_tiles(queries, 4 * size, tiles, -(-count // LANES), size, weights, width)
            for i in range(some):
                seen = start + s + i + 1
                _softmax(weights + i * width, seen)
                rest = floats(weights + i * width + 4 * seen, count - seen)
                for j in range(count - seen):
                    rest[j] = F32(0)
            out = plan.attended + 4 * ((first + s) * heads + head * group + h) * size
            for k in range(0, size, 32):
                begin, to = values + k * item, out + 4 * k
                if size - k >= 32:
                    attend_eight_32(int8_cache, weights, width, begin, row, count, to, step)
                else:
                    attend_eight_16(int8_cache, weights, width, begin, row, count, to, step)
            for i in range(some):
                _dequantize(plan, layer, head, out + i * step)


@njit(**OPTIONS)
def attention(plan, layer, begin, end, scratch):
    """Key-value heads begin .. end: keys and values into the cache, then all queries."""
    size, heads, kv_heads = plan.head_dim, plan.heads, plan.kv_heads
    width, length = (heads + 2 * kv_heads) * size, plan.length
    item = 1 if plan.int8_cache else 4
    last = numba.carray(pointer(plan.seqlens), (plan.batch,), np.int32)
    for head in range(begin, end):
        for b in range(plan.batch):
            slot = ((plan.row + b) * kv_heads + head) * plan.capacity * size
            start, first = last[b] - plan.back, b * length
            for s in range(length):
                key = plan.qkv_out + 4 * ((first + s) * width + (heads + head) * size)
                _head(plan, layer, key, (heads + head) * size, start + s)
                place = slot + (start + s) * size
                _keep(plan, key, layer.key_scale + 4 * head * size, layer.keys, place)
                value = key + 4 * kv_heads * size
                _keep(plan, value, layer.value_scale + 4 * head * size, layer.values, place)
            keys, values = layer.keys + slot * item, layer.values + slot * item
            if length >= PROMPT:
                _prompt(plan, layer, head, first, start, keys, values, scratch)
            else:
                for s in range(length):
                    _step(plan, layer, head, first + s, start + s, keys, values, scratch)
