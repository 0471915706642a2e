"""Tiles of a chain's rows, shared out: see `chain`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..compiler import Unit
from ..descriptors import Chain, Link
from ..features import multiplies_tiles
from ..parallel import in_parts
from ..tiles import CHAIN_SPACE
from ..units.chain import CHAIN
from ..units.dots import DOTS
from .layers import scratch

__all__ = ["chain", "chain_unit"]

# All eight tiles of AMX, 16 rows of 64 bytes: palette, first row to go on with, reserved, bytes of a row, rows.
_TILES = np.frombuffer(bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8]), np.uint8).copy()


def chain_unit() -> Unit:
    """The kernels of chains here."""
    return CHAIN if multiplies_tiles() else DOTS


def chain(links: Sequence[Link], rows: int, tile: int, margin: int, space: int, threads: int) -> None:
    """Links one after the other, for tiles of the last one's `rows`; whether threads share them changes nothing.

    margin: rows around a tile in a thread's own buffers. space: bytes of these. Raises SessionError.
    """
    plan = [*Chain(_TILES.ctypes.data, len(links), rows, margin, tile), *itertools.chain.from_iterable(links)]
    ends = [*range(0, rows, tile), rows]
    parts = min(threads, len(ends) - 1)
    space += CHAIN_SPACE
    in_parts(chain_unit(), plan, ends, parts, scratch(space * parts), space)
