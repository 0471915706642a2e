"""The first argument of the compiled step, which says what to do."""

from __future__ import annotations

__all__ = ["DRAW", "END", "FRAME", "LEAD", "SERVE"]

LEAD, SERVE, END, FRAME, DRAW = range(5)
