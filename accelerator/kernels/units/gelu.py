"""Another activation, in parts over rows."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["GELU"]


def _entry() -> Any:
    from ..conv.gaussian import gelu
    from ..parts import in_turn

    return in_turn(gelu)


GELU = Unit("gelu", __name__, _entry)
