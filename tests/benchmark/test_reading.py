"""All bytes are read once, in shares that are about as large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from accelerator.benchmark import reading
from accelerator.benchmark.reading import Reader


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_word_is_read_once(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(reading, "_PIECE", 64)
    arrays: list[np.ndarray] = [np.arange(1000, dtype=np.float32), np.arange(21, dtype=np.int8), np.zeros((0, 8))]
    seen: list[bytes] = []
    read = reading._read

    def told(pieces: Any) -> None:
        seen.append(b"".join(piece.tobytes() for piece in pieces))
        read(pieces)

    monkeypatch.setattr(reading, "_read", told)
    with Reader(arrays, threads) as reader:
        assert reader.nbytes == 4000 + 16
        reader.read()
    assert len(seen) == threads
    assert sorted(b"".join(seen)) == sorted(arrays[0].tobytes() + arrays[1].tobytes()[:16])
    assert max(map(len, seen)) - min(map(len, seen)) <= 2 * 64
