"""Embedding tables as memory-mapped files: rows are read from disk when a token needs them, never the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import CorruptEntry

__all__ = ["Table", "write_table"]

_CHUNK = 4096  # rows handled at a time, so that no copy of the table is made


def write_table(path: Path, rows: np.ndarray) -> None:
    """Write float32 `rows` [n, dim] as a .npy file.

    Values that bfloat16 holds exactly (weights published in bfloat16) are stored as their upper 16 bits, uint16.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    starts = range(0, len(rows), _CHUNK)
    exact = not any((rows[i : i + _CHUNK].view(np.uint32) & 0xFFFF).any() for i in starts)
    table = np.lib.format.open_memmap(path, "w+", np.uint16 if exact else np.float32, rows.shape)
    for i in starts:
        chunk = rows[i : i + _CHUNK]
        table[i : i + _CHUNK] = (chunk.view(np.uint32) >> 16) if exact else chunk
    table.flush()


class Table:
    """A read-only table [n, dim] on disk. Indexing returns float32 rows. Raises CorruptEntry for any other file."""

    def __init__(self, path: Path) -> None:
        try:
            self._rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CorruptEntry(f"{path} is not an embedding table: {error}") from error
        if self._rows.ndim != 2 or self._rows.dtype not in (np.dtype(np.uint16), np.dtype(np.float32)):
            raise CorruptEntry(f"{path} is not an embedding table: {self._rows.dtype} {self._rows.shape}")
        self.shape: tuple[int, int] = self._rows.shape

    @property
    def rows(self) -> np.ndarray:
        """As stored: float32, or the upper halves of float32 as uint16."""
        return self._rows

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray:
        rows = self._rows[index]
        if rows.dtype == np.float32:
            return np.asarray(rows)
        return (np.asarray(rows).astype(np.uint32) << 16).view(np.float32)
