"""The adapter: what of a fish-speech engine is replaced, by what, and how that is proven."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import logging
import os
import queue
import time
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...audio.checks import check_audio, write_wav
from ...cache import ContentCache
from ...errors import EngineError, InvalidOption, UnsupportedEngine
from ...export.component import Component
from ...export.graph.dual_ar import DualARSpec, Weights
from ...inference.sampling import Sampler
from ...inference.sequence import Batching
from ...inference.transformer import StepTimes
from ...parts.backends import onnx_runtime, rewritten
from ...parts.decoding import Decoding, resuming, windowed
from ...parts.language_model import (
    LANGUAGE_MODEL,
    language_model_backends,
    language_model_components,
    load_language_model,
)
from ...parts.modules import Examples
from ...parts.part import Call, Part, seconds
from ...parts.traced import traced
from ...runtime.onnx import Session
from ...runtime.options import RunOptions
from ...speech import AudioChunk, SamplingParams, SpeechRequest
from ..base import Bound, Cloning, tensors_digest
from ..options import SAMPLING, Option
from . import codec as codec_graphs
from . import examples, pytorch, rewrite, structure, weights
from . import language_model as lm
from .layouts import check_engine, installed
from .reach import reach
from .routed import EngineParams, Routed, chunks_of, tts_request
from .stored import FILE
from .weights import Held

__all__ = ["FishSpeechAdapter"]

logger = logging.getLogger(__name__)
PROBE_FRAMES = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WEIGHT_FILES = ("model.pth", "model*.safetensors", "model.safetensors.index.json", "config.json")
_PROBED = 48  # frames for the codec, two seconds: fewer would judge the rewrite by what it does once a call


class FishSpeechAdapter:
    """Parts: `encoder`, `text2semantic` and `decoder` of a `TTSInferenceEngine`, or of a checkpoint folder."""

    name = "fish-speech"
    cloning: Cloning | None = Cloning()
    options: Mapping[str, Option] | None = SAMPLING

    def __init__(self, engine: Any) -> None:
        """Find the language model of a running engine. Raises UnsupportedEngine for versions that are not supported."""
        self.layout, self.module = installed()
        check_engine(engine, self.layout.codec_call)
        reached = reach(engine)
        device = next(reached.model.parameters()).device
        if device.type != "cpu":
            raise UnsupportedEngine(
                f"the engine runs on {device}, where this package makes nothing faster: use it as it is"
            )
        self._folder = None if reached.checkpoint_path is None else Path(reached.checkpoint_path)
        codec = engine.decoder_model
        self._setup(
            engine,
            Held(reached.model, None, None),
            Held(codec, None, None),
            lambda: tensors_digest(lm.state(self.model.get())),
            lambda: tensors_digest((n, t) for n, t in self.codec.get().state_dict().items() if t.dtype != torch.bool),
        )
        self._live, self._process = True, os.getpid()  # only there has the engine its thread

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        decoder_config_name: str = "modded_dac_vq",
        decoder_checkpoint: str | Path | None = None,
        cache: ContentCache | None = None,
    ) -> FishSpeechAdapter:
        """Open a checkpoint folder. Its weights are read when something is exported, and when PyTorch has to help out.

        dtype: what PyTorch computes in. decoder_config_name: the codec's configuration in fish-speech's `configs`.
        decoder_checkpoint: the codec's file (default: codec.pth in the folder). cache: where digests of the files are
        kept. Raises EngineError, InvalidOption, UnsupportedEngine.
        """
        if device != "cpu":
            raise InvalidOption(f"device must be 'cpu', not {device!r}: this package makes nothing faster elsewhere")
        if dtype not in DTYPES:
            raise InvalidOption(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        folder = Path(path)
        codec_file = folder / "codec.pth" if decoder_checkpoint is None else Path(decoder_checkpoint)
        if not (folder / "config.json").is_file() or not codec_file.is_file():
            raise EngineError(
                f"{folder} is not a fish-speech checkpoint, which has config.json, weights and {codec_file}: give "
                "the folder of a download, as of fishaudio/openaudio-s1-mini"
            )
        self = cls.__new__(cls)
        self.layout, self.module = installed()
        from fish_speech.inference_engine import TTSInferenceEngine

        model = weights.language_model_shell(folder)
        codec = weights.codec_shell(decoder_config_name, codec_file)
        cache = cache or ContentCache()
        engine = TTSInferenceEngine(
            llama_queue=queue.Queue(), decoder_model=codec, precision=DTYPES[dtype], compile=False
        )
        self._folder = folder
        self._setup(
            engine,
            Held(None, model, lambda: weights.load_language_model(folder, DTYPES[dtype])),
            Held(None, codec, lambda: weights.load_codec(codec, codec_file)),
            lambda: _files_digest(cache, [f for pattern in _WEIGHT_FILES for f in sorted(folder.glob(pattern))]),
            lambda: _files_digest(cache, [codec_file]),
            dtype=DTYPES[dtype],
        )
        self._live = False
        return self

    def _setup(
        self,
        engine: Any,
        model: Held,
        codec: Held,
        model_identity: Callable[[], str],
        codec_identity: Callable[[], str],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.engine, self.model, self.codec = engine, model, codec
        self._dtype = dtype or next(model.shell.parameters()).dtype
        self.sample_rate = int(codec.shell.sample_rate)
        self.samples_per_frame = int(codec.shell.frame_length)
        self.context_frames: int = codec_graphs.decode_context(codec.shell)
        self.spec = lm.spec_of(model.shell, self.layout.semantic_ids, self.layout.code_rows)
        room_s = self.spec.slow.positions / 2 * self.samples_per_frame / self.sample_rate  # the rest is for new speech
        self.cloning = Cloning("useful", (0.2, min(300.0, room_s)))
        self._layout_of_tokens = pytorch.token_layout(self.spec)
        self._identities = {"model": model_identity, "codec": codec_identity}
        self._digests: dict[str, str] = {}
        self._prompt: np.ndarray | None = None
        self._bound: weakref.WeakSet[Routed] = weakref.WeakSet()

    @property
    def is_live(self) -> bool:
        """Whether it was made of a running engine, and not of a checkpoint."""
        return self._live

    def voices(self) -> Sequence[str]:
        """The names that a request's `voice` may have."""
        return sorted(self.engine.list_reference_ids())

    def parts(self) -> Sequence[Part]:
        dtype = next((name for name, dtype in DTYPES.items() if dtype == self._dtype), "fp32")
        trace = functools.partial(lm.trace, self.model.get, self.spec, self._proof_prompt)
        components = language_model_components(*self.backbone(), lambda: self._identity("model"), trace, dtype=dtype)
        return (
            Part(
                "encoder",
                "reference",
                original=self._encode_in_torch,
                probe=lambda call: seconds(call, examples.noise(self.codec.shell, _PROBED)),
                backends=(
                    rewritten(self._rewritten_codec("encoder"), _load_rewritten_encoder),
                    onnx_runtime((self._codec_part("encoder"),), self._load_encoder),
                ),
            ),
            Part(
                LANGUAGE_MODEL,
                "generate",
                original=self._generate_in_torch,
                probe=self._probe_language_model,
                backends=language_model_backends(components, self._load_language_model),
                streams=True,
            ),
            Part(
                "decoder",
                "decode",
                original=self._decode_in_torch,
                probe=lambda call: seconds(call, examples.codes(self.codec.shell, self.spec.codebooks, _PROBED)),
                backends=(
                    rewritten(self._rewritten_codec("decoder"), _load_rewritten_decoder),
                    onnx_runtime((self._codec_part("decoder"),), self._load_decoder),
                ),
                check=lambda audio: check_audio(audio, self.sample_rate),
            ),
        )

    def backbone(self) -> tuple[DualARSpec, Weights]:
        """The language model's dimensions, and its weights by the graphs' names."""
        return self.spec, functools.partial(lm.weight, self.model.get, self.spec)

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        routed = Routed(self, calls)
        self._bound.add(routed)
        return Bound(routed.engine, routed.stages, routed.stream, routed.close)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Speech from the engine itself; if it has no weights any more, or lost its thread by a fork, from its parts in
        PyTorch."""
        if self._live and self._process == os.getpid():
            wav = None
            if request.reference is not None:
                file = io.BytesIO()
                write_wav(file, request.reference.audio, request.reference.sample_rate)
                wav = file.getvalue()
            yield from chunks_of(self.engine.inference(tts_request(request, wav)))
            return
        routed = Routed(self, {part.name: part.original for part in self.parts()})
        try:
            yield from routed.stream(request)
        finally:
            routed.close()

    def release(self) -> bool:
        """Drop the PyTorch weights if they can be read again; says whether it did.

        An engine that was handed over loses its language model's thread, and does not speak by itself any more.
        """
        if self._live:
            reason = self._make_reloadable()
            if reason is not None:
                logger.warning("the PyTorch weights stay in memory: %s", reason)
                return False
        else:
            self.model.release()
            self.codec.release()
        for routed in self._bound:
            routed.drop_torch()
        return True

    def _make_reloadable(self) -> str | None:
        """Take the weights from a running engine, after checking that its folder still has them; or say why not."""
        folder, dtype = self._folder, self._dtype
        if folder is None:
            return "it is not known which folder the language model was read from"
        path = folder / "codec.pth"
        try:
            if not weights.same(lm.state(self.model.get()), weights.stored_language_model(folder)):
                return f"the language model is not the one in {folder}"
            if not weights.same(self.codec.get().state_dict().items(), weights.codec_state(path)):
                return f"the codec is not the one in {path}"
        except (EngineError, OSError, RuntimeError) as error:
            return f"they cannot be read again: {error}"
        self._identity("model"), self._identity("codec")  # later there may be nothing to compute them from
        self._live = False
        self.engine.llama_queue.put(None)  # ends the thread that holds the model
        self.engine = copy.copy(self.engine)
        self.model.release(lambda: weights.load_language_model(folder, dtype))
        self.codec.release(lambda: weights.load_codec(self.codec.shell, path))
        self.engine.llama_queue, self.engine.decoder_model = queue.Queue(), self.codec.shell
        return None

    def _identity(self, module: str) -> str:
        if module not in self._digests:
            self._digests[module] = self._identities[module]()
        return self._digests[module]

    # Language model

    @functools.cached_property
    def defaults(self) -> SamplingParams:
        """What fish-speech's requests say when nothing is asked for."""
        request = tts_request(SpeechRequest("text"), None)
        return EngineParams(
            temperature=request.temperature,
            top_p=request.top_p,
            repetition_penalty=request.repetition_penalty,
            max_new_tokens=request.max_new_tokens,
            top_k=self.layout.top_k,
        )

    def _generate_in_torch(
        self,
        prompt: np.ndarray,
        params: SamplingParams,
        *,
        resume: Sequence[np.ndarray] = (),
        batching: Batching = "off",
    ) -> Iterator[np.ndarray]:
        return pytorch.generate(self.module, self.layout, self.model.get(), self.spec, prompt, params, resume)

    def _load_language_model(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        decoder, rule, layout = load_language_model(paths, options), self.layout.rule, self._layout_of_tokens

        def generate(
            prompt: np.ndarray,
            params: SamplingParams,
            *,
            resume: Sequence[np.ndarray] = (),
            batching: Batching = "off",
            times: StepTimes | None = None,
        ) -> Iterator[np.ndarray]:
            assert params.max_new_tokens is not None
            yield from decoder.generate(
                prompt,
                Sampler(rule, params, layout).resume(resume),
                params.max_new_tokens - len(resume),
                frames=resume,
                batching=batching,
                prefill_may_end=False,
                times=times,
            )

        return generate

    def _proof_prompt(self) -> np.ndarray:
        if self._prompt is None:
            self._prompt = lm.prompt_of(self.module, self.model.shell, lm.PROOF_TEXT)
        return self._prompt

    def _probe_language_model(self, call: Call) -> float:
        params = SamplingParams(
            temperature=0.7, top_p=0.7, repetition_penalty=1.1, top_k=30, seed=0, max_new_tokens=PROBE_FRAMES
        )
        frames = call(self._proof_prompt(), params)
        next(frames)
        start, count = time.perf_counter(), 0
        for _ in frames:
            count += 1
        return (time.perf_counter() - start) / max(count, 1)

    # Codec

    def _encode_in_torch(self, audio: np.ndarray) -> np.ndarray:
        samples = torch.from_numpy(np.ascontiguousarray(audio, np.float32))[None, None]
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            codes = self.codec.get().encode(samples, torch.tensor([samples.shape[-1]]))[0][0]
        return np.asarray(codes.numpy())

    def _decode_in_torch(self, codes: np.ndarray, *, after: Decoding | None = None) -> np.ndarray:
        engine = copy.copy(self.engine)
        engine.decoder_model = self.codec.get()

        def decode(codes: np.ndarray) -> np.ndarray:
            copied = torch.from_numpy(np.array(codes, np.int64))  # newer versions clamp their argument in place
            with torch.inference_mode():
                return np.asarray(engine.get_audio_segment(types.SimpleNamespace(codes=copied)))

        return np.asarray(windowed(decode)(codes, after=after))

    def _load_encoder(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        # A voice is encoded once: its gigabyte of activations is given back. The decoder keeps its own, a third faster.
        session = Session(paths["encoder"] / "encoder.onnx", replace(options, arena=False))
        size = self.samples_per_frame

        def encode(audio: np.ndarray) -> np.ndarray:
            padded = np.zeros((1, -(-len(audio) // size), size), np.float32)
            padded.reshape(-1)[: len(audio)] = audio
            return np.asarray(session.run({"audio": padded})[0][0])

        return encode

    def _load_decoder(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        session = Session(paths["decoder"] / "decoder.onnx", options)
        return windowed(lambda codes: session.run({"codes": np.ascontiguousarray(codes, np.int64)[None]})[0][0])

    def _codec_part(self, part: Literal["encoder", "decoder"]) -> Component:
        decoder = part == "decoder"
        return traced(
            part,
            functools.partial(codec_graphs.direction, part, self.codec.get),
            lambda: self._identity("codec"),
            {"part": part, "structure": structure.digest(self.codec.shell)},
            inputs={"codes": {0: "batch", 2: "frames"}} if decoder else {"audio": {0: "batch", 1: "frames"}},
            outputs=("audio",) if decoder else ("codes",),
            examples=self._examples(part),
            codes_equal=None if decoder else 0.99,
        )

    def _rewritten_codec(self, part: Literal["encoder", "decoder"]) -> Component:
        return rewrite.component(
            part,
            self.codec.get,
            lambda: self._identity("codec"),
            {"part": part, "structure": structure.digest(self.codec.shell)},
            self._examples(part),
        )

    def _examples(self, part: Literal["encoder", "decoder"]) -> Examples:
        call, codebooks = self.layout.codec_call, self.spec.codebooks
        return functools.partial(examples.examples, part, self.codec.get, call, codebooks)


def _files_digest(cache: ContentCache, files: Sequence[Path]) -> str:
    """sha256 over the names and contents of files; each is read once per change."""
    try:
        lines = [f"{file.name} {cache.file_digest(file)}" for file in files]
    except OSError as error:
        raise EngineError(f"a checkpoint file cannot be read: {error}") from error
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _load_rewritten_encoder(paths: Mapping[str, Path], options: RunOptions) -> Call:
    return rewrite.EncodeCall(paths["encoder-rewrite"] / FILE)


def _load_rewritten_decoder(paths: Mapping[str, Path], options: RunOptions) -> Call:
    return resuming(rewrite.DecodeCall(paths["decoder-rewrite"] / FILE, dtype=options.dtype))
