"""The adapter: what of a Spark-TTS engine is replaced, by what, and how that is proven."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...audio.checks import check_audio
from ...audio.reference import Reference
from ...cache import ContentCache
from ...errors import EngineError, GenerationError, UnsupportedEngine
from ...export.component import Component
from ...export.graph.specs import CausalSpec, Weights
from ...export.trace import Trace
from ...hardware.forks import Lock
from ...inference.sequence import Batching
from ...parts import llama
from ...parts.backends import onnx_runtime
from ...parts.causal import CAUSAL, causal_backends, causal_components, is_float, load_causal
from ...parts.decoding import Window, overlapping
from ...parts.language_model import LANGUAGE_MODEL
from ...parts.part import Backend, Call, Part, seconds
from ...parts.traced import traced
from ...runtime.onnx import Session
from ...runtime.options import RunOptions
from ...speech import AudioChunk, SamplingParams, SpeechRequest, segment_seed
from ..base import Bound, Cloning, tensors_digest
from ..changes import Watched
from ..options import Option
from ..shadow import shadow
from . import compiled, encoder, examples
from .folder import digest as files_digest
from .folder import tokenizer
from .known import Facts, Memory, code_of
from .language_model import generating, most_tokens, seconds_a_token
from .modules import Made
from .reading import FromFiles, InEngine, Reading, alike
from .stages import (
    CLONING,
    DECODER,
    ENCODER,
    NOTHING,
    OPTIONS,
    SILENT_S,
    SparkStages,
    Spoken,
    check_encoded,
    cut,
    style,
    unspoken,
    wav,
)
from .stored import Late, OnDisk, Shape, check_folder, held, opened, shape_of
from .vocabulary import Vocabulary, ranges_of_names

if TYPE_CHECKING:
    from .multinomial import Multinomial

__all__ = ["SparkAdapter"]

_MOST_TOKENS = 3000  # of a reply: the engine's own limit, a minute
_PROOF_TOKENS = 96
_OUTSIDE = 1e-6  # of a token's probability, which a head without words may leave out
_PROBED_CODES, _PROBED_S = 100, 2.0  # two seconds for the codec
_NAMES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


class SparkAdapter:
    """Parts: `encoder`, `text2semantic` and `decoder` of a `SparkTTS`, or of a checkpoint folder."""

    name = "spark-tts"
    cloning: Cloning | None = CLONING
    options: Mapping[str, Option] | None = OPTIONS

    def __init__(self, engine: Any) -> None:
        """Raises UnsupportedEngine for an engine elsewhere than on a CPU, and for models that are not Spark-TTS's."""
        device = next(engine.model.parameters()).device
        if device.type != "cpu":
            raise UnsupportedEngine(
                f"the engine runs on {device}, where this package makes nothing faster: use it as it is"
            )
        audio = engine.audio_tokenizer
        own = Late(lambda: engine)
        own()
        self._setup(
            own,
            _facts(engine, engine.model, shape_of(audio.model)),
            InEngine(own),
            lambda: tensors_digest(engine.model.state_dict().items()),
            lambda: tensors_digest(
                (f"{i}.{name}", tensor)
                for i, module in enumerate((audio.feature_extractor, audio.model))
                for name, tensor in module.state_dict().items()
            ),
        )
        self._watched += tuple((each, Watched(each), _trains(each)) for each in self._modules())

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, cache: ContentCache | None = None) -> SparkAdapter:
        """Open a checkpoint folder. Its weights are read when something is exported, and when PyTorch has to help out.

        The engine's code is imported the first time only: what it says of the folder is kept. cache: where that is,
        and digests of the files. Raises EngineError, UnsupportedEngine.
        """
        folder, cache = Path(path), cache or ContentCache()
        check_folder(folder)
        memory, engine = Memory(cache, folder), Late(lambda: opened(folder)[0])
        reading: Reading = InEngine(engine)
        if (facts := memory.read()) is not None:
            reading = _from_files(folder, facts)
        else:
            own, shell, shape = opened(folder)
            engine = Late(lambda: own)
            engine()
            facts, reading = _facts(own, shell, shape), InEngine(engine)
            with contextlib.suppress(EngineError):
                files = _from_files(folder, facts)
                if alike(reading, files, facts.count, facts.sample_rate):
                    memory.write(facts)
                    reading = files
        self = cls.__new__(cls)
        audio = [*sorted(folder.glob("BiCodec/*")), *sorted(folder.glob("wav2vec2-large-xlsr-53/*"))]
        self._setup(
            engine,
            facts,
            reading,
            lambda: files_digest(cache, sorted(folder.glob("LLM/*"))),
            lambda: files_digest(cache, [folder / "config.yaml", *audio]),
        )
        return self

    def _setup(
        self, engine: Late, facts: Facts, reading: Reading, model: Callable[[], str], audio: Callable[[], str]
    ) -> None:
        """model, audio: digests of the weights."""
        self._engine, self._facts, self._reading = engine, facts, reading
        self._watched: tuple[tuple[Any, Watched, bool], ...] = ()  # of modules on disk nothing can change
        self.sizes, self.count, self.reach = facts.sizes, facts.count, facts.reach
        self._drawing = Lock()  # PyTorch's random state is one for the whole process
        self._identities = {"model": functools.cache(model), "audio": functools.cache(audio)}
        self.sample_rate, self.unit_s = facts.sample_rate, facts.unit_s
        self.spec, self.ends = facts.spec, facts.spec.end_ids
        self.positions, self.tokens = self.spec.stack.positions, facts.tokens
        self.defaults = SamplingParams(
            temperature=0.8,
            top_k=50,
            top_p=0.95,
            repetition_penalty=facts.repetition_penalty,
            max_new_tokens=_MOST_TOKENS,
        )

    @property
    def engine(self) -> Any:
        """Opened now, if it is on disk."""
        return self._engine()

    def parts(self) -> Sequence[Part]:
        return (
            Part(
                ENCODER,
                "reference",
                original=self._encode_in_torch,
                probe=self._probe_encoder,
                backends=(onnx_runtime(self._encoder(), self._load_encoder),),
                check=self._check_codes,
            ),
            Part(
                LANGUAGE_MODEL,
                "generate",
                original=self._generate_in_torch,
                probe=lambda call: seconds_a_token(call, self._proof_prompt()),
                backends=causal_backends(self.language_model(self.trace), self._load_language_model),
                streams=True,
            ),
            Part(
                DECODER,
                "decode",
                original=self._decode_in_torch,
                probe=lambda call: seconds(call, *self._some_codes(_PROBED_CODES)),
                backends=(*self._compiled_decoder(), onnx_runtime((self._decoder(),), self._load_decoder)),
                check=lambda audio: check_audio(audio, self.sample_rate, silent_s=SILENT_S),
            ),
        )

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        def copy() -> Any:
            from .routed import routed

            return routed(self, calls)

        return Bound(copy() if self._engine.there else _Copy(copy), SparkStages(self, calls))

    def outdated(self) -> str | None:
        """Why the parts, made when the engine was wrapped, are not what it would say now; None if they are."""
        if not self._watched:
            return None
        for now, (module, watched, trained) in zip(self._modules(), self._watched, strict=False):
            if now is not module or watched.changed():
                return "the engine's weights were changed after it was wrapped: wrap the engine again"
            if _trains(module) and not trained:
                return "the engine is in training mode, which its exports do not know: call eval() on its modules"
        return None

    def check(self) -> None:
        if (reason := self.outdated()) is not None:
            raise EngineError(reason)

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self._reading.tokens())

    def heard(self, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
        return self._reading.heard(reference)

    def prompt(self, text: str, voice: Spoken) -> np.ndarray:
        return self._reading.prompt(text, voice)

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
        texts = [segment.text.strip() for segment in cut(request.text, whole=request.whole)]
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
        given = _sampling(params)
        if params.temperature == 0:  # which the engine refuses; the likeliest of one is the same
            given = {"temperature": 1.0, "top_k": 1}
        try:
            with self._seeded(params.seed):
                audio = self._bounded(params.max_new_tokens).inference(text, **options, **given)
        except (RuntimeError, IndexError) as error:
            if "padded input size" in str(error) or "shapes cannot be multiplied" in str(error):
                raise GenerationError(unspoken(text)) from error
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
        if not self._engine.there:
            return True
        modules = [each for each in self._modules() if type(each) is OnDisk]
        for module in modules:
            module.release()
        return bool(modules)

    @contextlib.contextmanager
    def _seeded(self, seed: int | None, token: int = 0, chance: Multinomial | None = None) -> Iterator[None]:
        """PyTorch draws by a seed meanwhile, and goes on afterwards as if nothing had been drawn.

        token: that is drawn first. chance: where its numbers come from, instead of the seed's own.
        """
        if chance is None and seed is not None:
            chance = self._chance(seed)
        with self._drawing, contextlib.nullcontext() if chance is None else chance.in_torch(token):
            yield

    def _chance(self, seed: int) -> Multinomial:
        from .multinomial import Multinomial

        return Multinomial(self.tokens, seed=seed)

    def _modules(self) -> tuple[Any, Any, Any]:
        audio = self.engine.audio_tokenizer
        return self.engine.model, audio.model, audio.feature_extractor

    def _held(self, number: int) -> Any:
        """A module that is about to be exported: what has changed would be kept under other weights' name."""
        self.check()
        return held(self._modules()[number])

    # Language model

    def language_model(self, trace: Callable[[], Trace]) -> tuple[Component, ...]:
        return causal_components(
            *self.backbone(),
            self._identities["model"],
            trace,
            witnesses=functools.partial(self._witnesses, trace),
            outside=_OUTSIDE,
            dtype=self.dtype,
        )

    def backbone(self) -> tuple[CausalSpec, Weights]:
        """The language model's dimensions and its weights."""
        return self.spec, lambda name: llama.weight(self._held(0), name)

    @property
    def dtype(self) -> str:
        """What its language model computes in."""
        return self._facts.dtype

    def trace(self) -> Trace:
        """PyTorch's answers that the language model is proven with."""
        return self._answer(self._proof_prompt())

    def _answer(self, prompt: np.ndarray) -> Trace:
        return llama.record(self._held(0), self.spec, prompt, _PROOF_TOKENS)

    def _proof_prompt(self) -> np.ndarray:
        return self.prompt(examples.PROOF_TEXT, Spoken(style=("female", "moderate", "moderate")))

    def _witnesses(self, trace: Callable[[], Trace]) -> Sequence[Trace]:
        """Answers to the other kinds of requests: in the voice of a reply, and on after what it says."""
        semantics, voice = self._some_codes(_PROOF_TOKENS)
        reply, vocabulary, text = trace().frames[:, 0], self.vocabulary(), examples.PROOF_TEXT
        said, who = vocabulary.semantics(reply), vocabulary.globals(reply)
        semantics, voice = said if len(said) else semantics, who if len(who) == self.count else voice
        voices = Spoken(voice), Spoken(voice, semantics, text)
        return [self._answer(self.prompt(text, each)) for each in voices]

    def _generate_in_torch(
        self,
        prompt: np.ndarray,
        params: SamplingParams,
        *,
        resume: Sequence[int] = (),
        batching: Batching = "off",
        chance: Multinomial | None = None,
    ) -> Iterator[int]:
        params = params.over(self.defaults)
        if (left := most_tokens(params, self.positions, prompt) - len(resume)) < 1:
            return
        import torch

        from . import pytorch

        ids = torch.tensor([[*prompt.tolist(), *resume]])
        options: dict[str, Any] = {"do_sample": False}
        if params.temperature:
            options = {"do_sample": True, **_sampling(params)}
        if params.repetition_penalty is not None:
            options["repetition_penalty"] = params.repetition_penalty
        options |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": left}
        yield from pytorch.tokens(
            lambda criteria: self.engine.model.generate(stopping_criteria=criteria, **options),
            lambda: self._seeded(params.seed, len(resume) if params.temperature else 0, chance),
        )

    def _load_language_model(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        """In float32 a seed draws what it draws in PyTorch."""
        chances = self._chance if is_float(paths[CAUSAL]) else None
        return generating(load_causal(paths, options), self.defaults, chances)

    # Codec

    def _encode_in_torch(self, audio: np.ndarray | None, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """audio: None where only who speaks is of interest."""
        given = clip.astype(np.float64) if audio is None else audio
        semantics, codes = examples.in_engine(self.engine.audio_tokenizer, given, clip)
        return (NOTHING if audio is None else semantics), codes

    def _decode_in_torch(self, semantics: np.ndarray, codes: np.ndarray, *, window: Window | None = None) -> np.ndarray:
        return np.asarray(overlapping(self._detokenized)(semantics, codes, window=window))

    def _detokenized(self, semantics: np.ndarray, codes: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            audio = self.engine.audio_tokenizer.model.detokenize(
                torch.from_numpy(semantics)[None], torch.from_numpy(codes)[None, None]
            )
        return np.asarray(audio.reshape(-1).numpy())

    def _some_codes(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        return examples.codes(length, self.sizes[0]), examples.codes(self.count, self.sizes[1])

    def _check_codes(self, answer: tuple[np.ndarray, np.ndarray]) -> None:
        check_encoded(answer, self.sizes)

    def _probe_encoder(self, call: Call) -> float:
        audio = examples.noise(_PROBED_S, self.sample_rate).astype(np.float32)
        return seconds(call, *self.heard(Reference(audio, self.sample_rate, "", "")))

    def _bicodec(self) -> Any:
        return self._held(1)

    def _wav2vec2(self) -> Any:
        return self._held(2)

    def _config(self, name: str) -> Mapping[str, Any]:
        """Of a traced component: what shapes its graph beside the weights and the code here."""
        return {"part": name, "transformers": importlib.metadata.version("transformers"), "engine": self._facts.code}

    def _encoder(self) -> tuple[Component, ...]:
        return encoder.components(
            lambda: self.engine.audio_tokenizer,
            self._wav2vec2,
            self._bicodec,
            self.sample_rate,
            self._identities["audio"],
            self._config,
        )

    def _decoder(self) -> Component:
        return traced(
            DECODER,
            Made("Audio", self._bicodec),
            self._identities["audio"],
            self._config(DECODER),
            inputs={"semantics": {1: "frames"}, "codes": {}},
            outputs=("audio",),
            examples=self.decoded,
        )

    def _compiled_decoder(self) -> tuple[Backend, ...]:
        builders = f"{__package__}.weights", f"{__package__}.traceable"
        component = compiled.exported(
            self.save_decoder, self._identities["audio"], self._config(DECODER), self._heard, builders
        )
        return compiled.backends(component, lambda paths: paths[compiled.NAME] / compiled.FILE)

    def save_decoder(self, path: Path) -> None:
        """Its weights as compiled kernels read them. Raises ExportError."""
        from . import weights

        weights.save(Made("Audio", self._bicodec)(), path)

    def _heard(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for (semantics, codes), audio in self.decoded():
            yield semantics[0], codes[0], audio[0]

    def decoded(self) -> Iterator[examples.Example]:
        """Codes and PyTorch's audio that the decoder is proven with."""
        return examples.decoded(self._detokenized, self.sizes, self.count)

    def _load_encoder(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        return encoder.load_encoder(paths, options, self._reading.values)

    def _load_decoder(self, paths: Mapping[str, Path], options: RunOptions) -> Call:
        session = Session(paths[DECODER] / f"{DECODER}.onnx", options)
        return overlapping(
            lambda semantics, codes: session.run(
                {"semantics": np.ascontiguousarray(semantics)[None], "codes": np.ascontiguousarray(codes)[None]}
            )[0][0]
        )


class _Copy(OnDisk):
    """The copy of an engine on disk: made when something is asked of it, or set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.get(), name, value)


def _facts(engine: Any, shell: Any, shape: Shape) -> Facts:
    """shell: the language model, perhaps without weights. Raises UnsupportedEngine."""
    audio, penalty = engine.audio_tokenizer, getattr(shell.generation_config, "repetition_penalty", None)
    return Facts(
        spec=llama.spec_of(shell, _ends(shell), ranges_of_names(engine.tokenizer.get_vocab())),
        tokens=int(shell.config.vocab_size),
        dtype=_NAMES.get(str(next(shell.parameters()).dtype), "fp32"),
        repetition_penalty=None if penalty in (None, 1.0) else float(penalty),
        sizes=shape.sizes,
        count=shape.count,
        reach=shape.reach,
        sample_rate=int(engine.sample_rate),
        unit_s=audio.config["latent_hop_length"] / audio.config["sample_rate"],
        clip=len(audio.get_ref_clip(np.zeros(1))),
        level=bool(audio.config["volume_normalize"]),
        code=code_of(engine),
    )


def _from_files(folder: Path, facts: Facts) -> FromFiles:
    """Raises EngineError."""
    return FromFiles(tokenizer(folder), clip=facts.clip, level=facts.level)


def _sampling(params: SamplingParams) -> dict[str, Any]:
    """What `generate` is asked of it: which refuses whole numbers where it wants others, and NumPy's."""
    kinds = {"temperature": float, "top_k": int, "top_p": float}
    return {name: kind(value) for name, kind in kinds.items() if (value := getattr(params, name)) is not None}


def _trains(module: Any) -> bool:
    return any(each.training for each in module.modules())


def _ends(model: Any) -> tuple[int, ...]:
    """Ids that end a reply. Raises UnsupportedEngine."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        raise UnsupportedEngine("the language model has no token that ends a reply: set its generation_config")
    return tuple(int(each) for each in (ends if isinstance(ends, (list, tuple)) else (ends,)))
