"""The adapter of the engine that ships with this project, `accelerator.reference`."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...audio.checks import check_audio
from ...export.component import Component
from ...export.graph.dual_ar import DualARSpec, Weights
from ...export.graph.quantize import RECIPES, Recipe
from ...inference.sampling import Sampler, SamplingRule, TokenLayout
from ...inference.sequence import Batching, Guidance
from ...inference.transformer import StepTimes
from ...parts.backends import onnx_runtime
from ...parts.decoding import Decoding, check_codes, windowed
from ...parts.language_model import (
    LANGUAGE_MODEL,
    language_model_backends,
    language_model_components,
    load_language_model,
)
from ...parts.part import Call, Part, seconds
from ...parts.traced import traced
from ...runtime.onnx import Session
from ...runtime.options import RunOptions
from ...speech import AudioChunk, SamplingParams, SpeechRequest
from ..base import Arrays, Bound, Cloning, tensors_digest
from ..options import SAMPLING, Option
from . import examples
from .stages import ReferenceStages, routed, voice_options
from .weights import spec_of, weight

__all__ = ["ReferenceAdapter"]

PROBE_FRAMES = 12
SILENT_S = 0.03
LEARNT_S = (1.0, 12.0)  # seconds of a reference: it was trained on turns of up to ten, and babbles from 16 on
LEARNT_BANDWIDTH = 6_500  # Hz that a reference must reach: with less, whoever speaks is taken for awb
LEARNT_CONTRAST = 32  # dB: with more noise rms and awb are taken for each other


class ReferenceAdapter:
    """Parts: `encoder`, `text2semantic` and `decoder` of a `ReferenceEngine`.

    recipes: what each precision means, for benchmarks of others than the shipped.
    """

    name = "reference"
    options: Mapping[str, Option] | None = SAMPLING

    def __init__(self, engine: Any, *, recipes: Mapping[str, Recipe] = RECIPES) -> None:
        self.engine = engine
        self._recipes = recipes
        self.sample_rate: int = engine.sample_rate
        # A voice that has learnt to speak imitates a recording that is read along; one with random weights nothing.
        learnt = engine.config.text != "as_given"
        self.cloning: Cloning | None = (
            Cloning("needed", LEARNT_S, bandwidth=LEARNT_BANDWIDTH, contrast=LEARNT_CONTRAST) if learnt else Cloning()
        )
        self._spec = spec_of(engine.config.language_model)
        self._trace = functools.partial(examples.trace, engine)
        self._digests: dict[str, str] = {}

    def voices(self) -> Sequence[str]:
        """The names that a request's `voice` may have."""
        default = self.engine.default_speaker
        return sorted(self.engine.speakers, key=lambda speaker: speaker != default)

    def parts(self) -> Sequence[Part]:
        engine = self.engine
        components = language_model_components(
            *self.backbone(), lambda: self._digest("language_model"), self._trace, recipes=self._recipes
        )
        return (
            Part(
                "encoder",
                "reference",
                original=engine.encode_reference,
                probe=lambda call: seconds(call, examples.noise(engine, 1.0)),
                backends=(onnx_runtime((self._codec_part("encoder"),), self._load_encoder),),
                check=lambda codes: check_codes(codes, engine.config.language_model.codebook_size),
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
                probe=lambda call: seconds(call, examples.codes(engine, 32)),
                backends=(onnx_runtime((self._codec_part("decoder"),), self._load_decoder),),
                # Windows are short; a digitally silent one is a pause only if PyTorch agrees.
                check=lambda audio: check_audio(audio, self.sample_rate, silent_s=SILENT_S),
            ),
        )

    def backbone(self) -> tuple[DualARSpec, Weights]:
        """The language model's dimensions, and its weights by the graphs' names."""
        return self._spec, functools.partial(weight, self.engine.language_model)

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        engine = routed(self.engine, calls)

        def stream(request: SpeechRequest, kept: Arrays | None) -> Iterator[AudioChunk]:
            options = {k: v for k, v in vars(request.sampling).items() if v is not None}
            for chunk in engine.stream(request.text, **voice_options(request), **options):
                yield AudioChunk(chunk, self.sample_rate)

        return Bound(engine, ReferenceStages(engine, calls), stream)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """Phrase by phrase, as the engine itself speaks a text; max_new_tokens bounds each, as it does a segment."""
        options = {k: v for k, v in vars(request.sampling).items() if v is not None and k != "seed"}
        options |= voice_options(request)
        for number, phrase in enumerate(self.engine.phrases(request.text)):
            seed = None if request.sampling.seed is None else request.sampling.seed + number
            yield AudioChunk(*self.engine.synthesize(phrase, seed=seed, **options))

    def release(self) -> None:
        """Nothing: the engine's weights are the user's."""

    def defaults(self) -> SamplingParams:
        """The defaults of `ReferenceEngine.generate`."""
        config = self.engine.config
        return SamplingParams(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=30,
            repetition_penalty=config.language_model.repetition_penalty,
            max_new_tokens=config.max_new_tokens,
        )

    def sampler(self, params: SamplingParams) -> Sampler:
        lm = self.engine.config.language_model
        layout = TokenLayout(
            semantic_begin=lm.semantic_begin, semantic_end=lm.semantic_end, end_id=lm.im_end, n_codebooks=lm.codebooks
        )
        rule = SamplingRule(
            repetition="both" if lm.repetition_aware else "penalty",
            window=lm.repetition_window,
            penalised="main_tokens",
            prefill_counts=True,
        )
        return Sampler(rule, params, layout)

    def _digest(self, module: str) -> str:
        if module not in self._digests:
            self._digests[module] = tensors_digest(getattr(self.engine, module).state_dict().items())
        return self._digests[module]

    # Language model

    def _generate_in_torch(
        self,
        prompt: np.ndarray,
        params: SamplingParams,
        *,
        resume: Sequence[np.ndarray] = (),
        batching: Batching = "off",
    ) -> Iterator[np.ndarray]:
        so_far = np.stack(resume, axis=1)[1:] if len(resume) else None
        limit = params.max_new_tokens or self.engine.config.max_new_tokens
        if len(resume) >= limit:
            return
        options = {k: v for k, v in vars(params).items() if v is not None} | {"max_new_tokens": limit - len(resume)}
        yield from self.engine.generate(prompt, codes_so_far=so_far, **options)

    def _load_language_model(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        decoder = load_language_model(paths, options)
        spec = self._spec

        def generate(
            prompt: np.ndarray,
            params: SamplingParams,
            *,
            resume: Sequence[np.ndarray] = (),
            batching: Batching = "off",
            times: StepTimes | None = None,
        ) -> Iterator[np.ndarray]:
            params = params.over(self.defaults())
            assert params.max_new_tokens is not None
            sampler = self.sampler(params).resume(resume)
            limit = min(params.max_new_tokens, spec.slow.positions - prompt.shape[1])
            left = limit - len(resume)
            guidance = self._guidance(prompt)
            for frame in decoder.generate(
                prompt, sampler, left, frames=resume, batching=batching, times=times, guidance=guidance
            ):
                if frame[0] == spec.end_id:
                    return
                yield frame

        return generate

    def _guidance(self, prompt: np.ndarray) -> Guidance | None:
        config = self.engine.config
        if config.guidance == 1:
            return None
        from ...reference.tokenizer import unconditional

        return Guidance(unconditional(np.asarray(prompt), config.language_model), config.guidance, config.plausible)

    def _probe_language_model(self, call: Call) -> float:
        prompt = self.engine.encode_text(examples.PROOF_TEXT)
        frames = call(prompt, SamplingParams(seed=0, max_new_tokens=PROBE_FRAMES))
        next(frames, None)
        start, count = time.perf_counter(), 0
        for _ in frames:
            count += 1
        return (time.perf_counter() - start) / max(count, 1)

    # Codec

    def _codec_part(self, part: Literal["encoder", "decoder"]) -> Component:
        from ...reference import codec as modules

        decoder = part == "decoder"
        make: Any = modules.CodecDecode if decoder else modules.CodecEncode
        return traced(
            part,
            functools.partial(make, self.engine.codec),
            lambda: self._digest("codec"),
            {"part": part, "codec": asdict(self.engine.config.codec)},  # windows and the like are in no weight
            inputs={"codes": {0: "batch", 2: "frames"}} if decoder else {"audio": {0: "batch", 1: "samples"}},
            outputs=("audio",) if decoder else ("codes",),
            examples=functools.partial(examples.decoded if decoder else examples.encoded, self.engine),
            codes_equal=None if decoder else 0.99,
        )

    def _decode_in_torch(self, codes: np.ndarray, *, after: Decoding | None = None) -> np.ndarray:
        return np.asarray(windowed(self.engine.decode)(codes, after=after))

    def _load_encoder(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        session = Session(paths["encoder"] / "encoder.onnx", options)
        return lambda audio: session.run({"audio": np.ascontiguousarray(audio, np.float32)[None]})[0][0]

    def _load_decoder(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        session = Session(paths["decoder"] / "decoder.onnx", options)
        return windowed(lambda codes: session.run({"codes": np.ascontiguousarray(codes, np.int64)[None]})[0][0])
