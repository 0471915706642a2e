"""The scenarios' work: one item, taken once, on an optimizer that serves."""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.checks import load_reference
from ..engines.base import Job, Stages
from ..errors import EngineError
from ..metrics import Meter, measuring, peak_rss_bytes
from ..optimizer import UniversalOptimizer
from ..speech import SamplingParams, Speech, SpeechRequest
from ..text.segments import Segment
from .machine import _kilobytes
from .serving_plan import ON_A_SERVER, PYTORCH, SCENARIOS, ServingPlan
from .serving_text import SENTENCES, text_of

__all__ = ["Served", "resident", "take", "voice", "warm"]

_WARM_FRAMES = 4
_SAID = "What this recording says is known, too; take {} of it."
_VOICES = 8  # of the mixed requests
_REQUESTS_OF_ALL_KINDS = 11


@dataclass
class Served:
    """What is measured. optimizer: one whose `voices_dir` is empty, so that new voices are new."""

    optimizer: UniversalOptimizer
    plan: ServingPlan
    clock: Callable[[], float] = time.perf_counter
    notes: set[str] = field(default_factory=set)
    done: int = 0  # mixed requests so far
    turns: int = 0  # of their kinds

    @property
    def stages(self) -> Stages:
        """The stages one by one. Raises EngineError for an engine that is not batched."""
        stages = self.optimizer._bound.stages
        if stages is None or stages.schedule != "batched":
            raise EngineError(f"{self.optimizer.adapter.name} cannot be served: its stages cannot be called one by one")
        return stages

    def speak(self, text: str, *reference: Any, frames: int | None, **sampling: Any) -> Speech:
        speech = self.optimizer.synthesize(text, *reference, max_new_tokens=frames, **sampling)
        for fallback in speech.metrics["fallback"]:
            self.notes.add(f"{fallback['part']} in PyTorch: {fallback['reason']}: {fallback['message']}")
        return speech

    def reference(self, number: int, *, said: str = "", seconds: float | None = None) -> tuple[Any, str]:
        """The same for the same arguments: ((samples, Hz), text)."""
        rate = self.optimizer.sample_rate
        return (voice(rate, seconds or self.plan.reference_s, number), rate), said or _SAID.format("all")

    def generate(self, segments: Sequence[Segment], voice: Any, frames: int) -> tuple[int, float]:
        """(frames, seconds) of all segments generated at once, by the language model alone."""
        job = Job(SamplingParams(max_new_tokens=frames))

        def count(segment: Segment) -> int:
            return sum(len(units) for units in self.stages.generate(segment, voice, job))

        start = self.clock()
        counts = together(count, segments, len(segments))
        return sum(counts), self.clock() - start


def voice(rate: int, seconds: float, number: int) -> np.ndarray:
    """Something voiced under seeded noise, float32 [n]: another one for each number."""
    t = np.arange(round(seconds * rate)) / rate
    pitch = 110 + 7 * (number % 16) + 25 * np.sin(2 * np.pi * 0.6 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound = sum(np.sin(k * phase) / k for k in range(1, 8)) * (0.6 + 0.4 * np.sin(2 * np.pi * 2.1 * t))
    noise = np.random.default_rng((number + 2**16) % 2**32).standard_normal(t.size)
    return (0.15 * sound + 0.02 * noise).astype(np.float32)


def resident() -> dict[str, float]:
    """This process's memory in bytes: resident, of it private, and the peak. Elsewhere than on Linux the peak only."""
    status = _kilobytes("/proc/self/status")
    if "VmRSS" not in status:
        return {"rss_peak": float(peak_rss_bytes())}
    return {"rss": status["VmRSS"], "private": status["RssAnon"], "rss_peak": status["VmHWM"]}


def take(served: Served, scenario: str, item: str, number: int) -> dict[str, float]:
    """An item's figures in round `number`. Raises what the engine raises."""
    return _TAKES[scenario](served, item, number)


def warm(served: Served, scenario: str) -> None:
    """Do a little of all that the scenario does, so that buffers and caches are there."""
    short = Served(served.optimizer, _shortened(served.plan), served.clock, served.notes)
    if scenario == "memory":
        _mixed(short, _REQUESTS_OF_ALL_KINDS)
        return
    table = SCENARIOS[scenario]
    items = [i for i in table.items(short.plan) if i != PYTORCH and not table.once(short.plan, i)]
    for item in dict.fromkeys((items[0], items[-1])):
        take(short, scenario, item, -1)


def _shortened(plan: ServingPlan) -> ServingPlan:
    return replace(plan, frames=_WARM_FRAMES, batch=1)


def together(work: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    with ThreadPoolExecutor(max(threads, 1), "accelerator-benchmark") as pool:
        return list(pool.map(work, items))


def _sentences(count: int, first: int = 0) -> list[str]:
    return list(itertools.islice(itertools.cycle(SENTENCES), first % len(SENTENCES), first % len(SENTENCES) + count))


def _number(item: str) -> int:
    return next(int(word) for word in item.split() if word.isdigit())


def _throughput(served: Served, item: str, number: int) -> dict[str, float]:
    stages, frames = served.stages, served.plan.frames
    if item.startswith("1 text"):
        text, segments = _text_of_segments(stages, served.plan.segments)
        reference = served.reference(0)
        drawn, seconds = served.generate(segments, _voice_of(served, reference), frames)
        start = served.clock()
        audio_s = served.speak(text, *reference, frames=frames).metrics["audio_s"]
        return {"frames_per_s": drawn / seconds, "audio_per_s": audio_s / (served.clock() - start)}
    texts = _sentences(_number(item), number)
    nobody = stages.voice(SpeechRequest(texts[0]), None)
    drawn, seconds = served.generate([Segment(text, 0.0, 0) for text in texts], nobody, frames)
    start = served.clock()
    spoken = served.optimizer.synthesize_batch(texts, max_new_tokens=frames)
    elapsed = served.clock() - start
    audio_s = sum(s.metrics["audio_s"] for s in spoken if isinstance(s, Speech))
    return {"frames_per_s": drawn / seconds, "audio_per_s": audio_s / elapsed}


def _text_of_segments(stages: Stages, count: int) -> tuple[str, list[Segment]]:
    """The shortest text of whole sentences that is cut into so many segments."""
    for sentences in itertools.count(1):
        segments = stages.segments(SpeechRequest(text := text_of(20 * sentences)), soon=False)
        if len(segments) >= count:
            return text, segments
    raise AssertionError("texts grow without end")


def _first_audio(served: Served, item: str, number: int) -> dict[str, float]:
    reference: tuple[Any, ...] = ()
    if item == "new voice":
        reference = served.reference(1000 + number)
    elif item != "no voice":
        reference = served.reference(0)
        _voice_of(served, reference, prefill=True)
    seed: dict[str, Any] = {"seed": 1000 + number} if item.endswith("seed") else {}
    start = served.clock()
    stream = served.optimizer.stream(SENTENCES[0], *reference, max_new_tokens=served.plan.frames, **seed)
    with contextlib.closing(stream):
        figures: dict[str, float] = {}
        for _ in stream:
            figures.setdefault("first_chunk_s", served.clock() - start)
            if (heard := stream.metrics["ttfa_s"]) is not None:
                return {**figures, "ttfa_s": heard}
    return figures  # nothing audible: random weights may whisper


def _known_voice(served: Served, item: str, number: int) -> dict[str, float]:
    """Items of a round share its voice, in their order: the first encodes it, the second prefills it."""
    said = "" if item == "nothing known" else _SAID.format("half")  # other words: another prompt, not prefilled yet
    if item == "codes on disk":
        served.optimizer._dispatcher.voices.forget()  # as in a new process
    if item == ON_A_SERVER:
        said = _SAID.format("some")
    request = _request(served, served.reference(2000 + number, said=said))
    with _on_the_server(served, request) if item == ON_A_SERVER else contextlib.nullcontext():
        start = served.clock()
        voice = _voice(served, request)
        known = served.clock()
    frames = served.stages.generate(Segment(request.text, 0.0, 0), voice, Job(SamplingParams(max_new_tokens=2)))
    next(frames, None)
    done = served.clock()
    for _ in frames:
        pass
    return {"codes_s": known - start, "first_frame_s": done - known, "both_s": done - start}


@contextlib.contextmanager
def _on_the_server(served: Served, request: SpeechRequest) -> Iterator[None]:
    """Voices are those of `ACCELERATOR_VOICES`, with the request's among them, as a new process finds them."""
    runtime, voices = served.optimizer._runtime, served.optimizer._dispatcher.voices
    before = runtime.settings
    try:
        for stored in (False, True):
            runtime.settings = replace(before, voices_dir=None, voices=None)  # connected anew
            voices.forget()
            if not stored:
                _voice(served, request)
        yield
    finally:
        runtime.settings = before
        voices.forget()


def _long_text(served: Served, item: str, number: int) -> dict[str, float]:
    words = _number(item)
    text = text_of(words)
    gc.collect()
    before = resident()
    _reset_peak()
    speech = served.speak(text, frames=served.plan.frames)
    peak, size, metrics = resident(), speech.audio.nbytes, speech.metrics
    del speech
    gc.collect()
    after = resident()
    figures = {
        "s_per_word": metrics["elapsed_s"] / words,
        "rtf": metrics["rtf"],
        "segments": float(len(metrics["segments"])),
        "frames_per_word": sum(s["frames"] for s in metrics["segments"]) / words,
        "audio_bytes": float(size),
    }
    if "rss" in after:
        figures |= {"rss_before": before["rss"], "rss_after": after["rss"], "rss_peak": peak["rss_peak"]}
    return figures


def _callers(served: Served, item: str, number: int) -> dict[str, float]:
    callers, plan = _number(item), served.plan
    each = max(-(-plan.batch // callers), min(plan.batch, 4))

    def call(caller: int) -> list[tuple[float, float]]:
        answers = []
        for turn, text in enumerate(_sentences(each, caller)):
            seed: dict[str, Any] = {"seed": 100 * caller + turn} if item.endswith("seeds") else {}
            start = served.clock()
            speech = served.speak(text, frames=plan.frames, **seed)
            answers.append((served.clock() - start, speech.metrics["audio_s"]))
        return answers

    start = served.clock()
    answers = list(itertools.chain(*together(call, range(callers), callers)))
    elapsed = served.clock() - start
    p50, p95, p99 = (float(v) for v in np.percentile([latency for latency, _ in answers], (50, 95, 99)))
    spoken = sum(audio_s for _, audio_s in answers)
    return {"p50": p50, "p95": p95, "p99": p99, "p99_over_p50": p99 / p50, "audio_per_s": spoken / elapsed}


def _memory(served: Served, item: str, number: int) -> dict[str, float]:
    target = _number(item)
    if not target:
        gc.collect()
        _reset_peak()
    _mixed(served, target)
    gc.collect()
    return resident()


def _mixed(served: Served, target: int) -> None:
    """Requests of all kinds in turn, until `target` have been served."""
    kinds = _kinds(served)
    while served.done < target:
        turn = served.turns
        frames = max(_WARM_FRAMES, served.plan.frames // 4 * (1 + turn % 4))
        served.done += kinds[turn % len(kinds)](turn // len(kinds), frames)
        served.turns += 1


def _kinds(served: Served) -> list[Callable[[int, int], int]]:
    """What is asked for; each takes (how often it was asked for, frames) and answers how many requests it made."""
    seconds = min(2.0, served.plan.reference_s)

    def one(*_: Any) -> int:
        return 1

    def four(at: int, frames: int) -> int:
        served.optimizer.synthesize_batch(_sentences(4, at), max_new_tokens=frames)
        return 4

    def closed_early(at: int, frames: int) -> int:
        with contextlib.closing(served.optimizer.stream(SENTENCES[0], max_new_tokens=frames)) as stream:
            next(stream)
        return 1

    def voiced(at: int, frames: int) -> int:
        reference = served.reference(3000 + at % _VOICES, seconds=seconds)
        return one(served.speak(SENTENCES[1], *reference, frames=frames))

    return [
        lambda at, frames: one(served.speak(SENTENCES[at % 10], frames=frames)),
        lambda at, frames: one(served.speak(SENTENCES[at % 10], frames=frames, seed=at)),
        lambda at, frames: one(served.speak(SENTENCES[2], *served.reference(0), frames=frames)),
        closed_early,
        lambda at, frames: one(served.speak(text_of(100), frames=frames)),
        voiced,
        lambda at, frames: one(served.speak("Short.", frames=frames, temperature=0.0)),
        four,
    ]


def _request(served: Served, reference: tuple[Any, str]) -> SpeechRequest:
    audio, said = reference
    return SpeechRequest(SENTENCES[0], load_reference(audio, said, sample_rate=served.optimizer.sample_rate))


def _voice(served: Served, request: SpeechRequest) -> Any:
    """The request's voice, as the optimizer finds it."""
    with measuring(Meter()) as meter:
        return served.stages.voice(request, served.optimizer._dispatcher.kept(request, meter))


def _voice_of(served: Served, reference: tuple[Any, str], *, prefill: bool = False) -> Any:
    """The reference's codes, known from now on; with `prefill`, so are its keys and values."""
    known = _voice(served, _request(served, reference))
    if prefill:
        job = Job(SamplingParams(max_new_tokens=2))
        for _ in served.stages.generate(Segment(SENTENCES[3], 0.0, 0), known, job):
            pass
    return known


def _reset_peak() -> None:
    """Let the peak of this process's memory count from now on, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


_TAKES: dict[str, Callable[[Served, str, int], dict[str, float]]] = {
    "throughput": _throughput,
    "first-audio": _first_audio,
    "voice": _known_voice,
    "long-text": _long_text,
    "callers": _callers,
    "memory": _memory,
}
