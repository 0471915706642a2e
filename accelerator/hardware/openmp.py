"""The GNU OpenMP library that PyTorch has loaded; its wheels for Linux include one."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["library"]

_MAPS = Path("/proc/self/maps")
_PAUSE = 1  # omp_pause_soft

_found: ctypes.CDLL | None = None


def library() -> ctypes.CDLL | None:
    """The library; None if there is none, or PyTorch is not imported yet."""
    global _found
    if _found is None and "torch" in sys.modules:
        try:
            mapped = {line.split()[-1] for line in _MAPS.read_text().splitlines() if "libgomp" in line}
            (path,) = [path for path in mapped if "torch" in path] or mapped
            _found = ctypes.CDLL(path)
        except (OSError, ValueError):
            return None
    return _found


def _pause() -> None:
    """End the forking thread's idle OpenMP threads; they are created again when needed.

    A child does not have them, but OpenMP there would wait for them for ever, in PyTorch's first operator.
    """
    pause = getattr(library(), "omp_pause_resource_all", None)  # of OpenMP 5.0: GCC 9 and later
    if pause is not None:
        pause(_PAUSE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause)
