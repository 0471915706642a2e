"""Huge pages for weights: a decode step reads all of them once, and small pages cost it a tenth in address translation.

Linux only. Where transparent huge pages are used on request ("madvise", most distributions' default), nothing requests
them for a library's memory; `huge_pages` does, once the memory is filled. Elsewhere it does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PAGE", "anonymous", "collapse", "huge_pages", "return_freed", "subtract"]

PAGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # <linux/mman.h>; the latter since Linux 6.1
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\[heap\])?$")

Span = tuple[int, int]  # addresses, the end not included


def anonymous(maps: str) -> list[Span]:
    """The private writable memory without a file in a text like /proc/self/maps, in ascending order."""
    found = (_MAPPING.match(line.rstrip()) for line in maps.splitlines())
    return [(int(m[1], 16), int(m[2], 16)) for m in found if m]


def subtract(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The parts of `spans` that are not in `others`; both ascending."""
    left = []
    for begin, end in spans:
        for start, stop in others:
            if stop <= begin or start >= end:
                continue
            if start > begin:
                left.append((begin, start))
            begin = stop
        if begin < end:
            left.append((begin, end))
    return left


def collapse(spans: Sequence[Span]) -> int:
    """Move the whole huge pages within `spans` to such pages; returns the bytes that the system agreed to move."""
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = 0
    for begin, end in spans:
        first, last = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
        if first >= last or advise(first, last - first, _MADV_HUGEPAGE):
            continue
        for page in range(first, last, PAGE):  # one by one: a hole would end a longer call
            moved += PAGE * (advise(page, PAGE, _MADV_COLLAPSE) == 0)
    return moved


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move memory that is allocated within the block, and still there at its end, to huge pages. Never fails.

    Takes about two seconds a gigabyte, in the calling thread and without the interpreter's lock.
    """
    before = _maps()
    yield
    if before is not None and (after := _maps()) is not None:
        collapse(subtract(anonymous(after), anonymous(before)))


def _maps() -> str | None:
    if sys.platform != "linux":
        return None
    try:
        return Path("/proc/self/maps").read_text()
    except OSError:
        return None


def return_freed() -> None:
    """Give memory that was freed back to the system: the C library keeps it, but glibc does so when asked."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
