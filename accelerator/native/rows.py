"""Rows of numbers: levels of activations and their norms, and products of quantized weights with them."""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import njit, types

from . import plan as at
from .instructions import float_of, pointer
from .quantized import product

__all__ = ["F32", "OPTIONS", "PRODUCTS", "QUERIES", "exp", "floats", "gated", "multiply", "normalise", "quantise"]

# NaN stays NaN: it is how an answer shows that it cannot be right.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
F32 = np.float32
PRODUCTS, QUERIES = 0, 2 * 8 * 16 * 4  # in a thread's scratch: two tiles' products, then eight queries
_P41, _P42, _P44, _P48 = (product[4, n] for n in (1, 2, 4, 8))
_P81, _P82, _P84, _P88 = (product[8, n] for n in (1, 2, 4, 8))
_LOG2E = np.float32(math.log2(math.e))


@njit(inline="always")
def floats(address, count):
    return numba.carray(pointer(address), (count,), np.float32)


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
    """float32 [width] at x -> int8 levels [blocks, block], and float32 scales and sums of levels of each block."""
    source, levels = floats(x, width), numba.carray(pointer(values), (blocks * block,), np.int8)
    scale, total = floats(scales, blocks), floats(sums, blocks)
    for i in range(blocks):
        size = min(block, width - i * block)
        part, into = source[i * block : i * block + size], levels[i * block : (i + 1) * block]
        for k in range(size, block):
            into[k] = 0
        largest, check = F32(0), F32(0)
        for k in range(size):
            largest = max(largest, abs(part[k]))
            check += part[k] * F32(0)
        inverse = F32(127) / largest if largest > F32(1e-30) else F32(0)
        sum_ = types.int32(0)
        for k in range(size):
            level = types.int32(np.floor(part[k] * inverse + F32(0.5)))
            into[k] = types.int8(level)
            sum_ += level
        scale[i] = largest / F32(127) + check  # not a number if one of them is none
        total[i] = F32(sum_)


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
    products, rows = floats(scratch + PRODUCTS, 128), plan[m + 7]
    for tile in range(begin, end):
        columns = min(16, rows - 16 * tile)
        for first in range(0, tokens, 8):
            _tile(plan, m, tile, tokens, first, values, scales, sums, scratch + PRODUCTS)
            for t in range(min(8, tokens - first)):
                out, y = (
                    floats(target + 4 * ((first + t) * step + 16 * tile), columns),
                    products[16 * t : 16 * t + columns],
                )
                if plan[m + 2]:
                    bias = floats(plan[m + 2] + 64 * tile, columns)
                    for k in range(columns):
                        y[k] += bias[k]
                if adds:
                    for k in range(columns):
                        out[k] += y[k]
                else:
                    for k in range(columns):
                        out[k] = y[k]


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
