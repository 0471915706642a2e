"""Weights into the order in which they are read, in parts over columns."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["ORDER"]


def _entry() -> Any:
    from ..conv.ordering import ordered
    from ..parts import in_turn

    return in_turn(ordered)


ORDER = Unit("order", __name__, _entry)
