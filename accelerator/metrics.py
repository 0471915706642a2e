"""What a request measures about itself. Definitions are in `docs/operations.md`; each figure is defined once, here.

rtf      elapsed_s / audio_s: below 1 is faster than real time (rtfx is its inverse)
ttfa_s   from the call to the first chunk with a sample that is not silence
stages   seconds in text, reference, generate, decode, post; what is left of elapsed_s is waiting
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .hardware.forks import Lock

__all__ = ["Meter", "age_s", "current_meter", "measuring", "peak_rss_bytes"]

STAGES = ("text", "reference", "generate", "decode", "post")
SILENCE = 1e-3  # -60 dBFS

_current: contextvars.ContextVar[Meter | None] = contextvars.ContextVar("accelerator_meter", default=None)


class Meter:
    """Collects one request's figures; safe to feed from several threads."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lock = clock, Lock()
        self._start = clock()
        self._end: float | None = None
        self._stages = dict.fromkeys(STAGES, 0.0)
        self._samples, self._sample_rate = 0, 0
        self._ttfa: float | None = None
        self._ran: dict[str, set[tuple[str, bool]]] = {}  # part -> what answered, and whether that is the engine's own
        self.frames = 0
        self.fallback: list[dict[str, str]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's duration to a stage."""
        start = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - start)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._stages[stage] = self._stages.get(stage, 0.0) + seconds

    def used(self, part: str, backend: str, *, own: bool = False) -> None:
        """Note which backend answered. own: it is what the engine's own code runs on."""
        with self._lock:
            self._ran.setdefault(part, set()).add((backend, own))

    def by_original(self, part: str) -> bool:
        """Whether the engine's own code answered for a part, if only once."""
        with self._lock:
            return any(own for _, own in self._ran.get(part, ()))

    def fell_back(self, part: str, error: BaseException) -> None:
        with self._lock:
            self.fallback.append({"part": part, "reason": type(error).__name__, "message": str(error)})

    def stays(self, part: str, cause: str, message: str) -> None:
        """Note why a part was not even tried in ONNX Runtime; once, unless its failure is noted already."""
        with self._lock:
            if all(entry["part"] != part for entry in self.fallback):
                self.fallback.append({"part": part, "reason": cause, "message": message})

    def add_frames(self, count: int) -> None:
        with self._lock:
            self.frames += count

    def chunk(self, audio: np.ndarray, sample_rate: int) -> None:
        """Note a chunk of audio that is about to be handed out."""
        self._samples += len(audio)
        self._sample_rate = sample_rate
        if self._ttfa is None and len(audio) and float(np.abs(audio).max()) > SILENCE:
            self._ttfa = self._clock() - self._start

    def restart(self) -> None:
        """What was handed out is void, and speech begins anew; the time and the work that it took were spent."""
        self._samples, self._sample_rate, self._ttfa = 0, 0, None

    def finish(self) -> None:
        """The request is over now: time that passes later is not counted."""
        if self._end is None:
            self._end = self._clock()

    @property
    def finished(self) -> bool:
        return self._end is not None

    @property
    def audio_s(self) -> float:
        """Seconds of audio handed out so far."""
        return self._samples / self._sample_rate if self._sample_rate else 0.0

    def result(self) -> dict[str, Any]:
        """The figures so far."""
        elapsed = (self._clock() if self._end is None else self._end) - self._start
        audio_s = self.audio_s
        spoken = self._stages["generate"]
        with self._lock:
            ran = {part: frozenset(each) for part, each in self._ran.items()}
        return {
            "rtf": elapsed / audio_s if audio_s else None,
            "rtfx": audio_s / elapsed if elapsed else None,
            "audio_s": audio_s,
            "elapsed_s": elapsed,
            "ttfa_s": self._ttfa,
            "stages": dict(self._stages),
            "frames": self.frames,
            "frames_per_s": self.frames / spoken if spoken else 0.0,
            "backend": _in_a_word(frozenset().union(*ran.values())),
            "backends": {part: _in_a_word(each) for part, each in ran.items()},
            "fallback": [dict(f) for f in self.fallback],
            "peak_rss_bytes": peak_rss_bytes(),
        }


def _in_a_word(ran: frozenset[tuple[str, bool]]) -> str | None:
    """What ran: "hybrid" for the engine's own code beside a replacement, None for nothing."""
    if len({own for _, own in ran}) > 1:
        return "hybrid"
    return "+".join(sorted({backend for backend, _ in ran})) or None


def current_meter() -> Meter:
    """The meter of the request that this context serves; a throw-away one outside any request."""
    return _current.get() or Meter()


@contextlib.contextmanager
def measuring(meter: Meter) -> Iterator[Meter]:
    """Make `meter` the current one within the block. Threads see it if they run in a copy of this context."""
    token = _current.set(meter)
    try:
        yield meter
    finally:
        _current.reset(token)


def peak_rss_bytes() -> int:
    """The largest resident set this process has had, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def age_s() -> float:
    """Seconds since this process started, interpreter and imports included."""
    if sys.platform == "linux":  # psutil adds whole seconds of the boot time there
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            started = int(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    import psutil

    return time.time() - float(psutil.Process().create_time())
