"""Activations of a codec in one pass over memory, on several threads."""

from __future__ import annotations

from ...errors import SessionError
from ..descriptors import Gelu, Snake
from ..parallel import in_parts
from ..units.gelu import GELU
from ..units.snake import SNAKE

__all__ = ["gelu", "snake"]

_LITTLE = 20_000  # values that are not worth another thread


def gelu(x: int, out: int, rows: int, channels: int, *, room: int = 0, threads: int) -> None:
    """out = gelu(x) for addresses of float32 [rows, channels], in whole chunks; with `room`, out is the values of a
    `Mix`. Raises SessionError."""
    plan = Gelu(x, out, channels, room)
    parts = min(threads, rows * channels // _LITTLE) or 1
    in_parts(GELU, plan, [rows * i // parts for i in range(parts + 1)], parts)


def snake(
    x: int, alpha: int | None, out: int, rows: int, channels: int, *, low: bool, low_out: bool, threads: int
) -> bool:
    """out = z + sin(z)^2 for z = alpha x; False where this machine has no compiled kernels, and nothing is done.

    x, alpha, out: addresses of [rows, channels], [channels] and [rows, channels], float32 unless low or low_out, which
    are bfloat16. None is an alpha of one.
    """
    plan = Snake(x, alpha or 0, out, channels, x_is_bf16=low, y_is_bf16=low_out)
    parts = min(threads, rows * channels // _LITTLE) or 1
    try:
        in_parts(SNAKE, plan, [rows * i // parts for i in range(parts + 1)], parts)
    except SessionError:
        return False
    return True
