"""A request to a feed-forward engine: text -> segments -> audio, several segments at once on threads of their own.

    segments  ──say──>  audio  ──joins──>  chunks
              (one alone, or each in a thread of the pool, a few ahead of the listener)

Such an engine makes a segment's audio in one go. With a thread for each segment nothing waits for the slowest thread of
each operator, and the next segments are ready when the first one has been heard.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..audio.joiner import Joiner
from ..engines.base import Utterer, Voice
from ..errors import GenerationError, InvalidInput, InvalidText
from ..hardware.forks import renewed_in_children
from ..metrics import Meter
from ..speech import AudioChunk, SamplingParams, SpeechRequest, segment_seed
from ..text.segments import Segment, split

__all__ = ["PoolSpeaker", "Workers"]

logger = logging.getLogger(__name__)

FIRST = 80  # letters of a stream's first segment, at most if a clause ends there: it is spoken soon
_TRIES = 2  # of a segment that fails


@dataclass
class _Uttered:
    """A segment on its way."""

    segment: Segment
    sampling: SamplingParams
    future: Future[np.ndarray] | None = None
    tries: int = 0
    samples: int = 0
    state: str = "waiting"


class Workers:
    """Who speaks at once: no more than `count` segments, of whichever requests. Safe to use from several threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a child nobody speaks yet."""
        self._free = threading.Semaphore(self.count)
        self._lock = threading.Lock()
        self._speaking = 0

    @contextlib.contextmanager
    def one(self, alone: bool) -> Iterator[bool]:
        """Wait for a place; whether it is `alone` that the segment may still be spoken."""
        with self._free:
            with self._lock:
                self._speaking += 1
                alone = alone and self._speaking == 1
            try:
                yield alone
            finally:
                with self._lock:
                    self._speaking -= 1


class PoolSpeaker:
    """Speaks one request."""

    def __init__(
        self,
        utterer: Utterer,
        request: SpeechRequest,
        voice: Voice,
        sample_rate: int,
        meter: Meter,
        *,
        workers: Workers,
        streaming: bool,
        segments: list[Segment] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """As `speaking.Speaker`. workers: who else speaks; as many segments more may wait to be heard."""
        self._utterer, self._voice, self._rate, self._meter = utterer, voice, sample_rate, meter
        self._workers, self._streaming, self._cancelled = workers, streaming, cancelled
        with meter.stage("text"):
            if segments is None:
                first = min(FIRST, utterer.comfortable) if streaming else None
                segments = split(request.text, comfortable=utterer.comfortable, longest=utterer.longest, first=first)
        self._all = [_Uttered(s, segment_seed(request.sampling, i)) for i, s in enumerate(segments)]

    def speak(self) -> Iterator[AudioChunk]:
        """Audio in order. Raises what the engine raises, and InvalidText for a text in which it finds no sound."""
        sounded = False
        for audio in self._alone(self._all[0]) if len(self._all) == 1 else self._joined():
            sounded = True
            yield AudioChunk(audio, self._rate)
        if not sounded:
            raise InvalidText("the text has no sound that this voice knows: is it in another language or script?")

    def progress(self) -> list[dict[str, Any]]:
        """Per segment: its text, seconds spoken, and its state."""
        return [
            {
                "text": each.segment.text,
                "frames": 0,
                "audio_s": each.samples / self._rate,
                "tries": each.tries,
                "state": each.state,
            }
            for each in self._all
        ]

    def _alone(self, uttered: _Uttered) -> Iterator[np.ndarray]:
        """A segment on all of the session's threads, in this one."""
        audio = self._say(uttered, alone=True)
        uttered.state = "done"
        if len(audio):
            yield audio

    def _joined(self) -> Iterator[np.ndarray]:
        joiner, last = Joiner(self._rate), self._all[-1]
        for uttered, audio in self._uttered():
            uttered.state = "done"
            with self._meter.stage("post"):
                pieces = joiner.push(audio)
                if uttered is last:
                    pieces += joiner.finish()
                elif len(audio):  # what has no sound has no pause of its own
                    pieces += joiner.end_of_segment(uttered.segment.pause_s)
                whole = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
            if len(whole):
                yield whole

    def _uttered(self) -> Iterator[tuple[_Uttered, np.ndarray]]:
        waiting = deque(self._all)
        if self._streaming:  # somebody listens already: all threads for the first one
            first = waiting.popleft()
            yield first, next(self._alone(first), np.zeros(0, np.float32))
        with ThreadPoolExecutor(self._workers.count, "accelerator-segment") as pool:
            ahead: deque[_Uttered] = deque()
            try:
                while waiting or ahead:
                    while waiting and len(ahead) < 2 * self._workers.count:
                        ahead.append(waiting.popleft())
                        run = contextvars.copy_context().run  # the request's meter is found there
                        ahead[-1].future = pool.submit(run, self._say, ahead[-1], alone=False)
                    uttered = ahead.popleft()
                    assert uttered.future is not None
                    yield uttered, uttered.future.result()
                    uttered.future = None  # nor its audio
            finally:
                for uttered in ahead:
                    if uttered.future is not None:
                        uttered.future.cancel()

    def _say(self, uttered: _Uttered, *, alone: bool) -> np.ndarray:
        """The segment's audio. What fails is tried once more."""
        uttered.state = "speaking"
        while True:
            if self._cancelled():
                raise GenerationError("nobody listens any more")
            uttered.tries += 1
            try:
                with self._workers.one(alone) as only:
                    text = uttered.segment.text.strip()
                    audio = self._utterer.say(text, self._voice, uttered.sampling, alone=only)
            except InvalidInput:
                raise
            except Exception as error:
                if uttered.tries >= _TRIES:
                    raise
                logger.warning("a segment failed and is redone: %s", error)
                continue
            uttered.samples = len(audio)
            return audio
