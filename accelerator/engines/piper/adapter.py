"""Piper (piper-tts): a voice is one ONNX graph, which the engine runs with ONNX Runtime's own settings.

Two parts, both feed-forward, so that a text's sentences are spoken on a pool of threads; see `graph` for the cut:

    text     phoneme ids and noise  ->  mean and spread of the latents, for as many frames as the phonemes last
    decoder  latents                ->  audio: the flow backwards, then HiFi-GAN

In between the latents' noise is drawn here, so that a seed means the same wherever a request is spoken. The engine's
own graph draws it inside: two sessions of one process then speak the same take, and no run can be repeated. The parts'
originals are the two halves of the graph as the engine's settings run them; a request that falls back as a whole is
spoken by the engine's own session, which knows no seeds.

Source: VITS (Kim et al. 2021, arXiv:2106.06103). T phoneme ids, C channels, L frames.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...audio.checks import check_audio
from ...errors import AcceleratorError, EngineError, InvalidOption
from ...export.calibration import Calibration
from ...hardware.forks import Lock
from ...hardware.pages import return_freed
from ...metrics import current_meter
from ...parts import vits_decoder
from ...parts.backends import onnx_runtime, onnx_runtime_int8, openvino, pruned
from ...parts.onnx_file import Feed, looked_into, onnx_file, run_session
from ...parts.part import Backend, Call, Part, seconds
from ...parts.sentences import SENTENCES
from ...runtime.borrowed import Deferred, for_cpu, model_of, settings_of
from ...runtime.onnx import Session
from ...speech import AudioChunk, SpeechRequest
from ..base import Bound, Cloning
from ..options import Option
from . import graph
from .stages import DECODER, TEXT, PiperStages, settings

__all__ = ["PiperAdapter", "adapter"]

logger = logging.getLogger(__name__)

_ORIGINAL = "onnxruntime"  # what the engine itself runs on
_SCALES = (0.667, 1.0, 0.8)  # of the latents' noise, of durations, of the durations' noise: as Piper is trained with
_PROBED_IDS, _PROBED_FRAMES = 100, 200


def adapter(voice: Any) -> PiperAdapter:
    """The adapter of a `PiperVoice`. A voice whose graph cannot be taken apart is passed through, and says so."""
    try:
        for_cpu(voice.session)
        return PiperAdapter(voice, graph.Found.from_dict(looked_into(voice.session, graph.find)))
    except AcceleratorError as error:
        logger.warning("this Piper voice is passed through, and runs as before: %s", error)
        return PiperAdapter(voice, None)


class PiperAdapter:
    """Parts: `text` and `decoder` of a `PiperVoice`; none where its model is not known."""

    name = "piper"
    cloning: Cloning | None = None
    options: Mapping[str, Option] | None = {
        "length_scale": Option(float, "duration of phonemes: below 1 is faster", 0.1, 10.0),
        "noise_scale": Option(float, "how much the voice varies", 0.0, 2.0),
        "noise_w_scale": Option(float, "how much durations vary", 0.0, 2.0),
        "normalize_audio": Option(bool, "bring each sentence to full scale, as Piper does", default=True),
        "volume": Option(float, "factor of the audio", 0.0, 10.0, default=1.0),
    }

    def __init__(self, voice: Any, found: graph.Found | None) -> None:
        """found: of the voice's model; None for one that cannot be taken apart."""
        self.engine, self._opening, self._asking = voice, Lock(), Lock()
        self._embeddings: dict[int | None, dict[str, np.ndarray]] = {}
        self._opened: dict[str, Session] = {}
        self.cut: graph.Cut | None = None
        self.reach: int | None = None
        if found is not None:
            self._identity, self.cut, self.reach = found.identity, found.cut, found.reach
            return_freed()  # of what was read to find it

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> PiperAdapter:
        """Open a voice, <name>.onnx with <name>.onnx.json beside it. Raises EngineError."""
        file = Path(path)
        try:
            piper = importlib.import_module("piper")
        except ImportError as error:
            raise EngineError(f"Piper needs its package: {error}; pip install piper-tts (GPL-3.0)") from error
        if not file.is_file() or not Path(f"{file}.json").is_file():
            raise EngineError(f"{file} is no Piper voice: give its .onnx file, with its .onnx.json beside it")
        try:
            told = json.loads(Path(f"{file}.json").read_text("utf-8"))
            session, config = Deferred(file), piper.PiperConfig.from_dict(told)
            made = adapter(piper.PiperVoice(session=session, config=config))
            if made.cut is None:  # it will be needed, or cannot be opened
                session.open()
            return made
        except Exception as error:  # of a missing or broken file, by ONNX Runtime, json and piper
            raise EngineError(f"{file} cannot be opened as a Piper voice: {error}") from error

    @property
    def sample_rate(self) -> int:
        return int(self.engine.config.sample_rate)

    def voices(self) -> Sequence[str]:
        """The names that a request's `voice` may have."""
        config = self.engine.config
        return tuple(config.speaker_id_map) or (tuple(map(str, range(config.num_speakers))) if self._many() else ())

    def speaker(self, name: str | None) -> int | None:
        """A speaker's number, by its name or number; None where there is only one. Raises InvalidOption."""
        config = self.engine.config
        if name is None:
            return int(getattr(config, "default_speaker_id", 0)) if self._many() else None
        if name in config.speaker_id_map and self._many():
            return int(config.speaker_id_map[name])
        if name.isascii() and name.isdigit() and int(name) < config.num_speakers and self._many():
            return int(name)
        known = f"its speakers are {', '.join(self.voices()[:20])}" if self._many() else "this voice has one speaker"
        raise InvalidOption(f"there is no voice {name!r}: {known}")

    def parts(self) -> Sequence[Part]:
        if self.cut is None:
            return ()
        text, decoder = self._component(TEXT), self._component(DECODER)
        decode, spoken = functools.partial(run_session, DECODER), Calibration(self._spoken)
        say = functools.partial(run_session, TEXT)
        return (
            Part(
                TEXT,
                "generate",
                original=functools.partial(self._as_the_engine_does, TEXT),
                probe=lambda call: seconds(call, self.text_feed(_PROBED_IDS)),
                backends=(
                    # A sum in another order could make a sound last a frame longer, so two threads must be as one.
                    onnx_runtime((text,), say, most_threads=2, alike=True),
                    openvino(text, say, functools.partial(self._answered, TEXT), most_threads=1, lower=False),
                ),
                runs_on=_ORIGINAL,
            ),
            Part(
                DECODER,
                "decode",
                original=functools.partial(self._as_the_engine_does, DECODER),
                probe=lambda call: seconds(call, self.decoder_feed(_PROBED_FRAMES)),
                backends=(
                    *self._rewritten(),
                    onnx_runtime((decoder,), decode),
                    openvino(decoder, decode, functools.partial(self._answered, DECODER)),
                    onnx_runtime_int8(decoder, decode, spoken),
                ),
                runs_on=_ORIGINAL,
                check=lambda answer: check_audio(answer[0], self.sample_rate),
                pruned=pruned(decoder, decode, spoken),
            ),
        )

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        if self.cut is None:
            return Bound(self.engine, stream=lambda request, kept: self.original(request))
        stages = PiperStages(self, calls)
        return Bound(stages.engine, stages)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        current_meter().used("engine", _ORIGINAL, own=True)
        for chunk in self.engine.synthesize(request.text, self._asked(request)):
            yield AudioChunk(np.asarray(chunk.audio_float_array, np.float32), int(chunk.sample_rate))

    def release(self) -> bool:
        """It stays: the engine's session is what falls back."""
        return False

    def beside(self, speaker: int | None, text: Call | None = None) -> dict[str, np.ndarray]:
        """What the decoder needs beside latents, for one frame: what the text graph says of no text in particular.

        text: what runs that graph; if None, the engine's own half. Raises EngineError for a graph that gives its
        decoder anything that depends on the text.
        """
        said = text or functools.partial(self._as_the_engine_does, TEXT)
        with self._asking:
            if speaker not in self._embeddings:
                assert self.cut is not None
                few, more = (said(self.text_feed(n, speaker))[2:] for n in (5, 9))
                for one, other in zip(few, more, strict=True):
                    if not np.array_equal(one[..., :1], other[..., :1]) or np.ptp(one, axis=-1).any():
                        raise EngineError("the decoder is given more than latents and a speaker")
                kept = {name: value[..., :1] for name, value in zip(self.cut.beside, few, strict=True)}
                self._embeddings[speaker] = kept
            return self._embeddings[speaker]

    def text_feed(self, count: int, speaker: int | None = None) -> Feed:
        """Inputs of the text graph: phonemes that say nothing, always the same for a count."""
        random, config = np.random.default_rng(count), self.engine.config
        ids = random.integers(0, config.num_symbols, (1, count))
        noise = random.standard_normal((1, 2, count)).astype(np.float32)
        return settings(ids, _SCALES, noise, self.speaker(None) if speaker is None else speaker)

    def decoder_feed(self, frames: int) -> Feed:
        assert self.cut is not None
        channels = self._as_the_engine_does(TEXT, self.text_feed(5))[0].shape[1]
        latents = np.random.default_rng(frames).standard_normal((1, channels, frames)).astype(np.float32)
        return self.with_latents(latents, self.beside(self.speaker(None)))

    def with_latents(self, latents: np.ndarray, beside: Mapping[str, np.ndarray]) -> Feed:
        """Inputs of the decoder: what there is for a frame is there for each."""
        assert self.cut is not None
        count = latents.shape[2]
        spread = {
            name: value if self._is_embedding(value) else value.repeat(count, axis=-1) for name, value in beside.items()
        }
        return {self.cut.latents: latents, **spread}

    def _many(self) -> bool:
        return int(self.engine.config.num_speakers) > 1

    def _is_embedding(self, value: np.ndarray) -> bool:
        return value.ndim == 3 and value.shape[1] > 1

    def _asked(self, request: SpeechRequest) -> Any:
        config = importlib.import_module(type(self.engine).__module__).SynthesisConfig
        given = {k: v for k, v in request.options.items() if v is not None}
        return config(speaker_id=self.speaker(request.voice), **given)

    def _as_the_engine_does(self, name: str, feed: Feed) -> list[np.ndarray]:
        """A half of the graph, in a session with the engine's own settings; opened when it is first needed."""
        with self._opening:
            if name not in self._opened:
                self._opened[name] = Session(self._half(name), settings=settings_of(self.engine.session))
        return self._opened[name].run(feed)

    def _half(self, name: str) -> bytes:
        """The model of `text` or `decoder`, made anew."""
        return bytes(getattr(graph.take_apart(model_of(self.engine.session)), name))

    def _weights(self) -> vits_decoder.Weights:
        return graph.weights(graph.take_apart(model_of(self.engine.session)).decoder)

    def _component(self, name: str) -> Any:
        return onnx_file(
            name,
            functools.partial(self._half, name),
            lambda: self._identity,
            {"part": name},
            examples=functools.partial(self._answered, name),
            builders=(graph,),
            alike=name == TEXT,
        )

    def _answered(self, name: str) -> Iterator[tuple[Feed, Sequence[np.ndarray]]]:
        """Examples of several lengths."""
        lengths = (29, 11, 96, 201) if name == TEXT else (37, 9, 120)
        feed: Callable[[int], Feed] = self.text_feed if name == TEXT else self.decoder_feed
        for length in lengths:
            given = feed(length)
            yield given, self._as_the_engine_does(name, given)

    def _spoken(self) -> Iterator[tuple[Feed, Sequence[np.ndarray]]]:
        """Inputs of the decoder as sentences lead to them, by all speakers in turn, and the engine's answers."""
        noise_scale, *_ = scales = _SCALES
        for seed, sentence in enumerate(SENTENCES):
            random, speaker = np.random.default_rng(seed), seed % int(self.engine.config.num_speakers)
            phonemes = [each for part in self.engine.phonemize(sentence) for each in part]
            ids = np.array([self.engine.phonemes_to_ids(phonemes)], np.int64)
            noise = random.standard_normal((1, 2, ids.shape[1]), np.float32)
            told = settings(ids, scales, noise, speaker if self._many() else None)
            mean, spread = self._as_the_engine_does(TEXT, told)[:2]
            latents = mean + random.standard_normal(mean.shape, np.float32) * spread * np.float32(noise_scale)
            given = self.with_latents(latents, self.beside(speaker if self._many() else None))
            yield given, self._as_the_engine_does(DECODER, given)

    def _rewritten(self) -> tuple[Backend, ...]:
        def examples() -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
            for frames in (37, 9, 120, vits_decoder.WINDOW + 40):
                given = self.decoder_feed(frames)
                yield self._latents_and_speaker(given), self._as_the_engine_does(DECODER, given)[0][:, 0, 0]

        made = vits_decoder.backends(
            self._weights,
            lambda: self._identity,
            {"part": DECODER},
            examples,
        )
        return tuple(replace(each, load=functools.partial(self._load_rewritten, each.load)) for each in made)

    def _load_rewritten(self, load: Any, *given: Any) -> Call:
        decode = load(*given)
        return lambda feed: [decode(*self._latents_and_speaker(feed))[:, None, None]]

    def _latents_and_speaker(self, feed: Feed) -> tuple[np.ndarray, np.ndarray | None]:
        """As `vits_decoder.DecodeCall` takes them: a speaker is its embedding and a one."""
        assert self.cut is not None
        embedding = next((feed[name] for name in self.cut.beside if self._is_embedding(feed[name])), None)
        speaker = None if embedding is None else np.concatenate((embedding, np.ones((1, 1, 1), np.float32)), axis=1)
        return np.ascontiguousarray(feed[self.cut.latents]), speaker
