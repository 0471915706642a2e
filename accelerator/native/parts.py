"""Work on several threads at a time, the caller's among them.

PyTorch's threads, where it has GNU's OpenMP (Linux): between its operators they go on waiting for the next one for some
milliseconds, and threads of our own beside them would get half of the processor.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["in_parts"]

_MAPS = Path("/proc/self/maps")
_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_parts(run: Callable[[int, int, int], None], ends: list[int], threads: int) -> None:
    """run(worker, begin, end) for all neighbours in `ends`; returns when all have, or raises what one of them did.

    worker: below `threads`; nobody else has it meanwhile.
    """
    parts = list(itertools.pairwise(ends))
    workers, waiting, failures = itertools.count(), iter(parts), []

    def region(_: Any = None) -> None:
        worker = next(workers)
        try:
            for begin, end in waiting:
                run(worker, begin, end)
        except BaseException as error:  # ctypes would swallow it
            failures.append(error)

    threads = min(threads, len(parts))
    if threads <= 1:
        region()
    elif (parallel := _parallel()) is not None:
        parallel(_REGION(region), None, threads, 0)
    else:
        others = [_pool(threads).submit(region) for _ in range(1, threads)]
        region()
        for other in others:
            other.result()
    if failures:
        raise failures[0]


@functools.cache
def _parallel() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the OpenMP that PyTorch has loaded."""
    try:
        mapped = {line.split()[-1] for line in _MAPS.read_text().splitlines() if "libgomp" in line}
        (path,) = [path for path in mapped if "torch" in path] or mapped
        found = ctypes.CDLL(path).GOMP_parallel
    except (OSError, ValueError, AttributeError):
        return None
    found.argtypes, found.restype = (_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return found


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="accelerator-codec")
