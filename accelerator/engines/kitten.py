"""KittenTTS (nano, micro and mini; not KittenTTS 2): an id for each phoneme and a style -> audio, by one ONNX graph.

One part, the graph. A text is spoken in the engine's own chunks, since a chunk's length decides which row of a voice
speaks it; several at once, each with the inputs that the engine makes of it. Two things are done otherwise than by the
engine: its one espeak backend is asked by one thread at a time (it answers two at once wrongly, without an error), and
nothing of a chunk is lost: neither what phonemizer puts into a second line, nor what the graph has no room for.

Three layouts: the head of KittenTTS' repository and `kittenml`, which are alike, and the one-file `kittentts` 0.1.3,
whose voices have one row and which has no chunks. It draws nothing: a seed changes nothing.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ..audio.reference import Reference
from ..errors import AcceleratorError, EngineError, InvalidOption, InvalidText, UnsupportedEngine
from ..hardware.forks import Lock
from ..metrics import current_meter
from ..parts.backends import ONNX_RUNTIME
from ..parts.decoding import Joined
from ..parts.onnx_file import Feed, model_digest
from ..parts.part import Call, Part
from ..parts.whole_graph import GRAPH, RoutedSession, Speak, whole_graph
from ..runtime.borrowed import for_cpu
from ..speech import AudioChunk, SpeechRequest
from ..text.check import Unread
from ..text.segments import Segment, speech_weight, split
from .base import Arrays, Bound, Cloning, Job
from .options import Option
from .shadow import shadow

__all__ = ["KITTEN_2", "KittenAdapter", "adapter"]

logger = logging.getLogger(__name__)

KITTEN_2 = (
    "KittenTTS 2 is a language model of 1.7 billion weights, not the small graph of that name, and has no adapter: "
    "use its own runtimes (MLX, vLLM, kitten-tts-cpp), or wrap a KittenTTS of version 0.8 or before"
)
_RATE = 24_000
_MOST_IDS = 512  # positions that the graph's text encoder knows
_SHARE = 0.8  # of what would just fit, for the pieces of a chunk that does not
_SHORTEST = 10  # letters: `split` goes no lower
_COMFORTABLE, _LONGEST = 200, 400  # letters of a chunk, for the engine that makes none
_SAID = (  # what is timed, something short, something long
    "The quick brown fox jumps over the lazy dog.",
    "Hello.",
    "A rainbow is a division of white light into many beautiful colors; these take the shape of a long round arch.",
)


def adapter(engine: Any) -> KittenAdapter:
    """The adapter of a KittenTTS. One whose graph is not known, or not on the CPU, is passed through, and says so."""
    layout = _Chunked(engine) if hasattr(engine, "model") else _OneFile(engine)
    try:
        for_cpu(layout.session)
        model_digest(layout.session)  # it can be read
    except AcceleratorError as error:
        logger.warning("this KittenTTS is passed through, and runs as before: %s", error)
        return KittenAdapter(layout, routed=False)
    return KittenAdapter(layout)


class KittenAdapter:
    """Part: the `graph` of a KittenTTS; none if not `routed`."""

    name = "kitten"
    sample_rate = _RATE
    cloning: Cloning | None = None  # its voices are its own

    def __init__(self, layout: _Layout, *, routed: bool = True) -> None:
        self.layout, self.engine, self._routed = layout, layout.engine, routed
        self.options: Mapping[str, Option] | None = {
            "speed": Option(float, "of speech", 0.25, 4.0, default=1.0),
            **({"clean_text": Option(bool, "say numbers and the like in words first")} if layout.cleans else {}),
        }

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> KittenAdapter:
        """Open the folder of a download by `kittenml`, or else by the `kittentts` that is installed.

        The folder has config.json, the model and its voices; without a config.json, one model and one file of voices.
        Raises EngineError.
        """
        folder = Path(path)
        try:
            return adapter(_opened(folder))
        except ImportError as error:
            wanted = "kittenml" if (folder / "config.json").is_file() else "kittentts==0.1.3"
            raise EngineError(f"KittenTTS needs its package: {error}; pip install {wanted}") from error
        except EngineError:
            raise
        except Exception as error:  # of a missing or broken file, by ONNX Runtime, json and numpy; of espeak
            raise EngineError(f"{folder} cannot be opened as a KittenTTS: {error}") from error

    def voices(self) -> Sequence[str]:
        """The names that a request's `voice` may have."""
        return self.layout.voices

    def voice(self, name: str | None) -> str:
        """A voice's name, by default the engine's own choice. Raises InvalidOption."""
        known = self.voices()
        if name is not None and name not in known:
            raise InvalidOption(f"there is no voice {name!r}: the voices are {', '.join(known)}")
        default = inspect.signature(self.engine.generate).parameters["voice"].default
        return name or (default if default in known else known[0])

    def parts(self) -> Sequence[Part]:
        if not self._routed:
            return ()

        def saying(text: str) -> Speak:
            return lambda session: self.layout.speak(session, self.layout.feed(text, self.voice(None), 1.0))

        return (whole_graph(self.layout.session, tuple(map(saying, _SAID)), _RATE),)

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        if not self._routed:
            return Bound(self.engine, stream=lambda request, kept: self.original(request))
        stages = KittenStages(self, calls[GRAPH])
        return Bound(stages.engine, stages)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        current_meter().used("engine", ONNX_RUNTIME, own=True)
        audio = self.layout.say(request.text, self.voice(request.voice), *_asked(request.options))
        yield AudioChunk(np.asarray(audio, np.float32).reshape(-1), _RATE)

    def release(self) -> bool:
        """It stays: the engine's session is what falls back."""
        return False


def _opened(folder: Path) -> Any:
    """The engine, by whichever package opens this folder. Raises EngineError, ImportError, and what packages raise."""
    config = folder / "config.json"
    told = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    if told.get("type") == "KITTEN2":
        raise UnsupportedEngine(KITTEN_2)
    model = _file_of(folder, told.get("model_file"), "*.onnx")
    voices = _file_of(folder, told.get("voices"), "*.npz")
    if told and (package := _installed("kittenml")) is not None:
        return package.KittenTTS(str(folder))
    if (package := _installed("kittentts.get_model")) is not None:  # the repository's head
        engine = object.__new__(package.KittenTTS)  # which is otherwise opened by its name on the hub only
        given = {name: told.get(name, {}) for name in ("speed_priors", "voice_aliases")}
        engine.model = package.KittenTTS_1_Onnx(str(model), str(voices), **given)
        return engine
    with np.load(voices) as styles:
        rows = max(len(styles[name]) for name in styles.files)
    if rows > 1:
        raise ImportError(f"voices of {rows} rows are not those of kittentts 0.1")
    return importlib.import_module("kittentts").KittenTTS(str(model), str(voices))


def _file_of(folder: Path, name: str | None, pattern: str) -> Path:
    """The file that config.json names, or else the only one of its kind. Raises EngineError."""
    found = sorted(folder.glob(pattern)) if name is None else [folder / name]
    if len(found) != 1:
        raise EngineError(
            f"{folder} is no checkpoint of KittenTTS, there are {len(found)} files {pattern} and no config.json in it: "
            "give the folder of a download, as of KittenML/kitten-tts-nano-0.8"
        )
    return found[0]


def _installed(module: str) -> Any:
    """A module, or None where it, or its package, is not there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise  # there is something else that it needs
        return None


class KittenStages:
    """See `base.Stages`. `engine` is a KittenTTS whose session is the routed part. A unit is audio, float32 [n],
    a voice its name.
    """

    schedule: Literal["batched", "pooled"] = "pooled"
    windows: Sequence[int] = ()
    unit_s: float | None = None

    def __init__(self, own: KittenAdapter, call: Call) -> None:
        self._own, self._layout = own, own.layout
        session = own.layout.session
        self._sessions = {each: RoutedSession(session, call, exclusive=each) for each in (True, False)}
        self.engine = own.layout.routed(self._sessions[True])

    def accepts(self, request: SpeechRequest) -> bool:
        return True

    def unread(self, text: str) -> Unread:
        return Unread()  # espeak names what it cannot read

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        """The engine's own chunks, whose texts need not be found in the request's."""
        chunks = list(self._layout.chunks(request.text, _asked(request.options)[1]))
        if not chunks:
            raise InvalidText("KittenTTS finds nothing to speak in the text: give a sentence with words in it")
        return [Segment(chunk, None, 0, chunk) for chunk in chunks]

    def shortest(self, text: str) -> float:
        return 0.0

    def encode(self, reference: Reference) -> Arrays:
        raise InvalidOption("KittenTTS imitates nobody: leave reference_audio out")

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> str:
        return self._own.voice(request.voice)

    def generate(
        self, segment: Segment, voice: str, job: Job, *, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[Sequence[np.ndarray]]:
        speed, clean = _asked(job.options)
        chunks = [segment.text] if segment.content else self._layout.chunks(segment.text, clean)
        with current_meter().stage("phonemes"):
            feeds = [feed for chunk in chunks for feed in self._feeds(chunk, voice, speed)]
        for feed in feeds[len(resume) :]:
            audio = self._layout.speak(self._sessions[job.exclusive], feed)
            yield [np.asarray(audio, np.float32).reshape(-1)]

    def decoder(self, voice: str, job: Job) -> Joined:
        return Joined()

    def waits(self, voice: str) -> bool:
        return False

    def continued(self, segment: Segment, units: Sequence[np.ndarray], voice: str) -> str:
        return voice

    def _feeds(self, chunk: str, voice: str, speed: float) -> Iterator[Feed]:
        """The graph's inputs for a chunk, in pieces that it has room for."""
        feed = self._layout.feed(chunk, voice, speed)
        count = feed["input_ids"].shape[1]
        if count <= _MOST_IDS:
            yield feed
            return
        longest = max(_SHORTEST, int(speech_weight(chunk) * _SHARE * _MOST_IDS / count))
        pieces = [each.text.strip() for each in split(chunk, comfortable=longest, longest=longest)]
        if len(pieces) < 2:
            raise InvalidText(f"{chunk!r} is read in {count} phonemes, which KittenTTS cannot say: write it otherwise")
        for piece in pieces:
            for each in self._layout.chunks(piece, False):  # which end with a mark
                yield from self._feeds(each, voice, speed)


class _Layout(Protocol):
    """Where a KittenTTS keeps things, and what of its own code does what."""

    engine: Any
    session: Any
    voices: tuple[str, ...]
    cleans: bool

    def routed(self, session: Any) -> Any:
        """A copy of the engine with this session."""
        ...

    def chunks(self, text: str, clean: bool) -> Iterator[str]:
        """The texts that are spoken one by one."""
        ...

    def feed(self, chunk: str, voice: str, speed: float) -> Feed:
        """The graph's inputs. Safe to call from several threads."""
        ...

    def speak(self, session: Any, feed: Feed) -> Any:
        """The audio of inputs, by a session."""
        ...

    def say(self, text: str, voice: str, speed: float, clean: bool) -> Any:
        """The audio of a text by the engine itself."""
        ...


class _Chunked:
    """The repository's head and `kittenml`: a facade, and a `model` that does the work."""

    cleans = True

    def __init__(self, engine: Any) -> None:
        self.engine, model = engine, engine.model
        self.session = model.session
        available = [name for name in model.available_voices if name in model.voices]
        aliases = [alias for alias, name in model.voice_aliases.items() if name in available]
        self.voices = (*aliases, *available)
        self._phonemizer = _OneAtATime(model.phonemizer)
        self._cutting = shadow(model, generate_single_chunk=lambda text, *_: text)
        self._reading = shadow(model, phonemizer=_Unbroken(self._phonemizer))

    def routed(self, session: Any) -> Any:
        model = shadow(self.engine.model, session=session, phonemizer=self._phonemizer)
        return shadow(self.engine, model=model)

    def chunks(self, text: str, clean: bool) -> Iterator[str]:
        yield from self._cutting.generate_stream(text, self.voices[0], 1.0, clean)

    def feed(self, chunk: str, voice: str, speed: float) -> Feed:
        made: Feed = self._reading._prepare_inputs(chunk, voice, speed)
        return made

    def speak(self, session: Any, feed: Feed) -> Any:
        speaking = shadow(self.engine.model, session=session, _prepare_inputs=lambda *_: feed)
        return speaking.generate_single_chunk("", self.voices[0], 1.0)

    def say(self, text: str, voice: str, speed: float, clean: bool) -> Any:
        # Of the model: the facade prints.
        speaking = shadow(self.engine.model, phonemizer=self._phonemizer)
        return speaking.generate(text, voice, speed, clean)


class _OneFile:
    """kittentts 0.1.3: everything in one method, which takes a text as it is."""

    cleans = False

    def __init__(self, engine: Any) -> None:
        self.engine, self.session = engine, engine._session
        self.voices = tuple(name for name in engine.available_voices if name in engine._voices)
        self._phonemizer = _OneAtATime(engine._phonemizer)
        self._reading = _Unbroken(self._phonemizer)

    def routed(self, session: Any) -> Any:
        return shadow(self.engine, _session=session, _phonemizer=self._phonemizer)

    def chunks(self, text: str, clean: bool) -> Iterator[str]:
        if speech_weight(text) <= _LONGEST:
            yield text.strip()
            return
        for segment in split(text, comfortable=_COMFORTABLE, longest=_LONGEST):
            yield segment.text.strip()

    def feed(self, chunk: str, voice: str, speed: float) -> Feed:
        asked = _Asked()
        shadow(self.engine, _phonemizer=self._reading, _session=asked).generate(chunk, voice, speed)
        return asked.feed

    def speak(self, session: Any, feed: Feed) -> Any:
        return session.run(None, feed)[0]

    def say(self, text: str, voice: str, speed: float, clean: bool) -> Any:
        return shadow(self.engine, _phonemizer=self._phonemizer).generate(text, voice, speed)


class _Asked:
    """A session that only takes note of what it is asked."""

    def __init__(self) -> None:
        self.feed: Feed = {}

    def run(self, outputs: Any, feed: Feed) -> list[np.ndarray]:
        self.feed = feed
        return [np.zeros(1, np.float32)]


class _OneAtATime:
    """An espeak backend for several threads."""

    def __init__(self, own: Any) -> None:
        self._own, self._asking = own, Lock()

    def phonemize(self, text: list[str], *args: Any, **options: Any) -> list[str]:
        with self._asking:
            return list(self._own.phonemize(text, *args, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class _Unbroken:
    """A backend whose answer to one text is one entry; the engine reads no other."""

    def __init__(self, own: _OneAtATime) -> None:
        self._own = own

    def phonemize(self, text: list[str]) -> list[str]:
        entries = self._own.phonemize(text)
        if len(entries) > 1:
            # phonemizer 3.4 took a decimal point for the full stop at the end, and "2.5 cups." for "two. five cups".
            # It does not if there is a space behind the full stop.
            entries = self._own.phonemize([f"{each} " for each in text])
        return [" ".join(entries)]


def _asked(options: Mapping[str, Any]) -> tuple[float, bool]:
    """(speed, clean_text) of a request."""
    speed, clean = options.get("speed"), options.get("clean_text")
    return 1.0 if speed is None else speed, bool(clean)
