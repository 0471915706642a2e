"""A skeleton of each kind of engine, in numpy.

Tokens     one causal language model, whose first tokens say what the voice is (as Spark-TTS)
Loop       an attention loop of mel frames with a stop token, an embedding for a voice (as MockingBird)
Graph      one graph that ONNX Runtime ran before, a style by the length of the text (as KittenTTS and Kokoro)
Flow       a text part and a decoder part, speakers by number, noise in between (as Piper)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from accelerator import UniversalOptimizer
from accelerator.engines.base import Bound, Cloning, Job
from accelerator.engines.options import SAMPLING, Option
from accelerator.errors import InvalidOption
from accelerator.metrics import current_meter
from accelerator.parts.backends import onnx_runtime
from accelerator.parts.part import Call, Part
from accelerator.speech import AudioChunk, SpeechRequest
from accelerator.text.segments import Segment, split
from tests.doubles import BareStages, component

RATE, HOP = 8_000, 80
LONG = "The first sentence is here. Then there comes a second one. A third one ends it, at last."


def replaced(name: str, call: Call, **fields: Any) -> Part:
    """A part whose replacement answers as the original does."""
    fields = {"probe": lambda call: 1.0, **fields}
    backend = onnx_runtime((component(name),), lambda paths, options: lambda *a, **k: call(*a, **k))
    return Part(name, original=call, backends=(backend,), **fields)


def sound(levels: np.ndarray) -> np.ndarray:
    """A buzz of HOP samples for each level, float32."""
    return (np.repeat(levels, HOP) * np.tile([1, -1], len(levels) * HOP // 2)).astype(np.float32)


class Skeleton(BareStages):
    """An adapter that is its engine and its stages, too."""

    name, sample_rate = "skeleton", RATE
    cloning: Cloning | None = None
    options: Mapping[str, Option] | None = {}

    def parts(self) -> Sequence[Part]:
        raise NotImplementedError

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        made = type(self)()
        made.calls = calls
        return Bound(self, made)

    calls: Mapping[str, Call]

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        raise AssertionError("no skeleton falls back as a whole")

    def release(self) -> bool:
        return False

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return split(request.text, comfortable=30, longest=60)


class Looking:
    """A decoder that is not causal: a frame's audio is made of the next frame, too, and the last ones of none."""

    def __init__(self, call: Call, *arguments: Any) -> None:
        self._call, self._arguments, self._waiting = call, arguments, list[Any]()

    def push(self, units: Sequence[Any], *, final: bool) -> np.ndarray:
        self._waiting += units
        ready = len(self._waiting) - (0 if final else 1)
        if ready <= 0:
            return np.zeros(0, np.float32)
        following = [*self._waiting[1:], 0][: len(self._waiting)]
        audio = self._call(np.array(self._waiting[:ready]), np.array(following[:ready]), *self._arguments)
        del self._waiting[:ready]
        return np.asarray(audio)


class Tokens(Skeleton):
    """Voices: (global tokens or None, what the voice says). Units: tokens, of which the first two are global."""

    windows, unit_s = (2, 4), HOP / RATE
    cloning = Cloning("useful", (0.1, 9.0), sample_rate=16_000)
    options: Mapping[str, Option] | None = {
        **SAMPLING,
        "gender": Option(str, "whose voice", choices=("female", "male")),
    }
    GLOBAL = 1_000

    def parts(self) -> Sequence[Part]:
        return (
            replaced("tokenizer", lambda audio: np.array([len(audio) % 7, 3]), stage="reference"),
            replaced("language_model", self.draw, stage="generate", streams=True),
            replaced("detokenizer", self.detokenize, stage="decode"),
        )

    @staticmethod
    def draw(text: str, said: Any, seed: int, *, resume: Sequence[int] = ()) -> Iterator[int]:
        tokens = [] if said is not None else [Tokens.GLOBAL + seed % 5, Tokens.GLOBAL + 1]
        tokens += [ord(char) for char in text]
        yield from tokens[len(resume) :]

    @staticmethod
    def detokenize(tokens: np.ndarray, following: np.ndarray, known: Any) -> np.ndarray:
        return sound((tokens + following / 2) / 500 * (1 + known[0] / 100))

    def encode(self, reference: Any) -> dict[str, np.ndarray]:
        assert reference.sample_rate == 16_000
        return {"globals": np.asarray(self.calls["tokenizer"](reference.audio))}

    def voice(self, request: SpeechRequest, kept: Any) -> Any:
        if kept is None and "gender" not in request.options:
            raise InvalidOption("give reference_audio or gender")
        return None if kept is None else kept["globals"]

    def generate(self, segment: Segment, voice: Any, job: Job, *, resume: Sequence[int] = ()) -> Iterator[Any]:
        seed = job.sampling.seed or 0
        for token in self.calls["language_model"](segment.text.strip(), voice, seed, resume=list(resume)):
            yield (token,)

    def decoder(self, voice: Any, job: Job) -> Any:
        outer = self

        class BiCodec:
            known, inner = voice, None

            def push(self, units: Sequence[int], *, final: bool) -> np.ndarray:
                own = [unit - outer.GLOBAL for unit in units if unit >= outer.GLOBAL]
                self.known = own if own else self.known
                self.inner = self.inner or Looking(outer.calls["detokenizer"], self.known)
                return self.inner.push([unit for unit in units if unit < outer.GLOBAL], final=final)

        return BiCodec()

    def waits(self, voice: Any) -> bool:
        return voice is None

    def continued(self, segment: Segment, units: Sequence[int], voice: Any) -> Any:
        return np.array([unit - self.GLOBAL for unit in units if unit >= self.GLOBAL])


class Loop(Skeleton):
    """Voices: an embedding. Units: columns of a mel spectrogram, all at a segment's end, as a postnet sees them all."""

    windows, unit_s = (3,), HOP / RATE
    cloning = Cloning("unused", (0.1, 9.0))
    options: Mapping[str, Option] | None = {"style": Option(int, "of ten", 0, 9)}

    def parts(self) -> Sequence[Part]:
        return (
            replaced("speaker", lambda audio: np.ones(4, np.float32) * np.abs(audio).mean(), stage="reference"),
            replaced("loop", self.loop, stage="generate", streams=True),
            replaced("vocoder", lambda mel, following: sound(mel + following / 4), stage="decode"),
        )

    @staticmethod
    def loop(text: str, style: int, *, resume: Sequence[np.ndarray] = ()) -> Iterator[np.ndarray]:
        blocks = [np.full(2, (ord(char) + style) / 500) for char in text]  # and then the stop token
        yield from blocks[len(resume) :]

    def encode(self, reference: Any) -> dict[str, np.ndarray]:
        return {"embedding": np.asarray(self.calls["speaker"](reference.audio))}

    def voice(self, request: SpeechRequest, kept: Any) -> Any:
        return np.zeros(4, np.float32) if kept is None else kept["embedding"]

    def generate(self, segment: Segment, voice: Any, job: Job, *, resume: Sequence[Any] = ()) -> Iterator[Any]:
        blocks = []
        for block in self.calls["loop"](segment.text.strip(), job.options.get("style", 0)):
            blocks.append(block)
            yield ()
        mel = np.concatenate(blocks)
        yield list(mel - mel.mean() / 9 + voice[0])[len(resume) :]

    def decoder(self, voice: Any, job: Job) -> Any:
        return Looking(self.calls["vocoder"])

    def waits(self, voice: Any) -> bool:
        return False


class Graph(Skeleton):
    """Voices: a table of styles, a row for each length. The part's original is ONNX Runtime as the engine set it up."""

    schedule, windows = "pooled", ()
    options: Mapping[str, Option] | None = {"speed": Option(float, "of speech", 0.5, 2.0, default=1.0)}

    def parts(self) -> Sequence[Part]:
        return (replaced("graph", self.run, stage="decode", runs_on="onnxruntime-as-shipped"),)

    @staticmethod
    def run(text: str, style: float, speed: float) -> np.ndarray:
        return sound(np.array([ord(char) / 500 + style for char in text]))[:: 2 if speed > 1 else 1]

    def voice(self, request: SpeechRequest, kept: Any) -> Any:
        if request.voice not in (None, "expr-voice-2-f"):
            raise InvalidOption(f"there is no voice {request.voice!r}; it knows expr-voice-2-f")
        return np.linspace(0, 0.1, 64)

    def generate(self, segment: Segment, voice: Any, job: Job, *, resume: Sequence[Any] = ()) -> Iterator[Any]:
        text = segment.text.strip()
        yield (self.calls["graph"](text, voice[min(len(text), 63)], job.options.get("speed", 1.0)),)


class Flow(Skeleton):
    """Voices: the number of a speaker. Noise is drawn between the parts, by the segment's own seed."""

    schedule, windows = "pooled", ()

    def parts(self) -> Sequence[Part]:
        return (
            replaced("text", lambda text, speaker: np.array([ord(c) / 500 + speaker / 50 for c in text]), stage="text"),
            replaced("decoder", lambda latents: sound(latents), stage="decode"),
        )

    def voice(self, request: SpeechRequest, kept: Any) -> int:
        return int(request.voice or 0)

    def generate(self, segment: Segment, voice: int, job: Job, *, resume: Sequence[Any] = ()) -> Iterator[Any]:
        beside = {} if job.exclusive else {"exclusive": False}
        mean = self.calls["text"](segment.text.strip(), voice, **beside)
        noise = np.random.default_rng(job.sampling.seed).standard_normal(len(mean)) / 50
        current_meter().add_frames(len(mean))
        yield list(mean + noise)

    def decoder(self, voice: int, job: Job) -> Any:
        class Whole:
            def push(_, units: Sequence[float], *, final: bool) -> np.ndarray:
                return np.asarray(self.calls["decoder"](np.array(units)))

        return Whole()


KINDS: dict[type[Skeleton], dict[str, Any]] = {
    Tokens: {"gender": "male"},
    Loop: {"style": 3},
    Graph: {"speed": 1.0},
    Flow: {},
}
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def opened(kind: type[Skeleton], cache: Any, **settings: Any) -> UniversalOptimizer:
    return UniversalOptimizer(None, adapter=kind(), cache_dir=cache, **{"probe": False, **settings})


def streamed(optimizer: UniversalOptimizer, *asked: Any, **options: Any) -> tuple[np.ndarray, int]:
    chunks = [chunk.audio for chunk in optimizer.stream(*asked, **options)]
    return np.concatenate(chunks), len(chunks)
