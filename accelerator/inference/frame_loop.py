"""A frame's codes drawn one after the other, each from the logits of a step over the one before, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels import draws as at
from ..kernels.compiler import function
from ..kernels.opcodes import DRAW
from ..kernels.units.step import STEP
from .compiled import NativeBinding
from .sampling import Draws

__all__ = ["CodeLoop", "draw"]


class CodeLoop:
    """The loop over a frame's codebooks behind the first step, for the rows of a binding of one position."""

    def __init__(
        self, binding: NativeBinding, x: np.ndarray, lengths: np.ndarray, logits: np.ndarray, table: np.ndarray
    ) -> None:
        """x: float32 [rows, 1, dim], lengths: int32 [rows] and logits: float32 [rows, n], which the binding is over.

        table: the codes' embeddings, [n, dim] in float32, or uint16 for the upper halves of float32.
        """
        if table.dtype not in (np.float32, np.uint16) or not table.flags.c_contiguous:
            raise ValueError(f"embeddings are float32 or uint16, side by side, not {table.dtype}")
        self._binding, self._lengths, self._logits = binding, lengths, logits
        self._kept = x, table
        rows, width = logits.shape
        space = np.zeros(at.SCRATCH * width, np.uint8)
        self._draws, self._space = np.zeros((rows, at.SIZE), np.int64), space
        self._frame = f = np.zeros(at.FRAME, np.int64)
        f[[at.STEP, at.ROWS, at.X, at.DIM]] = binding.plan.ctypes.data, rows, x.ctypes.data, x.shape[2]
        f[[at.TABLE, at.IS_BF16]] = table.ctypes.data, table.dtype == np.uint16
        f[[at.LENGTHS, at.DRAWS, at.SPACE]] = lengths.ctypes.data, self._draws.ctypes.data, space.ctypes.data
        self._draws[:, at.LOGITS] = logits.ctypes.data + 4 * width * np.arange(rows)

    def run(self, draws: Sequence[Draws], filled: int) -> tuple[np.ndarray, float]:
        """The codes of the residual codebooks, int64 [rows, C - 1], -1 from where nothing can be drawn on; and which
        share of the time drawing took.

        draws: of each row. filled: positions in the cache. Raises SessionError.
        """
        count = len(draws[0].uniforms)
        codes = np.zeros((len(draws), count), np.int64)
        for plan, each in zip(self._draws, draws, strict=True):
            _describe(plan, each, self._logits.shape[1])
        f = self._frame
        f[[at.CODEBOOKS, at.NEXT, at.CODES, at.DRAWING, at.STEPPING]] = count, 0, codes.ctypes.data, 0, 0
        self._lengths[:] = filled - 1
        self._binding.team.frame(f)
        drawing, stepping = (int(f[i]) for i in (at.DRAWING, at.STEPPING))
        return codes, drawing / max(1, drawing + stepping)


def draw(logits: np.ndarray, draws: Draws) -> int:
    """An index of float32 [n], by the first of the draws' codebooks; -1 where nothing can be drawn."""
    plan, space = np.zeros(at.SIZE, np.int64), np.zeros(at.SCRATCH * len(logits), np.uint8)
    _describe(plan, draws, len(logits))
    plan[at.LOGITS] = logits.ctypes.data
    return function(STEP)(DRAW, plan.ctypes.data, space.ctypes.data)


def _describe(plan: np.ndarray, draws: Draws, width: int) -> None:
    """Fill in a draw's array, but for where its logits are; `draws` has to live as long as that is used."""
    count = width if draws.rows is None else min(width, draws.rows)
    top_k = count if draws.top_k is None else min(draws.top_k, count)
    plan[[at.COUNT, at.UNIFORMS, at.USED, at.TOP_K]] = count, draws.uniforms.ctypes.data, 0, top_k
    plan[[at.RECENT, at.WINDOW, at.ACTIVE]] = draws.recent.ctypes.data, draws.recent.shape[1], 1
    plan.view(np.float64)[[at.PENALTY, at.TEMPERATURE, at.TOP_P]] = draws.penalty, draws.temperature, draws.top_p
