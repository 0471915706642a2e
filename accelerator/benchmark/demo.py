"""A demonstration on the engine that ships with the project: export, speak, load again, compare with PyTorch.

    result = run(DemoOptions(size="small"))          # JSON-able, but for result.speech
    voice = open_voice("small")                      # the engine alone

Works offline. Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import EngineError, InvalidOption

if TYPE_CHECKING:
    import numpy as np

    from ..export.component import Progress
    from ..optimizer import UniversalOptimizer

__all__ = ["DEFAULT_SIZE", "TEXT", "DemoOptions", "DemoResult", "Voice", "open_voice", "run"]

DEFAULT_SIZE = "small"
TEXT = (
    "Hello! This is your own computer speaking, without a network and without a graphics card. "
    "I was trained on two small processor cores, and I talk much faster than you can listen."
)
UNTRAINED = (
    "the weights of this voice are random: what you hear is noise. "
    "The speed is real: it does not depend on what the weights have learnt."
)
PRECISIONS = ("fp32", "int8", "int4")
FRAMES = 96  # an untrained voice never ends by itself: about four seconds of "small"
_TRIAL_FRAMES = 12
_ENCODER = "encoder"  # needed for a reference voice only


@dataclass(frozen=True)
class Voice:
    """The reference engine, and whether its weights have learnt to speak."""

    engine: Any
    size: str
    trained: bool
    note: str


def open_voice(size: str | None = None, path: Path | None = None) -> Voice:
    """The engine saved at `path`, else the bundled voice of this size, else random weights. Raises EngineError."""
    from .. import reference

    try:
        if path is None and size in (None, DEFAULT_SIZE) and (bundled := reference.load_bundled()) is not None:
            return Voice(bundled, bundled.config.name, True, "the weights come with the package")
        if path is not None:
            engine = reference.load(size, path=path)
            return Voice(engine, engine.config.name, True, f"the weights come from {path}")
        name = size or DEFAULT_SIZE
        return Voice(reference.load(name), name, False, UNTRAINED)
    except reference.ReferenceEngineError as error:
        raise EngineError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What to show. precisions: None is this machine's first, then the others. rounds: of which medians are taken."""

    size: str | None = None
    text: str = TEXT
    speaker: str | None = None  # one of the voice's own; None is its first
    reference: Path | None = None
    reference_text: str | None = None
    precisions: tuple[str, ...] | None = None
    cache_dir: Path | None = None
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InvalidOption(f"rounds must be at least 1, not {self.rounds}")
        if self.speaker is not None and self.reference is not None:
            raise InvalidOption("give a speaker or a reference, not both")


class DemoResult(NamedTuple):
    """`figures` are JSON-able; audio is float32 mono [n] at `sample_rate` Hz."""

    figures: dict[str, Any]
    audio: np.ndarray
    sample_rate: int


def run(
    options: DemoOptions,
    *,
    progress: Progress | None = None,
    report: Callable[[str], None] = print,
    write: Callable[[np.ndarray, int], None] | None = None,
) -> DemoResult:
    """Export, speak, load again, measure. write: is given the audio as soon as it is spoken, and the sample rate.

    Raises AcceleratorError: EngineError, InvalidText, InvalidReference ...
    """
    from ..text.check import check_text

    check_text(options.text)
    voice = open_voice(options.size)
    _choose_speaker(voice, options.speaker)
    weights = "trained" if voice.trained else "random weights: noise, not speech"
    report(f"Voice: reference engine, size {voice.size} ({weights})")
    with _best_torch_threads(voice, options) as threads:  # the probes and the comparison are against PyTorch's best
        return _shown(voice, options, threads, progress, report, write)


def _choose_speaker(voice: Voice, speaker: str | None) -> None:
    """Make `speaker` what the engine, and so its wrapped copy, speaks in when not told otherwise."""
    if speaker is None:
        return
    if speaker not in (there := voice.engine.speakers):
        raise InvalidOption(
            f"unknown speaker {speaker!r}; " + (f"there are {', '.join(there)}" if there else "this voice has none")
        )
    voice.engine.default_speaker = speaker


def _shown(
    voice: Voice,
    options: DemoOptions,
    threads: int,
    progress: Progress | None,
    report: Callable[[str], None],
    write: Callable[[np.ndarray, int], None] | None,
) -> DemoResult:
    from ..metrics import age_s, peak_rss_bytes
    from .machine import BusyClock

    first_precision, *others = options.precisions or ("auto",)
    # First run: what a new machine does once. Second run: what every later process does.
    with _wrapped(voice, options, first_precision, progress) as optimizer:
        first = _run(optimizer, options)
        report(_told("First run", first))
        speech = optimizer.synthesize(
            options.text, options.reference, options.reference_text, **_sampling(voice, options)
        )
        if write is not None:
            write(speech.audio, speech.sample_rate)
        spoken = age_s()
        report(f"Spoken {spoken:.1f} s after the start: {len(speech.audio) / speech.sample_rate:.1f} s of audio")
    with contextlib.ExitStack() as stack:
        optimizer = stack.enter_context(_wrapped(voice, options, first_precision, progress))
        second = _run(optimizer, options)
        report(_told("Second run, from the cache", second))
        status = optimizer.status()
        if options.precisions is None:
            others = [p for p in PRECISIONS if p != _language_model_precision(status)]
        optimizers = {first_precision: optimizer}
        for precision in others:
            optimizers[precision] = stack.enter_context(_wrapped(voice, options, precision, progress))
            _run(optimizers[precision], options)
        arms: dict[str, Callable[[], dict[str, Any]]] = {"pytorch": lambda: _original(voice, options)}
        for name, arm in optimizers.items():
            arms[name] = _routed(arm, voice, options)
        report(f"Measuring: {options.rounds} rounds, one after the other in each")
        clock = BusyClock()
        measured = _measure(arms, options.rounds)
        others_cpus = clock.others_cpus()
        rows = _rows(measured, optimizers)
    figures = {
        "voice": {
            "size": voice.size,
            "trained": voice.trained,
            "note": voice.note,
            "speaker": None if options.reference is not None else voice.engine.default_speaker,
            "speakers": list(voice.engine.speakers),
        },
        "text": options.text,
        "tier": status["tier"],
        "cache": status["cache"],
        "first_run": first,
        "spoken_s": spoken,  # since the process started
        "second_run": second,
        "rounds": options.rounds,
        "torch_threads": threads,
        "others_cpus": others_cpus,
        "rows": rows,
        "parts": status["parts"],
        "sample_rate": speech.sample_rate,
        "samples": len(speech.audio),
        "metrics": speech.metrics,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    return DemoResult(figures, speech.audio, speech.sample_rate)


def _wrapped(voice: Voice, options: DemoOptions, precision: Any, progress: Progress | None) -> UniversalOptimizer:
    from ..optimizer import UniversalOptimizer

    return UniversalOptimizer(voice.engine, precision=precision, cache_dir=options.cache_dir, progress=progress)


def _run(optimizer: UniversalOptimizer, options: DemoOptions) -> dict[str, Any]:
    """Prepare what this text needs: seconds, and where each part came from."""
    start = time.perf_counter()
    optimizer.prepare(p for p in optimizer.status()["parts"] if options.reference is not None or p != _ENCODER)
    seconds = time.perf_counter() - start
    parts = optimizer.status()["parts"]
    caches = {name: [e["cache"] for e in part["exports"].values()] for name, part in parts.items() if "exports" in part}
    return {
        "seconds": seconds,
        "cache": {name: "built" if "built" in how else "hit" for name, how in caches.items() if how},
        "backends": {name: part["backend"] for name, part in parts.items() if "exports" in part},
        "errors": {name: part["errors"] for name, part in parts.items() if part["errors"]},
    }


def _told(what: str, ran: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {how}" for name, how in ran["cache"].items()) or "nothing exported"
    return f"{what}: ready in {ran['seconds']:.1f} s ({parts})"


def _sampling(voice: Voice, options: DemoOptions) -> dict[str, Any]:
    return {"seed": options.seed, "max_new_tokens": None if voice.trained else FRAMES}


def _routed(optimizer: UniversalOptimizer, voice: Voice, options: DemoOptions) -> Callable[[], dict[str, Any]]:
    def speak() -> dict[str, Any]:
        stream = optimizer.stream(options.text, options.reference, options.reference_text, **_sampling(voice, options))
        for _ in stream:
            pass
        return stream.metrics

    return speak


@contextlib.contextmanager
def _best_torch_threads(voice: Voice, options: DemoOptions) -> Iterator[int]:
    """PyTorch's own number of threads, or one if that is faster: on a busy machine they wait for each other."""
    import torch

    before, seconds = torch.get_num_threads(), {}
    try:
        for threads in sorted({1, before}):
            torch.set_num_threads(threads)
            seconds[threads] = min(_original(voice, options, _TRIAL_FRAMES)["elapsed_s"] for _ in range(2))
        best = min(seconds, key=lambda threads: seconds[threads])
        torch.set_num_threads(best)
        yield best
    finally:
        torch.set_num_threads(before)


def _original(voice: Voice, options: DemoOptions, limit: int | None = None) -> dict[str, Any]:
    """The same request to the untouched engine, with its stages timed from outside; figures as in `Meter.result`."""
    from ..metrics import Meter

    meter, engine = Meter(), copy.copy(voice.engine)  # a shallow copy with a stage replaced is a whole engine
    generate, decode = engine.generate, engine.decode

    def timed_generate(prompt: np.ndarray, **kwargs: Any) -> Iterator[np.ndarray]:
        frames = generate(prompt, **kwargs)
        while True:
            with meter.stage("generate"):
                frame = next(frames, None)
            if frame is None:
                return
            meter.add_frames(1)
            yield frame

    def timed_decode(codes: np.ndarray) -> np.ndarray:
        with meter.stage("decode"):
            return decode(codes)

    engine.generate, engine.decode = timed_generate, timed_decode
    wanted = {k: v for k, v in _sampling(voice, options).items() if v is not None}
    wanted |= {"max_new_tokens": limit} if limit is not None else {}
    audio = None
    if options.reference is not None:
        from ..audio.checks import load_reference

        audio = load_reference(options.reference, options.reference_text, sample_rate=engine.sample_rate).audio
    for chunk in engine.stream(options.text, audio, options.reference_text, **wanted):
        meter.chunk(chunk, engine.sample_rate)
    meter.used("engine", "pytorch", own=True)
    return meter.result()


def _measure(arms: dict[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Rounds of all arms interleaved, so that a slow moment of the machine affects each of them."""
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()  # warms up: allocations, and what is compiled or chosen on a first call
    for _ in range(rounds):
        for name, arm in arms.items():
            measured[name].append(arm())
    return measured


def _rows(measured: dict[str, list[dict[str, Any]]], optimizers: dict[str, UniversalOptimizer]) -> list[dict[str, Any]]:
    """One row per arm: medians over its rounds."""
    rows = []
    pytorch = statistics.median(m["rtf"] for m in measured["pytorch"])
    for name, rounds in measured.items():
        rtf = statistics.median(m["rtf"] for m in rounds)
        first = [m["ttfa_s"] for m in rounds if m["ttfa_s"] is not None]
        row = {
            "backend": rounds[-1]["backend"],
            "asked": name,
            "precision": "fp32",
            "rtf": rtf,
            "rtf_rounds": [m["rtf"] for m in rounds],
            "frames_per_s": statistics.median(m["frames_per_s"] for m in rounds),
            "ttfa_s": statistics.median(first) if first else None,
            "speed_up": pytorch / rtf,
            "audio_s": rounds[-1]["audio_s"],
            "rejected": [],
        }
        if name in optimizers:
            status = optimizers[name].status()
            row["precision"] = _language_model_precision(status)
            row["rejected"] = [
                r["precision"]
                for p in status["parts"].values()
                for e in p.get("exports", {}).values()
                for r in e["rejected"]
            ]
        rows.append(row)
    return sorted(rows, key=lambda row: (row["backend"] != "pytorch", PRECISIONS.index(row["precision"])))


def _language_model_precision(status: dict[str, Any]) -> str:
    part = status["parts"].get("text2semantic", {})
    return str(part.get("precision") or "fp32")
