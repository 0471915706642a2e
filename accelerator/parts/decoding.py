"""A segment decoded window by window: by a decoder with a memory, or without, or by one that looks ahead, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BadOutput
from .part import Call

__all__ = [
    "Decoding",
    "Joined",
    "Lookahead",
    "Window",
    "check_codes",
    "continuing",
    "overlapping",
    "resuming",
    "windowed",
]


class Decoding:
    """One segment, decoded window by window; the windows join to exactly the whole.

    call(codes [C, m], after=...): a route to a decoder part. A stateless decoder gets `context` frames before the
    window, and their audio is cut off (see `windowed`); a stateful one keeps its state in `state`. late: the samples by
    which the codec delays its audio.
    """

    def __init__(self, call: Call, context: int, samples_per_frame: int, late: int = 0) -> None:
        self._call, self._context, self._late, self.samples_per_frame = call, context, late, samples_per_frame
        self.seen: np.ndarray | None = None  # the context's codes [C, up to context]
        self.state: Any = None  # the decoder's own; None before it begins, or after a failure

    def push(self, units: Sequence[np.ndarray], *, final: bool = False) -> np.ndarray:
        """The audio of the next frames [1 + C] each, float32 [n]. Holds nothing back."""
        if not units:
            return np.zeros(0, np.float32)
        codes = np.stack(units, axis=1)[1:]
        audio = np.asarray(self._call(codes, after=self))
        joined = codes if self.seen is None else np.concatenate([self.seen, codes], axis=1)
        self.seen = joined[:, max(0, joined.shape[1] - self._context) :]
        cut = min(self._late, len(audio))
        self._late -= cut
        return audio[cut:]


class Joined:
    """For engines whose units are audio already, float32 [n] each."""

    def push(self, units: Sequence[np.ndarray], *, final: bool = False) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *units])


@dataclass(frozen=True)
class Window:
    """Units of a segment for a decoder that looks to both sides.

    units: [C, n], the first of which is number `first`. start, end: those among all that are to be heard; the others
    are looked at. final: whether the segment ends with these units. kept: for a decoder with a memory, which may keep
    there what it needs for the windows that follow.
    """

    units: np.ndarray
    first: int
    start: int
    end: int
    final: bool
    kept: dict[str, Any]

    def heard(self, audio: np.ndarray) -> np.ndarray:
        """The part that is to be heard, of all units' audio."""
        hop = len(audio) // self.units.shape[1]
        return audio[(self.start - self.first) * hop : (self.end - self.first) * hop]


class Lookahead:
    """One segment, decoded by what looks `reach` units to both sides; its windows join to what the whole would be.

    decode: a `Window` -> the audio that is to be heard of it. reach: None where that is not known: the whole is decoded
    at once. most: units decoded at once, beside those that are looked at; memory does not grow beyond that.
    """

    def __init__(self, decode: Callable[[Window], np.ndarray], reach: int | None, most: int = 512) -> None:
        self._decode, self._reach, self._most = decode, reach, most
        self._units: list[np.ndarray] = []
        self._dropped = 0  # units before the first that is kept
        self._done = 0  # units whose audio is out
        self._kept = dict[str, Any]()

    def push(self, units: Sequence[np.ndarray], *, final: bool = False) -> np.ndarray:
        """The audio of all units that what they look at is known for, float32 [n]. units: [C] each."""
        self._units += units
        end = self._dropped + len(self._units)
        ready = end if final else 0 if self._reach is None else end - self._reach
        audio = [np.zeros(0, np.float32)]
        while self._done < ready:
            until = ready if self._reach is None else min(ready, self._done + self._most)
            audio.append(self._window(until, final=final and until + (self._reach or 0) >= end))
        return np.concatenate(audio)

    def _window(self, until: int, *, final: bool) -> np.ndarray:
        reach = self._reach or 0
        first = max(self._dropped, self._done - reach)
        units = self._units[first - self._dropped : until + reach - self._dropped]
        audio = self._decode(Window(np.stack(units, axis=1), first, self._done, until, final, self._kept))
        self._done, kept = until, max(self._dropped, until - reach)
        del self._units[: kept - self._dropped]
        self._dropped = kept
        return audio


class _Ongoing:
    """A stream that takes each unit once. stream: has push(units [n], final=...), whose audio may come later."""

    def __init__(self, stream: Any, first: int, hop: int) -> None:
        self._stream, self._taken, self._hop = stream, first, hop
        self._audio, self._begins = np.zeros(0, np.float32), first * hop  # what was not heard yet, from which sample on
        self._ended = False

    def heard(self, window: Window) -> np.ndarray:
        """Raises BadOutput if the stream owes audio."""
        new = window.units[0, self._taken - window.first :]
        self._taken += len(new)
        if not self._ended:
            self._audio = np.concatenate([self._audio, self._stream.push(new, final=window.final)])
            self._ended = window.final
        start, end = (each * self._hop - self._begins for each in (window.start, window.end))
        if len(self._audio) < end:
            raise BadOutput(f"{end - len(self._audio)} samples of audio are missing")
        audio, self._audio, self._begins = self._audio[start:end], self._audio[end:], self._begins + end
        return audio


def overlapping(decode: Call) -> Call:
    """A decoder without memory, units [n], more -> audio, as a call that also takes `window`, whose units these are."""

    def call(units: np.ndarray, *more: Any, window: Window | None = None) -> np.ndarray:
        audio = np.asarray(decode(units, *more))
        return audio if window is None else window.heard(audio)

    return call


def continuing(decode: Any) -> Call:
    """A decoder with a memory, as a call that also takes `window`: each unit is decoded once, and not again where
    windows overlap.

    decode: units [n], more -> audio; decode.stream(more) makes an object whose push(units, final=...) goes on where the
    last one ended; decode.hop: samples of a unit.
    """

    def call(units: np.ndarray, *more: Any, window: Window | None = None) -> np.ndarray:
        if window is None:
            return np.asarray(decode(units, *more))
        ongoing = window.kept.pop("stream", None)  # dropped if this fails
        if ongoing is None:
            ongoing = _Ongoing(decode.stream(*more), window.first, decode.hop)
        audio = ongoing.heard(window)
        window.kept["stream"] = ongoing
        return np.asarray(audio)

    return call


def windowed(decode: Call) -> Call:
    """A stateless decoder, codes [C, m] -> audio, as a call that also takes `after`, a `Decoding`."""

    def call(codes: np.ndarray, *, after: Decoding | None = None) -> np.ndarray:
        if after is None or after.seen is None or not after.seen.shape[1]:
            return np.asarray(decode(codes))
        audio = np.asarray(decode(np.concatenate([after.seen, codes], axis=1)))
        return audio[after.seen.shape[1] * after.samples_per_frame :]

    return call


def resuming(decode: Any) -> Call:
    """A stateful decoder, as a call that takes `after`, a `Decoding`.

    decode: codes -> audio; decode.stream() makes an object whose push(codes) continues where the last one ended.
    """

    def call(codes: np.ndarray, *, after: Decoding | None = None) -> np.ndarray:
        if after is None:
            return decode(codes)
        stream, after.state = after.state, None  # dropped if this fails
        if stream is None:
            stream = decode.stream()
            if after.seen is not None and after.seen.shape[1]:
                stream.push(after.seen)  # what PyTorch has decoded meanwhile
        audio = stream.push(codes)
        after.state = stream
        return np.asarray(audio)

    return call


def check_codes(codes: np.ndarray, size: int | None = None) -> None:
    """Raises BadOutput if there are no codes [C, n], or any is negative or not below `size`."""
    if not codes.size:
        raise BadOutput("no codes")
    if int(codes.min()) < 0 or (size is not None and int(codes.max()) >= size):
        raise BadOutput(f"codes from {int(codes.min())} to {int(codes.max())}, the codebook has {size}")
