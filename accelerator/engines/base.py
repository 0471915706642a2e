"""What an adapter is: the parts of an engine that can be replaced, and the seam where they are.

    Part      one stage with two implementations: PyTorch's own, and the one made from exported components
    Adapter   an engine's parts, and a copy of the engine that calls whatever it is given instead of them
    Bound     that copy: the engine's own interface, and a uniform stream of audio
    Utterer   a feed-forward engine's way to speak a piece of text in one go: long texts are then spoken by a pool
    Pieces    an autoregressive codec engine's stages, to be called one by one: long texts are then spoken segment by
              segment, several at once, and audio comes while frames are still being drawn

The parts every engine uses, in the order of a request, with the stages they count to:

    encoder         reference     reference audio -> codes
    text2semantic   text2semantic prompt -> frames of codes, one by one (a generator part)
    decoder         decoder       codes -> audio
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..export import Component
from ..sequences import Batching
from ..session import SessionOptions
from ..speech import AudioChunk, SamplingParams, SpeechRequest
from ..text import Unread

__all__ = [
    "Adapter",
    "Bound",
    "Cloning",
    "Decoding",
    "Part",
    "Pieces",
    "Utterer",
    "Voice",
    "tensors_digest",
    "windowed",
]

Call = Callable[..., Any]


@dataclass(frozen=True)
class Part:
    """One replaceable stage of an engine.

    torch: the engine's own implementation; it must not depend on anything the routed copy changes, and answers with
    what
    `loaded` answers with. load(directories by component name, options): the ONNX Runtime twin with the same signature.
    twin: the weights of a third implementation, the engine's code rewritten for speed in PyTorch; `load` makes it of
    {twin.name: directory} when options.backend is "onednn". compiled(directories): whether `load` can make it of
    compiled kernels, too, for which the backend "native" asks.
    A generator part's two implementations take `resume`, a list of items already produced, and go on behind it.
    check(result): raises BadOutput if an answer cannot be right (for a generator, it sees every item).
    probe(call): times a small typical piece of work on either implementation; seconds per frame or second of audio.
    """

    name: str
    stage: str
    components: tuple[Component, ...]
    torch: Call
    load: Callable[[Mapping[str, Path], SessionOptions], Call]
    probe: Callable[[Call], float]
    check: Callable[[Any], Any] = lambda _: None
    generator: bool = False
    twin: Component | None = None
    compiled: Callable[[Mapping[str, Path]], bool] = lambda _: False


@dataclass(frozen=True)
class Cloning:
    """How an engine imitates a recording.

    transcript: whether it needs what the recording says. seconds: how long a recording is, at least and at most.
    """

    transcript: Literal["needed", "useful", "unused"] = "useful"
    seconds: tuple[float, float] = (0.2, 300.0)


@dataclass(frozen=True)
class Voice:
    """Whom to imitate: what was said before, as (codes int [C, m], text) each; or a name the engine knows."""

    turns: tuple[tuple[np.ndarray, str], ...] = ()
    name: str | None = None


class Decoding:
    """One utterance, decoded window by window; the windows join to what the whole would be.

    call(codes [C, m], after=...): a route to a decoder part. A decoder without a memory is given `context` frames
    before the window, and the audio is cut (see `windowed`); one that can go on where it ended keeps its state in
    `state`.
    """

    def __init__(self, call: Call, context: int, samples_per_frame: int) -> None:
        self._call, self._context, self.samples_per_frame = call, context, samples_per_frame
        self.seen: np.ndarray | None = None  # the context's codes [C, up to context]
        self.state: Any = None  # the decoder's own; None where it has not begun, or lost its way

    def push(self, codes: np.ndarray) -> np.ndarray:
        """The audio of the next frames' codes [C, m], float32 [n]."""
        audio = np.asarray(self._call(codes, after=self))
        joined = codes if self.seen is None else np.concatenate([self.seen, codes], axis=1)
        self.seen = joined[:, max(0, joined.shape[1] - self._context) :]
        return audio


def windowed(decode: Call) -> Call:
    """A decoder without a memory, codes [C, m] -> audio, as a call that also takes `after`, a `Decoding`."""

    def call(codes: np.ndarray, *, after: Decoding | None = None) -> np.ndarray:
        if after is None or after.seen is None or not after.seen.shape[1]:
            return np.asarray(decode(codes))
        audio = np.asarray(decode(np.concatenate([after.seen, codes], axis=1)))
        return audio[after.seen.shape[1] * after.samples_per_frame :]

    return call


@runtime_checkable
class Pieces(Protocol):
    """C codebooks, T columns, m frames. All of it runs on the routed parts, and counts to the current meter."""

    samples_per_frame: int
    comfortable: int  # letters of a segment, and at most: see `segments.split`
    longest: int
    read: Callable[[str], str] | None  # what it says of a text, where it expands some: see `segments.split`
    fastest: float | None  # letters a second, beyond which nobody speaks; None where that is not known

    def unread(self, text: str) -> Unread:
        """What it cannot read of a text."""
        ...

    def takes(self, request: SpeechRequest) -> bool:
        """Whether this text can be cut up; texts with markup of the engine's own may not."""
        ...

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """Reference audio, float32 [n], to codes [C, m]."""
        ...

    def named_voice(self, name: str) -> Voice:
        """A voice the engine knows. Raises InvalidOption."""
        ...

    def own_voice(self) -> Voice:
        """The one it speaks in when asked for none; without turns or a name, whichever comes out."""
        ...

    def prompt(self, text: str, voice: Voice) -> np.ndarray:
        """int64 [1 + C, T]. Raises InvalidText for what the model has no room for."""
        ...

    def frames(
        self, prompt: np.ndarray, sampling: SamplingParams, *, batching: Batching, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[np.ndarray]:
        """Frames of speech, int64 [1 + C] each, behind those of `resume`. sampling: what the request asks for."""
        ...

    def decoding(self) -> Decoding:
        """For one segment's codes, window by window."""
        ...


@runtime_checkable
class Utterer(Protocol):
    """What `say` runs on are the routed parts, which count to the current meter. Safe to call from several threads."""

    comfortable: int  # letters of a segment, and at most: see `segments.split`
    longest: int

    def unread(self, text: str) -> Unread:
        """What it cannot read of a text."""
        ...

    def named_voice(self, name: str) -> Voice:
        """A voice the engine knows. Raises InvalidOption."""
        ...

    def say(self, text: str, voice: Voice, sampling: SamplingParams, *, alone: bool) -> np.ndarray:
        """A segment's audio, float32 [n]; none where it has no sound that the engine knows.

        alone: nothing else is being spoken; otherwise one thread is used. Raises InvalidOption for sampling it lacks.
        """
        ...


@runtime_checkable
class Bound(Protocol):
    """A copy of the engine with its parts replaced. `engine` offers everything the original offers.

    It may have `pieces`, a `Pieces`: requests that these take are then not given to `stream`, and others come with
    their voice. Or it may have `utterer`, an `Utterer`, to which all requests are given.
    """

    engine: Any

    def stream(self, request: SpeechRequest, voice: Voice | None = None) -> Iterator[AudioChunk]:
        """Speech in order, as it becomes ready. voice: of the request's reference, whose codes may have been known.

        Only a copy with `pieces` is given one. Raises what the engine raises.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class Adapter(Protocol):
    """Everything the optimizer knows of an engine. `sample_rate` is in Hz.

    It may have `cloning`, a `Cloning`, or None for an engine that imitates nobody; without it, the default one.
    """

    name: str

    @property
    def sample_rate(self) -> int:
        """An attribute will do. 0 for an engine, passed through, that has not told it yet."""
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
        """Drop the PyTorch weights; the parts' `torch` loads them again if it is ever called.

        False says that they had to stay.
        """
        ...


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


def seconds(call: Call, *arguments: Any) -> float:
    """How long a call takes, the second time: for a part's `probe`."""
    call(*arguments)
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def torch_threads(count: int | None = None) -> int:
    """PyTorch's threads within an operator in this process, after setting them if a count is given."""
    import torch

    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def check_codes(codes: np.ndarray, size: int | None = None) -> None:
    """Raises BadOutput if there are no codes [C, n], or any is negative or not below `size`."""
    from ..errors import BadOutput

    if not codes.size:
        raise BadOutput("no codes")
    if int(codes.min()) < 0 or (size is not None and int(codes.max()) >= size):
        raise BadOutput(f"codes from {int(codes.min())} to {int(codes.max())}, the codebook has {size}")
