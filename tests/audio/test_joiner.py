"""Joins between segments: the pause that was asked for, no click, and audible samples untouched however they arrive."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from accelerator.audio.joiner import Joiner
from accelerator.errors import InvalidOption
from tests import doubles

RATE = 16_000
FRAME, FADE = 160, 80  # 10 ms and 5 ms
Item = tuple[Sequence[np.ndarray], float]


def tone(seconds: float, level: float = 0.5, seed: int = 0) -> np.ndarray:
    """A tone under noise that begins and ends at once, float32 [n]."""
    n = round(seconds * RATE)
    noise = np.random.default_rng(seed).standard_normal(n) * 0.02
    wave = level * np.cos(2 * np.pi * 200 * np.arange(n) / RATE) + noise
    wave[[0, -1]] = level  # audible at its very edges
    return wave.astype(np.float32)


def hush(seconds: float, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    """Noise at about -75 dB: what engines leave at the edges."""
    n = round(seconds * RATE)
    return (offset + 2e-4 * np.random.default_rng(seed).uniform(-1, 1, n)).astype(np.float32)


def joined(items: Sequence[Item]) -> np.ndarray:
    return doubles.joined(items, RATE)


def segment(before: float, sound: np.ndarray, behind: float, seed: int = 0) -> np.ndarray:
    return np.concatenate([hush(before, seed), sound, hush(behind, seed + 1)])


A, B = tone(0.5, seed=1), tone(0.3, seed=2)  # whole frames, so that silence begins right behind them


def parts(found: np.ndarray, first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What came out as (A, the gap, B), `first` samples of silence before it and B at its end."""
    return found[first : first + len(A)], found[first + len(A) : len(found) - len(B)], found[len(found) - len(B) :]


@pytest.mark.parametrize("pause_s", [0.0, 0.004, 0.05, 0.15, 0.4, 0.75, 3.0])
@pytest.mark.parametrize(("behind", "before"), [(0, 0), (0.1, 0), (0, 0.1), (0.02, 0.3), (1.5, 2.0), (0.2, 0.2)])
def test_the_gap_is_the_pause_and_the_speech_is_untouched(pause_s: float, behind: float, before: float) -> None:
    found = joined([([segment(0, A, behind)], pause_s), ([segment(before, B, 0, 5)], 9.0)])
    a, gap, b = parts(found)
    assert len(gap) == max(round(pause_s * RATE), 2 * FADE)
    assert np.array_equal(a, A)
    assert np.array_equal(b, B)


@pytest.mark.parametrize("pause_s", [0.0, 0.15, 0.4])
@pytest.mark.parametrize(("behind", "before"), [(0, 0), (0.1, 0), (0.003, 0.1), (1.5, 2.0)])
def test_a_join_does_not_click(pause_s: float, behind: float, before: float) -> None:
    first, last = A.copy(), B.copy()
    soft = (0.5 - 0.5 * np.cos(np.pi * np.arange(2 * FRAME) / (2 * FRAME))).astype(np.float32)
    if behind:  # what has silence of its own ends softly, as speech does; without, it breaks off at its loudest
        first[-len(soft) :] *= soft[::-1]
    if before:
        last[: len(soft)] *= soft
    found = joined([([segment(0, first, behind)], pause_s), ([segment(before, last, 0, 5)], 0.0)])
    steps = np.abs(np.diff(found))
    gap = steps[len(A) - 1 : len(found) - len(B)]  # from the last sample of A to the first of B
    within = np.abs(np.diff(A)).max()
    assert gap.max() < 0.2 * within
    assert gap.max() < 0.5 * np.pi / 2 / FADE + 2e-3  # the steepest step of a ramp from 0.5 to 0
    assert energy_of_clicks(found[len(A) - 1 : len(found) - len(B) + 1]) < 0.01 * energy_of_clicks(A)


def energy_of_clicks(samples: np.ndarray) -> float:
    """Of the worst millisecond: the second difference, which leaves little but the highest frequencies."""
    energy = np.diff(samples.astype(np.float64), 2) ** 2
    return float(np.convolve(energy, np.ones(16)).max())


def test_a_cut_without_ramps_would_click() -> None:
    """The measure above can fail: the same gap in plain zeros."""
    found = np.concatenate([A, np.zeros(2 * FADE, np.float32), B])
    steps = np.abs(np.diff(found))[len(A) - 1 : len(found) - len(B)]
    assert steps.max() > 0.2 * np.abs(np.diff(A)).max()
    assert energy_of_clicks(found[len(A) - 1 : len(found) - len(B) + 1]) > 0.01 * energy_of_clicks(A)


def test_natural_silence_fills_the_pause_first() -> None:
    left, right = hush(0.1, 3), hush(0.02, 4)
    found = joined([([A, left], 0.4), ([right, B], 0.0)])
    gap = parts(found)[1]
    assert np.array_equal(gap[: len(left)], left)
    assert np.array_equal(gap[-len(right) :], right)
    assert np.abs(gap[len(left) + FADE : -len(right) - FADE]).max() == 0


def test_surplus_silence_is_cut_between_its_ends() -> None:
    left, right = hush(1.0, 3), hush(1.0, 4)
    gap = parts(joined([([A, left], 0.4), ([right, B], 0.0)]))[1]
    tail, head = round(0.37 * RATE), round(0.03 * RATE)
    assert np.array_equal(gap[: tail - FADE], left[: tail - FADE])
    assert np.array_equal(gap[-head + FADE :], right[-head + FADE :])
    assert gap[tail - 1] == 0
    assert np.sum(gap**2) < np.sum(left**2)


def test_a_single_segment_comes_out_byte_for_byte() -> None:
    whole = segment(0.7, A, 1.2)
    assert joined([([whole], 0.4)]).tobytes() == whole.tobytes()
    assert joined([(np.split(whole, [1, 7, 500, 9000]), 0.4)]).tobytes() == whole.tobytes()
    joiner = Joiner(RATE)
    (same,) = joiner.push(A)
    assert np.shares_memory(same, A)  # nor is audible sound copied
    assert joiner.finish() == []


def test_the_ends_of_the_stream_stay_as_they_are() -> None:
    first, last = segment(0.6, A, 0.5, 1), segment(0.5, B, 0.8, 7)
    found = joined([([first], 0.15), ([last], 0.4)])
    lead, end = round(0.6 * RATE), round(0.8 * RATE)
    assert np.array_equal(found[: lead + len(A)], first[: lead + len(A)])
    assert np.array_equal(found[-end - len(B) :], last[-end - len(B) :])
    assert len(found) == lead + len(A) + round(0.15 * RATE) + len(B) + end


def cut(samples: np.ndarray, sizes: Iterator[int]) -> list[np.ndarray]:
    pieces = []
    while len(samples):
        size = next(sizes)
        pieces.append(samples[:size])
        samples = samples[size:]
    return pieces


@pytest.mark.parametrize("seed", range(10))
def test_chunks_make_no_difference(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sounds = [
        np.concatenate(
            [
                np.concatenate(
                    [hush(draw.uniform(0, 0.6), k), tone(draw.uniform(0.001, 0.3), draw.uniform(0.001, 0.8), k)]
                )
                for k in range(draw.integers(0, 4))
            ]
            + [hush(draw.choice([0, 0.003, 0.3, 7.0]), 9, draw.choice([0, 0.05]))]
        )
        for _ in range(5)
    ]
    pauses = draw.choice([0.0, 0.02, 0.15, 0.4, 0.75], len(sounds))
    whole = joined([([sound], pause) for sound, pause in zip(sounds, pauses, strict=True)])
    for most in (3, 100, 2048, 30_000):
        if most == 3 and seed > 1:
            continue  # slow

        def sizes(most: int = most) -> Iterator[int]:
            while True:
                yield int(draw.integers(1, most + 1))

        found = joined([(cut(sound, sizes()), pause) for sound, pause in zip(sounds, pauses, strict=True)])
        assert found.tobytes() == whole.tobytes()


def test_audible_sound_is_not_held_back() -> None:
    joiner = Joiner(RATE)
    for start in range(0, len(A), 37):  # chunks that end within frames
        chunk = A[start : start + 37]
        out = joiner.push(chunk)
        assert sum(map(len, out)) >= len(chunk) - 1 or np.ptp(chunk) < 2e-3
    joiner.end_of_segment(0.4)
    (head, sound) = joiner.push(B)
    assert len(head) == round(0.03 * RATE)
    assert np.array_equal(sound, B)


def test_most_of_a_pause_is_handed_out_before_the_next_segment_exists() -> None:
    joiner = Joiner(RATE)
    joiner.push(A)
    assert sum(map(len, joiner.end_of_segment(0.4))) == round(0.37 * RATE)


def test_silence_within_a_segment_stays() -> None:
    sound = np.concatenate([A, hush(1.0, 1), B, np.zeros(RATE, np.float32), A])
    found = joined([([sound], 0.2), ([B], 0.0)])
    assert np.array_equal(found[: len(sound)], sound)


def test_segments_without_sound_add_no_more_than_the_longest_pause() -> None:
    silent = [([hush(2.0, k)], pause) for k, pause in enumerate([0.75, 0.2, 0.0])]
    found = joined([([A], 0.4), *silent, ([], 0.1), ([B], 0.0)])
    a, gap, b = parts(found)
    assert np.array_equal(a, A)
    assert np.array_equal(b, B)
    assert len(gap) == pytest.approx(0.75 * RATE, abs=0.03 * RATE)
    only = hush(0.8)
    assert joined([([only], 0.4)]).tobytes() == only.tobytes()
    assert np.array_equal(joined([([A], 0.4), ([only], 0.4)])[: len(A)], A)
    assert joined([]).size == joined([([], 0.4)]).size == 0


@pytest.mark.parametrize("offset", [0.05, -0.2])
def test_a_constant_offset_is_silence_and_does_not_click(offset: float) -> None:
    left, right = hush(1.0, 3, offset), hush(1.0, 4, offset)
    first, last = A * 0.5 + np.float32(offset), B * 0.5 + np.float32(offset)
    found = joined([([first, left], 0.4), ([right, last], 0.0)])
    assert len(found) == len(A) + round(0.4 * RATE) + len(B)
    assert np.array_equal(found[: len(A)], first)
    gap = np.abs(np.diff(found))[len(A) : -len(B)]
    assert gap.max() < abs(offset) * np.pi / 2 / FADE + 1e-3


def test_a_noise_floor_50_db_below_the_voice_is_silence() -> None:
    floor = (1.2e-3 * np.random.default_rng(0).uniform(-1, 1, RATE)).astype(np.float32)
    found = joined([([A, floor], 0.2), ([floor, B], 0.0)])
    assert len(found) == len(A) + round(0.2 * RATE) + len(B)
    quiet = tone(0.5, 0.01)
    assert len(joined([([quiet, floor[:FRAME]], 0.2), ([quiet], 0.0)])) > 2 * len(quiet)


def test_memory_is_bounded_by_five_seconds_of_silence() -> None:
    joiner, block = Joiner(RATE), np.zeros(RATE, np.float32)
    joiner.push(A)
    tracemalloc.start()
    handed = sum(len(piece) for _ in range(300) for piece in joiner.push(block))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert handed == 295 * RATE
    assert peak < 3 * 5 * RATE * 4
    joiner.end_of_segment(0.4)
    tracemalloc.start()
    assert sum(len(piece) for _ in range(300) for piece in joiner.push(block)) == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * RATE * 4


def test_of_a_longer_silence_no_more_than_the_excess_stays() -> None:
    found = joined([([A, np.zeros(7 * RATE, np.float32)], 0.4), ([B], 0.0)])
    assert len(parts(found)[1]) == 2 * RATE + FADE + round(0.03 * RATE)


def test_the_callers_array_may_be_used_again() -> None:
    joiner, buffer = Joiner(RATE), np.zeros(400, np.float32)
    buffer[:] = hush(400 / RATE)
    expected = buffer.copy()
    joiner.push(buffer)
    buffer[:] = 1.0
    assert np.array_equal(np.concatenate(joiner.finish()), expected)


def test_what_is_not_finite_passes_for_others_to_report() -> None:
    found = joined([([np.full(500, np.nan, np.float32)], 0.0), ([A], 0.0)])
    assert np.isnan(found[:500]).all()


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_any_sample_rate(rate: int) -> None:
    sound = np.where(np.arange(rate // 10 * 10) % 20 < 10, 0.3, -0.3).astype(np.float32)
    found = doubles.joined([([sound], 0.4), ([sound], 0.4)], rate)
    assert len(found) == 2 * len(sound) + round(0.4 * rate)


@pytest.mark.parametrize("pause_s", [-0.1, float("nan"), float("inf")])
def test_a_pause_that_is_none_is_refused(pause_s: float) -> None:
    with pytest.raises(InvalidOption, match="pause_s is"):
        Joiner(RATE).end_of_segment(pause_s)
