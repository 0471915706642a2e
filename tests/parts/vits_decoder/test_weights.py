"""Windows of frames cover all of them once, each with the context that it needs."""

from __future__ import annotations

import numpy as np
import pytest

from accelerator.parts.vits_decoder.weights import WINDOW, windows


@pytest.mark.parametrize("length", [1, WINDOW, WINDOW + 1, 2000])
@pytest.mark.parametrize("context", [10, 45])
def test_windows_cover_all_frames_with_their_context(length: int, context: int) -> None:
    covered = np.zeros(length, int)
    for first, stop, start, end in windows(length, context):
        covered[start:end] += 1
        assert stop - first <= WINDOW
        assert first == max(0, start - context)
        assert stop >= min(length, end + context)
    assert (covered == 1).all()
