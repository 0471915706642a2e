"""Quantized weights -> the tiles in which a step reads them; compiled, since a model is not opened before."""

from __future__ import annotations

import numba
import numpy as np

from ..instructions import pointer
from ..tiles import LANES
from ..views import block_layout

__all__ = ["pack"]


def pack(source, target, rows, blocks, block, bits):
    """Quantized values uint8 [rows, blocks, block * bits / 8] (4 bits: the even ones in the lower halves) -> tiles of
    16 rows, see `block_layout`: four bytes of each row side by side, without scales and zero points."""
    given = numba.carray(pointer(source), (rows * blocks * block * bits // 32,), np.uint32)
    words = block * bits // 32  # of a row's block
    _, _, size = block_layout(block, bits)
    step = size // 4  # of a tile's block, in words
    into = numba.carray(pointer(target), (-(-rows // LANES) * blocks * step,), np.uint32)
    for row in range(rows):
        tile, lane = row // LANES, row % LANES
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
                into[to + LANES * w] = word
    return 0
