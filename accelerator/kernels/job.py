"""Where what threads share stands in an array: see `parts`. What they change has cache lines of its own."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["COUNT", "ENDS", "FAILED", "FUNCTION", "MEMORY", "NEXT", "PLAN", "SPACE", "WORKERS", "job"]

FUNCTION, PLAN, MEMORY, SPACE, COUNT, FAILED = range(6)
NEXT, WORKERS = 16, 24  # counters: the next part, and the next thread
ENDS = 32  # of the parts, one more than they are


def job(function: int, plan: int, memory: int, space: int, ends: Sequence[int]) -> list[int]:
    """The numbers of one. A list is filled faster than an array, and a codec's window has three hundred of these."""
    numbers = [0] * ENDS
    numbers[FUNCTION], numbers[PLAN] = function, plan
    numbers[MEMORY], numbers[SPACE], numbers[COUNT] = memory, space, len(ends) - 1
    numbers += ends
    return numbers
