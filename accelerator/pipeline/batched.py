"""A request spoken in segments that share a decode loop: text -> segments -> units -> windows of audio, in order.

    segments  ──generate──>  units  ──decoder──>  windows  ──joiner──>  audio
              (all at once, in one decode loop)  (of the first unfinished segment, as its units come)

One thread does all of it: pulling the units of one segment advances all segments, so that units of the next ones are
ready when they are needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..engines.base import Stages, Voice
from ..errors import GenerationError, InvalidInput
from ..metrics import Meter
from ..speech import SpeechRequest
from .spoken import TRIES, Spoken, as_audio, check_heard, joined, progress, segments_of

__all__ = ["STREAM_ROWS", "Batched"]

logger = logging.getLogger(__name__)

STREAM_ROWS = 2  # segments of a stream generated at once: with more, the one being heard would be too slow


class Batched:
    """Speaks one request of a batched engine."""

    def __init__(
        self,
        stages: Stages,
        request: SpeechRequest,
        voice: Voice,
        sample_rate: int,
        meter: Meter,
        *,
        rows: int,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """rows: segments generated at once. cancelled: asked before every unit; speech ends when it returns True.

        Raises InvalidText.
        """
        self._stages, self._rate, self._meter, self._streaming = stages, sample_rate, meter, request.streaming
        self._rows, self._cancelled = min(rows, STREAM_ROWS) if request.streaming else rows, cancelled
        self._all = segments_of(stages, request, meter, cancelled)
        self._voice = voice
        self._waits = len(self._all) > 1 and stages.waits(voice)
        self._begun = 0  # segments whose generation has begun
        self._active: list[Spoken] = []  # those of them with more units to come

    def speak(self) -> Iterator[np.ndarray]:
        """Audio in order. Raises what generating and decoding raise; GenerationError for a segment without audio."""
        try:
            if len(self._all) == 1:
                yield from self._windows(self._all[0])
            else:
                windows = ((spoken, self._windows(spoken)) for spoken in self._all)
                yield from joined(windows, self._all[-1], self._rate, self._meter)
        finally:
            for spoken in self._all:
                spoken.close()

    def progress(self) -> list[dict[str, Any]]:
        """See `spoken.progress`."""
        return progress(self._all, self._rate)

    def _windows(self, spoken: Spoken) -> Iterator[np.ndarray]:
        """A segment's audio while its units, and those of later segments, are generated."""
        while not spoken.heard:
            if not spoken.done:
                self._advance()
            window = self._window(spoken)
            spoken.heard = spoken.ended or (spoken.done and not spoken.drawn)
            if window is not None and len(window):
                yield window
        spoken.units, spoken.decoder = [], None
        if not spoken.samples:
            raise GenerationError(f"the engine produced no audio for {spoken.segment.text!r}: try another seed or text")

    def _window(self, spoken: Spoken) -> np.ndarray | None:
        """The next window of audio, if there are enough units: all of them at the end, otherwise a stream's window."""
        ready, sizes = spoken.drawn - spoken.decoded, self._stages.windows if self._streaming else ()
        wanted = max(1, sizes[min(spoken.windows, len(sizes) - 1)]) if sizes else ready
        if not spoken.drawn or not (spoken.done or (sizes and ready >= wanted)):
            return None
        size = min(ready, wanted)
        spoken.ended = spoken.done and size == ready  # perhaps without units: a decoder may have held audio back
        units = spoken.units[spoken.decoded : spoken.decoded + size]
        if spoken.decoder is None:
            spoken.decoder = self._stages.decoder(spoken.voice, spoken.job)
        audio = as_audio(spoken.decoder.push(units, final=spoken.ended))
        spoken.decoded += size
        spoken.windows += 1
        spoken.samples += len(audio)
        return audio

    def _advance(self) -> None:
        """At least one more unit, or the end, of every segment that is being generated."""
        check_heard(self._cancelled)
        self._begin()
        for spoken in self._active:
            self._pull(spoken)
        self._active = [spoken for spoken in self._active if not spoken.done]

    def _begin(self) -> None:
        """Start as many segments as may join the decode loop."""
        while self._begun < len(self._all):
            first = self._all[0]
            if len(self._active) >= self._rows:
                return
            if self._begun and not first.done and (self._waits or self._streaming):
                return  # a stream's listener waits for it; without a voice the rest of the text does
            spoken = self._all[self._begun]
            spoken.voice, spoken.begun = self._voice, True
            self._active.append(spoken)
            self._begun += 1

    def _pull(self, spoken: Spoken) -> None:
        """The segment's next units. A failed segment is continued once; one that says nothing is tried anew."""
        try:
            units = next(self._source(spoken), None)
        except InvalidInput:
            raise
        except Exception as error:
            spoken.source = None
            if spoken.tries >= TRIES:
                raise
            logger.warning("a segment failed at unit %d and is redone: %s", spoken.drawn, error)
            return
        if units is not None:
            spoken.units.extend(units)
            spoken.drawn += len(units)
        elif self._is_whole(spoken):
            spoken.done = True
            if self._waits and spoken is self._all[0] and spoken.drawn:
                self._voice = self._stages.continued(spoken.segment, spoken.units, spoken.voice)
        else:
            spoken.units, spoken.drawn, spoken.source = [], 0, None
            spoken.job = spoken.job.anew(len(self._all))

    def _is_whole(self, spoken: Spoken) -> bool:
        """Whether a segment that has ended may be what its text says; False for one to be tried anew.

        Raises GenerationError if it may not be, and cannot be tried anew.
        """
        if not spoken.drawn:
            return spoken.tries >= TRIES or len(self._all) == 1
        if self._stages.unit_s is None:
            return True
        limit = spoken.job.sampling.max_new_tokens
        seconds, least = spoken.drawn * self._stages.unit_s, self._stages.shortest(spoken.segment.text)
        if seconds >= least or (limit is not None and spoken.drawn >= limit):
            return True
        if spoken.tries < TRIES and not spoken.decoded:
            return False
        raise GenerationError(
            f"the engine ended after {seconds:.2f} s, and {spoken.segment.text.strip()!r} takes at least {least:.2f} "
            "s: try another seed, text or reference"
        )

    def _source(self, spoken: Spoken) -> Iterator[Any]:
        if spoken.source is None:
            spoken.tries += 1
            spoken.source = iter(
                self._stages.generate(spoken.segment, spoken.voice, spoken.job, resume=list(spoken.units))
            )
        return spoken.source
