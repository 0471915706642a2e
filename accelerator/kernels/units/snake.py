"""An activation, in parts over rows."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["SNAKE"]


def _entry() -> Any:
    from ..conv.activation import snake
    from ..parts import in_turn

    return in_turn(snake)


SNAKE = Unit("snake", __name__, _entry)
