"""UniversalOptimizer: the engine a user already has, only faster, and never worse."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from .cache import ContentCache
from .engines import Adapter, adapter_for, adapter_from_checkpoint, checkpoint_options
from .engines.base import bound_of
from .errors import EngineError, GenerationError, InvalidOption
from .export.component import Progress, ignore_progress
from .hardware.forks import renewed_in_children
from .inference.rows import ROWS
from .metrics import Meter
from .pipeline.context import Runtime
from .pipeline.dispatch import Dispatcher, Running
from .pipeline.fallback import Route
from .pipeline.request import Asked, make_request
from .pipeline.settings import Settings
from .pipeline.stream import SpeechStream
from .pipeline.tuning import SEGMENTS
from .speech import Speech
from .text.check import Unspeakable
from .voices import VoiceStore

__all__ = ["SpeechStream", "UniversalOptimizer"]

logger = logging.getLogger(__name__)

_OWN = (
    "_adapter",
    "_bound",
    "_routes",
    "_runtime",
    "_lock",
    "_dispatcher",
    "_pool",
)


class UniversalOptimizer:
    """Wraps a text-to-speech engine so that its parts run on ONNX Runtime wherever that is faster and as faithful.

    engine: any supported engine, unchanged; others are passed through. precision: "auto" (by hardware tier) or the
    first one to try of "int4", "int8", "fp32". proof: "strict" rejects exports that answer differently from PyTorch,
    "warn" only says so. cache_dir: where exports are kept (default: see `accelerator.cache.default_root`). threads:
    threads of each session; None lets a probe choose. adapter: an `Adapter` for an engine this package does not know.
    probe: time each part against PyTorch on first use. release_torch: drop the PyTorch weights once everything runs in
    ONNX Runtime; they come back on fallback. progress: called with `ProgressEvent`s while exports are prepared.
    split_text: speak long texts in segments, several at once; False hands every text to the engine as it is.
    queue_size: requests that may be spoken or waiting at the same time; beyond them `Overloaded` is raised.
    unspeakable: what becomes of letters and digits that the voice cannot speak (another script, say): "error" refuses
    the text, "skip" leaves them out and lists them in `metrics["skipped"]`. A request may choose for itself.
    voices: where what was made of reference recordings is kept: "redis://host:6379/0?ttl=86400" on a server that
    processes and machines share, a directory, or a `voices.VoiceStore` (default: what `ACCELERATOR_VOICES` names, else
    beside the exports). voices_dir: a directory or `ContentCache` for them, instead.
    prune: the share of channels, attention heads or weights to leave out, as 0.3, of parts that can be pruned: behind
    the same proof as "int8", and only where it is faster, or its file packs smaller. `status()` and the log say for
    each part what became of it. Nothing trains what is left, and so far no trained voice has passed.

    providers: execution providers of ONNX Runtime to try for each part, as ["CUDAExecutionProvider"], or "auto": CUDA
    and TensorRT. Used where they are installed, proven on this device, and faster (default: the CPU alone).

    Requests from several threads share one decode loop: weights are read once for all of them. The same seed gives the
    same audio whatever runs beside it.

    Everything the engine offers is still there: `optimizer.anything` is the engine's, running on the replaced parts.
    Raises InvalidOption for bad options, UnsupportedEngine for engines known not to work.
    """

    def __init__(
        self,
        engine: Any,
        *,
        precision: Literal["auto", "int4", "int8", "fp32"] = "auto",
        proof: Literal["strict", "warn"] = "strict",
        cache_dir: str | Path | ContentCache | None = None,
        threads: int | None = None,
        adapter: Adapter | None = None,
        probe: bool = True,
        release_torch: bool = False,
        progress: Progress | None = None,
        split_text: bool = True,
        queue_size: int = 64,
        unspeakable: Unspeakable = "error",
        voices_dir: str | Path | ContentCache | None = None,
        prune: float | None = None,
        voices: str | VoiceStore | None = None,
        providers: Sequence[str] | Literal["auto"] | None = None,
    ) -> None:
        receiver = progress or ignore_progress
        settings = Settings(
            precision,
            proof,
            cache_dir,
            threads,
            probe,
            receiver,
            queue_size,
            unspeakable,
            split_text,
            voices_dir,
            prune,
            voices,
            providers,
        )
        self._forked()
        self._adapter = adapter if adapter is not None else adapter_for(engine)
        self._runtime = Runtime(settings, self._adapter.name)
        self._routes = {part.name: Route(part, self._runtime.load) for part in self._adapter.parts()}
        self._bound = bound_of(self._adapter, self._routes)
        self._dispatcher = Dispatcher(
            self._adapter, self._bound, self._routes, self._runtime, release_torch=release_torch
        )
        renewed_in_children(self)

    def _forked(self) -> None:
        """A child has none of the parent's threads."""
        self._lock = threading.RLock()
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def from_checkpoint(cls, path: str | Path, engine: str, **options: Any) -> UniversalOptimizer:
        """Wrap an engine that is still on disk; PyTorch weights are loaded only for a first export and for fallback.

        engine: "fish-speech", "piper", "vits", ...; `accelerator engines` lists them. options: those of
        `UniversalOptimizer`, and those of the adapter's `from_checkpoint`, to which `voices` goes where both have it
        (Kokoro's file). Raises EngineError, InvalidOption.
        """
        own_names = {*inspect.signature(cls).parameters} - ({"voices"} & checkpoint_options(engine))
        own = {k: options.pop(k) for k in list(options) if k in own_names}
        own.setdefault("release_torch", True)
        place = own.get("cache_dir")
        own["cache_dir"] = cache = place if isinstance(place, ContentCache) else ContentCache(place)
        return cls(None, adapter=adapter_from_checkpoint(engine, path, cache=cache, **options), **own)

    def prepare(self, parts: Iterable[str] | None = None) -> UniversalOptimizer:
        """Export, load and probe every part (or the named ones) now, not on first use.

        A part that cannot be exported stays in PyTorch. Raises InvalidOption for a part the engine does not have.
        """
        self._check_open()
        if isinstance(parts, str):
            raise InvalidOption(f"prepare() takes a list of parts: [{parts!r}]")
        names = list(self._routes) if parts is None else list(parts)
        if unknown := [name for name in names if name not in self._routes]:
            raise InvalidOption(f"no part called {unknown[0]!r}; the parts are {', '.join(self._routes) or 'none'}")
        for name in sorted(names, key=lambda name: self._routes[name].part.streams):
            self._routes[name].prepare()  # the slowest comes last: what the others left to a thread is done meanwhile
        if parts is None and self._dispatcher.pooling is not None:
            self._dispatcher.pooling.prepare()
        self._dispatcher.release_torch()
        return self

    def tune(self, *, again: bool = False) -> dict[str, dict[str, Any]]:
        """Measure now how each part runs fastest here, and use that, also where it changes the audio of a seed.

        Only what is not known yet, was measured on a busy machine, or is proposed by a later measurement; all of it if
        `again`. Returns per part, and for the "segments" of a feed-forward engine, the tunings {"before", "after"} as
        `status()` has them under "probe"; "before" is empty where nothing was known. Raises InvalidOption for an
        optimizer that does not probe.
        """
        self._check_open()
        if not self._runtime.settings.probe:
            raise InvalidOption("tune() measures, and probe=False rules that out: leave it away")
        report = {}
        routes = dict(self._routes)
        if self._dispatcher.pooling is not None:
            routes[SEGMENTS] = self._dispatcher.pooling
        for name, route in routes.items():
            choice = route.prepare(lambda part: self._runtime.tune(part, again=again))
            report[name] = {"before": dict(choice.before), "after": dict(choice.probe)}
        return report

    def synthesize(
        self,
        text: str,
        reference_audio: Any = None,
        reference_text: str | None = None,
        *,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        unspeakable: Unspeakable | None = None,
        **options: Any,
    ) -> Speech:
        """Speak `text`, in the voice of `reference_audio` (file, bytes, or (samples, Hz)) which says `reference_text`.

        voice: instead, a voice that the engine knows by name. temperature 0 is greedy; None leaves an option to the
        engine. max_new_tokens: frames of each segment of a long text, at most. unspeakable: see the class.
        options: the engine's own (`optimizer.adapter.options` lists them).
        Returns (float32 mono [n] in [-1, 1], Hz, metrics).
        Raises InvalidText, InvalidReference or InvalidOption for a request that cannot be served, Overloaded when too
        many are waiting, GenerationError if the engine itself fails.
        """
        options |= {"seed": seed, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        options |= {"repetition_penalty": repetition_penalty, "max_new_tokens": max_new_tokens}
        asked = Asked(text, reference_audio, reference_text, voice, unspeakable, False, options)
        return self._blocking(asked)

    def stream(
        self,
        text: str,
        reference_audio: Any = None,
        reference_text: str | None = None,
        *,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        unspeakable: Unspeakable | None = None,
        eager: bool = True,
        on_restart: Callable[[], None] | None = None,
        **options: Any,
    ) -> SpeechStream:
        """Speak as `synthesize` does, chunk by chunk as they become ready. The options are those of `synthesize`.

        eager: audio as soon as there is any. Otherwise a chunk is a whole segment of the text, and more of them are
        generated at once, as `synthesize` does: the first is heard later, the last sooner.
        on_restart: for who keeps the chunks until the end. When the engine fails, this is called, what came so far is
        to be dropped, and the untouched engine speaks all of the text; otherwise a failure after a chunk is an error.
        """
        options |= {"seed": seed, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        options |= {"repetition_penalty": repetition_penalty, "max_new_tokens": max_new_tokens}
        asked = Asked(text, reference_audio, reference_text, voice, unspeakable, eager, options)
        return self._stream(asked, on_restart)

    @overload
    def synthesize_batch(
        self,
        texts: Sequence[str],
        reference_audio: Any = None,
        reference_text: str | None = None,
        *,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        unspeakable: Unspeakable | None = None,
        return_exceptions: Literal[False] = False,
        **options: Any,
    ) -> list[Speech]: ...

    @overload
    def synthesize_batch(
        self,
        texts: Sequence[str],
        reference_audio: Any = None,
        reference_text: str | None = None,
        *,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        unspeakable: Unspeakable | None = None,
        return_exceptions: bool,
        **options: Any,
    ) -> list[Speech | BaseException]: ...

    def synthesize_batch(
        self,
        texts: Sequence[str],
        reference_audio: Any = None,
        reference_text: str | None = None,
        *,
        voice: str | None = None,
        unspeakable: Unspeakable | None = None,
        return_exceptions: bool = False,
        **options: Any,
    ) -> list[Speech] | list[Speech | BaseException]:
        """What `synthesize` answers for each text, in their order, spoken together in one decode loop.

        return_exceptions: a text that fails has its error in the list; otherwise the first error is raised once all
        are through. The options are those of `synthesize`, for all texts.
        """
        if isinstance(texts, str):
            raise InvalidOption("synthesize_batch() takes a list of texts: for one text there is synthesize()")

        def speak(text: str) -> Speech | BaseException:
            try:
                asked = Asked(text, reference_audio, reference_text, voice, unspeakable, False, options)
                return self._blocking(asked)
            except Exception as error:  # the others are spoken all the same; the caller gets it
                return error

        at_once = min(max(len(texts), 1), ROWS, self._runtime.settings.queue_size)  # its own texts wait for each other
        with ThreadPoolExecutor(at_once, "accelerator-batch") as pool:
            answers = list(pool.map(speak, texts))
        if not return_exceptions:
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
        return answers

    async def asynthesize(
        self,
        text: str,
        reference_audio: Any = None,
        reference_text: str | None = None,
        *,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        max_new_tokens: int | None = None,
        unspeakable: Unspeakable | None = None,
        **options: Any,
    ) -> Speech:
        """`synthesize` for asyncio: the event loop keeps running meanwhile. Cancelling the task ends the generation."""
        options |= {"seed": seed, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        options |= {"repetition_penalty": repetition_penalty, "max_new_tokens": max_new_tokens}
        asked = Asked(text, reference_audio, reference_text, voice, unspeakable, False, options)
        samples = bytearray()
        stream = await asyncio.to_thread(self._stream, asked, samples.clear)
        future = asyncio.get_running_loop().run_in_executor(self._executor(), _whole, stream, samples)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stream.close()
            future.add_done_callback(lambda done: done.cancelled() or done.exception())  # its result is not used
            raise

    def status(self) -> dict[str, Any]:
        """What runs where and why: per part the backend, precision, proof, timings and reason; JSON-able.

        voices: where encoded recordings are kept, and how often they were found there; None before the first one.
        segments: the same, of whether a feed-forward engine speaks several at once; None for other engines.
        heard: what `accelerator bench quality` said of these exports on these backends, or None.
        """
        return {
            "engine": self._adapter.name,
            **self._runtime.status(self._routes),
            "torch_released": self._dispatcher.released,
            "voices": self._dispatcher.voices.status(),
            "parts": {name: route.status() for name, route in self._routes.items()},
            "segments": None if (segments := self._dispatcher.pooling) is None else segments.status(),
        }

    def close(self) -> None:
        """Free the sessions and stop the engine copy's threads. The wrapped engine itself stays usable."""
        if not self._runtime.close():
            return
        self._bound.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        for route in self._routes.values():
            route.close()

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What calling the engine answers, by the replaced parts, for engines that are called."""
        self._check_open()
        return self._bound.engine(*args, **options)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise EngineError(
            "a wrapped engine is neither copied nor pickled, as its sessions and threads belong to this process: copy "
            "the engine itself, and wrap the engine again where it is used (the cache makes that quick)"
        )

    def __enter__(self) -> UniversalOptimizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def sample_rate(self) -> int:
        """Hz of everything it speaks; 0 for a passed-through engine whose rate is not known yet."""
        return self._adapter.sample_rate

    @property
    def adapter(self) -> Adapter:
        return self._adapter

    @property
    def engine(self) -> Any:
        """The engine on the replaced parts, with its own interface: its `synthesize`, where it has one, is this one's.

        None where the engine is still on disk.
        """
        self._check_open()
        return self._bound.engine

    @property
    def __class__(self) -> Any:  # a drop-in answers isinstance() as the engine does
        bound = self.__dict__.get("_bound")
        return UniversalOptimizer if bound is None or bound.engine is None else type(bound.engine)

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise TypeError("the class of a wrapped engine cannot be changed")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _OWN or "_bound" not in self.__dict__:
            raise AttributeError(name)
        self._check_open()
        return getattr(self._bound.engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        bound = self.__dict__.get("_bound")
        if name in _OWN or bound is None or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(bound.engine, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            object.__delattr__(self, name)
        else:
            delattr(self._bound.engine, name)

    def __dir__(self) -> list[str]:
        return sorted({*dir(UniversalOptimizer), *dir(self._bound.engine)})

    def __repr__(self) -> str:
        return f"<UniversalOptimizer of {self._adapter.name}{', closed' if self._runtime.closed else ''}>"

    def _blocking(self, asked: Asked) -> Speech:
        samples = bytearray()
        return _whole(self._stream(asked, samples.clear), samples)

    def _stream(self, asked: Asked, on_restart: Callable[[], None] | None = None) -> SpeechStream:
        self._check_open()
        meter, cancelled, settings = Meter(), threading.Event(), self._runtime.settings
        request = make_request(
            self._adapter,
            self._bound,
            meter,
            asked,
            unspeakable=settings.unspeakable,
            split_text=settings.split_text,
        )
        return SpeechStream(Running(self._dispatcher, request, meter, cancelled, on_restart), self._metrics)

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(2 * ROWS, "accelerator-async")
            return self._pool

    def _metrics(self, running: Running) -> dict[str, Any]:
        choices = {name: route.choice for name, route in self._routes.items()}
        return {
            **running.meter.result(),
            "segments": running.progress(),
            "skipped": [{"text": each.text, "start": each.start, "end": each.end} for each in running.request.skipped],
            "precision": {n: c.precision for n, c in choices.items() if c is not None and c.call is not None},
            "cache": {
                n: "built" if any(e.entry.created for e in c.exports.values()) else "hit"
                for n, c in choices.items()
                if c is not None and c.exports
            },
        }

    def _check_open(self) -> None:
        self._runtime.check_open()


def _whole(stream: SpeechStream, samples: bytearray) -> Speech:
    """A stream's chunks as one, collected in `samples`. Raises GenerationError if there is no sample in them."""
    rate, running = 0, stream._running
    try:
        for chunk in running:  # it grows where it lies, so that a long text's audio is in memory once
            with running.meter.stage("post"):
                samples += chunk.audio.astype(np.float32, copy=False).tobytes()
                rate = chunk.sample_rate
    finally:
        running.close()
    if not samples:
        raise GenerationError("the engine produced no audio: try another text, seed or reference")
    running.meter.finish()
    return Speech(np.frombuffer(samples, np.float32), rate, stream.metrics)
