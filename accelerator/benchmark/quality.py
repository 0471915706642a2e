"""How well the trained voice speaks at each precision, against flite, whose voices it learnt.

    result = run(QualityOptions(sentences=120), report=print)    # JSON-able
    print(to_markdown(result))

Every arm says the same held-out sentences: its speakers by name, and again by a reference clip, which is flite saying a
sentence that is held out too. The measures are those of `accelerator.reference.measures`. flite's own audio is the
yardstick and the original of the mel-cepstral distortion, so flite must be installed.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import EngineError, InvalidOption
from .candidates import SLOT, adapter_of, check_names
from .hearing import recognisers
from .machine import describe_machine

if TYPE_CHECKING:
    from ..reference import ReferenceEngine
    from ..reference.measures import Score

__all__ = ["PRECISIONS", "QualityOptions", "Utterance", "held_out", "run", "to_markdown", "trained_voice"]

PRECISIONS = ("fp32", "int8", "int4")
HOW = ("name", "reference")
_REFERENCES, _KNOWN = (
    10,
    20,
)  # held-out sentences set apart: clips to imitate, clips that say what a speaker sounds like
_LANGUAGE_MODEL = "text2semantic"


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """voice: a file of `ReferenceEngine.save`; None is the bundled one. recipes: of `CANDIDATES`, as further arms.
    sentences: of the held-out list. how: the ways in which a speaker is chosen. draws: how often an arm says each
    sentence, with another seed each time: it samples, and what it happens to draw moves its figures more than what a
    precision rounds. recogniser, whisper: see `hearing.recognisers`; the first one listens."""

    voice: Path | None = None
    precisions: tuple[str, ...] = PRECISIONS
    recipes: tuple[str, ...] = ()
    sentences: int = 120
    how: tuple[str, ...] = HOW
    cache_dir: Path | None = None
    seed: int = 0
    draws: int = 1
    recogniser: str | None = None
    whisper: Path | None = None

    def __post_init__(self) -> None:
        check_names(self.recipes)
        for name in ("sentences", "draws"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} must be at least 1, not {getattr(self, name)}")
        if unknown := set(self.how) - set(HOW):
            raise InvalidOption(f"a speaker is chosen by {' or '.join(HOW)}, not by {', '.join(sorted(unknown))}")


class Utterance(NamedTuple):
    """What is to be said and how it should sound; samples float32 [n]. `reference`: of the same speaker."""

    text: str
    speaker: str
    original: np.ndarray
    reference: np.ndarray
    reference_text: str


def held_out() -> list[str]:
    """Sentences, as spoken words, that the bundled voice was not trained with."""
    text = files("accelerator.reference").joinpath("voices", "held_out.txt").read_text(encoding="utf-8")
    return text.splitlines()


def run(
    options: QualityOptions,
    *,
    say: Callable[[str, str], np.ndarray] | None = None,
    recognise: Callable[[np.ndarray], str] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Speak, listen, judge. `say` (text, speaker -> samples) is flite, and `recognise` a recogniser, unless given.

    Raises EngineError without a trained voice, flite or a recogniser, InvalidOption for more sentences than there are.
    """
    from ..reference import ReferenceEngineError
    from ..reference.measures import Speakers

    engine = trained_voice(options.voice)
    try:
        listener = None
        if recognise is None:
            listener, recognise = _recogniser(options)
        report("flite says the sentences")
        utterances, known = _originals(say or _flite, engine.speakers, options.sentences)
    except ReferenceEngineError as error:
        raise EngineError(str(error)) from error
    judge = _Judge(utterances, Speakers(known), recognise, options.seed)
    rows = [judge.row({"backend": "flite", "precision": None, "how": None}, [u.original for u in utterances], None)]
    pytorch: dict[str, list[Score]] = {}
    for arm, voice in _arms(engine, options):
        for how in options.how:
            start = time.perf_counter()
            audio = [_spoken(voice, u, how, options.seed + draw) for u in utterances for draw in range(options.draws)]
            seconds = time.perf_counter() - start
            scores = judge.scores(audio)
            row = judge.row({**arm, "how": how}, audio, pytorch.get(how), scores)
            row["rtf"] = seconds / (sum(map(len, audio)) / engine.sample_rate)
            if arm["backend"] == "pytorch":
                pytorch[how] = scores
            rows.append(row)
            report(_told(row))
    return {
        "machine": describe_machine(),
        "voice": str(options.voice or "bundled"),
        "speakers": list(engine.speakers),
        "sentences": len(utterances),
        "seed": options.seed,
        "draws": options.draws,
        "recogniser": listener,
        "rows": rows,
    }


def to_markdown(result: dict[str, Any]) -> str:
    """The table, with 95 % intervals."""
    lines = [
        f"{result['sentences']} held-out sentences, {_times(result['draws'])}speakers {', '.join(result['speakers'])}"
        f"{_by(result['recogniser'])}; in brackets 95 % intervals of a bootstrap over sentences.",
        "",
        "| voice | speaker by | word error rate | more than PyTorch's | mel-cepstral distortion | right speaker |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        name = row["backend"] if row["precision"] is None else f"{row['backend']} {row['precision']}"
        if row.get("asked") not in (None, row["precision"]):
            name += f" (asked for {row['asked']})"
        more = _percent(row["minus_pytorch"]) if row["minus_pytorch"] else ""
        distortion = "" if row["how"] is None else _interval(row["distortion_db"], "{:.2f}", " dB")
        lines.append(
            f"| {name} | {row['how'] or ''} | {_percent(row['word_error_rate'])} | {more} | {distortion} "
            f"| {_percent(row['right_speaker'])} |"
        )
    return "\n".join(lines) + "\n"


class _Judge:
    def __init__(
        self, utterances: Sequence[Utterance], speakers: Any, recognise: Callable[[np.ndarray], str], seed: int
    ) -> None:
        self._utterances, self._speakers, self._recognise, self._seed = utterances, speakers, recognise, seed

    def scores(self, audio: Sequence[np.ndarray]) -> list[Score]:
        from ..reference.measures import scored

        draws = len(audio) // len(self._utterances)
        said = [(str(index), utterance) for index, utterance in enumerate(self._utterances) for _ in range(draws)]
        return [
            scored(
                clip,
                utterance.original,
                name=name,
                speaker=utterance.speaker,
                text=utterance.text,
                recognise=self._recognise,
                speakers=self._speakers,
            )
            for clip, (name, utterance) in zip(audio, said, strict=True)
        ]

    def row(
        self,
        arm: dict[str, Any],
        audio: Sequence[np.ndarray],
        pytorch: Sequence[Score] | None,
        scores: Sequence[Score] | None = None,
    ) -> dict[str, Any]:
        from ..reference.measures import bootstrap, summarise

        scores = scores or self.scores(audio)
        draws = len(scores) // len(self._utterances)
        more = None
        if pytorch is not None:  # of the same sentences, so that their difficulty cancels out
            table = np.array([[s.errors - p.errors, s.words] for s, p in zip(scores, pytorch, strict=True)], float)
            table = table.reshape(-1, draws, 2)
            more = bootstrap(table, lambda rows: rows[..., 0].sum() / rows[..., 1].sum(), self._seed)
        return {
            **arm,
            **summarise(scores, self._seed, draws),
            "minus_pytorch": more,
            "audio_s": sum(map(len, audio)) / 16_000,
            "scores": [asdict(score) for score in scores],
        }


def trained_voice(path: Path | None) -> ReferenceEngine:
    """The voice of a file, or the bundled one. Raises EngineError if there is none, or one of random weights."""
    from ..reference import ReferenceEngineError, bundled_voice, load
    from ..reference.measures import SAMPLE_RATE

    if (found := path or bundled_voice()) is None:
        raise EngineError("no trained voice ships with this package: give the file of one with --checkpoint")
    try:
        engine = load(path=found)
    except ReferenceEngineError as error:
        raise EngineError(str(error)) from error
    if not engine.speakers or engine.sample_rate != SAMPLE_RATE:
        raise EngineError(f"{found} is no trained voice of {SAMPLE_RATE} Hz with named speakers")
    return engine


def _recogniser(options: QualityOptions) -> tuple[str, Callable[[np.ndarray], str]]:
    """The name of who listens, and what it hears in words: numbers, too, as in the text."""
    from ..reference.measures import words
    from ..reference.spoken import spoken

    name, hear = recognisers(options.recogniser, options.whisper)[0]
    return name, lambda audio: " ".join(words(spoken(hear(audio))))


def _flite(text: str, speaker: str) -> np.ndarray:
    from ..reference.audio import load_audio
    from ..reference.flite import flite
    from ..reference.measures import SAMPLE_RATE

    with tempfile.TemporaryDirectory() as folder:
        flite(text, speaker, path := Path(folder) / "clip.wav")
        return load_audio(path, SAMPLE_RATE)


def _originals(
    say: Callable[[str, str], np.ndarray], speakers: Sequence[str], count: int
) -> tuple[list[Utterance], dict[str, list[np.ndarray]]]:
    """What is to be said, and clips of each speaker; no sentence is in two roles."""
    sentences = held_out()
    apart, rest = sentences[: _REFERENCES + _KNOWN], sentences[_REFERENCES + _KNOWN :]
    if count > len(rest):
        raise InvalidOption(f"there are {len(rest)} held-out sentences, not {count}")
    clips = {(s, t): say(t, s) for s in speakers for t in apart}
    utterances = []
    for index, text in enumerate(rest[:count]):
        speaker, said = speakers[index % len(speakers)], apart[index % _REFERENCES]
        utterances.append(Utterance(text, speaker, say(text, speaker), clips[speaker, said], said))
    return utterances, {s: [clips[s, t] for t in apart[_REFERENCES:]] for s in speakers}


def _arms(engine: ReferenceEngine, options: QualityOptions) -> Iterator[tuple[dict[str, Any], ReferenceEngine]]:
    """(what it is, an engine), PyTorch first; each is closed before the next is opened."""
    from ..optimizer import UniversalOptimizer

    yield {"backend": "pytorch", "precision": "fp32"}, engine
    wrapped: list[tuple[str, dict[str, Any]]] = [
        (precision, {"precision": precision}) for precision in options.precisions
    ]
    for recipe in options.recipes:  # however it does in the proof, and however fast it is: it is to be heard
        adapter = adapter_of(engine, recipe)
        wrapped.append((recipe, {"precision": SLOT, "adapter": adapter, "proof": "warn", "probe": False}))
    for asked, how in wrapped:
        with UniversalOptimizer(engine, cache_dir=options.cache_dir, **how) as optimizer:
            optimizer.prepare()
            part = optimizer.status()["parts"][_LANGUAGE_MODEL]
            routed = copy.copy(engine)  # with its stages replaced a whole engine, which knows of speakers and phrases
            for stage in ("generate", "decode", "encode_reference"):
                setattr(routed, stage, getattr(optimizer, stage))
            rejected = [r for e in part.get("exports", {}).values() for r in e["rejected"]]
            precision = part.get("precision") or "fp32"
            if "adapter" in how and precision == SLOT:
                precision = asked
            yield {"backend": part["backend"], "precision": precision, "asked": asked, "rejected": rejected}, routed


def _spoken(voice: ReferenceEngine, utterance: Utterance, how: str, seed: int) -> np.ndarray:
    if how == "name":
        audio, _ = voice.synthesize(utterance.text, speaker=utterance.speaker, seed=seed)
    else:
        audio, _ = voice.synthesize(utterance.text, utterance.reference, utterance.reference_text, seed=seed)
    return np.concatenate((audio, np.zeros(max(0, 1600 - len(audio)), np.float32)))  # a voice that says nothing


def _told(row: dict[str, Any]) -> str:
    return (
        f"{row['backend']} {row['precision']}, speakers by {row['how']}: word error rate "
        f"{_percent(row['word_error_rate'])}, right speaker {_percent(row['right_speaker'])}"
    )


def _by(recogniser: str | None) -> str:
    return f", listened to by {recogniser}" if recogniser else ""


def _times(draws: int) -> str:
    return "" if draws == 1 else f"said {draws} times by each voice but flite, "


def _percent(figure: Sequence[float]) -> str:
    return _interval([100 * value for value in figure], "{:.1f}", " %")


def _interval(figure: Sequence[float], form: str, unit: str) -> str:
    value, low, high = (form.format(v) for v in figure)
    return f"{value}{unit} [{low}, {high}]"
