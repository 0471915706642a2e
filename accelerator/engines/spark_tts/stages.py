"""Spark-TTS's stages one by one, so that segments of a text share the decode loop and are spoken by one voice."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ...audio.reference import Reference
from ...errors import InvalidOption, InvalidText
from ...metrics import current_meter
from ...parts.decoding import Lookahead, Window, check_codes
from ...parts.language_model import LANGUAGE_MODEL
from ...parts.part import Call
from ...speech import SpeechRequest
from ...text.check import Unread
from ...text.segments import Segment, speech_weight, split
from ..base import Arrays, Cloning, Job
from ..options import SAMPLING, Option
from .vocabulary import Vocabulary

__all__ = [
    "CLONING",
    "CONTROLS",
    "DECODER",
    "ENCODER",
    "GENDERS",
    "LEVELS",
    "NOTHING",
    "OPTIONS",
    "SILENT_S",
    "Own",
    "SparkStages",
    "Spoken",
    "check_encoded",
    "cut",
    "style",
    "unspoken",
    "wav",
    "windows",
]

ENCODER, DECODER = "encoder", "decoder"
NOTHING = np.zeros(0, np.int64)  # what is said of a recording, if it was not asked for
CONTROLS = ("gender", "pitch", "speed")
GENDERS, LEVELS = ("female", "male"), ("very_low", "low", "moderate", "high", "very_high")  # in the order of tokens
OPTIONS: Mapping[str, Option] = {
    "gender": Option(str, "who speaks, with pitch and speed; instead of a recording", choices=GENDERS),
    "pitch": Option(str, "how high, with gender and speed", choices=LEVELS),
    "speed": Option(str, "how fast, with gender and pitch", choices=LEVELS),
    **{name: option for name, option in SAMPLING.items() if name != "repetition_penalty"},  # the engine has none
}
CLONING = Cloning("useful", (0.2, 60.0))  # a minute is 3,000 tokens of the prompt
SILENT_S = 0.3  # a window that is digitally silent for longer is a pause only if the original agrees
_COMFORTABLE, _LONGEST = 200, 400  # letters; 400 take about half of the 60 s that a reply may last
_SOON = 80  # letters of a stream's first segment, at most if a clause ends there
_LETTERS_A_SECOND = 40.0  # people speak 12 to 20: faster nobody does
_DRAWS = 2  # of a reply without speech, which the engine dies of
_ANEW = 1_000_000  # number of a reply drawn again: of no segment


@dataclass(frozen=True)
class Spoken:
    """A voice. codes: int64 [G], None for one that is only described so far.

    semantics, text: of a recording, and what it says. style: gender, pitch and speed. begun: what a reply in that style
    begins with, once one was heard: the voice, and all that comes before speech.
    """

    codes: np.ndarray | None = None
    semantics: np.ndarray | None = None
    text: str = ""
    style: tuple[str, str, str] | None = None
    begun: tuple[int, ...] = ()


class Own(Protocol):
    """What the stages know of whose they are: an engine that was wrapped, or one that was converted."""

    positions: int  # of the language model
    ends: tuple[int, ...]  # ids that end a reply
    count: int  # codes of a voice
    reach: int | None  # codes to both sides that a code's audio depends on
    unit_s: float  # seconds of audio of a semantic token

    def check(self) -> None:
        """Raises EngineError where the parts are not the engine's any more."""
        ...

    def vocabulary(self) -> Vocabulary: ...

    def heard(self, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
        """A recording at its level, float64 [n], and the clip of it that says who speaks, float32 [m]."""
        ...

    def prompt(self, text: str, voice: Spoken) -> np.ndarray:
        """What the model goes on from to say a text, int64 [T]; but for what the voice's replies begin with."""
        ...


def style(request: SpeechRequest) -> tuple[str, str, str] | None:
    """How a request describes its voice; None if it has a recording. Raises InvalidOption for both, or neither."""
    given = [name for name in CONTROLS if name in request.options]
    if request.voice is not None:
        raise InvalidOption(
            f"there is no voice {request.voice!r}: Spark-TTS knows none by name, give reference_audio, or gender, "
            "pitch and speed"
        )
    if request.reference is not None:
        if given:
            raise InvalidOption(f"{given[0]} describes a voice, and reference_audio is one: leave either out")
        return None
    if lacking := [name for name in CONTROLS if name not in given]:
        if given:
            raise InvalidOption(f"{' and '.join(given)} need {' and '.join(lacking)}, too: give all three, or none")
        raise InvalidOption("Spark-TTS has no voice of its own: give reference_audio, or gender, pitch and speed")
    gender, pitch, speed = (str(request.options[name]) for name in CONTROLS)
    return gender, pitch, speed


def wav(audio: np.ndarray, sample_rate: int) -> io.BytesIO:
    """Mono audio as a file, exactly: the engine takes only files."""
    data = np.asarray(audio, "<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, sample_rate, 4 * sample_rate, 4, 32)
    head = struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE")
    return io.BytesIO(head + form + struct.pack("<4sI", b"data", len(data)) + data)


def check_encoded(answer: tuple[np.ndarray, np.ndarray], sizes: tuple[int, int]) -> None:
    """Raises BadOutput for what are no codes: of what is said, if it was asked for, and of who says it."""
    semantics, codes = answer
    if semantics is not NOTHING:
        check_codes(semantics, sizes[0])
    check_codes(codes, sizes[1])


def unspoken(text: str) -> str:
    """What to say of a reply without speech."""
    return f"the engine produced no audio for {text!r}: try another seed, text or reference"


def cut(text: str, *, soon: bool = False, whole: bool = False) -> list[Segment]:
    """A text in segments; or all of it as one."""
    if whole:
        return [Segment(text, 0.0, 0)]
    return split(text, comfortable=_COMFORTABLE, longest=_LONGEST, first=_SOON if soon else None)


def windows(reach: int | None) -> Sequence[int]:
    """Tokens of a stream's windows. The first one as soon as there is audio; later ones so large that most of what is
    decoded is new, even by what has no memory."""
    return () if reach is None else (reach + 16, 48, 96, 192)


class SparkStages:
    """See `base.Stages`. Units are the tokens of a reply, of which only some are speech; voices are `Spoken`."""

    schedule: Literal["batched", "pooled"] = "batched"

    def __init__(self, own: Own, calls: Mapping[str, Call]) -> None:
        self._own, self._calls, self._vocabulary = own, calls, own.vocabulary()
        self.unit_s: float | None = own.unit_s
        self.windows: Sequence[int] = windows(own.reach)

    def accepts(self, request: SpeechRequest) -> bool:
        return True

    def unread(self, text: str) -> Unread:
        return Unread()  # any script has tokens

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return cut(request.text, soon=soon)

    def shortest(self, text: str) -> float:
        return speech_weight(text) / _LETTERS_A_SECOND

    def encode(self, reference: Reference) -> Arrays:
        """What is said of a recording is in a prompt only behind its transcript: without one it is not looked for."""
        self._own.check()
        whole, clip = self._own.heard(reference)
        semantics, codes = self._calls[ENCODER](whole if reference.text else None, clip)
        return {"semantics": semantics, "codes": codes} if reference.text else {"codes": codes}

    def kept_as(self, reference: Reference) -> tuple[str, ...]:
        return (reference.digest,) if reference.text else (reference.digest, f"{reference.digest}-who")

    def voice(self, request: SpeechRequest, kept: Arrays | None) -> Spoken:
        described = style(request)
        self._own.check()
        if described is not None:
            return Spoken(style=described)
        assert kept is not None
        assert request.reference is not None
        said = request.reference.text
        return Spoken(kept["codes"], kept["semantics"] if said else None, said)

    def generate(
        self, segment: Segment, voice: Spoken, job: Job, *, resume: Sequence[int] = ()
    ) -> Iterator[Sequence[int]]:
        with current_meter().stage("text"):
            prompt = self._prompt(segment.text.strip(), voice)
        batching = "invariant" if job.invariant else "on"
        for number in range(_DRAWS):
            sampling = (job.anew(_ANEW + number) if number else job).sampling
            reply = self._calls[LANGUAGE_MODEL](prompt, sampling, batching=batching, resume=list(resume))
            speaks = False
            with contextlib.closing(reply):
                for units in self._units(reply, voice, resume):
                    speaks = speaks or bool(units)
                    yield units
            if speaks or resume or sampling.temperature == 0:
                return

    def _units(self, reply: Iterator[int], voice: Spoken, resume: Sequence[int]) -> Iterator[Sequence[int]]:
        """A reply's tokens, held back until there is speech in them: a reply without any can be drawn again."""
        meter, before, speaks = current_meter(), list[int](), bool(resume)
        for token in reply:
            if token in self._own.ends:
                return
            meter.add_frames(1)
            if speaks:
                yield (token,)
            elif not self._vocabulary.is_semantic(token):
                before.append(token)
                yield ()
            elif self._codes(voice, before) is None:
                return  # it speaks before it has said who does
            else:
                speaks = True
                yield (*before, token)

    def _codes(self, voice: Spoken, tokens: Sequence[int]) -> np.ndarray | None:
        """The codes of who speaks, int64 [G]: the voice's own, or a reply's. None where they are not complete."""
        if voice.codes is not None:
            return voice.codes
        found = self._vocabulary.globals(tokens)
        return found if len(found) == self._own.count else None

    def _prompt(self, text: str, voice: Spoken) -> np.ndarray:
        ids = np.concatenate([self._own.prompt(text, voice), np.array(voice.begun, np.int64)])
        if len(ids) >= self._own.positions:
            raise InvalidText(
                f"text and reference are {len(ids)} tokens, and the model has room for {self._own.positions}: "
                "give less of either"
            )
        return ids

    def decoder(self, voice: Spoken, job: Job) -> _Heard:
        return _Heard(self._vocabulary, self._calls[DECODER], voice.codes, self._own)

    def waits(self, voice: Spoken) -> bool:
        return voice.codes is None

    def continued(self, segment: Segment, units: Sequence[int], voice: Spoken) -> Spoken:
        """Spoken in the same style by the voice that it got: other replies begin as this one did."""
        first = next((i for i, token in enumerate(units) if self._vocabulary.is_semantic(token)), len(units))
        codes = self._codes(voice, units[:first])
        return voice if codes is None else Spoken(codes, style=voice.style, begun=tuple(units[:first]))


class _Heard:
    """One segment's tokens on their way to audio."""

    def __init__(self, vocabulary: Vocabulary, call: Call, codes: np.ndarray | None, own: Own) -> None:
        """codes: of the voice, None if they come with the tokens."""
        self._vocabulary, self._call, self._codes, self._count = vocabulary, call, codes, own.count
        self._found = np.zeros(0, np.int64)
        self._ahead = Lookahead(self._decode, own.reach)

    def push(self, units: Sequence[int], *, final: bool) -> np.ndarray:
        if self._codes is None:
            self._found = np.append(self._found, self._vocabulary.globals(units))
        return self._ahead.push(list(self._vocabulary.semantics(units)[:, None]), final=final)

    def _decode(self, window: Window) -> np.ndarray:
        codes = self._found[: self._count] if self._codes is None else self._codes
        return np.asarray(self._call(window.units[0], codes, window=window))
