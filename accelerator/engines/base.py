"""What an adapter is: the parts of an engine that can be replaced, and the stages that a request passes.

    Adapter   an engine's parts, its options, and a copy of the engine that calls whatever it is given instead of them
    Bound     that copy: the engine's own interface, and its stages if it has some
    Stages    text -> segments -> units -> audio, one by one: long texts are then spoken segment by segment, several at
              once, and audio comes as soon as there is any

A unit is whatever the engine generates (a frame of codes, a column of latents), a voice whatever it speaks in: both are
handed from one stage to the next, and only the engine looks inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..audio.reference import Reference
from ..errors import EngineError
from ..parts.part import Call, Part
from ..speech import AudioChunk, SamplingParams, SpeechRequest, segment_seed
from ..text.check import Unread
from ..text.segments import Segment
from .options import Option

__all__ = [
    "Adapter",
    "Arrays",
    "Bound",
    "Cloning",
    "Decoder",
    "Job",
    "Stages",
    "Unit",
    "Voice",
    "bound_of",
    "tensors_digest",
]

Unit = Any
Voice = Any
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Cloning:
    """How an engine imitates a recording.

    transcript: whether it needs what the recording says. seconds: how long a recording is, at least and at most.
    sample_rate: that a recording is brought to, in Hz; None is the engine's own. bandwidth, contrast: how clear it has
    to be at least, in Hz and dB (`audio.clarity`), for an engine that would speak as somebody else.
    """

    transcript: Literal["needed", "useful", "unused"] = "useful"
    seconds: tuple[float, float] = (0.2, 300.0)
    sample_rate: int | None = None
    bandwidth: float = 0.0
    contrast: float = 0.0


@dataclass(frozen=True)
class Job:
    """How one segment of a request is spoken.

    sampling: what the request asks for, with the segment's own seed. options: the engine's own. exclusive: nothing else
    is being spoken; otherwise one thread is used. invariant: the audio must not depend on what is spoken beside it.
    cancelled: whether the listener has gone.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    options: Mapping[str, Any] = field(default_factory=dict)
    exclusive: bool = True
    invariant: bool = False
    cancelled: Callable[[], bool] = lambda: False

    @classmethod
    def of(cls, request: SpeechRequest, number: int, cancelled: Callable[[], bool]) -> Job:
        """Of a request's segment: each has a seed of its own. A seed has one meaning, whatever else is spoken."""
        sampling = segment_seed(request.sampling, number)
        invariant = sampling.seed is not None or sampling.temperature == 0
        return cls(sampling, request.options, invariant=invariant, cancelled=cancelled)

    def anew(self, number: int) -> Job:
        """The same with another seed, if it has one: for a segment that said nothing."""
        return replace(self, sampling=segment_seed(self.sampling, number))


class Decoder(Protocol):
    """One segment's units on their way to audio."""

    def push(self, units: Sequence[Unit], *, final: bool) -> np.ndarray:
        """The audio that can be made now, float32 [n]. It may hold back what needs later units.

        final: none come any more; that may be said with the last units, or later and with none.
        """
        ...


@runtime_checkable
class Stages(Protocol):
    """All of it runs on the routed parts, and counts to the current meter. Safe to use from several threads.

    schedule: "batched" engines share one decode loop, from which a segment takes its units one by one; segments of a
    "pooled" engine are spoken on threads of their own. windows: units of a stream's first windows, and of all later
    ones; () for an engine that makes audio only of a whole segment. unit_s: seconds of audio of a unit, if that is
    fixed.

    An engine that needs less of some recordings may have `kept_as(reference)`: the names under which what `encode`
    made of one would do, the last of them its own. By itself that is the recording's digest.
    """

    schedule: Literal["batched", "pooled"]
    windows: Sequence[int]
    unit_s: float | None

    def accepts(self, request: SpeechRequest) -> bool:
        """Whether this text can be cut up; if not, `Bound.stream` speaks it (markup of the engine's own, say)."""
        ...

    def unread(self, text: str) -> Unread:
        """What it cannot read of a text."""
        ...

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        """The text cut into segments. soon: a listener waits for the first one. Raises InvalidText."""
        ...

    def shortest(self, text: str) -> float:
        """Seconds that a text takes at least when spoken; 0 where the engine's pace is not known."""
        ...

    def encode(self, reference: Reference) -> Arrays:
        """What is kept of a recording, by name."""
        ...

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> Voice:
        """Whom to speak as: a named voice, the recording of which `kept` is known, or the engine's own.

        Raises InvalidOption for a name that it does not know.
        """
        ...

    def generate(
        self, segment: Segment, voice: Voice, job: Job, *, resume: Sequence[Unit] = ()
    ) -> Iterator[Sequence[Unit]]:
        """A segment's units, as they come; () is progress without one. They continue after those of `resume`.

        Raises InvalidText for what the model has no room for.
        """
        ...

    def decoder(self, voice: Voice, job: Job) -> Decoder:
        """For one segment."""
        ...

    def waits(self, voice: Voice) -> bool:
        """Whether a text's other segments wait for the first one, to be spoken in the voice that it got."""
        ...

    def continued(self, segment: Segment, units: Sequence[Unit], voice: Voice) -> Voice:
        """That voice."""
        ...


@dataclass(frozen=True)
class Bound:
    """A copy of the engine with its parts replaced. engine: offers everything that the original offers.

    stages: speak what they accept. stream(request, kept): speaks the rest as a whole, in order, as it becomes ready;
    kept: what `Stages.encode` made of the request's reference, if there is one. Raises what the engine raises.
    """

    engine: Any
    stages: Stages | None = None
    stream: Callable[[SpeechRequest, Arrays | None], Iterator[AudioChunk]] | None = None
    close: Callable[[], None] = lambda: None


@runtime_checkable
class Adapter(Protocol):
    """Everything the optimizer knows of an engine.

    cloning: None for an engine that does not imitate voices. options: keyword arguments of a request that
    it understands, `seed` aside; None for one that says so itself.
    """

    name: str
    cloning: Cloning | None
    options: Mapping[str, Option] | None

    @property
    def sample_rate(self) -> int:
        """An attribute will do. 0 for a passed-through engine whose rate is not known yet."""
        ...

    def parts(self) -> Sequence[Part]:
        """The replaceable stages; an empty sequence means that the engine is only passed through."""
        ...

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        """A copy of the engine whose parts are `calls`, by part name. The user's engine itself is never changed."""
        ...

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Speech from the untouched engine."""
        ...

    def release(self) -> bool | None:
        """Drop the engine's own weights; the parts' originals load them again if they are ever called.

        False says that they had to stay.
        """
        ...


def bound_of(adapter: Any, calls: Mapping[str, Call]) -> Bound:
    """What the adapter binds. Raises EngineError for an adapter that does not keep the protocol, and says where."""
    kind = type(adapter).__name__
    wanted = ("name", "sample_rate", "cloning", "options", "parts", "bind", "original", "release")
    if lacking := [name for name in wanted if not hasattr(adapter, name)]:
        raise EngineError(f"{kind} is no adapter: it lacks {', '.join(lacking)} (see docs/adapters.md)")
    bound = adapter.bind(calls)
    if not isinstance(bound, Bound) or (bound.stages is None and bound.stream is None):
        raise EngineError(f"{kind}.bind() must answer with a Bound that has stages or stream, not {bound!r}")
    return bound


def tensors_digest(tensors: Iterable[tuple[str, Any]]) -> str:
    """sha256 over names, types, shapes and contents of torch tensors, independent of their order."""

    def one(item: tuple[str, Any]) -> str:
        name, tensor = item
        data = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        if data.numel():
            import torch

            digest.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
        return digest.hexdigest()

    with ThreadPoolExecutor(max_workers=2) as pool:  # hashlib releases the interpreter lock
        return hashlib.sha256("\n".join(sorted(pool.map(one, tensors))).encode()).hexdigest()
