"""A frame's codes drawn one after the other, each from the logits of a step over the one before, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels.compiler import function
from ..kernels.descriptors import DRAW as DRAW_RECORD
from ..kernels.descriptors import DRAW_SPACE, FRAME
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
        self._draws, self._space = np.zeros(rows, DRAW_RECORD), np.zeros(DRAW_SPACE * width, np.uint8)
        self._draws["logits"] = logits.ctypes.data + 4 * width * np.arange(rows)
        self._frame = frame = np.zeros((), FRAME)
        frame["plan"], frame["rows"] = binding.plan.ctypes.data, rows
        frame["x"], frame["dim"] = x.ctypes.data, x.shape[2]
        frame["table"], frame["is_bf16"] = table.ctypes.data, table.dtype == np.uint16
        frame["lengths"], frame["draws"] = lengths.ctypes.data, self._draws.ctypes.data
        frame["space"] = self._space.ctypes.data

    def run(self, draws: Sequence[Draws], filled: int) -> tuple[np.ndarray, float]:
        """The codes of the residual codebooks, int64 [rows, C - 1], -1 from where nothing can be drawn on; and which
        share of the time drawing took.

        draws: of each row. filled: positions in the cache. Raises SessionError.
        """
        count = len(draws[0].uniforms)
        codes = np.zeros((len(draws), count), np.int64)
        for record, each in zip(self._draws, draws, strict=True):
            _describe(record, each, self._logits.shape[1])
        frame = self._frame
        frame["codebooks"], frame["next"], frame["codes"] = count, 0, codes.ctypes.data
        frame["drawing"], frame["stepping"] = 0, 0
        self._lengths[:] = filled - 1
        self._binding.team.frame(frame)
        drawing, stepping = int(frame["drawing"]), int(frame["stepping"])
        return codes, drawing / max(1, drawing + stepping)


def draw(logits: np.ndarray, draws: Draws) -> int:
    """An index of float32 [n], by the first of the draws' codebooks; -1 where nothing can be drawn."""
    record, space = np.zeros((), DRAW_RECORD), np.zeros(DRAW_SPACE * len(logits), np.uint8)
    _describe(record, draws, len(logits))
    record["logits"] = logits.ctypes.data
    return function(STEP)(DRAW, record.ctypes.data, space.ctypes.data)


def _describe(record: np.ndarray | np.void, draws: Draws, width: int) -> None:
    """Fill in a draw's record, but for where its logits are; `draws` has to live as long as that is used."""
    count = width if draws.rows is None else min(width, draws.rows)
    record["count"], record["top_k"] = count, count if draws.top_k is None else min(draws.top_k, count)
    record["uniforms"], record["used"] = draws.uniforms.ctypes.data, 0
    record["recent"], record["window"], record["active"] = draws.recent.ctypes.data, draws.recent.shape[1], 1
    record["penalty"], record["temperature"], record["top_p"] = draws.penalty, draws.temperature, draws.top_p
