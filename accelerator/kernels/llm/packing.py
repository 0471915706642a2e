"""Quantized weights -> the tiles in which a step reads them; compiled, since a model is not opened before."""

from __future__ import annotations

import numba
import numpy as np

from ..instructions import pointer

__all__ = ["pack"]


def pack(source, target, rows, blocks, block, bits):
    """Levels uint8 [rows, blocks, block * bits / 8] (4 bits: the even ones in the lower halves) -> tiles of 16 rows."""
    given = numba.carray(pointer(source), (rows * blocks * block * bits // 32,), np.uint32)
    words = block * bits // 32  # of a row's block
    step = block * bits // 2 + 12  # of a tile's block, in words
    into = numba.carray(pointer(target), (-(-rows // 16) * blocks * step,), np.uint32)
    for row in range(rows):
        tile, lane = row // 16, row % 16
        for b in range(blocks):
            to = (tile * blocks + b) * step + lane
            start = (row * blocks + b) * words
            for w in range(words):
                word = given[start + w]
                if bits == 4:
                    low, high = word & np.uint32(0xFFFF), word >> np.uint32(16)
                    low = (low | low << np.uint32(8)) & np.uint32(0x00FF00FF)
                    high = (high | high << np.uint32(8)) & np.uint32(0x00FF00FF)
                    low = (low | low << np.uint32(4)) & np.uint32(0x0F0F0F0F)
                    high = (high | high << np.uint32(4)) & np.uint32(0x0F0F0F0F)
                    word = np.uint32(low | high << np.uint32(4))
                into[to + 16 * w] = word
    return 0
