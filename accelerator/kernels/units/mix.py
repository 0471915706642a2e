"""What follows a filter in a residual unit, in parts over rows."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["MIX"]


def _entry() -> Any:
    from ..conv.filtering import mixed
    from ..parts import in_turn

    return in_turn(mixed)


MIX = Unit("mix", __name__, _entry)
