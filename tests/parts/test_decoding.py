"""Windows for what looks to both sides, decoded with and without a memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from accelerator.errors import BadOutput
from accelerator.parts.decoding import Lookahead, Window, continuing, overlapping

REACH, HOP = 3, 2


def decode(units: np.ndarray, gain: float) -> np.ndarray:
    """Each unit's audio is the sum of all within its reach."""
    padded = np.pad(units.astype(np.float32), REACH)
    sums = np.convolve(padded, np.ones(2 * REACH + 1, np.float32), "valid")
    return np.repeat(gain * sums, HOP)


class Remembering:
    """The same; a stream takes every unit once."""

    hop = HOP

    def __init__(self) -> None:
        self.pushed: list[list[int]] = []

    def __call__(self, units: np.ndarray, gain: float) -> np.ndarray:
        return decode(units, gain)

    def stream(self, gain: float) -> Any:
        own, seen, given, out = self, list[int](), [], 0
        self.pushed.append(given)

        class Stream:
            def push(self, units: np.ndarray, *, final: bool) -> np.ndarray:
                nonlocal out
                given.extend(units.tolist())
                seen.extend(units.tolist())
                ready = len(seen) if final else max(0, len(seen) - REACH)
                audio = own(np.array(seen), gain)[out * HOP : ready * HOP]
                out = max(out, ready)
                return audio

        return Stream()


def spoken(call: Any, units: np.ndarray, size: int, most: int = 512) -> np.ndarray:
    ahead = Lookahead(lambda window: np.asarray(call(window.units[0], 0.5, window=window)), REACH, most)
    rows = list(units[:, None])
    return np.concatenate(
        [ahead.push(rows[i : i + size], final=i + size >= len(rows)) for i in range(0, len(rows), size)]
    )


@pytest.mark.parametrize("size", [1, 4, 9, 40])
@pytest.mark.parametrize("most", [5, 512])
def test_windows_join_to_the_whole(size: int, most: int) -> None:
    units = np.random.default_rng(0).integers(0, 9, 40)
    remembering = Remembering()
    for call in (overlapping(decode), continuing(remembering)):
        np.testing.assert_array_equal(spoken(call, units, size, most), decode(units, 0.5))
    assert remembering.pushed == [units.tolist()], "each unit once"


def test_without_windows_all_is_heard() -> None:
    units = np.arange(7)
    for call in (overlapping(decode), continuing(Remembering())):
        np.testing.assert_array_equal(call(units, 2.0), decode(units, 2.0))


def test_a_stream_that_fails_is_begun_anew() -> None:
    units, remembering, failures = np.arange(40), Remembering(), 0
    remembers, forgets = continuing(remembering), overlapping(decode)

    def call(some: np.ndarray, gain: float, *, window: Window) -> np.ndarray:
        nonlocal failures
        if window.start == 13:
            failures += 1
            window.kept["stream"]._stream = None  # as if its state were lost half way
            with pytest.raises(AttributeError):
                remembers(some, gain, window=window)
            return np.asarray(forgets(some, gain, window=window))
        return np.asarray(remembers(some, gain, window=window))

    np.testing.assert_array_equal(spoken(call, units, 8), decode(units, 0.5))
    assert failures == 1
    assert [given[0] for given in remembering.pushed] == [0, 18]


def test_a_stream_that_owes_audio_is_found_out() -> None:
    class Late(Remembering):
        def stream(self, gain: float) -> Any:
            class Stream:
                def push(self, units: np.ndarray, *, final: bool) -> np.ndarray:
                    return np.zeros(1, np.float32)

            return Stream()

    with pytest.raises(BadOutput, match="9 samples of audio are missing"):
        spoken(continuing(Late()), np.arange(5), 5)
