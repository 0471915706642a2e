"""Who speaks a request: the routed engine, through its stages or as a whole, or finally the untouched original."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NoReturn

from ..audio.reference import Reference
from ..engines import Adapter
from ..engines.base import Arrays, Bound, Stages
from ..errors import AcceleratorError, Closed, EngineError, GenerationError, InvalidInput, Overloaded
from ..hardware.forks import Lock, renewed_in_children
from ..inference.rows import ROWS
from ..metrics import Meter, measuring
from ..speech import AudioChunk, SpeechRequest
from .batched import Batched
from .context import Runtime
from .fallback import Route
from .pooled import Pooled
from .pooling import pooling
from .spoken import check_heard
from .voices import KnownVoices

__all__ = ["Dispatcher", "Running"]

logger = logging.getLogger(__name__)


class Dispatcher:
    """The requests of one optimizer. Safe to use from several threads."""

    def __init__(
        self,
        adapter: Adapter,
        bound: Bound,
        routes: Mapping[str, Route],
        runtime: Runtime,
        *,
        release_torch: bool = False,
    ) -> None:
        """release_torch: drop the engine's own weights once no part needs them."""
        self.adapter, self.bound, self.routes, self.runtime = adapter, bound, routes, runtime
        self.released, self._releases = False, release_torch
        self.voices = Voices(routes, runtime)
        self.pooling = pooling(bound.stages, routes, runtime.load)
        self._told: set[str] = set()
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a forked child no request is being spoken."""
        self._lock = threading.Lock()
        self._requests: set[int] = set()  # being spoken or waiting, by `id`, so that a dropped one can be collected

    def begin(self, running: Running) -> None:
        """Raises Closed, Overloaded."""
        self.runtime.check_open()
        with self._lock:
            if len(self._requests) >= self.runtime.settings.queue_size:
                raise Overloaded(f"{len(self._requests)} requests are being spoken or waiting: try again later")
            self._requests.add(id(running))

    def end(self, running: Running) -> None:
        with self._lock:
            self._requests.discard(id(running))

    def release_torch(self) -> None:
        """Drop the engine's own weights, if asked to, once every part runs on something else."""
        with self._lock:
            if not self._releases or not self.routes:
                return
            if all(r.choice is not None and r.choice.call is not None for r in self.routes.values()):
                self._releases = False  # once: an adapter may refuse because they could not be loaded again
                self.released = self.adapter.release() is not False

    def warn(self, error: Exception) -> None:
        """That the original speaks; once, in a line, where an error of the adapter's says itself what is to be done."""
        if not isinstance(error, EngineError):
            logger.warning("the routed %s failed, the original speaks: %s", self.adapter.name, error, exc_info=True)
        elif str(error) not in self._told:
            self._told.add(str(error))
            logger.warning("the original %s speaks, from now on without a warning: %s", self.adapter.name, error)

    def stages(self, request: SpeechRequest) -> Stages | None:
        """The engine's stages, if this request is spoken through them."""
        stages = self.bound.stages
        return stages if stages is not None and stages.accepts(request) else None

    def at_once(self) -> int:
        """How many segments of a pooled engine are spoken at once; measured when it is first asked."""
        if self.pooling is None:
            return self.runtime.workers.count
        call = self.pooling.prepare().call
        return 1 if call is None else int(call())

    def knows_voice(self, request: SpeechRequest) -> bool:
        """Whether nothing has to be made of a request's recording any more."""
        stages, reference = self.bound.stages, request.reference
        return reference is None or (stages is not None and self.voices.knows(reference, stages))

    def kept(self, request: SpeechRequest, meter: Meter) -> Arrays | None:
        """The encoded form of a request's reference recording; each recording is encoded once."""
        stages = self.bound.stages
        if request.reference is None or stages is None:
            return None
        return self.voices.of(request, stages, meter)


class Running:
    """One request, from its place in the queue to its last chunk: an iterator of audio."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        request: SpeechRequest,
        meter: Meter,
        cancelled: threading.Event,
        on_restart: Callable[[], None] | None = None,
    ) -> None:
        """on_restart: drops what was handed out, which nobody has heard yet; None where it is heard at once."""
        self.request, self.meter, self.cancelled = request, meter, cancelled
        self._dispatcher, self._adapter, self._on_restart = dispatcher, dispatcher.adapter, on_restart
        self._speaking: Batched | Pooled | None = None
        self._chunks: Any = self._run()

    def __iter__(self) -> Running:
        return self

    def __next__(self) -> AudioChunk:
        return next(self._chunks)

    def close(self) -> None:
        """Raises ValueError while another thread waits for the next chunk."""
        self._chunks.close()

    def knows_voice(self) -> bool:
        return self._dispatcher.knows_voice(self.request)

    def progress(self) -> list[dict[str, Any]]:
        """The state of each segment; empty for a text that is spoken as a whole."""
        speaking = self._speaking
        return [] if speaking is None else speaking.progress()

    def _run(self) -> Iterator[AudioChunk]:
        """Speech in order; if the routed engine fails before anything was heard, the untouched one speaks all of it.

        Raises Overloaded, InvalidInput, GenerationError.
        """
        self._dispatcher.begin(self)
        chunks: Any = _lazily(self._speech)
        failure, seconds = None, 0.0
        try:
            while True:
                try:
                    check_heard(self.cancelled.is_set)  # an engine's own method does not check
                    with measuring(self.meter):
                        chunk = next(chunks)
                except StopIteration:
                    if failure is not None:
                        self._check_length(seconds, failure)
                    self._dispatcher.release_torch()
                    return
                except (InvalidInput, Closed):
                    raise
                except Exception as error:
                    heard = seconds and self._on_restart is None
                    if heard or failure is not None or not self._dispatcher.routes or self.cancelled.is_set():
                        _raise_generation_error(error, failure)
                    failure, seconds, chunks = error, 0.0, self._original(error)
                    continue
                seconds += len(chunk.audio) / chunk.sample_rate
                self.meter.chunk(chunk.audio, chunk.sample_rate)
                yield chunk
        finally:
            try:
                chunks.close()
            finally:
                self._dispatcher.end(self)

    def _original(self, error: Exception) -> Any:
        self._dispatcher.warn(error)
        self.meter.fell_back("engine", error)
        runs_on = sorted({route.part.runs_on for route in self._dispatcher.routes.values()})
        self.meter.used("engine", "+".join(runs_on), own=True)
        self.meter.restart()
        self._speaking = None
        if self._on_restart is not None:
            self._on_restart()
        return _lazily(lambda: self._adapter.original(self.request))

    def _check_length(self, seconds: float, before: Exception) -> None:
        """Raises GenerationError if the original's answer, too, is too short for the text."""
        stages = self._dispatcher.bound.stages
        if stages is not None and self.request.sampling.max_new_tokens is None:
            least = stages.shortest(self.request.text)
            if seconds < least:
                raise GenerationError(
                    f"the engine spoke for {seconds:.2f} s, and the text takes at least {least:.2f} s: "
                    "try another seed, text or reference"
                ) from before

    def _speech(self) -> Iterator[AudioChunk]:
        """The routed engine's speech, through its stages or as a whole."""
        request, dispatcher = self.request, self._dispatcher
        kept = dispatcher.kept(request, self.meter)
        stages = dispatcher.stages(request)
        if stages is None:
            if dispatcher.bound.stream is None:
                raise EngineError(f"the adapter of {self._adapter.name} has no way to speak this text as a whole")
            yield from dispatcher.bound.stream(request, kept)
            return
        rate, voice = self._adapter.sample_rate, stages.voice(request, kept)
        shared: dict[str, Any] = {"cancelled": self.cancelled.is_set}
        if stages.schedule == "pooled":
            shared |= {"workers": dispatcher.runtime.workers, "at_once": dispatcher.at_once}
            self._speaking = Pooled(stages, request, voice, rate, self.meter, **shared)
        else:
            self._speaking = Batched(stages, request, voice, rate, self.meter, rows=ROWS, **shared)
        for audio in self._speaking.speak():
            yield AudioChunk(audio, rate)


class Voices:
    """Encoded reference recordings; each is encoded once and kept in a store."""

    def __init__(self, routes: Mapping[str, Route], runtime: Runtime) -> None:
        self._routes = [route for route in routes.values() if route.part.stage == "reference"]
        self._runtime = runtime
        self._store: KnownVoices | None = None
        self._lock = Lock()

    def of(self, request: SpeechRequest, stages: Stages, meter: Meter) -> Arrays:
        """The encoded reference of a request. Raises what encoding raises."""
        reference = request.reference
        assert reference is not None
        if (store := self._opened()) is None:
            return stages.encode(reference)
        if (known := _found(store, stages, reference)) is not None:
            return known
        # Originals may encode differently from their replacements, so the results are kept apart. What an original
        # encoded because its replacement failed just now is not kept: the next request tries again.
        as_it_was = any(route.prepare().call is None for route in self._routes)
        name = _names(stages, reference)[-1]
        return store.get_or_encode(
            f"{name}-original" if as_it_was else name,
            lambda: stages.encode(reference),
            keep=lambda: as_it_was or not any(meter.by_original(route.part.name) for route in self._routes),
        )

    def knows(self, reference: Reference, stages: Stages) -> bool:
        """Whether a recording was encoded before, by what replaces the encoder."""
        store = self._opened()
        return store is not None and _found(store, stages, reference) is not None

    def _opened(self) -> KnownVoices | None:
        """None where encoded recordings cannot be kept."""
        with self._lock:
            if self._store is None and (key := self._key()) is not None:
                self._store = KnownVoices(self._runtime.voices, key)
            return self._store

    def forget(self) -> None:
        """Forget what is in memory; what is stored stays."""
        with self._lock:
            self._store = None

    def status(self) -> dict[str, Any] | None:
        """Where voices are kept and how often they were found; None before the first one. JSON-able."""
        return None if self._store is None else {"store": str(self._store.store), **asdict(self._store.stats)}

    def _key(self) -> str | None:
        """Identifies the encoder, by the weights of the parts.

        Not by their exports: for these the parts would have to be loaded, which a known voice does not need.
        """
        try:
            if not all(route.part.components for route in self._routes):
                return None  # their weights have no identity
            names = [route.part.components[-1].identity() for route in self._routes]
        except (OSError, AcceleratorError) as error:
            logger.warning("voices are not kept, as their encoder cannot be identified: %s", error)
            return None
        return "-".join(names) or None


def _names(stages: Stages, reference: Reference) -> tuple[str, ...]:
    """Under which a recording may be kept; the last is the one to keep it under."""
    kept_as = getattr(stages, "kept_as", None)
    return (reference.digest,) if kept_as is None else tuple(kept_as(reference))


def _found(store: KnownVoices, stages: Stages, reference: Reference) -> Arrays | None:
    names = _names(stages, reference)
    return next((known for name in names if (known := store.get(name)) is not None), None)


def _lazily(speak: Callable[[], Iterator[AudioChunk]]) -> Any:
    """Defer the call, so that its own errors come with the first item, like all others."""
    yield from speak()


def _raise_generation_error(error: Exception, before: Exception | None) -> NoReturn:
    """`before`: why the routed copy had failed, when it is the original that fails now."""
    if before is not None and error.__cause__ is None:
        error.__cause__ = before
    if isinstance(error, (Closed, EngineError, GenerationError)):
        raise error
    raise GenerationError(f"the engine failed: {type(error).__name__}: {error}") from error
