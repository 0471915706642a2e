"""Prefix cache: keys and values of the beginnings of prompts, in memory, so that a known voice is not prefilled again.

A prompt is cut after every stretch of reference frames. Each cut is a place where another prompt may differ: system
text and the voice come first, the words to speak last. A prompt is always prefilled in chunks between its cuts, even
when nothing is cached yet, so that a known voice answers exactly as it did the first time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from ..hardware.forks import Lock

__all__ = ["BUDGET", "SHORTEST", "Prefixes", "cuts"]

BUDGET = 256 * 2**20  # bytes: about fifteen voices of ten seconds of S1-mini
SHORTEST = 16  # reference frames from which a cut pays

Blocks = Sequence[np.ndarray]


def cuts(prompt: np.ndarray, semantic_begin: int, semantic_end: int) -> list[int]:
    """Where to cut a prompt [1 + C, T]: the ends, in columns, of its stretches of at least `SHORTEST` frames."""
    frames = (prompt[0] >= semantic_begin) & (prompt[0] <= semantic_end)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], frames, [False])).astype(np.int8)))
    begins, ends = edges[::2], edges[1::2]
    return [int(end) for begin, end in zip(begins, ends, strict=True) if end - begin >= SHORTEST and end < len(frames)]


class Prefixes:
    """Cache blocks by the columns they hold; the least recently used is evicted first. Thread-safe."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.hits = self.misses = 0
        self._lock = Lock()
        self._entries: OrderedDict[bytes, Blocks] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._nbytes

    def longest(self, prompt: np.ndarray, ends: Sequence[int]) -> tuple[int, Blocks]:
        """(columns, blocks) of a prompt's longest cached prefix that ends at one of `ends`; (0, ()) without one."""
        keys = [(end, _key(prompt, end)) for end in sorted(ends, reverse=True)]
        with self._lock:
            for end, key in keys:
                if (blocks := self._entries.get(key)) is not None:
                    self._entries.move_to_end(key)
                    self.hits += 1
                    return end, blocks
            self.misses += bool(keys)
        return 0, ()

    def keep(self, prompt: np.ndarray, end: int, blocks: Blocks) -> None:
        """Cache the blocks of the first `end` columns, if they fit the budget."""
        size = sum(block.nbytes for block in blocks)
        if size > self.budget:
            return
        key = _key(prompt, end)
        with self._lock:
            if key not in self._entries:
                self._entries[key] = blocks
                self._nbytes += size
            while self._nbytes > self.budget:
                _, dropped = self._entries.popitem(last=False)
                self._nbytes -= sum(block.nbytes for block in dropped)

    def wants(self, size: int) -> bool:
        """Whether blocks of `size` bytes would be kept."""
        return size <= self.budget


def _key(prompt: np.ndarray, end: int) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(prompt[:, :end], np.int64).tobytes()).digest()
