"""The adapter: what of a Spark-TTS engine is replaced, by what, and how that is proven."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...audio.checks import check_audio
from ...cache import ContentCache
from ...errors import EngineError, GenerationError, UnsupportedEngine
from ...export.component import Component
from ...export.graph.specs import CausalSpec, Weights
from ...export.trace import Trace
from ...hardware.forks import Lock
from ...inference.sequence import Batching
from ...inference.token_sampling import TokenSampler
from ...inference.transformer import StepTimes
from ...parts import llama
from ...parts.backends import onnx_runtime
from ...parts.causal import CAUSAL, causal_backends, causal_components, is_float, load_causal
from ...parts.decoding import check_codes
from ...parts.language_model import LANGUAGE_MODEL
from ...parts.part import Call, Part, seconds
from ...parts.traced import traced
from ...runtime.onnx import Session
from ...runtime.options import RunOptions
from ...speech import AudioChunk, SamplingParams, SpeechRequest, segment_seed
from ..base import Bound, Cloning, tensors_digest
from ..options import SAMPLING, Option
from ..shadow import shadow
from . import examples, prompts
from .multinomial import Multinomial
from .routed import DECODER, ENCODER, routed
from .stages import SparkStages, cut, style, wav
from .stored import OnDisk, Shape, held, opened, shape_of
from .traceable import Audio, Globals, Semantics, made
from .vocabulary import Vocabulary, ranges_of_names

__all__ = ["SparkAdapter"]

SPEAKER = "speaker"  # the graph of who speaks, beside that of what is said
_LEVELS = ("very_low", "low", "moderate", "high", "very_high")
_MOST_TOKENS = 3000  # of a reply: the engine's own limit, a minute
_PROOF_TOKENS = 96
_OUTSIDE = 1e-6  # of a token's probability, which a head without words may leave out
_PROBED = 16  # tokens of the language model
_PROBED_CODES, _PROBED_S = 100, 2.0  # two seconds for the codec
_SILENT_S = 0.3  # a window that is digitally silent for longer is a pause only if PyTorch agrees
_SOURCES = (
    *("models.bicodec", "modules.encoder_decoder.feat_encoder", "modules.encoder_decoder.feat_decoder"),
    *("modules.encoder_decoder.wave_generator", "modules.vq.factorized_vector_quantize", "modules.blocks.vocos"),
    *("modules.blocks.layers", "modules.blocks.samper", "modules.speaker.speaker_encoder"),
    *("modules.speaker.ecapa_tdnn", "modules.speaker.perceiver_encoder", "modules.speaker.pooling_layers"),
    *("modules.fsq.residual_fsq", "modules.fsq.finite_scalar_quantization"),
)  # the engine's modules whose code shapes a graph
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class SparkAdapter:
    """Parts: `encoder`, `text2semantic` and `decoder` of a `SparkTTS`, or of a checkpoint folder."""

    name = "spark-tts"
    cloning: Cloning | None = Cloning("useful", (0.2, 60.0))  # a minute is 3,000 tokens of the prompt
    options: Mapping[str, Option] | None = {
        "gender": Option(str, "who speaks, with pitch and speed; instead of a recording", choices=("female", "male")),
        "pitch": Option(str, "how high, with gender and speed", choices=_LEVELS),
        "speed": Option(str, "how fast, with gender and pitch", choices=_LEVELS),
        **{name: option for name, option in SAMPLING.items() if name != "repetition_penalty"},  # the engine has none
    }

    def __init__(self, engine: Any) -> None:
        """Raises UnsupportedEngine for an engine elsewhere than on a CPU, and for models that are not Spark-TTS's."""
        device = next(engine.model.parameters()).device
        if device.type != "cpu":
            raise UnsupportedEngine(
                f"the engine runs on {device}, where this package makes nothing faster: use it as it is"
            )
        audio = engine.audio_tokenizer
        self._setup(
            engine,
            engine.model,
            shape_of(audio.model),
            lambda: tensors_digest(engine.model.state_dict().items()),
            lambda: tensors_digest(
                (f"{i}.{name}", tensor)
                for i, module in enumerate((audio.feature_extractor, audio.model))
                for name, tensor in module.state_dict().items()
            ),
        )

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, cache: ContentCache | None = None) -> SparkAdapter:
        """Open a checkpoint folder. Its weights are read when something is exported, and when PyTorch has to help out.

        cache: where digests of the files are kept. Raises EngineError, UnsupportedEngine.
        """
        folder, cache = Path(path), cache or ContentCache()
        engine, shell, shape = opened(folder)
        self = cls.__new__(cls)
        audio = [*sorted(folder.glob("BiCodec/*")), *sorted(folder.glob("wav2vec2-large-xlsr-53/*"))]
        self._setup(
            engine,
            shell,
            shape,
            lambda: _files_digest(cache, sorted(folder.glob("LLM/*"))),
            lambda: _files_digest(cache, [folder / "config.yaml", *audio]),
        )
        return self

    def _setup(self, engine: Any, shell: Any, shape: Shape, model: Callable[[], str], audio: Callable[[], str]) -> None:
        """shell: the language model, perhaps without weights. model, audio: digests of the weights."""
        self.engine, self._shell = engine, shell
        self.sizes, self.count, self.reach = shape.sizes, shape.count, shape.reach
        self._drawing = Lock()  # PyTorch's random state is one for the whole process
        self._identities = {"model": functools.cache(model), "audio": functools.cache(audio)}
        self.sample_rate = int(engine.sample_rate)
        self.ends = _ends(shell)
        self.spec = llama.spec_of(shell, self.ends, ranges_of_names(engine.tokenizer.get_vocab()))
        self.positions, self.vocabulary = self.spec.stack.positions, int(shell.config.vocab_size)
        penalty = getattr(shell.generation_config, "repetition_penalty", None)
        self.defaults = SamplingParams(
            temperature=0.8,
            top_k=50,
            top_p=0.95,
            repetition_penalty=None if penalty in (None, 1.0) else penalty,
            max_new_tokens=_MOST_TOKENS,
        )

    def parts(self) -> Sequence[Part]:
        return (
            Part(
                ENCODER,
                "reference",
                original=functools.partial(examples.in_engine, self.engine.audio_tokenizer),
                probe=self._probe_encoder,
                backends=(onnx_runtime((self._speaker(), self._encoder()), self._load_encoder),),
                check=self._check_codes,
            ),
            Part(
                LANGUAGE_MODEL,
                "generate",
                original=self._generate_in_torch,
                probe=self._probe_language_model,
                backends=causal_backends(self._language_model(), self._load_language_model),
                streams=True,
            ),
            Part(
                DECODER,
                "decode",
                original=self._decode_in_torch,
                probe=lambda call: seconds(call, *self._some_codes(_PROBED_CODES)),
                backends=(onnx_runtime((self._decoder(),), self._load_decoder),),
                check=lambda audio: check_audio(audio, self.sample_rate, silent_s=_SILENT_S),
            ),
        )

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        return Bound(routed(self, calls), SparkStages(self, calls))

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """The engine's own `inference`, segment by segment, as nothing in it bounds a text.

        A voice that is only described says the first segment, and is the recording that the others are spoken after.
        """
        described, reference, options = style(request), request.reference, dict[str, Any]()
        if described is not None:
            options = dict(zip(("gender", "pitch", "speed"), described, strict=True))
        elif reference is not None:
            options = {"prompt_text": reference.text or None}
        recording = None if reference is None else wav(reference.audio, reference.sample_rate)
        texts = [request.text] if request.whole else [segment.text.strip() for segment in cut(request.text)]
        for number, text in enumerate(texts):
            if recording is not None:
                recording.seek(0)
                options["prompt_speech_path"] = recording
            audio = self._speak(text, segment_seed(request.sampling, number), options)
            if recording is None:
                recording, options = wav(audio, self.sample_rate), {}
            yield AudioChunk(audio, self.sample_rate)

    def _speak(self, text: str, params: SamplingParams, options: Mapping[str, Any]) -> np.ndarray:
        """Raises GenerationError for a reply without speech, which the engine does not foresee."""
        sampling = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p")}
        if params.temperature == 0:  # which the engine refuses; the likeliest of one is the same
            sampling = {"temperature": 1.0, "top_k": 1}
        given = {name: value for name, value in sampling.items() if value is not None}
        try:
            with self._seeded(params.seed):
                audio = self._bounded(params.max_new_tokens).inference(text, **options, **given)
        except (RuntimeError, IndexError) as error:
            if "padded input size" in str(error) or "shapes cannot be multiplied" in str(error):
                raise GenerationError(
                    f"the engine produced no audio for {text!r}: try another seed, text or reference"
                ) from error
            raise
        return np.asarray(audio, np.float32).reshape(-1)

    def _bounded(self, limit: int | None) -> Any:
        """The engine, or one whose replies have at most so many tokens."""
        own = self.engine
        if limit is None:
            return own
        generate = own.model.generate
        return shadow(
            own, model=shadow(own.model, generate=lambda **given: generate(**{**given, "max_new_tokens": limit}))
        )

    def release(self) -> bool:
        """Let the weights go, if they can be read again: those of a running engine are the user's."""
        audio = self.engine.audio_tokenizer
        modules = [each for each in (self.engine.model, audio.model, audio.feature_extractor) if type(each) is OnDisk]
        for module in modules:
            module.release()
        return bool(modules)

    @contextlib.contextmanager
    def _seeded(self, seed: int | None) -> Iterator[None]:
        """PyTorch draws by a seed meanwhile, and goes on afterwards as if nothing had been drawn."""
        chance = None if seed is None else Multinomial(self.vocabulary, seed=seed)
        with self._drawing, contextlib.nullcontext() if chance is None else chance.in_torch(0):
            yield

    # Language model

    def backbone(self) -> tuple[CausalSpec, Weights]:
        """The language model's dimensions and its weights."""
        return self.spec, lambda name: llama.weight(held(self.engine.model), name)

    def _language_model(self) -> tuple[Component, ...]:
        return causal_components(
            *self.backbone(),
            self._identities["model"],
            self._trace,
            witnesses=self._witnesses,
            outside=_OUTSIDE,
            dtype=_NAMES.get(next(self._shell.parameters()).dtype, "fp32"),
        )

    def _trace(self) -> Trace:
        return self._answer(self._proof_prompt())

    def _answer(self, prompt: np.ndarray) -> Trace:
        return llama.record(held(self.engine.model), self.spec, prompt, _PROOF_TOKENS)

    def _proof_prompt(self) -> np.ndarray:
        prompt = prompts.controlled(self.engine, examples.PROOF_TEXT, "female", "moderate", "moderate")
        return prompts.ids(self.engine, prompt)

    def _witnesses(self) -> Sequence[Trace]:
        """Answers to the other kinds of requests: after a recording, and in its voice, which are those of a reply."""
        semantics, voice = self._some_codes(_PROOF_TOKENS)
        reply, vocabulary = self._trace().frames[:, 0], Vocabulary(self.engine.tokenizer.get_vocab())
        said, who = vocabulary.semantics(reply), vocabulary.globals(reply)
        semantics, voice = said if len(said) else semantics, who if len(who) == self.count else voice
        kinds = ((None, None), (semantics, examples.PROOF_TEXT))
        asked = (prompts.cloning(self.engine, examples.PROOF_TEXT, voice, *kind) for kind in kinds)
        return [self._answer(prompts.ids(self.engine, prompt)) for prompt in asked]

    def _generate_in_torch(
        self,
        prompt: np.ndarray,
        params: SamplingParams,
        *,
        resume: Sequence[int] = (),
        batching: Batching = "off",
        chance: Multinomial | None = None,
    ) -> Iterator[int]:
        """All tokens come at once, at the end. chance: instead of the seed's."""
        params = params.over(self.defaults)
        if (left := self._limit(prompt, params) - len(resume)) < 1:
            return
        ids = torch.tensor([[*prompt.tolist(), *resume]])
        options: dict[str, Any] = {"do_sample": False}
        if params.temperature:
            options = {"do_sample": True} | {name: getattr(params, name) for name in ("temperature", "top_k", "top_p")}
        if params.repetition_penalty is not None:
            options["repetition_penalty"] = params.repetition_penalty
        if chance is None and params.temperature and params.seed is not None:
            chance = Multinomial(self.vocabulary, seed=params.seed)
        with self._drawing, contextlib.nullcontext() if chance is None else chance.in_torch(len(resume)):
            answer = self.engine.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=left, **options
            )
        yield from answer[0, ids.shape[1] :].tolist()

    def _limit(self, prompt: np.ndarray, params: SamplingParams) -> int:
        """Tokens of a reply at most."""
        assert params.max_new_tokens is not None
        return min(params.max_new_tokens, self.positions - len(prompt))

    def _load_language_model(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        decoder, exact = load_causal(paths, options), is_float(paths[CAUSAL])

        def generate(
            prompt: np.ndarray,
            params: SamplingParams,
            *,
            resume: Sequence[int] = (),
            batching: Batching = "off",
            times: StepTimes | None = None,
            chance: Multinomial | None = None,
        ) -> Iterator[int]:
            """chance: instead of the seed's; quantized, the seed's own are drawn all the same, which takes less."""
            params = params.over(self.defaults)
            how: dict[str, Any] = {}
            if exact:
                how = {"chance": lambda seed: chance or Multinomial(self.vocabulary, seed=seed)}
            sampler = TokenSampler(params, decoder.spec.rows, prompt=prompt.tolist(), **how).resume(resume)
            left = self._limit(prompt, params) - len(resume)
            yield from decoder.generate(prompt, sampler, left, tokens=resume, batching=batching, times=times)

        return generate

    def _probe_language_model(self, call: Call) -> float:
        """Seconds a token, the prompt included: the engine's own come all at once."""
        params = SamplingParams(temperature=1.0, top_k=50, top_p=1.0, seed=0, max_new_tokens=_PROBED)
        start = time.perf_counter()
        count = sum(1 for _ in call(self._proof_prompt(), params))
        return (time.perf_counter() - start) / max(count, 1)

    # Codec

    def _decode_in_torch(self, semantics: np.ndarray, codes: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            audio = self.engine.audio_tokenizer.model.detokenize(
                torch.from_numpy(semantics)[None], torch.from_numpy(codes)[None, None]
            )
        return np.asarray(audio.reshape(-1).numpy())

    def _some_codes(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        return examples.codes(length, self.sizes[0]), examples.codes(self.count, self.sizes[1])

    def _check_codes(self, answer: tuple[np.ndarray, np.ndarray]) -> None:
        for codes, size in zip(answer, self.sizes, strict=True):
            check_codes(codes, size)

    def _probe_encoder(self, call: Call) -> float:
        audio = examples.noise(_PROBED_S, self.sample_rate)
        return seconds(call, audio, np.asarray(self.engine.audio_tokenizer.get_ref_clip(audio), np.float32))

    def _bicodec(self) -> Any:
        return held(self.engine.audio_tokenizer.model)

    def _wav2vec2(self) -> Any:
        return held(self.engine.audio_tokenizer.feature_extractor)

    def _traced(self, name: str, kind: Any, *owners: Callable[[], Any], **how: Any) -> Component:
        audio = type(self.engine.audio_tokenizer).__module__
        package = audio.rpartition(".models.")[0]
        builders = tuple(f"{package}.{each}" for each in _SOURCES) if package else (audio,)
        return traced(
            name,
            functools.partial(made, kind, *owners),
            self._identities["audio"],
            {"part": name, "transformers": importlib.metadata.version("transformers")},
            builders=(kind, *builders),
            **how,
        )

    def _encoder(self) -> Component:
        return self._traced(
            ENCODER,
            Semantics,
            self._wav2vec2,
            self._bicodec,
            inputs={"values": {1: "samples"}},
            outputs=("semantics",),
            examples=functools.partial(examples.said, self.engine.audio_tokenizer, self.sample_rate),
            codes_equal=0.99,
        )

    def _speaker(self) -> Component:
        return self._traced(
            SPEAKER,
            Globals,
            self._bicodec,
            inputs={"clip": {1: "samples"}},
            outputs=("codes",),
            examples=functools.partial(examples.who, self.engine.audio_tokenizer, self.sample_rate),
            codes_equal=0.99,
        )

    def _decoder(self) -> Component:
        return self._traced(
            DECODER,
            Audio,
            self._bicodec,
            inputs={"semantics": {1: "frames"}, "codes": {}},
            outputs=("audio",),
            examples=functools.partial(examples.decoded, self._decode_in_torch, self.sizes, self.count),
        )

    def _load_encoder(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        # A voice is encoded once: what its activations took is given back.
        said, who = (
            Session(paths[name] / f"{name}.onnx", replace(options, arena=False)) for name in (ENCODER, SPEAKER)
        )
        processor, rate = self.engine.audio_tokenizer.processor, self.sample_rate

        def encode(audio: np.ndarray, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            semantics = said.run({"values": examples.values(processor, audio, rate)})[0][0]
            return semantics, who.run({"clip": np.ascontiguousarray(clip, np.float32)[None]})[0][0]

        return encode

    def _load_decoder(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        session = Session(paths[DECODER] / f"{DECODER}.onnx", options)
        return lambda semantics, codes: session.run(
            {"semantics": np.ascontiguousarray(semantics)[None], "codes": np.ascontiguousarray(codes)[None]}
        )[0][0]


def _ends(model: Any) -> tuple[int, ...]:
    """Ids that end a reply. Raises UnsupportedEngine."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        raise UnsupportedEngine("the language model has no token that ends a reply: set its generation_config")
    return tuple(int(each) for each in (ends if isinstance(ends, (list, tuple)) else (ends,)))


def _files_digest(cache: ContentCache, files: Sequence[Path]) -> str:
    """sha256 over the names and contents of files; each is read once per change."""
    try:
        lines = [f"{file.parent.name}/{file.name} {cache.file_digest(file)}" for file in files if file.is_file()]
    except OSError as error:
        raise EngineError(f"a checkpoint file cannot be read: {error}") from error
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
