"""The copy of the engine that calls the routes: its codec, its queue, and the thread that serves it.

That thread runs fish-speech's own `generate_long`, in which only the name `generate` means something else. So prompts,
batches, checks and messages stay fish-speech's. Requests carry the context they were made in (metrics, seeds,
options that fish-speech's requests have no room for) through the queue.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import itertools
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ...errors import AcceleratorError, Closed, GenerationError, InvalidText
from ...hardware.forks import renewed_in_children
from ...metrics import current_meter
from ...parts.language_model import LANGUAGE_MODEL
from ...parts.part import Call
from ...speech import AudioChunk, SamplingParams, SpeechRequest, segment_seed
from ..base import Arrays
from .language_model import with_cache
from .stages import FishSpeechStages, Wrapped
from .structure import with_globals

__all__ = ["Routed", "chunks_of", "tts_request"]

logger = logging.getLogger(__name__)


class EngineParams(SamplingParams):
    """Sampling parameters as fish-speech accepts them: its own checks decide, which allow a penalty of 0.9."""

    def __post_init__(self) -> None:
        pass


@dataclass
class _Request:
    """What travels beside a request of fish-speech. voice: codes [C, T] of a reference, and what it says."""

    sampling: SamplingParams
    voice: tuple[torch.Tensor, str] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    batches: itertools.count[int] = field(default_factory=itertools.count)

    def params(self, engine: Mapping[str, Any], limit: int) -> SamplingParams:
        """Resolved parameters of the next batch of text: the caller's, else the engine's own. limit: of frames."""
        known = {k: engine[k] for k in ("temperature", "top_p", "top_k", "repetition_penalty") if k in engine}
        params = replace(self.sampling, max_new_tokens=None).over(EngineParams(**known, max_new_tokens=limit))
        return segment_seed(params, next(self.batches))


_request: contextvars.ContextVar[_Request | None] = contextvars.ContextVar("accelerator_fish_request", default=None)


@contextlib.contextmanager
def _serving(request: _Request) -> Iterator[None]:
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)


class _Requests(queue.Queue[Any]):
    """A queue whose items remember the context they were put in. Raises Closed when it is no longer served.

    start: begins to serve it, with the first item; called once in a process, as a fork takes no threads along.
    """

    closed = False

    def __init__(self, start: weakref.WeakMethod[Callable[[], None]] | None = None) -> None:
        self._start = start
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """What waits in the parent is served there."""
        super().__init__()
        self._is_served = False

    def _put(self, item: Any) -> None:
        if self.closed and item is not None:
            raise Closed("this engine's accelerator was closed: wrap the engine again")
        super()._put((contextvars.copy_context(), item))
        if not self._is_served and self._start is not None and (start := self._start()) is not None:
            self._is_served = True
            start()


def _serve(requests: _Requests, routed: weakref.ref[Routed], wrap: Any) -> None:
    """The thread's loop. It holds nothing but the queue between requests, so that engines can be freed."""
    while True:
        context, request = requests.get()
        if request is None:
            return
        owner = routed()
        if owner is None or requests.closed:
            request.response_queue.put(wrap(status="error", response=Closed("the engine's accelerator was closed")))
        else:
            context.run(owner.answer, request)
        del owner, context, request


class Routed:
    """`engine` is the copy; everything it shares with the original (references above all) is the same object."""

    def __init__(self, wrapped: Wrapped, calls: Mapping[str, Call]) -> None:
        self._wrapped, self._calls = wrapped, calls
        self._requests = _Requests(weakref.WeakMethod(self._start))
        self.engine = engine = copy.copy(wrapped.engine)
        engine.decoder_model = _routed_codec(wrapped, calls)
        engine.llama_queue = self._requests
        send, load = engine.send_Llama_request, engine.load_by_hash

        def send_with_seed(req: Any, *args: Any, **options: Any) -> Any:
            request = _request.get()
            if request is None:
                request = _Request(EngineParams(seed=None if req.seed is None else abs(int(req.seed))))
            with _serving(request):
                return send(req, *args, **options)

        def load_known_voice(*args: Any, **options: Any) -> Any:
            request = _request.get()
            if request is None or request.voice is None:
                return load(*args, **options)
            codes, text = request.voice
            return [codes], [text]

        engine.send_Llama_request = send_with_seed
        engine.load_by_hash = load_known_voice
        self.stages = FishSpeechStages(wrapped, engine, calls)
        engine._accelerated_by = self  # the copy keeps its thread alive
        weakref.finalize(self, self._requests.put, None).atexit = False

    def _start(self) -> None:
        arguments = self._requests, weakref.ref(self), self._wrapped.module.WrappedGenerateResponse
        threading.Thread(target=_serve, args=arguments, name="accelerator-fish-speech", daemon=True).start()

    def stream(self, request: SpeechRequest, kept: Arrays | None = None) -> Iterator[AudioChunk]:
        """Speech in order. Raises InvalidText for what the model has no room for, GenerationError."""
        reference, known = request.reference, None
        if reference is not None:
            codes = kept["codes"] if kept is not None else self._calls["encoder"](reference.audio)
            known = torch.from_numpy(np.array(codes, np.int64)), reference.text
        state = _Request(request.sampling, known)
        results = self.engine.inference(tts_request(request, b"" if known else None))
        try:
            with _serving(state):  # the first result follows upon the request's way into the queue
                first = next(results, None)
            yield from chunks_of(itertools.chain([first] if first is not None else [], results))
        finally:
            state.cancelled.set()
            results.close()

    def close(self) -> None:
        """End the thread; requests that wait are answered with an error."""
        self._requests.closed = True
        self._requests.put(None)

    def drop_torch(self) -> None:
        """Let go of the modules shared with the original codec."""
        vars(self.engine.decoder_model).update(_modules=self._wrapped.codec.shell._modules)

    def answer(self, request: Any) -> None:
        """Serve one of fish-speech's requests, as its own thread does. Errors are answers."""
        module, reply = self._wrapped.module, request.response_queue.put
        generate_long = with_globals(module.generate_long, {"generate": self._generate})
        try:
            options = {"model": self._wrapped.model.shell, "decode_one_token": module.decode_one_token_ar}
            for chunk in generate_long(**options, **request.request):
                reply(module.WrappedGenerateResponse(status="success", response=chunk))
        except Exception as error:  # passed on to the caller that waits for the reply
            logger.warning("fish-speech could not serve a request: %s", error)
            reply(module.WrappedGenerateResponse(status="error", response=error))

    def _generate(
        self,
        *,
        model: Any,
        prompt: torch.Tensor,
        max_new_tokens: int,
        audio_masks: Any,
        audio_parts: Any,
        decode_one_token: Any = None,
        num_samples: int = 1,
        **sampling: Any,
    ) -> torch.Tensor:
        """What stands for fish-speech's `generate`: prompt [1 + C, T] -> the same with its frames, [1 + C, T + n]."""
        wrapped = self._wrapped
        positions, length = wrapped.spec.slow.positions, prompt.shape[1]
        limit = min(max_new_tokens or positions, positions - length)
        if limit < 2 or audio_masks is not None or audio_parts is not None or num_samples != 1:
            # Its own function, also for its own errors: one token is too few for it, and audio parts are not text.
            own = with_cache(wrapped.model.get(), min(length + max(limit, 1), positions))
            options = {"audio_masks": audio_masks, "audio_parts": audio_parts, "num_samples": num_samples}
            answer = wrapped.module.generate(
                model=own, prompt=prompt, max_new_tokens=max_new_tokens, **options, **sampling
            )
            return torch.as_tensor(answer)
        request = _request.get() or _Request(EngineParams())
        params = request.params(sampling, limit)
        meter = current_meter()
        frames: list[np.ndarray] = []
        for frame in self._calls[LANGUAGE_MODEL](prompt.numpy().astype(np.int64), params):
            if request.cancelled.is_set():
                raise GenerationError("nobody listens any more")
            if frames:
                meter.add_frames(1)  # the last token of the sequence is dropped by fish-speech: n tokens, n - 1 frames
            frames.append(frame)
        return torch.cat([prompt, torch.from_numpy(np.stack(frames, axis=1)).to(prompt.dtype)], dim=1)


def tts_request(request: SpeechRequest, wav: bytes | None) -> Any:
    """A request in fish-speech's terms. wav: the reference as a file. Options out of its range are brought into it."""
    from fish_speech.utils.schema import ServeReferenceAudio, ServeTTSRequest

    params = request.sampling
    options: dict[str, Any] = {"seed": params.seed, "reference_id": request.voice}
    limits = {"temperature": (0.1, 1.0), "top_p": (0.1, 1.0), "repetition_penalty": (0.9, 1.99)}
    for name, (low, high) in limits.items():
        if (value := getattr(params, name)) is not None:
            options[name] = float(min(max(value, low), high))
    if params.max_new_tokens is not None:
        options["max_new_tokens"] = int(params.max_new_tokens) + 1  # n tokens are n - 1 frames
    if wav is not None:
        assert request.reference is not None
        options["references"] = [ServeReferenceAudio(audio=wav, text=request.reference.text)]
    return ServeTTSRequest(text=request.text, streaming=True, **options)


def chunks_of(results: Iterator[Any]) -> Iterator[AudioChunk]:
    """fish-speech's results as audio. Raises what its `error` results say."""
    for result in results:
        if result.code == "segment":
            rate, audio = result.audio
            yield AudioChunk(np.asarray(audio, np.float32).reshape(-1), int(rate))
        elif result.code == "error":
            error = result.error
            if isinstance(error, AcceleratorError):
                raise error
            if isinstance(error, ValueError) and ("too long" in str(error) or "exceeds max_seq_len" in str(error)):
                raise InvalidText(f"text and reference are too long for the model: {error}") from error
            raise GenerationError(f"fish-speech failed: {type(error).__name__}: {error}") from error


def _routed_codec(wrapped: Wrapped, calls: Mapping[str, Call]) -> Any:
    """The codec with its two directions routed. It is an instance of its class, and shares its weights."""
    held = wrapped.codec
    frame = wrapped.samples_per_frame
    kind = type(held.shell)

    def encode(
        self: Any, audio_data: torch.Tensor, audio_lengths: Any = None, n_quantizers: Any = None, **options: Any
    ) -> Any:
        one = audio_data.shape[0] == 1 and 0 < audio_data.shape[-1] == audio_data.numel()
        if not one or n_quantizers is not None or options:
            return held.get().encode(audio_data, audio_lengths, n_quantizers, **options)
        codes = torch.from_numpy(calls["encoder"](audio_data.reshape(-1).float().numpy()))[None]
        lengths = torch.tensor([audio_data.shape[-1]]) if audio_lengths is None else audio_lengths
        return codes, -(-lengths // frame)

    def decoded(indices: torch.Tensor) -> torch.Tensor | None:
        if indices.ndim not in (2, 3) or indices.shape[-1] == 0 or (indices.ndim == 3 and indices.shape[0] != 1):
            return None
        codes = indices.reshape(indices.shape[-2:]).numpy().astype(np.int64)
        return torch.from_numpy(np.ascontiguousarray(calls["decoder"](codes)))[None, None]

    def decode(self: Any, indices: torch.Tensor, feature_lengths: Any) -> Any:
        audio = decoded(indices)
        if audio is None:
            return held.get().decode(indices, feature_lengths)
        return audio, feature_lengths * frame

    def from_indices(self: Any, indices: torch.Tensor) -> Any:
        audio = decoded(indices)
        return held.get().from_indices(indices) if audio is None else audio

    def in_torch(name: str) -> Any:
        return lambda self, *args, **options: getattr(held.get(), name)(*args, **options)

    methods: dict[str, Any] = {name: in_torch(name) for name in ("forward", "decode")}
    methods[wrapped.layout.codec_call] = {"decode": decode, "from_indices": from_indices}[wrapped.layout.codec_call]
    cpu = property(lambda self: torch.device("cpu"))  # weights on the meta device would say so
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "encode": encode,
        "device": cpu,
        **methods,
    }
    codec = copy.copy(held.shell)
    codec.__class__ = type(kind.__name__, (kind,), names)
    return codec
