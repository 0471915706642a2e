"""Kokoro by kokoro-onnx: a style and phonemes -> audio, by one ONNX graph, which the engine runs with ONNX Runtime's
own settings.

One part, the graph. A text's phonemes are made at once, by the engine's tokenizer, and cut as the engine cuts them, but
into more batches: several are then spoken at once, each by the engine's own `create`, so that what is trimmed and how
long it pauses are the engine's. It draws nothing: a seed changes nothing, and each run answers the same.

Source: StyleTTS 2 (Li et al. 2023, arXiv:2306.07691), of whose kind the model is.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..audio.reference import Reference
from ..errors import AcceleratorError, EngineError, InvalidOption, InvalidText
from ..metrics import current_meter
from ..parts.backends import ONNX_RUNTIME
from ..parts.decoding import Joined
from ..parts.dequantized import dequantized
from ..parts.onnx_file import deferred, model_digest
from ..parts.part import Call, Part
from ..parts.sentences import SENTENCES
from ..parts.whole_graph import GRAPH, RoutedSession, Speak, whole_graph
from ..runtime.borrowed import for_cpu
from ..speech import AudioChunk, SpeechRequest
from ..text.check import Unread
from ..text.segments import Segment
from .base import Arrays, Bound, Cloning, Job
from .options import Option
from .shadow import shadow

__all__ = ["KokoroAdapter", "adapter"]

logger = logging.getLogger(__name__)

_RATE = 24_000
_VOICE = "af_heart"  # of those there are, the one that its makers call the best
_LONGEST, _FIRST = 200, 100  # phonemes of a segment, and of a stream's first
_PAUSE_S = {"sentence_pause": 0.25, "clause_pause": 0.1}  # after a segment, unless a request says otherwise
_QUIET = 0.01  # of the peak, -40 dB: what the engine takes for a pause
_DECODER = "/decoder"  # how the names of its nodes begin; what predicts durations is called otherwise
_SAID = (  # what is timed, something short, something long
    "ðə kwˈɪk bɹˈaʊn fˈɑːks dʒˈʌmps ˌoʊvɚ ðə lˈeɪzi dˈɑːɡ.",
    "həlˈoʊ.",
    "ɐ ɹˈeɪnboʊ ɪz ɐ dɪvˈɪʒən ʌv wˈaɪt lˈaɪt, ˌɪntʊ mˈɛni bjˈuːɾifəl kˈʌlɚz; "
    "ðiːz tˈeɪk ðə ʃˈeɪp ʌv ɐ lˈɑːŋ ɹˈaʊnd ˈɑːɹtʃ.",
)


def adapter(engine: Any) -> KokoroAdapter:
    """The adapter of a `Kokoro`. One whose graph is not known, or not on the CPU, is passed through, and says so."""
    try:
        for_cpu(engine.sess)
        model_digest(engine.sess)  # it can be read
        _chunker()
    except AcceleratorError as error:
        logger.warning("this Kokoro is passed through, and runs as before: %s", error)
        return KokoroAdapter(engine, routed=False)
    return KokoroAdapter(engine)


class KokoroAdapter:
    """Part: the `graph` of a `Kokoro`; none if not `routed`."""

    name = "kokoro"
    sample_rate = _RATE
    cloning: Cloning | None = None  # its voices are its own
    options: Mapping[str, Option] | None = {
        "speed": Option(float, "of speech", 0.5, 2.0, default=1.0),
        "lang": Option(str, "the language of the text, as espeak calls it", default="en-us"),
        "trim": Option(bool, "cut the silence around what is said, and pause as the two pauses say", default=True),
        "sentence_pause": Option(float, "seconds after a segment that ends a sentence", 0.0, 10.0, default=0.25),
        "clause_pause": Option(float, "seconds after a segment that ends a clause", 0.0, 10.0, default=0.1),
    }

    def __init__(self, engine: Any, *, routed: bool = True) -> None:
        self.engine, self._routed = engine, routed

    @classmethod
    def from_checkpoint(cls, path: str | Path, voices: str | Path | None = None) -> KokoroAdapter:
        """Open a model: its file, or the folder it is in. voices: their file, if not beside it. Raises EngineError."""
        model = _model_in(Path(path))
        styles = _voices_beside(model) if voices is None else Path(voices)
        try:
            package = importlib.import_module("kokoro_onnx")
        except ImportError as error:
            raise EngineError(f"Kokoro needs its package: {error}; pip install kokoro-onnx") from error
        try:
            return adapter(package.Kokoro.from_session(_session(model), str(styles)))
        except Exception as error:  # of a missing or broken file, by ONNX Runtime and numpy; of espeak
            raise EngineError(f"{model} with {styles} cannot be opened as a Kokoro: {error}") from error

    def voices(self) -> Sequence[str]:
        """The names that a request's `voice` may have."""
        return tuple(self.engine.get_voices())

    def style(self, name: str | None) -> np.ndarray:
        """A voice's styles, one for each number of phonemes. Raises InvalidOption."""
        known = self.voices()
        if name is not None and name not in known:
            raise InvalidOption(f"there is no voice {name!r}: the voices are {', '.join(known)}")
        return np.asarray(self.engine.get_voice_style(name or (_VOICE if _VOICE in known else known[0])))

    def parts(self) -> Sequence[Part]:
        if not self._routed:
            return ()

        speeches = tuple(self._saying(phonemes, None) for phonemes in _SAID)
        beside = dequantized(self.engine.sess, speeches, self._sentences, _DECODER)
        return (whole_graph(self.engine.sess, speeches, _RATE, beside=beside),)

    def _saying(self, phonemes: str, voice: str | None) -> Speak:
        return lambda session: shadow(self.engine, sess=session).create(
            phonemes, self.style(voice), is_phonemes=True, trim=False
        )

    def _sentences(self) -> Sequence[Speak]:
        """By all voices in turn."""
        voices, phonemes = self.voices(), self.engine.tokenizer.phonemize
        return [self._saying(phonemes(each), voices[n % len(voices)]) for n, each in enumerate(SENTENCES)]

    def bind(self, calls: Mapping[str, Call]) -> Bound:
        if not self._routed:
            return Bound(self.engine, stream=lambda request, kept: self.original(request))
        stages = KokoroStages(self, calls[GRAPH])
        return Bound(stages.engine, stages)

    def original(self, request: SpeechRequest) -> Iterator[AudioChunk]:
        current_meter().used("engine", ONNX_RUNTIME, own=True)
        audio, rate = self.engine.create(request.text, self.style(request.voice), **_given(request.options))
        yield AudioChunk(np.asarray(audio, np.float32).reshape(-1), int(rate))

    def release(self) -> bool:
        """It stays: the engine's session is what falls back."""
        return False


class KokoroStages:
    """See `base.Stages`. `engine` is a Kokoro whose session is the routed part. A unit is audio, float32 [n]; a voice
    its styles.
    """

    schedule: Literal["batched", "pooled"] = "pooled"
    windows: Sequence[int] = ()
    unit_s: float | None = None

    def __init__(self, own: KokoroAdapter, call: Call) -> None:
        self._own, session = own, own.engine.sess
        self.engine = shadow(own.engine, sess=RoutedSession(session, call))
        self._beside_others = shadow(own.engine, sess=RoutedSession(session, call, exclusive=False))

    def accepts(self, request: SpeechRequest) -> bool:
        return True

    def unread(self, text: str) -> Unread:
        return Unread()  # espeak names what it cannot read

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        """Phonemes, each segment with the pause after it as its content."""
        with current_meter().stage("phonemes"):
            phonemes = self._phonemes(request.text, _given(request.options).get("lang", "en-us"))
        batches = _cut(phonemes, soon)
        if not batches:
            raise InvalidText("the text has no sound that this voice knows: is it in another language or script?")
        asked = {name: _given(request.options).get(name, pause) for name, pause in _PAUSE_S.items()}
        pauses = [_chunker().pause_after(batch, *asked.values()) for batch in batches[:-1]]
        following = zip(batches, [*pauses, 0.0], strict=True)
        return [Segment(batch, None, 0, pause, phonemes=True) for batch, pause in following]

    def shortest(self, text: str) -> float:
        return 0.0

    def encode(self, reference: Reference) -> Arrays:
        raise InvalidOption("Kokoro imitates nobody: leave reference_audio out")

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> np.ndarray:
        return self._own.style(request.voice)

    def generate(
        self, segment: Segment, voice: np.ndarray, job: Job, *, resume: Sequence[np.ndarray] = ()
    ) -> Iterator[Sequence[np.ndarray]]:
        if resume:
            return
        engine, given = self.engine if job.exclusive else self._beside_others, _given(job.options)
        cut = segment.content is not None  # otherwise it is a whole text
        answer, _ = engine.create(segment.text, voice, is_phonemes=cut, **given)
        audio = np.asarray(answer, np.float32).reshape(-1)
        if cut and segment.content and given.get("trim", True):
            lacking = int(segment.content * _RATE)
            if engine.has_timings:  # such a graph's marks have got their pauses already
                lacking = max(0, lacking - _quiet_end(audio))
            audio = np.concatenate([audio, np.zeros(lacking, np.float32)])
        yield [audio]

    def decoder(self, voice: np.ndarray, job: Job) -> Joined:
        return Joined()

    def waits(self, voice: np.ndarray) -> bool:
        return False

    def continued(self, segment: Segment, units: Sequence[np.ndarray], voice: np.ndarray) -> np.ndarray:
        return voice

    def _phonemes(self, text: str, lang: str) -> str:
        # phonemizer 3.4 takes the first full stop of a line, which may be a decimal point, for the one that ends it:
        # "2.5 cups." becomes "two. five cups". Not so if the last one has a space behind it.
        lines = "\n".join(f"{line.strip()} " for line in text.strip().splitlines())
        try:
            return " ".join(self.engine.tokenizer.phonemize(lines, lang, norm=False).split())
        except RuntimeError as error:  # of phonemizer, which knows the language by another name, or not at all
            raise InvalidOption(f"lang={lang!r} is not understood: {error}") from error


def _cut(phonemes: str, soon: bool) -> list[str]:
    split = _chunker().split_phonemes
    if not soon or len(phonemes) <= _FIRST:
        return list(split(phonemes, _LONGEST))
    first, *rest = split(phonemes, _FIRST)
    return [first, *split(" ".join(rest), _LONGEST)]


def _quiet_end(audio: np.ndarray) -> int:
    level = np.abs(audio)
    loud = np.flatnonzero(level > _QUIET * level.max(initial=0.0))
    return len(audio) - 1 - int(loud[-1]) if len(loud) else len(audio)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@functools.cache
def _chunker() -> Any:
    """What cuts phonemes. Raises EngineError for a version without it."""
    try:
        return importlib.import_module("kokoro_onnx.chunker")
    except ImportError as error:
        raise EngineError(f"its package is older than kokoro-onnx 0.6: pip install -U kokoro-onnx ({error})") from error


def _session(model: Path) -> Any:
    """As kokoro-onnx opens it, but on the processor it is not opened before it is needed."""
    session = importlib.import_module("kokoro_onnx.session")
    on_cpu = session.resolve_providers() == ["CPUExecutionProvider"]
    return deferred(model) if on_cpu else session.create_session(str(model))


def _model_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    models = sorted(path.glob("*.onnx"))
    if len(models) != 1:
        found = f"{len(models)} files *.onnx in it, name one of them" if models else "no file *.onnx in it"
        raise EngineError(f"{path} is no checkpoint of Kokoro, there is {found}: give the file of a download")
    return models[0]


def _voices_beside(model: Path) -> Path:
    found = sorted(each for suffix in ("bin", "npz") for each in model.parent.glob(f"voices*.{suffix}"))
    if len(found) != 1:
        what = f"{len(found)} files" if found else "no file"
        raise EngineError(
            f"there is {what} voices*.bin or voices*.npz beside {model}: have exactly one there (a link will do), or "
            "in Python give its path as voices="
        )
    return found[0]
