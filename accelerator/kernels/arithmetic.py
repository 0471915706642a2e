"""Rows of numbers: levels of activations and their norms, and products of quantized weights with them."""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import njit, types

from . import descriptors as at
from .instructions import float_of, pointer
from .llm.quantized import levels as _LEVELS
from .llm.quantized import place, product
from .scalars import F32, OPTIONS, floats

__all__ = ["F32", "OPTIONS", "PRODUCTS", "QUERIES", "exp", "floats", "gated", "multiply", "normalise", "quantise"]

PRODUCTS, QUERIES = 0, 2 * 8 * 16 * 4  # in a thread's scratch: two tiles' products, then eight queries
_P41, _P42, _P44, _P48 = (product[4, n] for n in (1, 2, 4, 8))
_P81, _P82, _P84, _P88 = (product[8, n] for n in (1, 2, 4, 8))
_BIASED_ADDED, _BIASED, _ADDED, _PLACED = (place[kind] for kind in ((1, 1), (1, 0), (0, 1), (0, 0)))
_LOG2E = np.float32(math.log2(math.e))


@njit(inline="always")
def exp(x):
    """e^x to 3e-7 for x <= 88: 2^whole, times a polynomial for the rest."""
    t = max(x * _LOG2E, F32(-126.0))
    whole = np.floor(t + F32(0.5))
    y = (t - whole) * F32(math.log(2))
    p = F32(1 / 720)
    p = p * y + F32(1 / 120)
    p = p * y + F32(1 / 24)
    p = p * y + F32(1 / 6)
    p = p * y + F32(0.5)
    p = p * y + F32(1)
    p = p * y + F32(1)
    return p * float_of(types.int32((types.int32(whole) + types.int32(127)) << types.int32(23)))


@njit(**OPTIONS)
def quantise(x, width, block, blocks, values, scales, sums):
    """float32 [width] at x, a multiple of 16 -> int8 levels [blocks, block], and float32 scales and sums of levels of
    each block."""
    into = numba.carray(pointer(values), (blocks * block,), np.int8)
    for i in range(blocks):
        size = min(block, width - i * block)
        _LEVELS(x + 4 * i * block, size // 16, values + i * block, scales + 4 * i, sums + 4 * i)
        for k in range(i * block + size, (i + 1) * block):
            into[k] = 0


@njit(**OPTIONS)
def normalise(x, weight, width, eps, out):
    """RMSNorm."""
    source, scale, target = floats(x, width), floats(weight, width), floats(out, width)
    square = F32(0)
    for k in range(width):
        square += source[k] * source[k]
    factor = F32(1) / np.sqrt(square / F32(width) + eps)
    for k in range(width):
        target[k] = source[k] * factor * scale[k]


@njit(**OPTIONS)
def _product(bits, rows, weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step):
    if bits == 4:
        if rows == 1:
            _P41(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
        elif rows == 2:
            _P42(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
        elif rows <= 4:
            _P44(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
        else:
            _P48(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
    elif rows == 1:
        _P81(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
    elif rows == 2:
        _P82(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
    elif rows <= 4:
        _P84(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
    else:
        _P88(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)


@njit(**OPTIONS)
def _tile(plan, m, tile, tokens, first, values, scales, sums, y):
    """One tile of matrix m (16 rows of weights) by tokens first .. first + 8 -> float32 [8, 16] at y."""
    bits, block, blocks = plan[m + 3], plan[m + 4], plan[m + 5]
    tile_size = blocks * (block * 2 * bits + 48)
    width = block * blocks
    _product(
        bits,
        min(8, tokens - first),
        plan[m] + tile * tile_size,
        blocks,
        block // 32,
        values + first * width,
        scales + first * blocks * 4,
        sums + first * blocks * 4,
        plan[m + 1] + tile * 64,
        y,
        width,
        blocks * 4,
    )


@njit(**OPTIONS)
def multiply(plan, m, begin, end, tokens, values, scales, sums, scratch, target, step, adds):
    """Tiles begin .. end of matrix m by all tokens, with its bias: put into, or added to, float32 [tokens, step]."""
    products, rows, bias = floats(scratch + PRODUCTS, 128), plan[m + 7], plan[m + 2]
    for tile in range(begin, end):
        columns = min(16, rows - 16 * tile)
        for first in range(0, tokens, 8):
            some, out = min(8, tokens - first), target + 4 * (first * step + 16 * tile)
            _tile(plan, m, tile, tokens, first, values, scales, sums, scratch + PRODUCTS)
            if columns == 16:
                _place(scratch + PRODUCTS, some, bias + 64 * tile, out, 4 * step, bias != 0, adds)
                continue
            for t in range(some):
                into, own = floats(out + 4 * t * step, columns), floats(bias + 64 * tile, columns)
                for k in range(columns):
                    value = products[16 * t + k]
                    if bias:
                        value += own[k]
                    into[k] = into[k] + value if adds else value


@njit(**OPTIONS)
def _place(products, rows, bias, out, step, biased, adds):
    if biased and adds:
        _BIASED_ADDED(products, rows, bias, out, step)
    elif biased:
        _BIASED(products, rows, bias, out, step)
    elif adds:
        _ADDED(products, rows, bias, out, step)
    else:
        _PLACED(products, rows, bias, out, step)


@njit(**OPTIONS)
def gated(plan, m, begin, end, tokens, values, scales, sums, scratch):
    """Tiles begin .. end of SwiGLU's gate, each before that of what it lets through: silu(gate) * up."""
    ffn = plan[at.FFN]
    products = floats(scratch + PRODUCTS, 256)
    for tile in range(begin, end):
        for first in range(0, tokens, 8):
            _tile(plan, m, 2 * tile, tokens, first, values, scales, sums, scratch + PRODUCTS)
            _tile(plan, m, 2 * tile + 1, tokens, first, values, scales, sums, scratch + PRODUCTS + 512)
            for t in range(min(8, tokens - first)):
                out = floats(plan[at.INNER] + 4 * ((first + t) * ffn + 16 * tile), 16)
                for k in range(16):
                    gate = products[16 * t + k]
                    out[k] = gate / (F32(1) + exp(min(-gate, F32(80)))) * products[128 + 16 * t + k]
