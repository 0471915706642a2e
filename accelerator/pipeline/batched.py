"""A request spoken in pieces: text -> segments -> frames, several segments at once -> windows of audio, in order.

    segments  ──prompt──>  frames of codes  ──windows──>  audio  ──joins──>  chunks
              (all at once, in one decode loop)  (the first that is not finished, as its frames come)

One thread does all of it: pulling the frames of one segment advances all (see `scheduler`), so that those of the next
ones are ready when their turn comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..audio.joiner import Joiner
from ..engines.base import Decoding, Pieces, Voice
from ..errors import GenerationError, InvalidInput
from ..inference.batcher import ROWS
from ..inference.sequence import Batching
from ..metrics import Meter
from ..speech import AudioChunk, SamplingParams, SpeechRequest, segment_seed
from ..text.segments import Segment, speech_weight, split

__all__ = ["WINDOWS", "Speaker", "shortest"]

logger = logging.getLogger(__name__)

WINDOWS = (4, 8, 16, 32, 64)  # frames of a stream's windows: the first audio soon, then less of it decoded twice
STREAM_ROWS = 2  # segments of a stream generated at once: more would make the one that is heard too slow
_TRIES = 2  # of a segment that fails, or says nothing


@dataclass
class _Spoken:
    """A segment on its way."""

    segment: Segment
    sampling: SamplingParams
    frames: list[np.ndarray] = field(default_factory=list)  # [1 + C] each
    source: Iterator[np.ndarray] | None = None
    voice: Voice = field(default_factory=Voice)
    decoding: Decoding | None = None
    done: bool = False  # no more frames will come
    tries: int = 0
    drawn: int = 0  # frames so far
    decoded: int = 0  # frames that are audio already
    windows: int = 0
    samples: int = 0

    @property
    def finished(self) -> bool:
        return self.done and self.decoded == self.drawn


class Speaker:
    """Speaks one request."""

    def __init__(
        self,
        pieces: Pieces,
        request: SpeechRequest,
        voice: Voice,
        sample_rate: int,
        meter: Meter,
        *,
        streaming: bool,
        segments: list[Segment] | None = None,
        rows: int = ROWS,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """segments: of the text, which is cut up here unless they are given. streaming: audio as soon as there is any.

        rows: segments that are generated at once. cancelled: asked before every frame; speech ends when it says so.
        """
        self._pieces, self._rate, self._meter, self._streaming = pieces, sample_rate, meter, streaming
        self._rows, self._cancelled = min(rows, STREAM_ROWS) if streaming else rows, cancelled
        with meter.stage("text"):
            if segments is None:
                segments = split(request.text, comfortable=pieces.comfortable, longest=pieces.longest, read=pieces.read)
        self._voice = voice
        self._waits = len(segments) > 1 and not voice.turns and voice.name is None  # for the first one's voice
        self._all = [_Spoken(s, segment_seed(request.sampling, i)) for i, s in enumerate(segments)]
        self._begun = 0  # segments whose generation has begun
        self._active: list[_Spoken] = []  # of these, the ones with more frames to come

    def speak(self) -> Iterator[AudioChunk]:
        """Audio in order. Raises what generating and decoding raise; GenerationError for a segment without audio."""
        try:
            audio = self._windows(self._all[0]) if len(self._all) == 1 else self._joined()
            for piece in audio:
                yield AudioChunk(piece, self._rate)
        finally:
            for spoken in self._all:
                _close(spoken)

    def progress(self) -> list[dict[str, Any]]:
        """Per segment: its text, frames drawn, seconds spoken, and its state."""
        states = []
        for number, spoken in enumerate(self._all):
            state = "done" if spoken.finished else "speaking"
            states.append(
                {
                    "text": spoken.segment.text,
                    "frames": spoken.drawn,
                    "audio_s": spoken.samples / self._rate,
                    "tries": spoken.tries,
                    "state": state if number < self._begun else "waiting",
                }
            )
        return states

    def _joined(self) -> Iterator[np.ndarray]:
        joiner, last = Joiner(self._rate), self._all[-1]
        for spoken in self._all:
            for window in self._windows(spoken):
                yield from self._post(joiner.push, window)
            if spoken is last:
                yield from self._post(joiner.finish)
            else:
                yield from self._post(joiner.end_of_segment, spoken.segment.pause_s)

    def _post(self, work: Callable[..., list[np.ndarray]], *arguments: Any) -> Iterator[np.ndarray]:
        """What the joiner hands out, as one piece."""
        with self._meter.stage("post"):
            pieces = work(*arguments)
            whole = np.concatenate(pieces) if len(pieces) > 1 else pieces[0] if pieces else None
        if whole is not None and len(whole):
            yield whole

    def _windows(self, spoken: _Spoken) -> Iterator[np.ndarray]:
        """A segment's audio while its frames, and those of later segments, are drawn."""
        while not spoken.finished:
            if not spoken.done:
                self._advance()
            window = self._window(spoken)
            if window is not None:
                yield window
        spoken.frames, spoken.decoding = [], None
        if not spoken.samples:
            raise GenerationError(f"the engine produced no audio for {spoken.segment.text!r}: try another seed or text")

    def _window(self, spoken: _Spoken) -> np.ndarray | None:
        """The next piece of audio, if enough frames are there: all of them at the end, or else a stream's window."""
        wanted = WINDOWS[min(spoken.windows, len(WINDOWS) - 1)]
        ready = spoken.drawn - spoken.decoded
        if not ready or not (spoken.done or (self._streaming and ready >= wanted)):
            return None
        size = min(ready, wanted) if self._streaming else ready
        codes = np.stack(spoken.frames[spoken.decoded : spoken.decoded + size], axis=1)[1:]
        if spoken.decoding is None:
            spoken.decoding = self._pieces.decoding()
        audio = spoken.decoding.push(codes)
        spoken.decoded += size
        spoken.windows += 1
        spoken.samples += len(audio)
        return audio

    def _advance(self) -> None:
        """At least one more frame, or the end, of every segment that is being generated."""
        if self._cancelled():
            raise GenerationError("nobody listens any more")
        self._begin()
        for spoken in self._active:
            self._pull(spoken)
        self._active = [spoken for spoken in self._active if not spoken.done]

    def _begin(self) -> None:
        """Let as many segments join the decode loop as may."""
        while self._begun < len(self._all):
            first = self._all[0]
            if len(self._active) >= self._rows:
                return
            if self._begun and not first.done and (self._waits or self._streaming):
                return  # a stream's listener waits for it; so does, without a voice, the rest of the text
            self._all[self._begun].voice = self._voice
            self._active.append(self._all[self._begun])
            self._begun += 1

    def _pull(self, spoken: _Spoken) -> None:
        """The segment's next frame. What fails is tried once more from where it stands; what says nothing, anew."""
        try:
            frame = next(self._source(spoken), None)
        except InvalidInput:
            raise
        except Exception as error:
            spoken.source = None
            if spoken.tries >= _TRIES:
                raise
            logger.warning("a segment failed at frame %d and is redone: %s", spoken.drawn, error)
            return
        if frame is not None:
            spoken.frames.append(frame)
            spoken.drawn += 1
        elif self._is_whole(spoken):
            spoken.done = True
            if self._waits and spoken is self._all[0] and spoken.drawn:
                # One voice for all of the text: what its first segment sounds like.
                self._voice = Voice(((np.stack(spoken.frames, axis=1)[1:], spoken.segment.text.strip()),))
        else:
            spoken.frames, spoken.drawn = [], 0
            spoken.source, spoken.sampling = None, segment_seed(spoken.sampling, len(self._all))

    def _is_whole(self, spoken: _Spoken) -> bool:
        """Whether a segment that has ended may be what its text says; False for one to be tried anew.

        Raises GenerationError for one that cannot, and cannot be tried anew.
        """
        if not spoken.drawn:
            return spoken.tries >= _TRIES or len(self._all) == 1
        text, limit = spoken.segment.text, spoken.sampling.max_new_tokens
        seconds = spoken.drawn * self._pieces.samples_per_frame / self._rate
        least = shortest(text, self._pieces)
        if seconds >= least or (limit is not None and spoken.drawn >= limit):
            return True
        if spoken.tries < _TRIES and not spoken.decoded:
            return False
        raise GenerationError(
            f"the engine ended after {seconds:.2f} s, and {text.strip()!r} takes at least {least:.2f} s: "
            "try another seed, text or reference"
        )

    def _source(self, spoken: _Spoken) -> Iterator[np.ndarray]:
        if spoken.source is None:
            spoken.tries += 1
            with self._meter.stage("text"):
                prompt = self._pieces.prompt(spoken.segment.text.strip(), spoken.voice)
            spoken.source = iter(
                self._pieces.frames(prompt, spoken.sampling, batching=self._batching(spoken), resume=spoken.frames)
            )
        return spoken.source

    def _batching(self, spoken: _Spoken) -> Batching:
        """A seed has one meaning, whatever else runs beside it and whichever method it is given to."""
        return "on" if spoken.sampling.seed is None and spoken.sampling.temperature != 0 else "invariant"


def shortest(text: str, pieces: Pieces) -> float:
    """Seconds that a text takes at least when spoken; 0 where the engine's pace is not known."""
    if pieces.fastest is None:
        return 0.0
    return (speech_weight(text) if pieces.read is None else len(pieces.read(text))) / pieces.fastest


def _close(spoken: _Spoken) -> None:
    close = getattr(spoken.source, "close", None)
    if close is not None:
        close()
