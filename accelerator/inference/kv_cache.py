"""Key-value caches: buffers that a graph reads and writes in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of all layers, [rows, kv_heads, capacity, head_dim] each, float32 or int8; can grow.

    A row is one sequence's slot. Rows are contiguous, so that any range of them is an array in itself.
    """

    def __init__(
        self, layers: int, batch: int, kv_heads: int, head_dim: int, capacity: int, dtype: type = np.float32
    ) -> None:
        self._shape, self._dtype = (batch, kv_heads, capacity, head_dim), dtype
        names = [f"{kind}.{i}" for i in range(layers) for kind in ("key", "value")]
        self.arrays: dict[str, np.ndarray] = {name: np.zeros(self._shape, dtype) for name in names}

    @property
    def rows(self) -> int:
        return self._shape[0]

    @property
    def capacity(self) -> int:
        return self._shape[2]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())

    def grow(self, capacity: int, rows: int | None = None) -> None:
        """Make room for `capacity` positions in `rows` rows (None: as many as now), keeping what is stored."""
        before, kv_heads, old, head_dim = self._shape
        self._shape = (before if rows is None else rows, kv_heads, capacity, head_dim)
        for name, array in self.arrays.items():
            larger: np.ndarray = np.zeros(self._shape, self._dtype)
            larger[:before, :, :old] = array
            self.arrays[name] = larger

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row over another row's."""
        for array in self.arrays.values():
            array[target, :, :length] = array[source, :, :length]

    def read(self, row: int, length: int) -> list[np.ndarray]:
        """Copies of the first `length` positions of a row, [kv_heads, length, head_dim] each."""
        return [array[row, :, :length].copy() for array in self.arrays.values()]

    def write(self, row: int, blocks: Sequence[np.ndarray]) -> None:
        """Put what `read` returned at the beginning of a row."""
        for array, block in zip(self.arrays.values(), blocks, strict=True):
            array[row, :, : block.shape[1]] = block

    def inputs(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """The graph's inputs for rows begin .. end."""
        return {f"past_{name}": array[begin:end] for name, array in self.arrays.items()}

    def outputs(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """The graph's outputs for rows begin .. end: the same arrays."""
        return {f"present_{name}": array[begin:end] for name, array in self.arrays.items()}
