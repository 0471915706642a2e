"""A listening test of an engine with trained weights: what it costs, in words understood, to run it otherwise.

    result = run(ListeningOptions(engine="piper", checkpoint=Path("voice.onnx")), report=print)    # JSON-able
    print(to_markdown(result))

    sentences  what is said     hearing  who listens     verdict  what follows from it

The original and this package's ways to run it say the same sentences with the same seeds. The original is the engine's
own implementation of each part, between which the noise is drawn from the seed: the same draws as in the other arms,
so that what is heard differs by how parts are run and by nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..cache import ContentCache
from ..engines import Adapter, adapter_from_checkpoint
from ..errors import EngineError, GenerationError, InvalidOption
from ..optimizer import UniversalOptimizer
from ..parts.part import Part
from ..pipeline import heard
from . import hearing
from .machine import describe_machine
from .report import _table
from .sentences import sentences
from .verdict import ENOUGH, LESS_OPINION, MORE_ERRORS, Figure, Heard, compare, spoken_words, verdict

__all__ = ["Listeners", "ListeningOptions", "run", "to_markdown"]

ORIGINAL, OURS = "original", "accelerator"
_EVERY = 50  # sentences between two lines of progress

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ListeningOptions:
    """precisions: an arm each; () is one arm, as an optimizer runs it by itself. text: a file with a sentence a line,
    in place of plain English ones; sentences: how many are said. voice, reference, reference_text: of each request.
    recogniser, whisper, language: see `hearing.recognisers`. proof: "warn" also lets be heard what the proof rejects.
    Raises InvalidOption.
    """

    engine: str
    checkpoint: Path
    precisions: tuple[str, ...] = ()
    sentences: int = ENOUGH
    text: Path | None = None
    voice: str | None = None
    reference: Path | None = None
    reference_text: str | None = None
    recogniser: str | None = None
    whisper: Path | None = None
    language: str = "en"
    proof: Literal["strict", "warn"] = "strict"
    cache_dir: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sentences < 1:
            raise InvalidOption(f"sentences must be at least 1, not {self.sentences}")
        if self.language != "en" and self.text is None:
            raise InvalidOption(f"what is to be said in {self.language!r}? give --text FILE, a sentence a line")


class Listeners(NamedTuple):
    """See `hearing`."""

    recognisers: Sequence[hearing.Recogniser]
    opinion: Callable[[np.ndarray], float]
    similarity: Callable[[np.ndarray, np.ndarray], float] | None = None


def run(
    options: ListeningOptions,
    *,
    listeners: Listeners | None = None,
    open_adapter: Callable[[ContentCache], Adapter] | None = None,
    report: Report = print,
) -> dict[str, Any]:
    """Speak, listen, judge. open_adapter: in place of opening the checkpoint; each arm has an adapter of its own.

    Raises EngineError where nobody can listen, or nothing of the engine is replaced, InvalidOption.
    """
    said = _texts(options)
    listeners = listeners or Listeners(
        hearing.recognisers(options.recogniser, options.whisper, options.language),
        hearing.Opinion(),
        hearing.similarity(),
    )
    cache = ContentCache(options.cache_dir)
    began, rows = time.time(), list[dict[str, Any]]()
    arms = _Arms(options, cache, open_adapter or (lambda cache: _opened(options, cache)))
    original: tuple[list[np.ndarray], list[Heard]] | None = None
    for name, precision, optimizer in arms:
        report(f"{name} says {len(said)} sentences")
        clips, fell_back = _spoken(optimizer, said, options, report)
        report(f"{name} is listened to by {', '.join(each.name for each in listeners.recognisers)}")
        scores = _heard(said, clips, None if original is None else original[0], listeners)
        row = {
            "arm": name,
            "precision": precision,
            "parts": _parts(optimizer.status()),
            **compare(scores, None if original is None else original[1], options.seed),
            "fell_back": fell_back,
            "audio_s": sum(map(len, clips)) / hearing.SAMPLE_RATE,
            "scores": [asdict(score) for score in scores],
        }
        if original is None:
            original = clips, scores
        else:
            row["verdict"] = verdict(row["more"], len(said))
            row["kept"] = _kept(row, optimizer, cache, options, began)
        rows.append(row)
        report(_told(row))
    return {
        "kind": "accelerator-listening-test",
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "machine": describe_machine(),
        "engine": options.engine,
        "checkpoint": options.checkpoint.name,
        "voice": options.voice,
        "language": options.language,
        "sentences": len(said),
        "seed": options.seed,
        "recognisers": [each.name for each in listeners.recognisers],
        "rows": rows,
    }


def to_markdown(result: Mapping[str, Any]) -> str:
    """The table, with 95 % intervals."""
    recognisers = result["recognisers"]
    columns = ["", "runs on", "verdict"]
    for name in recognisers:
        columns += [f"word error rate by {name}", "more than the original"]
    columns += ["DNSMOS", "more than the original", "the original's voice"]
    rows = []
    for row in result["rows"]:
        more = row["more"]
        cells = [row["arm"], _runs_on(row["parts"]), row.get("verdict", "")]
        for name in recognisers:
            cells += [_percent(row["word_error_rate"][name]), _percent(more["word_error_rate"][name]) if more else ""]
        cells += [_interval(row["opinion"], ".2f"), _interval(more["opinion"], "+.2f") if more else ""]
        rows.append([*cells, _interval(row["similarity"], ".2f") if row["similarity"] else ""])
    notes = [
        f"{row['arm']}: {row['fell_back']} sentences were spoken by the original where a part failed."
        for row in result["rows"]
        if row["fell_back"]
    ]
    voice = f", voice {result['voice']}" if result["voice"] else ""
    about = (
        f"{result['engine']} {result['checkpoint']}{voice}: {result['sentences']} sentences, the same seeds; in "
        "brackets 95 % intervals of a bootstrap over sentences, differences sentence by sentence. The bar is at most "
        f"{100 * MORE_ERRORS:+.1f} points of word error rate and {LESS_OPINION:+.2f} of DNSMOS, at the far ends of the "
        f"intervals, over at least {ENOUGH} sentences."
    )
    return "\n\n".join([about, _table(columns, rows), *notes]) + "\n"


class _Originals:
    """An adapter whose parts are all served by the engine's own code, with everything around them as in other arms."""

    def __init__(self, own: Adapter) -> None:
        self._own = own

    def parts(self) -> Sequence[Part]:
        return tuple(replace(part, backends=()) for part in self._own.parts())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class _Arms:
    """(name, precision, optimizer), the original first; each is closed before the next is opened."""

    def __init__(
        self, options: ListeningOptions, cache: ContentCache, open_adapter: Callable[[ContentCache], Adapter]
    ) -> None:
        self._options, self._cache, self._open = options, cache, open_adapter

    def __iter__(self) -> Iterator[tuple[str, str, UniversalOptimizer]]:
        adapter = self._open(self._cache)
        if not adapter.parts():
            raise EngineError(f"nothing of this {adapter.name} is replaced, so that there is nothing to compare")
        originals: Any = _Originals(adapter)
        with UniversalOptimizer(None, adapter=originals, cache_dir=self._cache) as optimizer:
            yield ORIGINAL, "", optimizer
        for precision in self._options.precisions or ("auto",):
            name = OURS if precision == "auto" else f"{OURS} {precision}"
            wanted: Any = {"precision": precision, "proof": self._options.proof}
            with UniversalOptimizer(
                None, adapter=self._open(self._cache), cache_dir=self._cache, **wanted
            ) as optimizer:
                yield name, precision, optimizer


def _opened(options: ListeningOptions, cache: ContentCache) -> Adapter:
    return adapter_from_checkpoint(options.engine, options.checkpoint, cache=cache)


def _texts(options: ListeningOptions) -> list[str]:
    if options.text is None:
        return sentences(options.sentences)
    try:
        lines = options.text.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(
            f"{str(options.text)!r} cannot be read as UTF-8: {error}: give a sentence a line"
        ) from error
    found = [line.strip() for line in lines if spoken_words(line)]
    if not found:
        raise InvalidOption(f"{str(options.text)!r} has no sentences: give one a line")
    return found[: options.sentences]


def _spoken(
    optimizer: UniversalOptimizer, said: Sequence[str], options: ListeningOptions, report: Report
) -> tuple[list[np.ndarray], int]:
    """Clips at 16 kHz, and in how many a failing part was replaced by the original."""
    clips, fell_back = list[np.ndarray](), 0
    asked: dict[str, Any] = {
        "voice": options.voice,
        "reference_audio": options.reference,
        "reference_text": options.reference_text,
    }
    for number, text in enumerate(said):
        try:
            speech = optimizer.synthesize(text, seed=options.seed + number, **asked)
        except GenerationError:  # it says nothing, and so it will be heard
            clips.append(hearing.at_16_khz(np.zeros(0, np.float32), hearing.SAMPLE_RATE))
        else:
            clips.append(hearing.at_16_khz(speech.audio, speech.sample_rate))
            routes = optimizer._routes
            stay = {name for name, route in routes.items() if route.choice is not None and route.choice.call is None}
            fell_back += any(entry["part"] not in stay for entry in speech.metrics["fallback"])
        if (number + 1) % _EVERY == 0 and number + 1 < len(said):
            report(f"{number + 1} sentences")
    return clips, fell_back


def _heard(
    said: Sequence[str], clips: Sequence[np.ndarray], originals: Sequence[np.ndarray] | None, listeners: Listeners
) -> list[Heard]:
    from ..reference.measures import errors

    found = []
    for number, (text, clip) in enumerate(zip(said, clips, strict=True)):
        words = spoken_words(text)
        transcripts = {each.name: each.hear(clip) for each in listeners.recognisers}
        wrong = {name: errors(words, spoken_words(transcript)) for name, transcript in transcripts.items()}
        alike = None
        if originals is not None and listeners.similarity is not None:
            alike = listeners.similarity(clip, originals[number])
        found.append(Heard(text, len(words), transcripts, wrong, listeners.opinion(clip), alike))
    return found


def _parts(status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"backend": part["backend"], "precision": part.get("precision")} for name, part in status["parts"].items()
    }


def _kept(
    row: Mapping[str, Any], optimizer: UniversalOptimizer, cache: ContentCache, options: ListeningOptions, began: float
) -> bool:
    recogniser, errors = next(iter(row["more"]["word_error_rate"].items()))
    note = {
        "engine": options.engine,
        "checkpoint": options.checkpoint.name,
        "sentences": len(row["scores"]),
        "recogniser": recogniser,
        "verdict": row["verdict"],
        "word_error_rate": list(errors),
        "opinion": list(row["more"]["opinion"]),
        "heard_at": began,
    }
    return heard.remember(cache, optimizer.adapter.name, optimizer._routes, note)


def _told(row: Mapping[str, Any]) -> str:
    name, errors = next(iter(row["word_error_rate"].items()))
    said = f"{row['arm']}: word error rate {_percent(errors)} by {name}, DNSMOS {_interval(row['opinion'], '.2f')}"
    return f"{said}: {row['verdict']}" if "verdict" in row else said


def _runs_on(parts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {' '.join(filter(None, part.values()))}" for name, part in parts.items())


def _percent(figure: Figure) -> str:
    value, low, high = (f"{100 * v:.1f}" for v in figure)
    return f"{value} % [{low}, {high}]"


def _interval(figure: Figure, form: str) -> str:
    value, low, high = (format(v, form) for v in figure)
    return f"{value} [{low}, {high}]"
