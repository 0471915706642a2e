"""What all compiled kernels write down numbers with."""

from __future__ import annotations

import numba
import numpy as np
from numba import njit

from .instructions import pointer

__all__ = ["F32", "OPTIONS", "floats"]

# NaN stays NaN: it is how an answer shows that it cannot be right.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
F32 = np.float32


@njit(inline="always")
def floats(address, count):
    return numba.carray(pointer(address), (count,), np.float32)
