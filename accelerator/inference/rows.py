"""How many sequences a decode loop has: for all who need to know that and nothing else of it."""

from __future__ import annotations

__all__ = ["ROWS"]

ROWS = 8  # sequences advanced together; with more, each would wait longer for a frame than batching gains
