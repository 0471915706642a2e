"""How fast a machine reads memory: what no decode step can be faster than, since it reads all weights once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

__all__ = ["Reader"]

_WORD = 8
_PIECE = 4 << 20  # bytes that a thread reads at a time


class Reader:
    """Reads arrays with some threads, one after the other as they lie in memory. A context manager."""

    def __init__(self, arrays: Sequence[np.ndarray], threads: int) -> None:
        """arrays: contiguous, of any type; their last bytes that fill no word are left out."""
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        words = [_words(array) for array in arrays]
        self.nbytes = sum(each.nbytes for each in words)
        pieces = [each[i : i + _PIECE // _WORD] for each in words for i in range(0, len(each), _PIECE // _WORD)]
        self._shares = _shares(pieces, threads)

    def read(self) -> None:
        """All of them, once."""
        others = [self._pool.submit(_read, share) for share in self._shares[1:]] if self._pool else []
        _read(self._shares[0])
        for other in others:
            other.result()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _words(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1).view(np.uint8)
    return flat[: flat.nbytes // _WORD * _WORD].view(np.uint64)


def _shares(pieces: Sequence[np.ndarray], threads: int) -> list[list[np.ndarray]]:
    """Pieces of about as many bytes for each thread, each of what lies side by side."""
    shares: list[list[np.ndarray]] = [[] for _ in range(threads)]
    whole, before = sum(piece.nbytes for piece in pieces), 0
    for piece in pieces:
        shares[min(threads - 1, before * threads // max(whole, 1))].append(piece)
        before += piece.nbytes
    return shares


def _read(pieces: Sequence[np.ndarray]) -> None:
    for piece in pieces:
        np.add.reduce(piece)  # releases the interpreter's lock
