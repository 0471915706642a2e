"""Minimal filtering, in parts over tiles."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["FILTER"]


def _entry() -> Any:
    from ..conv.filtering import filtered
    from ..parts import in_turn

    return in_turn(filtered)


FILTER = Unit("filter", __name__, _entry)
