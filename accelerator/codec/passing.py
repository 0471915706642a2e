"""Large arrays that live for a moment: what they lay in is used again by whichever thread asks next.

An allocator keeps what a thread has freed for that thread: a pool of threads then has as many times the memory. Memory
that is new each time costs a tenth of a decoder's time.
"""

from __future__ import annotations

import math
import mmap
import weakref

import numpy as np

__all__ = ["passing"]

_LARGE = 1 << 20  # bytes from which on an array is not left to the allocator
_KEPT = 32 << 20  # bytes that wait to be used again, at most
_FREE: list[mmap.mmap] = []  # only by calls that nothing can come between: no lock, which a finalizer might find taken


def passing(shape: tuple[int, ...], kind: type[np.generic] | np.dtype) -> np.ndarray:
    """As `np.empty`."""
    count = math.prod(shape)
    size = count * np.dtype(kind).itemsize
    if size < _LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(shape, kind)
    memory = _taken(size)
    array = np.frombuffer(memory, kind, count)
    weakref.finalize(array, _given_back, memory).atexit = False
    return array.reshape(shape)


def _taken(size: int) -> mmap.mmap:
    for memory in sorted(_FREE, key=len):
        if size <= len(memory) <= 2 * size:
            try:
                _FREE.remove(memory)
            except ValueError:  # another thread has it
                continue
            return memory
    # Private, or a forked child would write into its parent's.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _given_back(memory: mmap.mmap) -> None:
    _FREE.append(memory)
    while sum(map(len, _FREE.copy())) > _KEPT:
        del _FREE[:1]
