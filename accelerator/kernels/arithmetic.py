"""Rows of numbers: their quantized values and their norms, and their products with matrices of quantized weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numba import njit, types

from .instructions import float_of, pointer
from .llm.quantized import matmul, place, quantize_block
from .scalars import F32, OPTIONS, floats
from .tiles import LANES, TILE_OUT, TOKENS
from .views import block_layout

__all__ = ["Quantized", "exp", "gated", "multiply", "quantize", "rms_norm"]

_LOG2E = np.float32(math.log2(math.e))


class Quantized(NamedTuple):
    """Addresses of quantized rows: int8 values [rows, blocks, block], and float32 scales and sums [rows, blocks]."""

    values: int
    scales: int
    sums: int


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
def quantize(x, width, block, blocks, values, scales, sums):
    """A row float32 [width] at x, a multiple of 16: one row of `Quantized`; what is missing of the last block is 0."""
    into = numba.carray(pointer(values), (blocks * block,), np.int8)
    for i in range(blocks):
        size = min(block, width - i * block)
        quantize_block(x + 4 * i * block, size // 16, values + i * block, scales + 4 * i, sums + 4 * i)
        for k in range(i * block + size, (i + 1) * block):
            into[k] = 0


@njit(**OPTIONS)
def rms_norm(x, weight, width, eps, out):
    source, scale, target = floats(x, width), floats(weight, width), floats(out, width)
    square = F32(0)
    for k in range(width):
        square += source[k] * source[k]
    factor = F32(1) / np.sqrt(square / F32(width) + eps)
    for k in range(width):
        target[k] = source[k] * factor * scale[k]


@njit(**OPTIONS)
def _tile(matrix, tile, tokens, first, given, out):
    """One tile of a matrix (16 rows of weights) by tokens first .. first + 8 -> float32 [8, 16] at out."""
    bits, block, blocks = matrix.bits, matrix.block, matrix.blocks
    _, _, size = block_layout(block, bits)
    width = block * blocks
    matmul(
        bits,
        min(TOKENS, tokens - first),
        matrix.weights + tile * blocks * size,
        blocks,
        block // 32,
        given.values + first * width,
        given.scales + first * blocks * 4,
        given.sums + first * blocks * 4,
        matrix.factors + tile * 4 * LANES,
        out,
        width,
        blocks * 4,
        4 * LANES,
    )


@njit(**OPTIONS)
def multiply(matrix, begin, end, tokens, given, scratch, target, step, adds):
    """Tiles begin .. end of a matrix by all tokens, with its bias: put into, or added to, float32 [tokens, step]."""
    tile_out, rows, bias = floats(scratch + TILE_OUT, TOKENS * LANES), matrix.rows, matrix.bias
    for tile in range(begin, end):
        columns = min(LANES, rows - LANES * tile)
        for first in range(0, tokens, TOKENS):
            some, out = min(TOKENS, tokens - first), target + 4 * (first * step + LANES * tile)
            _tile(matrix, tile, tokens, first, given, scratch + TILE_OUT)
            if columns == LANES:
                place(bias != 0, adds, scratch + TILE_OUT, some, bias + 4 * LANES * tile, out, 4 * step)
                continue
            for t in range(some):
                into, own = floats(out + 4 * t * step, columns), floats(bias + 4 * LANES * tile, columns)
                for k in range(columns):
                    value = tile_out[LANES * t + k]
                    if bias:
                        value += own[k]
                    into[k] = into[k] + value if adds else value


@njit(**OPTIONS)
def gated(matrix, begin, end, tokens, given, scratch, inner, ffn):
    """SwiGLU: silu(gate) * up into float32 inner [tokens, ffn], where tiles of gate and up lie by turns."""
    size = TOKENS * LANES
    tile_out = floats(scratch + TILE_OUT, 2 * size)
    for tile in range(begin, end):
        for first in range(0, tokens, TOKENS):
            _tile(matrix, 2 * tile, tokens, first, given, scratch + TILE_OUT)
            _tile(matrix, 2 * tile + 1, tokens, first, given, scratch + TILE_OUT + 4 * size)
            for t in range(min(TOKENS, tokens - first)):
                out = floats(inner + 4 * ((first + t) * ffn + LANES * tile), LANES)
                for k in range(LANES):
                    gate = tile_out[LANES * t + k]
                    out[k] = gate / (F32(1) + exp(min(-gate, F32(80)))) * tile_out[size + LANES * t + k]
