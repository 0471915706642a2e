"""Segments of speech -> one stream: the pauses that the text calls for, no clicks, nothing audible changed.

    ... last audible frame | tail: the engine's own silence, then zeros | head: silence again | first audible frame ...
                           |<---------------------- exactly pause_s ----------------------->|

All but the head is handed out as soon as a segment has ended, so that a listener hears the pause while the next one is
being made. Only silence is ever held back, cut or faded. Where silence was cut, a raised cosine fades what is kept;
where a segment ends or begins away from zero, a ramp of the same shape leads to or from zero, within the pause.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from ..errors import InvalidOption
from ..metrics import SILENCE

__all__ = ["Joiner"]

_FRAME_S = 0.010  # the unit that is silent or not
_FADE_S = 0.005
_HEAD_S = 0.030  # of the pause, kept for what leads into the next segment: a breath, a soft onset
_HOLD_S = 5.0  # silence held back at most: 0.9 MB at 44.1 kHz
_BELOW_PEAK = 0.003  # -50 dB: an engine's noise floor is not speech


class Joiner:
    """Joins segments, each pushed in chunks of float32 mono [n] at `sample_rate` Hz; use it for one stream.

        for each segment but the last: push(chunk) ..., end_of_segment(pause_s)
        the last one:                  push(chunk) ..., finish()

    Each call returns the chunks that can be handed out now, in order. How a segment is cut into chunks makes no
    difference to the samples. Audible frames come out unchanged, sample for sample, and without delay; between two
    segments lie `pause_s` seconds, but at least 10 ms. A single segment comes out entirely unchanged. A segment with
    nothing audible adds no more than the longer of the two pauses next to it. Of a silence at a segment's end, what
    exceeds 5 s is kept. A frame of 10 ms is silent when it deviates from its mid-level by less than -60 dB of
    full scale or -50 dB of the loudest one so far; so a constant offset is silence.
    """

    def __init__(self, sample_rate: int) -> None:
        self._frame, self._fade, self._hold = (max(2, round(sample_rate * s)) for s in (_FRAME_S, _FADE_S, _HOLD_S))
        self._sample_rate = sample_rate
        self._held: deque[np.ndarray] = deque()  # silence that may turn out to be a segment's end, or its beginning
        self._held_samples = 0
        self._last = 0.0  # the last sample handed out
        self._gap = 0  # samples of silence handed out since the last audible frame
        self._head: int | None = None  # samples of the pause still to come, while a segment has not yet begun to sound
        self._peak = 0.0  # deviation of the loudest frame so far
        self._begin_frame()

    def _begin_frame(self) -> None:
        self._filled, self._low, self._high, self._sounds = 0, np.inf, -np.inf, False

    def push(self, chunk: np.ndarray) -> list[np.ndarray]:
        """More of the segment, float32 [n]; returns what, with what was held back, is known not to be its end."""
        samples = np.asarray(chunk, np.float32).reshape(-1)
        if not len(samples):
            return []
        before = self._held_samples
        first, end = self._judge(samples)
        self._held.append(samples)
        self._held_samples += len(samples)
        out: list[np.ndarray] = []
        if first is not None:
            if self._head is not None:
                silence = self._take(before + first)
                out.append(_fading_in(silence, float(self._held[0][0]), self._head, self._fade))
                before = -first
            out += self._take(before + end)
            self._head, self._gap = None, 0
        if self._head is not None:  # of a beginning, hold only what may be kept
            self._take(max(0, self._held_samples - self._head - self._frame))
        elif (excess := self._held_samples - self._hold) > 0:
            out += self._take(excess)
            self._gap += excess
        if self._held:  # the caller may use its array again
            self._held[-1] = self._held[-1].copy()
        return self._handed_out(out)

    def end_of_segment(self, pause_s: float) -> list[np.ndarray]:
        """The segment is complete and another one follows, `pause_s` seconds later."""
        if not math.isfinite(pause_s) or pause_s < 0:
            raise InvalidOption(f"pause_s is {pause_s}: give seconds, at least 0")
        pause = max(round(pause_s * self._sample_rate), 2 * self._fade)
        head = min(round(_HEAD_S * self._sample_rate), pause // 2)
        held = self._take(self._held_samples)
        if self._head is None:
            tail = _fading_out(held, self._last, max(pause - head - self._gap, self._fade), self._fade)
        else:  # nothing sounded: it was no more than a part of the pause
            tail = np.zeros(max(0, pause - head - self._gap), np.float32)
        self._gap += len(tail)
        self._head = head
        self._begin_frame()
        return self._handed_out([tail])

    def finish(self) -> list[np.ndarray]:
        """The last segment is complete; its end comes out unchanged."""
        held = self._take(self._held_samples)
        return self._handed_out(held if self._head is None else [])

    def _judge(self, samples: np.ndarray) -> tuple[int | None, int]:
        """Where the first audible frame begins in the samples, and where the last one ends as far as known.

        The first is negative if it lies in what is held, None without one.
        """
        starts = np.arange(self._frame - self._filled, len(samples), self._frame)
        starts = np.concatenate([[0], starts])
        lows, highs = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
        first, last_end = None, 0
        for start, end, low, high in zip(
            starts.tolist(), [*starts[1:].tolist(), len(samples)], lows.tolist(), highs.tolist(), strict=True
        ):
            self._low, self._high = min(self._low, low), max(self._high, high)
            deviation = (self._high - self._low) / 2
            silent = deviation < max(SILENCE, _BELOW_PEAK * self._peak) and not math.isnan(low)  # not ours to hide
            self._sounds = self._sounds or not silent  # once audible, a frame stays so
            if self._sounds:
                first = start - self._filled if first is None else first
                last_end = end
            self._filled += end - start
            if self._filled == self._frame:
                self._peak = max(self._peak, deviation) if math.isfinite(deviation) else self._peak
                self._begin_frame()
        return first, last_end

    def _take(self, count: int) -> list[np.ndarray]:
        """Release the oldest `count` held samples."""
        out = []
        self._held_samples -= count
        while count > 0:
            chunk = self._held.popleft()
            if len(chunk) > count:
                self._held.appendleft(chunk[count:])
                chunk = chunk[:count]
            count -= len(chunk)
            out.append(chunk)
        return out

    def _handed_out(self, chunks: list[np.ndarray]) -> list[np.ndarray]:
        chunks = [chunk for chunk in chunks if len(chunk)]
        if chunks:
            self._last = float(chunks[-1][-1])
        return chunks


def _fading_out(silence: list[np.ndarray], level: float, room: int, fade: int) -> np.ndarray:
    """`room` samples: the silence as far as it fits, a fall to 0 within `fade` samples, then zeros.

    level: the sample at which the fall begins if there is no silence.
    """
    out = np.zeros(room, np.float32)
    own = np.concatenate([out[:0], *silence])[:room]
    end = min(len(own) + fade, room) if len(own) < room else room
    out[: len(own)] = own
    out[len(own) : end] = own[-1] if len(own) else level
    out[end - fade : end] *= 0.5 + 0.5 * np.cos(np.pi * (np.arange(fade, dtype=np.float32) + 1) / fade)
    return out


def _fading_in(silence: list[np.ndarray], level: float, room: int, fade: int) -> np.ndarray:
    """The same backwards: zeros, a rise, and the end of the silence."""
    return _fading_out([chunk[::-1] for chunk in reversed(silence)], level, room, fade)[::-1]
