"""A convolution with one output, in parts over rows."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["SINGLE"]


def _entry() -> Any:
    from ..conv.dense import single
    from ..parts import in_turn

    return in_turn(single)


SINGLE = Unit("single", __name__, _entry)
