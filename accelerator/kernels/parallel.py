"""Work on several threads at a time, the caller's among them, without the interpreter.

PyTorch's threads, where it has GNU's OpenMP (Linux): between its operators they go on waiting for the next one for some
milliseconds, and threads of our own beside them would get half of the processor. They are given machine code: one that
first had to wait for the interpreter's lock began a quarter of a millisecond later, which is what a small layer takes.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import SessionError
from ..hardware.forks import Lock
from ..hardware.openmp import library
from . import job as at
from .compiler import Unit, function, region

__all__ = ["in_parts"]

_LOCK = Lock()


def in_parts(
    unit: Unit, plan: Sequence[int], ends: Sequence[int], threads: int, memory: int = 0, space: int = 0
) -> None:
    """Have a unit's kernel do its parts between all neighbours in `ends`; returns when all are done.

    plan: the numbers that it reads. memory: the address of `space` bytes for each of `threads`. Raises SessionError.
    """
    call, count = function(unit), len(ends) - 1
    if count <= 0:
        return
    threads = min(threads, count)
    numbers = np.array(plan, np.int64)
    job = np.array(at.job(call.address, numbers.ctypes.data, memory, space, ends), np.int64)
    where = job.ctypes.data
    if threads <= 1:
        call(where)
    elif (parallel := _parallel()) is not None:
        with _LOCK:  # or two threads make one each, and the first of them is gone while it runs
            begun = region()
        parallel(begun, where, threads, 0)
        if job[at.FAILED]:
            raise SessionError("a compiled kernel failed")
    else:
        others = [_pool(threads, os.getpid()).submit(call, where) for _ in range(1, threads)]
        call(where)
        for other in others:
            other.result()


@functools.cache
def _parallel() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the OpenMP that PyTorch has loaded."""
    found = getattr(library(), "GOMP_parallel", None)
    if found is not None:
        found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return found


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """A process's own: a fork takes no threads along."""
    return ThreadPoolExecutor(threads, thread_name_prefix="accelerator-codec")
