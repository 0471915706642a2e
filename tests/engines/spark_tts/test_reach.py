"""How far a code is heard, by changing one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from accelerator.engines.spark_tts import SparkAdapter
from accelerator.engines.spark_tts.reach import reach

HOP = 320


def heard(adapter: SparkAdapter, changed: int, length: int = 41) -> np.ndarray:
    """Codes whose audio changes with one of them."""
    decode = next(part.original for part in adapter.parts() if part.name == "decoder")
    voice, before = np.arange(adapter.count), np.arange(length) % adapter.sizes[0]
    after = before.copy()
    after[changed] = (after[changed] + 7) % adapter.sizes[0]
    difference = decode(before, voice) != decode(after, voice)
    return np.asarray(np.flatnonzero(difference.reshape(-1, HOP).any(axis=1)))


def test_a_code_is_not_heard_beyond_its_reach(engine: Any) -> None:
    adapter = SparkAdapter(engine)
    assert adapter.reach is not None
    found = heard(adapter, 20)
    assert 20 in found
    assert found.min() >= 20 - adapter.reach
    assert found.max() <= 20 + adapter.reach


def test_each_convolution_adds_half_its_kernel() -> None:
    prenet = nn.Sequential(nn.Conv1d(1, 1, 7, padding=3), nn.Conv1d(1, 1, 3, padding=2, dilation=2))
    up = nn.ConvTranspose1d(1, 1, 8, stride=4, padding=2)
    assert reach(prenet, nn.Sequential()) == 5
    assert reach(prenet, nn.Sequential(up, nn.Conv1d(1, 1, 5, padding=2))) == 8  # 5, 2 and half a code
    assert reach(nn.Sequential(nn.Conv1d(1, 1, 7)), nn.Sequential()) is None
    assert reach(up, nn.Sequential()) is None
    assert reach(prenet, nn.Sequential(nn.Conv1d(1, 1, 4, stride=2))) is None
