"""Who speaks a request: the routed engine through its stages, as a whole, or in the end the untouched original."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import numpy as np

from .cache import ContentCache
from .engines import Adapter
from .engines.base import Bound, Pieces, Utterer, Voice
from .errors import AcceleratorError, Closed, EngineError, GenerationError, InvalidInput, Overloaded
from .hardware.forks import Lock, renewed_in_children
from .metrics import Meter, measuring
from .pool import PoolSpeaker, Workers
from .routing import Route
from .segments import Segment
from .speaking import Speaker, shortest
from .speech import AudioChunk, Reference, SpeechRequest
from .voices import VoiceStore

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)


class Dispatcher:
    """The requests of one optimizer. Safe to use from several threads."""

    def __init__(
        self,
        adapter: Adapter,
        bound: Bound,
        routes: Mapping[str, Route],
        cache: Callable[[], ContentCache],
        *,
        split_text: bool,
        queue_size: int,
        workers: Callable[[], int] = lambda: 1,
    ) -> None:
        """workers: how many segments a feed-forward engine speaks at once."""
        self._adapter, self._bound, self._routes, self._cache = adapter, bound, routes, cache
        self._split_text, self._queue_size, self._workers = split_text, queue_size, workers
        self._shared: Workers | None = None
        self._voices: VoiceStore | None = None
        self._voices_lock = Lock()
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a child no request is being spoken yet."""
        self._lock = threading.Lock()
        self._requests: set[Meter] = set()  # being spoken or waiting

    def pieces(self, request: SpeechRequest) -> Pieces | None:
        """The engine's stages one by one, if this request is spoken through them."""
        pieces = self._stages()
        return pieces if pieces is not None and pieces.takes(request) else None

    def _utterer(self) -> Utterer | None:
        return getattr(self._bound, "utterer", None)

    def _at_once(self) -> Workers:
        """What all requests of a feed-forward engine share."""
        with self._lock:
            if self._shared is None:
                self._shared = Workers(self._workers())
            return self._shared

    def _stages(self) -> Pieces | None:
        return getattr(self._bound, "pieces", None)

    def chunks(
        self, request: SpeechRequest, meter: Meter, streaming: bool, cancelled: threading.Event
    ) -> Iterator[AudioChunk]:
        """Speech in order; if the routed engine fails before any audio is out, the untouched one speaks.

        Raises Overloaded, InvalidInput, GenerationError.
        """
        with self._lock:
            if len(self._requests) >= self._queue_size:
                raise Overloaded(f"{len(self._requests)} requests are being spoken or waiting: try again later")
            self._requests.add(meter)
        try:
            yield from self._chunks(request, meter, streaming, cancelled)
        finally:
            with self._lock:
                self._requests.discard(meter)

    def _chunks(
        self, request: SpeechRequest, meter: Meter, streaming: bool, cancelled: threading.Event
    ) -> Iterator[AudioChunk]:
        spoken, failure, seconds = False, None, 0.0
        chunks = _lazily(self._speech(meter, streaming, cancelled), request)
        try:
            while True:
                try:
                    if cancelled.is_set():  # by another thread: an engine's own method cannot know
                        raise GenerationError("nobody listens any more")
                    with measuring(meter):
                        chunk = next(chunks)
                except StopIteration:
                    if failure is not None:
                        self._check_length(request, seconds, failure)
                    break
                except InvalidInput:
                    raise
                except Exception as error:
                    if spoken or failure is not None or self._bound is self._adapter or cancelled.is_set():
                        _raise_generation_error(error, failure)
                    failure = error
                    logger.warning(
                        "the routed %s failed, the original speaks: %s", self._adapter.name, error, exc_info=True
                    )
                    meter.fell_back("engine", error)
                    meter.used("engine", "pytorch")
                    chunks = _lazily(self._adapter.original, request)
                    continue
                spoken = True
                seconds += len(chunk.audio) / chunk.sample_rate
                meter.chunk(chunk.audio, chunk.sample_rate)
                yield chunk
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def _check_length(self, request: SpeechRequest, seconds: float, before: Exception) -> None:
        """Raises GenerationError for an answer of the original that cannot be the text either."""
        pieces = self._stages()
        if pieces is not None and request.sampling.max_new_tokens is None:
            least = shortest(request.text, pieces)
            if seconds < least:
                raise GenerationError(
                    f"the engine spoke for {seconds:.2f} s, and the text takes at least {least:.2f} s: "
                    "try another seed, text or reference"
                ) from before

    def _speech(
        self, meter: Meter, streaming: bool, cancelled: threading.Event
    ) -> Callable[[SpeechRequest], Iterator[AudioChunk]]:
        """How the routed engine speaks a request: through its stages, or as a whole."""

        def speak(request: SpeechRequest) -> Iterator[AudioChunk]:
            segments = None if self._split_text else [Segment(request.text, 0.0, 0)]
            utterer = self._utterer()
            if utterer is not None:
                pool = PoolSpeaker(
                    utterer,
                    request,
                    Voice() if request.voice is None else utterer.named_voice(request.voice),
                    self._adapter.sample_rate,
                    meter,
                    workers=self._at_once(),
                    streaming=streaming,
                    segments=segments,
                    cancelled=cancelled.is_set,
                )
                meter.segments = pool.progress
                yield from pool.speak()
                return
            pieces = self._stages()
            if pieces is None:
                yield from self._bound.stream(request)
                return
            voice = self._voice(pieces, request, meter)
            if not pieces.takes(request):
                yield from self._bound.stream(request, voice)
                return
            speaker = Speaker(
                pieces,
                request,
                voice,
                self._adapter.sample_rate,
                meter,
                streaming=streaming,
                segments=segments,
                cancelled=cancelled.is_set,
            )
            meter.segments = speaker.progress
            yield from speaker.speak()

        return speak

    def _voice(self, pieces: Pieces, request: SpeechRequest, meter: Meter) -> Voice:
        """Whom to imitate; a reference is encoded once, and remembered on disk."""
        if request.voice is not None:
            return pieces.named_voice(request.voice)
        reference = request.reference
        if reference is None:
            return pieces.own_voice()
        with self._voices_lock:  # one of its own: it may take an export
            if self._voices is None and (key := self._encoder_key()) is not None:
                self._voices = VoiceStore(self._cache(), key)
        if self._voices is None:
            return Voice(((pieces.encode(reference.audio), reference.text),))
        codes = self._voices.get(reference.digest)
        if codes is None:
            codes = self._encoded(self._voices, pieces, reference, meter)
        return Voice(((codes, reference.text),))

    def _encoded(self, voices: VoiceStore, pieces: Pieces, reference: Reference, meter: Meter) -> np.ndarray:
        """The codes of a voice that is not known. Some of PyTorch's differ from the export's: they are kept apart.

        Codes that PyTorch made because the export failed this once are not kept: the next request tries again.
        """
        in_torch = self._routes["encoder"].prepare().call is None
        return voices.get_or_encode(
            f"{reference.digest}-pytorch" if in_torch else reference.digest,
            lambda: pieces.encode(reference.audio),
            keep=lambda: in_torch or meter.backend("encoder") != "pytorch",
        )

    def _encoder_key(self) -> str | None:
        """Names what makes the codes of a reference: the codec's weights.

        Not the export: to know that, the encoder would have to be loaded, which a known voice does without.
        """
        try:
            return self._routes["encoder"].part.components[-1].identity()
        except (OSError, AcceleratorError) as error:
            logger.warning("voices are not remembered, as it cannot be told what encodes them: %s", error)
            return None


def _lazily(speak: Callable[[SpeechRequest], Iterator[AudioChunk]], request: SpeechRequest) -> Iterator[AudioChunk]:
    yield from speak(request)


def _raise_generation_error(error: Exception, before: Exception | None) -> NoReturn:
    """`before`: why the routed copy had failed, when it is the original that fails now."""
    if before is not None and error.__cause__ is None:
        error.__cause__ = before
    if isinstance(error, (Closed, EngineError, GenerationError)):
        raise error
    raise GenerationError(f"the engine failed: {type(error).__name__}: {error}") from error
