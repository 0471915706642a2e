"""Where what threads share stands in an array: see `parts`. What they change has cache lines of its own."""

from __future__ import annotations

__all__ = ["COUNT", "ENDS", "FAILED", "FUNCTION", "KIND", "MEMORY", "NEXT", "PLAN", "SPACE", "WORKERS"]

FUNCTION, KIND, PLAN, MEMORY, SPACE, COUNT, FAILED = range(7)
NEXT, WORKERS = 16, 24  # counters: the next part, and the next thread
ENDS = 32  # of the parts, one more than they are
