"""Convolutions one after the other by products of vectors, in tiles of rows."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["DOTS"]


def _entry() -> Any:
    from ..conv import dots
    from ..conv.chain import Multiplier, chain_by
    from ..parts import in_turn

    return in_turn(chain_by(Multiplier(dots.CONFIGURE, dots.RESTORE, dots.MULTIPLY, floats=True)))


DOTS = Unit("dots", __name__, _entry)
