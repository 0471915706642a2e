"""Hugging Face transformers' VITS (MMS-TTS in over a thousand languages, VITS for VCTK and LJ Speech), as its
text-to-speech pipeline.

Two parts, both feed-forward, so that a long text's segments are spoken on a pool of threads:

    text     tokens [1, T], noise [1, 2, T]  ->  [1, T, 2C + 1]: the prior's means and log variances, log durations
    decoder  latents [1, C, L]               ->  audio [1, L * hop]: the flow backwards, then HiFi-GAN

In between, a token's mean and variance are repeated for as many frames as it lasts, and noise is drawn. The noise is
drawn as transformers draws it: the same seed gives the same speech.

A model of many speakers has one input more, `speaker` [1, E + 1, 1]: the embedding and a one, or zeros where nobody is
named. Sources: VITS (Kim et al. 2021, arXiv:2106.06103); relative positions (Shaw et al. 2018, arXiv:1803.02155);
splines (Durkan et al. 2019, arXiv:1906.04032). T tokens, C channels of the latents, L frames, E of an embedding.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...audio import check_audio
from ...errors import EngineError, InvalidOption
from ...export import Component
from ...hardware.forks import Lock
from ...metrics import current_meter
from ...session import Session, SessionOptions
from ...speech import AudioChunk, SamplingParams, SpeechRequest
from ...text import Unread, is_spoken, stretches
from ..base import Call, Part, Voice, seconds, tensors_digest
from ..dual_ar import codec_component
from ..passthrough import PassThroughAdapter
from ..shadow import shadow
from . import traceable, twin
from .changes import Watched
from .traceable import Decoder, Text, exportable

__all__ = ["VitsAdapter", "adapter"]

logger = logging.getLogger(__name__)

TEXT, DECODER = "text", "decoder"
_PROBED_TOKENS, _PROBED_FRAMES = 60, 120
_UNSHAPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")
_SHOWN = 60  # letters in a message
_ONE_AT_A_TIME = Lock()  # phonemizers are one library for the whole process


def adapter(pipeline: Any) -> VitsAdapter | PassThroughAdapter:
    """The adapter of a text-to-speech pipeline; other models than VITS, or elsewhere than on a CPU, pass through."""
    model = pipeline.model
    if getattr(model.config, "model_type", "") != "vits":
        return PassThroughAdapter(pipeline)
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        logger.warning("this VITS is not in float32 on the CPU: it is passed through and runs as before")
        return PassThroughAdapter(pipeline)
    return VitsAdapter(pipeline)


class VitsAdapter:
    """Parts: `text` and `decoder` of a `TextToAudioPipeline` around a `VitsModel`."""

    name = "vits"
    cloning = None  # its voices are its own

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.model = pipeline, pipeline.model
        self._text, self._decoder = Text(self.model), Decoder(self.model)
        self._watched = Watched(self.model)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> VitsAdapter:
        """Open a folder as `save_pretrained` writes it, or as the hub has it. Raises EngineError."""
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise EngineError(f"{folder} is no checkpoint of transformers: there is no config.json in it")
        try:
            import transformers

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what PyTorch will do without one day
                model: Any = transformers.VitsModel.from_pretrained(folder, local_files_only=True)
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
                make: Any = transformers.pipeline
                return cls(make("text-to-speech", model=model.eval(), tokenizer=tokenizer))
        except ImportError as error:
            raise EngineError(f"VITS needs a package: {error}; pip install transformers") from error
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise EngineError(f"{folder} cannot be opened as a VITS: {error}") from error

    @property
    def sample_rate(self) -> int:
        return int(self.pipeline.sampling_rate)

    def voices(self) -> Sequence[str]:
        """The names that a request's `voice` may have."""
        count = self._speakers()
        return tuple(map(str, range(count))) if count > 1 else ()

    def parts(self) -> Sequence[Part]:
        return (
            Part(
                TEXT,
                "text2semantic",
                (self._component(TEXT),),
                torch=self._text_in_torch,
                load=_load_text,
                probe=lambda call: seconds(call, *self._text_inputs(_PROBED_TOKENS)),
            ),
            Part(
                DECODER,
                "decoder",
                (self._component(DECODER),),
                torch=self._decode_in_torch,
                load=_load_decoder,
                probe=lambda call: seconds(call, *self._decoder_inputs(_PROBED_FRAMES)),
                check=lambda audio: check_audio(audio[0], self.sample_rate),
                twin=self._twin(),
            ),
        )

    def bind(self, calls: Mapping[str, Call]) -> _BoundVits:
        return _BoundVits(self, calls)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        options = {} if request.voice is None else {"speaker_id": self.speaker(request.voice)}
        with torch.random.fork_rng(devices=[], enabled=request.sampling.seed is not None):
            if request.sampling.seed is not None:
                torch.manual_seed(request.sampling.seed)
            answer = self.pipeline(request.text, **({"forward_params": options} if options else {}))
        current_meter().used("engine", "pytorch")
        yield AudioChunk(np.asarray(answer["audio"], np.float32).reshape(-1), int(answer["sampling_rate"]))

    def release(self) -> bool:
        """They stay: transformers' model is what falls back."""
        return False

    def speaker(self, name: str) -> int:
        """The speaker of a name, which is a number. Raises InvalidOption."""
        count = self._speakers()
        if not name.isascii() or not name.isdigit() or int(name) >= count or count < 2:
            known = f"its speakers are 0 to {count - 1}" if count > 1 else "this model has one speaker"
            raise InvalidOption(f"there is no voice {name!r}: {known}")
        return int(name)

    def embedding(self, speaker: int | None) -> np.ndarray | None:
        """The graphs' input for a speaker, float32 [1, E + 1, 1]; None if the model has only one."""
        config = self.model.config
        if config.num_speakers < 2:
            return None
        told = np.zeros((1, config.speaker_embedding_size + 1, 1), np.float32)
        if speaker is not None:
            told[0, :-1, 0], told[0, -1, 0] = self.model.embed_speaker.weight[speaker].detach().numpy(), 1.0
        return told

    def outdated(self) -> str | None:
        """Why the parts, made when the pipeline was wrapped, are not what its model would say now; None if they are."""
        if self._watched.changed():
            return "the model's weights were changed after it was wrapped: wrap the engine again"
        if self._watched.training():
            return "the model is in training mode, which its exports do not know: call its eval()"
        return None

    def _speakers(self) -> int:
        return int(getattr(self.pipeline.model.config, "num_speakers", 1))

    def _exportable(self) -> Any:
        if (reason := self.outdated()) is not None:  # what is exported would be kept under other weights' name
            raise EngineError(reason)
        return exportable(self.model)

    @functools.cached_property
    def _digest(self) -> str:
        state = self.model.state_dict().items()
        return tensors_digest((name, tensor) for name, tensor in state if not name.startswith("posterior_encoder."))

    @functools.cached_property
    def _shape(self) -> dict[str, Any]:
        """What a graph depends on beside the weights."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in _UNSHAPING}
        return {"model": config, "transformers": importlib.metadata.version("transformers")}

    def _twin(self) -> Component:
        from transformers.models.vits import modeling_vits

        def examples() -> Iterator[tuple[tuple[np.ndarray | None, ...], np.ndarray]]:
            for length in (37, 9, 120, twin.WINDOW + 40):
                arguments = self._decoder_inputs(length)
                yield arguments, self._decode_in_torch(*arguments)

        sources = (traceable.__file__, str(modeling_vits.__file__))
        return twin.component(self._exportable, lambda: self._digest, self._shape, examples, sources=sources)

    def _component(self, name: str) -> Component:
        from transformers.models.vits import modeling_vits

        inputs: dict[str, dict[int, str]]
        own: Callable[..., np.ndarray]
        make: Callable[[int], tuple[np.ndarray | None, ...]]
        if name == TEXT:
            inputs, outputs = {"tokens": {1: "tokens"}, "noise": {2: "tokens"}}, ("prior",)
            lengths, own, make = (29, 11, 96), self._text_in_torch, self._text_inputs
        else:
            inputs, outputs = {"latents": {2: "frames"}}, ("audio",)
            lengths, own, make = (37, 9, 120), self._decode_in_torch, self._decoder_inputs
        if self.embedding(None) is not None:
            inputs["speaker"] = {}

        def examples() -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
            for length in lengths:
                arguments = make(length)
                yield tuple(a for a in arguments if a is not None), own(*arguments)

        return codec_component(
            name,
            lambda: (Text if name == TEXT else Decoder)(self._exportable()),
            lambda: self._digest,
            {"part": name, **self._shape},
            inputs=inputs,
            outputs=outputs,
            examples=examples,
            sources=(__file__, traceable.__file__, str(modeling_vits.__file__)),
        )

    def _text_inputs(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        random, config = np.random.default_rng(length), self.model.config
        tokens = random.integers(0, config.vocab_size, (1, length))
        noise = config.noise_scale_duration * random.standard_normal((1, 2, length)).astype(np.float32)
        return tokens, noise, self.embedding(length % config.num_speakers)

    def _decoder_inputs(self, length: int) -> tuple[np.ndarray, np.ndarray | None]:
        random, config = np.random.default_rng(length), self.model.config
        latents = random.standard_normal((1, config.flow_size, length)).astype(np.float32)
        return latents, self.embedding(length % config.num_speakers)

    def _text_in_torch(
        self, tokens: np.ndarray, noise: np.ndarray, speaker: np.ndarray | None, *, alone: bool = True
    ) -> np.ndarray:
        with torch.inference_mode():
            answer = self._text(torch.from_numpy(tokens), torch.from_numpy(noise), _told(speaker))
        return np.asarray(answer.numpy())

    def _decode_in_torch(self, latents: np.ndarray, speaker: np.ndarray | None, *, alone: bool = True) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(self._decoder(torch.from_numpy(latents), _told(speaker)).numpy())


@dataclass(frozen=True)
class _Drawing:
    """What `_BoundVits.say` asks of the model beside what the pipeline does."""

    generator: torch.Generator  # of the noise
    alone: bool


class _BoundVits:
    """A pipeline whose model runs on the routed parts; every setting is the wrapped pipeline's, or its model's, own."""

    def __init__(self, own: VitsAdapter, calls: Mapping[str, Call]) -> None:
        self._own, self._calls = own, calls
        self.engine = shadow(own.pipeline, model=shadow(own.model, forward=self._forward))
        self._model = self.engine.model
        self.utterer = self
        self.comfortable, self.longest = 200, 400  # letters: about a quarter of a minute

    def stream(self, request: SpeechRequest, voice: Voice | None = None) -> Iterator[AudioChunk]:
        speaker = Voice() if request.voice is None else self.named_voice(request.voice)
        yield AudioChunk(self.say(request.text, speaker, request.sampling, alone=True), self._own.sample_rate)

    def unread(self, text: str) -> Unread:
        """What the tokenizer drops: letters and digits not in its vocabulary, unless it rewrites them first."""
        tokenizer = self.engine.tokenizer
        if not getattr(tokenizer, "normalize", False) or tokenizer.phonemize:
            return Unread()
        romanized = tokenizer.is_uroman and importlib.util.find_spec("uroman") is not None  # letters, but no digits
        known = {char for word in tokenizer.get_vocab() for char in word}
        letters = "".join(sorted(filter(is_spoken, known)))

        def lacks(char: str) -> bool:
            return not (char in known or known.issuperset(char.lower()) or (romanized and char.isalpha()))

        foreign = stretches(text, lacks)
        return Unread(foreign, speaks=f"the letters {letters[:_SHOWN]}{'...' if len(letters) > _SHOWN else ''}")

    def named_voice(self, name: str) -> Voice:
        self._own.speaker(name)
        return Voice(name=name)

    def say(self, text: str, voice: Voice, sampling: SamplingParams, *, alone: bool) -> np.ndarray:
        if asked := [k for k, v in vars(sampling).items() if v is not None and k != "seed"]:
            raise InvalidOption(f"{asked[0]} is no option of VITS, which draws no tokens: leave it out")
        self._check_model()
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        asked_for: dict[str, Any] = {"drawing": _Drawing(generator, alone)}
        if voice.name is not None:
            asked_for["speaker_id"] = self._own.speaker(voice.name)
        engine = self.engine  # whose `__call__` does the same; but phonemizing must not happen twice at once
        own = engine._preprocess_params, engine._forward_params, engine._postprocess_params
        given = engine._sanitize_parameters(forward_params=asked_for)
        reading, speaking, ending = ({**kept, **each} for kept, each in zip(own, given, strict=True))
        with current_meter().stage("text"), _ONE_AT_A_TIME:
            inputs = engine.preprocess(text, **reading)
        answer = engine.postprocess(engine.forward(inputs, **speaking), **ending)
        return np.asarray(answer["audio"], np.float32).reshape(-1)

    def close(self) -> None:
        pass

    def _check_model(self) -> None:
        """Raises EngineError where the pipeline would not ask the parts: then it speaks by itself."""
        if self.engine.model is not self._model:
            raise EngineError("the pipeline has another model than when it was wrapped: wrap the engine again")
        if self._model.forward != self._forward:
            raise EngineError("the model's forward() was replaced after it was wrapped: wrap the engine again")

    def _forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        speaker_id: Any = None,
        speaking_rate: Any = None,
        drawing: _Drawing | None = None,
        **options: Any,
    ) -> Any:
        """`VitsModel.forward` on the routed parts, for one row, which is all that the pipeline asks for."""
        model = self._own.model
        outdated = self._own.outdated()
        whole = attention_mask is None or bool(attention_mask.all())
        told = speaker_id is None or (isinstance(speaker_id, int) and 0 <= speaker_id < model.config.num_speakers)
        one = input_ids is not None and input_ids.shape[0] == 1
        if outdated is not None or not (one and whole and told and _is_plain(model.config, options)):
            if drawing is not None:
                raise EngineError(outdated or "the pipeline asks its model for what the exports do not answer")
            if outdated is not None:
                logger.warning("the pipeline's own model speaks: %s", outdated)
            if speaking_rate is not None:
                options["speaking_rate"] = speaking_rate
            return model(input_ids=input_ids, attention_mask=attention_mask, speaker_id=speaker_id, **options)
        if drawing is not None and input_ids.shape[1] < 2:  # nothing but what stands between letters
            return (torch.zeros(1, 0),)
        from transformers.models.vits.modeling_vits import VitsModelOutput

        audio, spectrogram = self._speak(input_ids.numpy(), speaker_id, speaking_rate, drawing)
        answer: Any = VitsModelOutput
        return answer(
            waveform=torch.from_numpy(audio),
            sequence_lengths=torch.tensor([audio.shape[1]]),
            spectrogram=torch.from_numpy(spectrogram),
        )

    def _speak(
        self, tokens: np.ndarray, speaker: int | None, rate: Any, drawing: _Drawing | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(audio [1, n], latents [1, C, L]). rate: None for the model's own. drawing: None for PyTorch's own noise."""
        generator, alone = (None, True) if drawing is None else (drawing.generator, drawing.alone)
        config, told = self._own.model.config, self._own.embedding(speaker)
        model = self._own.model  # its attributes are the user's to change
        noise = np.zeros((1, 2, tokens.shape[1]), np.float32)
        if config.use_stochastic_duration_prediction:
            drawn = torch.randn(1, 2, tokens.shape[1], generator=generator)
            noise = drawn.numpy() * np.float32(model.noise_scale_duration)
        prior = self._calls[TEXT](tokens, noise, told, alone=alone)[0]  # [T, 2C + 1]
        length_scale = 1.0 / (model.speaking_rate if rate is None else rate)  # as transformers rounds it
        lasting = torch.ceil(torch.exp(torch.from_numpy(prior[:, -1].copy())) * length_scale).long().numpy()
        frames = prior.repeat(lasting, axis=0) if lasting.sum() else np.zeros_like(prior[:1])
        means, variances = frames[:, : config.flow_size], frames[:, config.flow_size : -1]
        # As `randn_like` draws for a transposed tensor: another order than for one in order.
        rest = torch.empty(1, *means.shape).transpose(1, 2).normal_(generator=generator)[0].numpy()
        latents = means.T + rest * np.exp(variances.T) * np.float32(model.noise_scale)
        latents = np.ascontiguousarray(latents[None], np.float32)
        audio = self._calls[DECODER](latents, told, alone=alone)
        current_meter().add_frames(latents.shape[2])
        return audio, latents


def _load(name: str, paths: Mapping[str, Path], options: SessionOptions) -> Call:
    """A part's call. While others speak beside it, it runs in a session of one thread, which any number may share."""
    path = paths[name] / f"{name}.onnx"
    session, lock = Session(path, options), Lock()
    single: list[Session] = [session] if options.threads == 1 else []

    def call(*inputs: np.ndarray | None, alone: bool = True) -> np.ndarray:
        own = session
        if not alone:
            with lock:
                if not single:
                    single.append(Session(path, dataclasses.replace(options, threads=1, spin_us=0)))
            own = single[0]
        given = [np.ascontiguousarray(each) for each in inputs if each is not None]
        return np.asarray(own.run(dict(zip(own.inputs, given, strict=True)))[0])

    return call


def _load_text(paths: Mapping[str, Path], options: SessionOptions) -> Call:
    """On one thread always: it is a small part, and a sum in another order could make a sound last a frame longer."""
    return _load(TEXT, paths, dataclasses.replace(options, threads=1, spin_us=0))


def _load_decoder(paths: Mapping[str, Path], options: SessionOptions) -> Call:
    """On all threads in PyTorch, where only one at a time runs: two would be in each other's way."""
    if options.backend == "onnxruntime":
        return _load(DECODER, paths, options)
    decode, lock = twin.DecodeCall(paths["decoder-twin"] / twin.FILE, bf16=options.dtype == "bf16"), Lock()

    def call(latents: np.ndarray, speaker: np.ndarray | None, *, alone: bool = True) -> np.ndarray:
        with lock:
            return decode(latents, speaker)

    return call


def _is_plain(config: Any, options: Mapping[str, Any]) -> bool:
    """Whether the model is asked for speech and nothing else. options: of its `forward`; None leaves it to `config`."""
    plain = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
    asked = {name: getattr(config, name) for name in plain} | {k: v for k, v in options.items() if v is not None}
    return asked.keys() == plain.keys() and all(bool(asked[name]) is plain[name] for name in plain)


def _told(speaker: np.ndarray | None) -> Tensor | None:
    return None if speaker is None else torch.from_numpy(speaker)
