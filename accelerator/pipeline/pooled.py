"""A request to a feed-forward engine: text -> segments -> audio, several segments at once on threads of their own.

    segments  ──generate, decoder──>  audio  ──joiner──>  chunks
              (a single one exclusively, or each in a thread of the pool, a few ahead of the listener)

Such an engine makes a segment's audio in one go. With one thread per segment, operators do not wait for their slowest
thread. Where that is slower (`pooling`), the pool has one thread, and each segment all cores. Either way the next
segments are ready once the first one has been heard.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from ..engines.base import Stages, Unit, Voice
from ..errors import EngineError, InvalidInput, InvalidText
from ..hardware.forks import renewed_in_children
from ..metrics import Meter
from ..speech import SpeechRequest
from .spoken import TRIES, Spoken, as_audio, check_heard, joined, progress, segments_of

__all__ = ["Pooled", "Workers"]

logger = logging.getLogger(__name__)


class Workers:
    """Bounds concurrent segments of all requests to `count`. Safe to use from several threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a forked child nothing is being spoken."""
        self._free = threading.Semaphore(self.count)
        self._lock = threading.Lock()
        self._speaking = 0

    @contextlib.contextmanager
    def one(self, exclusive: bool) -> Iterator[bool]:
        """Wait for a place; yields whether the segment is still `exclusive`, with no other being spoken."""
        with self._free:
            with self._lock:
                self._speaking += 1
                exclusive = exclusive and self._speaking == 1
            try:
                yield exclusive
            finally:
                with self._lock:
                    self._speaking -= 1


class Pooled:
    """Speaks one request of a pooled engine."""

    def __init__(
        self,
        stages: Stages,
        request: SpeechRequest,
        voice: Voice,
        sample_rate: int,
        meter: Meter,
        *,
        workers: Workers,
        at_once: Callable[[], int] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """workers: shared by all requests. at_once: how many segments of this one are spoken at once, asked if there
        are several (None: as many as there are workers); as many again may wait to be heard. Raises InvalidText.
        """
        self._stages, self._voice, self._rate, self._meter = stages, voice, sample_rate, meter
        self._workers, self._streaming, self._cancelled = workers, request.streaming, cancelled
        self._at_once = at_once or (lambda: workers.count)
        self._all = segments_of(stages, request, meter, cancelled)

    def speak(self) -> Iterator[np.ndarray]:
        """Audio in order. Raises what the engine raises, and InvalidText for a text in which it finds no sound."""
        sounded = False
        for audio in self._first(self._all[0]) if len(self._all) == 1 else self._joined():
            sounded = True
            yield audio
        if not sounded:
            raise InvalidText("the text has no sound that this voice knows: is it in another language or script?")

    def progress(self) -> list[dict[str, Any]]:
        """See `spoken.progress`."""
        return progress(self._all, self._rate)

    def _first(self, spoken: Spoken) -> Iterator[np.ndarray]:
        """A segment on all threads, in this one; window by window if somebody listens and the engine can."""
        if self._streaming and self._stages.windows:
            yield from self._in_windows(spoken)
        else:
            audio = self._say(spoken, exclusive=True)
            if len(audio):
                yield audio
        spoken.heard = True

    def _in_windows(self, spoken: Spoken) -> Iterator[np.ndarray]:
        """What fails before its first audio is out is tried once more."""
        spoken.begun = True
        while True:
            check_heard(self._cancelled)
            spoken.tries, spoken.drawn, spoken.samples = spoken.tries + 1, 0, 0
            try:
                with self._workers.one(True) as alone:
                    for audio in self._windows_of(spoken, alone):
                        spoken.samples += len(audio)
                        yield audio
                return
            except (InvalidInput, EngineError):  # another try would say the same
                raise
            except Exception as error:
                if spoken.tries >= TRIES or spoken.samples:
                    raise
                logger.warning("a segment failed and is redone: %s", error)

    def _windows_of(self, spoken: Spoken, exclusive: bool) -> Iterator[np.ndarray]:
        job = replace(spoken.job, exclusive=exclusive)
        decoder, sizes = self._stages.decoder(self._voice, job), iter(self._stages.windows)
        waiting, size = list[Unit](), next(sizes)
        for units in self._stages.generate(spoken.segment, self._voice, job):
            waiting.extend(units)
            self._count(spoken, len(units))
            while len(waiting) > size:  # not those at the end, which are final
                window, waiting = waiting[:size], waiting[size:]
                yield from _sounding(decoder.push(window, final=False))
                check_heard(self._cancelled)
                size = next(sizes, size)
        yield from _sounding(decoder.push(waiting, final=True))

    def _joined(self) -> Iterator[np.ndarray]:
        return joined(self._windows(), self._all[-1], self._rate, self._meter)

    def _windows(self) -> Iterator[tuple[Spoken, Iterator[np.ndarray]]]:
        waiting = deque(self._all)
        if self._streaming:  # a listener is waiting: all threads for the first segment
            first = waiting.popleft()
            yield first, self._first(first)
        count = self._at_once()
        with ThreadPoolExecutor(count, "accelerator-segment") as pool:
            ahead: deque[tuple[Spoken, Future[np.ndarray]]] = deque()
            try:
                while waiting or ahead:
                    while waiting and len(ahead) < 2 * count:
                        spoken = waiting.popleft()
                        run = contextvars.copy_context().run  # carries the request's meter
                        ahead.append((spoken, pool.submit(run, self._say, spoken, exclusive=count == 1)))
                    spoken, future = ahead.popleft()
                    audio = future.result()
                    del future  # so that its audio is freed once heard
                    spoken.heard = True
                    yield spoken, iter([audio] if len(audio) else [])
            finally:
                for _, future in ahead:
                    future.cancel()

    def _say(self, spoken: Spoken, *, exclusive: bool) -> np.ndarray:
        """The segment's audio; a failure is tried once more."""
        spoken.begun = True
        while True:
            check_heard(self._cancelled)
            spoken.tries, spoken.drawn = spoken.tries + 1, 0
            try:
                with self._workers.one(exclusive) as still_exclusive:
                    audio = self._audio(spoken, still_exclusive)
            except (InvalidInput, EngineError):  # another try would say the same
                raise
            except Exception as error:
                if spoken.tries >= TRIES:
                    raise
                logger.warning("a segment failed and is redone: %s", error)
                continue
            spoken.samples = len(audio)
            return audio

    def _audio(self, spoken: Spoken, exclusive: bool) -> np.ndarray:
        job = replace(spoken.job, exclusive=exclusive)
        units: list[Unit] = []
        for more in self._stages.generate(spoken.segment, self._voice, job):
            units.extend(more)
            self._count(spoken, len(more))
        if not units:
            return np.zeros(0, np.float32)
        return as_audio(self._stages.decoder(self._voice, job).push(units, final=True))

    def _count(self, spoken: Spoken, units: int) -> None:
        """Of an engine without windows a unit is no frame, but a segment's audio."""
        spoken.drawn += units if self._stages.windows else 0


def _sounding(answer: Any) -> Iterator[np.ndarray]:
    audio = as_audio(answer)
    if len(audio):
        yield audio
