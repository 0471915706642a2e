"""The first argument of the compiled function, which says what to do; and of `PARTS`, which kernel does them."""

from __future__ import annotations

__all__ = [
    "DENSE",
    "DRAW",
    "END",
    "FILTER",
    "FRAME",
    "LEAD",
    "LEVELS",
    "MIX",
    "ORDER",
    "PACK",
    "PARTS",
    "SERVE",
    "SINGLE",
    "SNAKE",
]

LEAD, SERVE, END, PACK, PARTS, LEVELS, FRAME, DRAW = range(8)
SNAKE, FILTER, MIX, DENSE, SINGLE, ORDER = range(6)
