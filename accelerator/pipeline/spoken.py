"""A request's segments while they are spoken, whichever engine speaks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..audio.joiner import Joiner
from ..engines.base import Decoder, Job, Stages, Unit, Voice
from ..errors import BadOutput, GenerationError
from ..metrics import Meter
from ..speech import SpeechRequest
from ..text.segments import Segment

__all__ = ["TRIES", "Spoken", "as_audio", "check_heard", "joined", "progress", "segments_of"]

TRIES = 2  # of a segment that fails, or says nothing


@dataclass
class Spoken:
    """A segment being spoken. drawn, decoded: units generated, and units given to the decoder; ended: all decoded."""

    segment: Segment
    job: Job
    units: list[Unit] = field(default_factory=list)
    source: Iterator[Sequence[Unit]] | None = None
    voice: Voice = None
    decoder: Decoder | None = None
    begun: bool = False
    done: bool = False  # no more units will come
    tries: int = 0
    drawn: int = 0
    decoded: int = 0
    ended: bool = False
    windows: int = 0
    samples: int = 0
    heard: bool = False  # all of its audio has been made

    def close(self) -> None:
        """Close the generator, which frees its row."""
        close = getattr(self.source, "close", None)
        if close is not None:
            close()


def segments_of(stages: Stages, request: SpeechRequest, meter: Meter, cancelled: Callable[[], bool]) -> list[Spoken]:
    """The request's segments, of which none has begun. Raises InvalidText."""
    with meter.stage("text"):
        whole = [Segment(request.text, 0.0, 0)]
        segments = whole if request.whole else stages.segments(request, soon=request.streaming)
    return [Spoken(segment, Job.of(request, number, cancelled)) for number, segment in enumerate(segments)]


def as_audio(answer: Any) -> np.ndarray:
    """What a decoder answered, as float32 [n]. Raises BadOutput for anything else."""
    audio = np.asarray(answer)
    if audio.ndim != 1 or audio.dtype.kind != "f":
        raise BadOutput(f"a decoder answered with {audio.dtype} of shape {audio.shape} instead of float32 [n]")
    if not np.isfinite(audio).all():
        raise BadOutput("a decoder answered with samples that are NaN or infinite")
    return audio.astype(np.float32, copy=False)


def check_heard(cancelled: Callable[[], bool]) -> None:
    """Raises GenerationError if nobody listens any more."""
    if cancelled():
        raise GenerationError("nobody listens any more")


def progress(spoken: Iterable[Spoken], sample_rate: int) -> list[dict[str, Any]]:
    """Per segment: its text as it is written, or its phonemes; frames generated, seconds spoken, tries, its state."""
    return [
        {
            "text": None if each.segment.phonemes else each.segment.text,
            "phonemes": each.segment.text if each.segment.phonemes else None,
            "frames": each.drawn,
            "audio_s": each.samples / sample_rate,
            "tries": each.tries,
            "state": "done" if each.heard else "speaking" if each.begun else "waiting",
        }
        for each in spoken
    ]


def joined(
    windows: Iterable[tuple[Spoken, Iterator[np.ndarray]]], last: Spoken, sample_rate: int, meter: Meter
) -> Iterator[np.ndarray]:
    """The segments' audio, each in windows, with their pauses between them. Segments without sound get no pause."""
    joiner = Joiner(sample_rate)

    def post(work: Callable[..., list[np.ndarray]], *arguments: Any) -> Iterator[np.ndarray]:
        with meter.stage("post"):
            chunks = work(*arguments)
            whole = np.concatenate(chunks) if len(chunks) > 1 else chunks[0] if chunks else None
        if whole is not None and len(whole):
            yield whole

    for spoken, audio in windows:
        for window in audio:
            yield from post(joiner.push, window)
        pause_s = spoken.segment.pause_s
        if spoken is last or pause_s is None:
            yield from post(joiner.finish)
            joiner = Joiner(sample_rate)
        elif spoken.samples:
            yield from post(joiner.end_of_segment, pause_s)
