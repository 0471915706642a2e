"""Kernels that do a part of a job at a time, on as many threads as there are: see `job` and `parallel`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from . import job as at
from .instructions import add, pointer

__all__ = ["in_turn"]

_MOST = 1 << 20  # numbers: no job is longer


def in_turn(kernel: Any) -> Any:
    """What a unit's C function does: parts of the job at an address until none is left.

    kernel: is given the plan's address, a part's begin and end, and the address of the thread's own memory.
    """

    def parts(address):
        job = numba.carray(pointer(address), (_MOST,), np.int64)
        plan, count = job[at.PLAN], job[at.COUNT]
        scratch = job[at.MEMORY] + job[at.SPACE] * add(address + 8 * at.WORKERS, 1)
        part = add(address + 8 * at.NEXT, 1)
        while part < count:
            kernel(plan, job[at.ENDS + part], job[at.ENDS + part + 1], scratch)
            part = add(address + 8 * at.NEXT, 1)
        return 0

    return parts
