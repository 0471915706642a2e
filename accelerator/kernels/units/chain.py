"""Convolutions one after the other by AMX, in tiles of rows."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["CHAIN"]


def _entry() -> Any:
    from ..conv import amx
    from ..conv.chain import Multiplier, chain_by
    from ..parts import in_turn

    return in_turn(chain_by(Multiplier(amx.CONFIGURE, amx.RESTORE, amx.MULTIPLY, floats=False)))


CHAIN = Unit("chain", __name__, _entry)
