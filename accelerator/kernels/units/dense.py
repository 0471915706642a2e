"""Plain products of int16, in parts over columns."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["DENSE"]


def _entry() -> Any:
    from ..conv.dense import dense
    from ..parts import in_turn

    return in_turn(dense)


DENSE = Unit("dense", __name__, _entry)
