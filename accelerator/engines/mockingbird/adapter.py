"""The adapter: what of a MockingBird is replaced, by what, and how that is proven."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...audio.checks import check_audio
from ...errors import BadOutput, UnsupportedEngine
from ...export.component import Component
from ...metrics import current_meter
from ...parts.backends import onnx_runtime, openvino
from ...parts.part import Call, Part, seconds
from ...parts.traced import traced
from ...runtime.options import RunOptions
from ...runtime.sessions import opened
from ...speech import AudioChunk, SpeechRequest, segment_seed
from ..base import Bound, Cloning, tensors_digest
from ..options import Option
from . import examples, hifigan
from .engine import MockingBird
from .loop import Block, InTorch, Sentence, frames, loader
from .masks import Masks
from .reach import reach
from .routed import ENCODER, LOOP, POSTNET, TEXT, VOCODER
from .stages import DEFAULTS, MockingBirdStages, cut, embedding_of
from .traceable import STEP, Postnet, Speaker, Step, Text, Vocoder, answer, made, state_widths

__all__ = ["MockingBirdAdapter"]

_STEP_OUTPUTS = ("mel", "scores", "stop", *STEP[5:])
_PROBED_TEXT, _PROBED_STEPS, _PROBED_FRAMES = 40, 24, 120


class MockingBirdAdapter:
    """Parts: `encoder`, `text`, `loop`, `postnet` and `vocoder` of a `MockingBird`."""

    name = "mockingbird"
    cloning: Cloning | None
    options: Mapping[str, Option] | None = {
        "style_idx": Option(int, "a style token; -1 is what suits the speaker", -1, 9, default=DEFAULTS["style_idx"]),
        "min_stop_token": Option(
            int, "tenths of the probability of an end at which it ends", 1, 9, default=DEFAULTS["min_stop_token"]
        ),
        "steps": Option(int, "frames of a segment at most", 20, 10_000, default=DEFAULTS["steps"]),
    }

    def __init__(self, engine: MockingBird) -> None:
        """Raises UnsupportedEngine for models elsewhere than on a CPU."""
        self.engine, self._tacotron, self._encoder = engine, engine.synthesizer._model, engine.encoder._model
        for model in (self._encoder, self._tacotron, engine.generator):
            device = next(model.parameters()).device
            if device.type != "cpu":
                raise UnsupportedEngine(
                    f"MockingBird runs on {device}, where this package makes nothing faster: use it as it is"
                )
        self.sample_rate = engine.sample_rate
        self.cloning = Cloning("unused", (0.5, 300.0), sample_rate=int(engine.encoder.sampling_rate))
        self.reach = reach(engine.generator) if engine.is_gan else None
        self.hop = _hop(engine)
        self._widths, self._r = state_widths(self._tacotron), int(self._tacotron.decoder.r)
        self._styles = engine.settings.styled, engine.settings.by_speaker
        self._text = Text(self._tacotron, *self._styles)
        self._step = Step(self._tacotron.decoder)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        encoder: str | Path | None = None,
        synthesizer: str | Path | None = None,
        vocoder: str | Path | None = None,
    ) -> MockingBirdAdapter:
        """path: a checkout of MockingBird. encoder, synthesizer, vocoder: files, see `MockingBird.open`.

        Raises EngineError.
        """
        return cls(MockingBird.open(path, encoder=encoder, synthesizer=synthesizer, vocoder=vocoder))

    def parts(self) -> Sequence[Part]:
        spoken = (self._vocoder_part(),) if self.engine.is_gan else ()  # there is nothing else that WaveRNN runs on
        return self._encoder_part(), self._text_part(), self._loop_part(), self._postnet_part(), *spoken

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        stages = MockingBirdStages(self, {VOCODER: self._by_wavernn, **calls})
        return Bound(stages.engine, stages)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        """The engine's own models, segment by segment."""
        assert request.reference is not None
        embedding, options = embedding_of(self.engine, request.reference), {**DEFAULTS, **request.options}
        texts = [request.text] if request.whole else [segment.text.strip() for segment in cut(request.text)]
        for number, text in enumerate(texts):
            seed = segment_seed(request.sampling, number).seed
            with self.engine.seeded(seed):
                mel = self.engine.spectrogram(text, embedding, **options)
            with self.engine.seeded(seed):
                audio = self.engine.vocode(mel)
            yield AudioChunk(audio, self.sample_rate)

    def release(self) -> bool:
        """They stay: the models are what falls back."""
        return False

    def masks(self, seed: int | None) -> Masks:
        text, loop = self._tacotron.encoder.pre_net, self._tacotron.decoder.prenet
        widths = [(int(net.fc1.out_features), int(net.fc2.out_features)) for net in (text, loop)]
        return Masks(seed, (widths[0], widths[1]), (float(text.p), float(loop.p)))

    # Parts

    def _encoder_part(self) -> Part:
        component = self._traced(
            ENCODER,
            Speaker,
            self._encoder,
            inputs={"frames": {0: "rows", 1: "frames"}},
            outputs=("embeddings",),
            examples=functools.partial(examples.of_speaker, self._encoder),
        )
        module = Speaker(self._encoder)
        return Part(
            ENCODER,
            "reference",
            original=lambda frames: answer(module, frames)[0],
            probe=lambda call: seconds(call, examples.speaker_inputs(4, 160)),
            backends=(onnx_runtime((component,), functools.partial(_load, ENCODER)),),
            check=_check_finite,
        )

    def _text_part(self) -> Part:
        component = self._traced(
            TEXT,
            Text,
            self._tacotron,
            *self._styles,
            inputs={"symbols": _AT_1, "voice": {}, "style": {}, "mask1": _AT_1, "mask2": _AT_1},
            outputs=("memory", "keys"),
            examples=functools.partial(examples.of_text, self._tacotron, *self._styles),
        )
        return Part(
            TEXT,
            "text",
            original=lambda *given: answer(self._text, *given),
            probe=lambda call: seconds(call, *examples.text_inputs(self._tacotron, _PROBED_TEXT)),
            backends=(onnx_runtime((component,), functools.partial(_load, TEXT, several=True)),),
            check=lambda said: _check_finite(*said),
        )

    def _loop_part(self) -> Part:
        axes: dict[str, dict[int, str]] = {name: {0: "rows"} for name in STEP}
        for name in ("memory", "keys", "beyond", "cumulated"):
            axes[name] = {0: "rows", 1: "symbols"}
        component = self._traced(
            LOOP,
            Step,
            self._tacotron.decoder,
            inputs=axes,
            outputs=_STEP_OUTPUTS,
            examples=functools.partial(examples.of_step, self._tacotron),
        )
        return Part(
            LOOP,
            "generate",
            original=self._loop_in_torch,
            probe=self._probe_loop,
            backends=(onnx_runtime((component,), loader(self._widths, self._r)),),
            check=lambda block: _check_finite(block.mel),
            streams=True,
        )

    def _loop_in_torch(self, sentence: Sentence, masks: Masks, *, resume: Sequence[Block] = ()) -> Iterator[Block]:
        return frames(functools.partial(InTorch, self._step, self._widths), sentence, masks, resume=resume)

    def _probe_loop(self, call: Call) -> float:
        """Seconds a frame."""
        masks = self.masks(0)
        given = examples.text_inputs(self._tacotron, _PROBED_TEXT)
        memory, keys = answer(self._text, *given)
        sentence = Sentence(memory, keys, _PROBED_STEPS * self._r, 10)
        for _ in call(sentence, masks):
            pass
        start = time.perf_counter()
        for _ in call(sentence, masks):
            pass
        return (time.perf_counter() - start) / sentence.steps

    def _postnet_part(self) -> Part:
        component = self._traced(
            POSTNET,
            Postnet,
            self._tacotron,
            inputs={"mel": {2: "frames"}},
            outputs=("mel",),
            examples=functools.partial(examples.of_postnet, self._tacotron),
        )
        module = Postnet(self._tacotron)
        return Part(
            POSTNET,
            "generate",
            original=lambda mel: answer(module, mel)[0],
            probe=lambda call: seconds(call, examples.mel(_PROBED_FRAMES, self._widths["frame"])[None]),
            backends=(onnx_runtime((component,), functools.partial(_load, POSTNET)),),
            check=_check_finite,
        )

    def _vocoder_part(self) -> Part:
        generator = self.engine.generator
        answered = functools.partial(examples.of_vocoder, generator)
        component = self._traced(
            VOCODER, Vocoder, generator, inputs={"mel": {2: "frames"}}, outputs=("audio",), examples=answered
        )
        module, load = Vocoder(generator), functools.partial(_load, VOCODER)
        probed = examples.mel(_PROBED_FRAMES, int(generator.conv_pre.in_channels))[None]
        return Part(
            VOCODER,
            "decode",
            original=lambda mel: answer(module, mel)[0],
            probe=lambda call: seconds(call, probed),
            backends=(
                onnx_runtime((component,), load),
                openvino(component, load, answered),
                *hifigan.backends(generator, component.identity, component.config),
            ),
            check=lambda audio: check_audio(audio[0], self.sample_rate),
        )

    def _by_wavernn(self, mel: np.ndarray, *, seed: int | None = None) -> np.ndarray:
        """A mel spectrogram [1, 80, F] -> audio [1, n], in the engine's own loop."""
        meter = current_meter()
        meter.used(VOCODER, "pytorch")
        with meter.stage("decode"), self.engine.seeded(seed):
            return self.engine.vocode(mel[0])[None]

    def _traced(self, name: str, kind: Any, own: Any, *settings: Any, **how: Any) -> Component:
        # A voice is kept by this, and hangs on whether the encoder can tell speech from silence.
        trims = name == ENCODER and self.engine.encoder.preprocess_wav.__globals__.get("webrtcvad") is not None

        def identity() -> str:
            weights = tensors_digest(own.state_dict().items())
            return hashlib.sha256(f"{weights} without silence".encode()).hexdigest() if trims else weights

        return traced(
            name,
            functools.partial(made, kind, own, *settings),
            functools.cache(identity),
            {"part": name, "settings": list(settings), "engine": _code(own), "shape": _shape(own)},
            builders=(kind,),
            **how,
        )


_AT_1 = {1: "symbols"}


def _load(name: str, paths: Mapping[str, Path], options: RunOptions, *, several: bool = False) -> Call:
    session = opened(paths[name] / f"{name}.onnx", options)

    def call(*inputs: np.ndarray) -> Any:
        given = [np.ascontiguousarray(each) for each in inputs]
        answers = session.run(dict(zip(session.inputs, given, strict=True)))
        return answers if several else answers[0]

    return call


def _hop(engine: MockingBird) -> int:
    """Samples of a frame."""
    if not engine.is_gan:
        return int(engine.generator.hop_length)
    with torch.inference_mode():
        mels = int(engine.generator.conv_pre.in_channels)
        return int(engine.generator(torch.zeros(1, mels, 8)).shape[-1]) // 8


def _check_finite(*said: np.ndarray) -> None:
    """Raises BadOutput."""
    if not all(np.isfinite(each).all() for each in said):
        raise BadOutput("its answer has numbers that are none")


def _code(own: Any) -> str:
    """sha256 over the files of the engine's modules that this model is made of."""
    kinds = {type(module) for module in own.modules() if not type(module).__module__.startswith("torch.")}
    files = {Path(kind.forward.__code__.co_filename) for kind in kinds}
    texts = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file())
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _shape(own: Any) -> list[str]:
    """How the layers are set up, beyond their weights."""
    return [f"{name}: {module.extra_repr()}" for name, module in own.named_modules() if module.extra_repr()]
