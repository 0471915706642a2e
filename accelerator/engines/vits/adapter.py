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

import functools
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...audio.checks import check_audio
from ...errors import EngineError, InvalidOption
from ...export.calibration import Calibration
from ...export.component import Component
from ...export.pruning import module_without_heads
from ...parts import vits_decoder
from ...parts.backends import onnx_runtime, onnx_runtime_int8, openvino, pruned
from ...parts.part import Backend, Call, Part, seconds
from ...parts.traced import traced
from ...runtime.options import RunOptions
from ...runtime.sessions import opened
from ...speech import AudioChunk, SpeechRequest
from ..base import Bound, Cloning, tensors_digest
from ..changes import Watched
from ..options import Option
from ..passthrough import PassThroughAdapter
from . import examples, stored
from .stages import DECODER, TEXT, VitsStages
from .traceable import MODELING, Decoder, Text, answer, exportable, made, speaker_input

__all__ = ["VitsAdapter", "adapter"]

logger = logging.getLogger(__name__)

_PROBED_TOKENS, _PROBED_FRAMES = 60, 120
_LASTING_DB = 60.0  # of a pruned text part, which says how long sounds last: a thousandth
_UNSHAPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")


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
    cloning: Cloning | None = None  # its voices are its own
    options: Mapping[str, Option] | None = {}  # it draws no tokens

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.model = pipeline, pipeline.model
        self._text, self._decoder = Text(self.model), Decoder(self.model)
        self._watched = Watched(self.model, without=("posterior_encoder",))

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> VitsAdapter:
        """Open a folder as `save_pretrained` writes it, or as the hub has it. Raises EngineError."""
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise EngineError(
                f"{folder} is no checkpoint of transformers, there is no config.json in it: give the folder of a "
                "download, as of facebook/mms-tts-eng"
            )
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
        text, say = self._component(TEXT), functools.partial(_load, TEXT)
        decoder, load = self._component(DECODER), functools.partial(_load, DECODER)
        read = Calibration(functools.partial(examples.of_sentences, self.model, self._tokens), _LASTING_DB)
        spoken = Calibration(functools.partial(examples.of_speech, self.model, self._tokens))
        return (
            Part(
                TEXT,
                "generate",
                original=self._text_in_torch,
                probe=lambda call: seconds(call, *examples.text_inputs(self.model, _PROBED_TOKENS)),
                backends=(
                    # A sum in another order could make a sound last a frame longer: one thread always.
                    onnx_runtime((text,), say, most_threads=1),
                ),
                pruned=pruned(text, say, read, heads=functools.partial(self._with_fewer_heads, read), most_threads=1),
            ),
            Part(
                DECODER,
                "decode",
                original=self._decode_in_torch,
                probe=lambda call: seconds(call, *examples.decoder_inputs(self.model, _PROBED_FRAMES)),
                backends=(
                    *self._rewritten(),
                    onnx_runtime((decoder,), load),
                    openvino(decoder, load, functools.partial(examples.of_decoder, self.model)),
                    onnx_runtime_int8(decoder, load, spoken),
                ),
                check=lambda audio: check_audio(audio[0], self.sample_rate),
                pruned=pruned(decoder, load, spoken),
            ),
        )

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        stages = VitsStages(self, calls)
        return Bound(stages.engine, stages)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        options = {} if request.voice is None else {"speaker_id": self.speaker(request.voice)}
        with torch.random.fork_rng(devices=[], enabled=request.sampling.seed is not None):
            if request.sampling.seed is not None:
                torch.manual_seed(request.sampling.seed)
            answer = self.pipeline(request.text, **({"forward_params": options} if options else {}))
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
        return speaker_input(self.model, speaker)

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

    def _rewritten(self) -> tuple[Backend, ...]:
        return vits_decoder.backends(
            functools.partial(stored.weights, self._exportable),
            lambda: self._digest,
            self._shape,
            functools.partial(examples.of_decoder, self.model, vits_decoder.WINDOW + 40),
            builders=(exportable, MODELING),
        )

    def _with_fewer_heads(self, read: Calibration, share: float) -> Component:
        """The text part; sentences that are read show which heads do something."""

        def run(module: torch.nn.Module) -> None:
            for feed, _ in read.calibrating():
                answer(module, *feed.values())

        return self._component(TEXT, lambda: module_without_heads(made(Text, self._exportable), share, run))

    def _component(self, name: str, module: Callable[[], torch.nn.Module] | None = None) -> Component:
        inputs: dict[str, dict[int, str]]
        if name == TEXT:
            inputs, outputs = {"tokens": {1: "tokens"}, "noise": {2: "tokens"}}, ("prior",)
            answered = functools.partial(examples.of_text, self.model)
        else:
            inputs, outputs = {"latents": {2: "frames"}}, ("audio",)
            answered = functools.partial(examples.of_decoder, self.model)
        if self.embedding(None) is not None:
            inputs["speaker"] = {}
        return traced(
            name,
            module or functools.partial(made, Text if name == TEXT else Decoder, self._exportable),
            lambda: self._digest,
            {"part": name, **self._shape},
            inputs=inputs,
            outputs=outputs,
            examples=answered,
            builders=(MODELING,),
        )

    def _tokens(self, text: str) -> np.ndarray:
        return np.asarray(self.pipeline.tokenizer(text)["input_ids"], np.int64).reshape(1, -1)

    def _text_in_torch(self, tokens: np.ndarray, noise: np.ndarray, speaker: np.ndarray | None) -> np.ndarray:
        return answer(self._text, tokens, noise, speaker)

    def _decode_in_torch(self, latents: np.ndarray, speaker: np.ndarray | None) -> np.ndarray:
        return answer(self._decoder, latents, speaker)


def _load(name: str, paths: Mapping[str, Path], options: RunOptions) -> Call:
    session = opened(paths[name] / f"{name}.onnx", options)

    def call(*inputs: np.ndarray | None) -> np.ndarray:
        given = [np.ascontiguousarray(each) for each in inputs if each is not None]
        return np.asarray(session.run(dict(zip(session.inputs, given, strict=True)))[0])

    return call
