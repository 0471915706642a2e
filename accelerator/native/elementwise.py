"""Activations of a codec in one pass over memory, on several threads."""

from __future__ import annotations

from ..errors import SessionError
from .compiled import SNAKE, function
from .parts import in_parts

__all__ = ["snake"]

_LITTLE = 100_000  # values that are not worth waking a thread for


def snake(
    x: int, alpha: int | None, out: int, rows: int, channels: int, *, low: bool, low_out: bool, threads: int
) -> bool:
    """out = z + sin(z)^2 for z = alpha x; False where this machine has no compiled kernels, and nothing is done.

    x, alpha, out: addresses of [rows, channels], [channels] and [rows, channels], float32 unless low or low_out, which
    are bfloat16. None is an alpha of one.
    """
    try:
        call, kinds = function(), low + 2 * low_out
    except SessionError:
        return False
    parts = min(threads, rows * channels // _LITTLE) or 1
    ends = [rows * i // parts for i in range(parts + 1)]

    def part(_: int, begin: int, end: int) -> None:
        first, to = x + begin * channels * (2 if low else 4), out + begin * channels * (2 if low_out else 4)
        call(SNAKE, first, alpha or 0, to, end - begin, channels, kinds)

    in_parts(part, ends, threads)
    return True
