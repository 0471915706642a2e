"""What is measured of an engine that serves: the options, the scenarios, their items and their figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidOption
from ..hardware import detect
from ..voices.place import is_server
from ..voices.places import VARIABLE
from .plan import PRECISIONS, from_json, to_json

__all__ = ["ON_A_SERVER", "PYTORCH", "SCENARIOS", "Figure", "Scenario", "ServingOptions", "ServingPlan"]

ON_A_SERVER = "codes on a server"  # measured where `ACCELERATOR_VOICES`, which benchmarks do not write down, names one
PYTORCH = "pytorch"  # the item that another process measures: the same request in PyTorch with a right-sized cache


@dataclass(frozen=True)
class Figure:
    """A column. unit: "s", "bytes", "per s" or "" for a number. times: says that there is a column of quotients, too.

    charted: it has bars of its own, of which the longer ("higher") or the shorter ("lower") ones are better.
    """

    name: str
    label: str
    unit: str = "s"
    times: str = ""
    charted: Literal["", "higher", "lower"] = ""


@dataclass(frozen=True)
class Scenario:
    """A table: `items` are its rows, in the order in which a round takes them.

    base: number of the item that quotients are over. once: whether an item is taken in the last round only, as it takes
    long. one_round: an item goes on where the one before it ended.
    """

    title: str
    about: Callable[[ServingPlan], str]
    items: Callable[[ServingPlan], list[str]]
    figures: tuple[Figure, ...]
    base: int = 0
    once: Callable[[ServingPlan, str], bool] = lambda plan, item: False
    one_round: bool = False

    def order(self, plan: ServingPlan) -> list[tuple[int, str]]:
        """(round, item) in the order of work: all items, then all again."""
        rounds = 1 if self.one_round else plan.rounds
        return [
            (number, item)
            for number in range(rounds)
            for item in self.items(plan)
            if number + 1 == rounds or not self.once(plan, item)
        ]


@dataclass(frozen=True)
class ServingOptions:
    """What to measure.

    engine, size, checkpoint, threads, cache_dir, proof, engine_options: as in `BenchOptions`. precision: "auto" is this
    machine's. scenarios: names of `SCENARIOS`. rounds: that medians are taken of. frames: of each segment of speech, at
    most. requests: of each process, in `neighbours`. full: 10,000 words and 1,000 requests, too. quick: the tiny engine
    and next to no work; its figures mean nothing. Raises InvalidOption.
    """

    engine: str = "reference"
    size: str = "small"
    checkpoint: Path | None = None
    precision: str = "auto"
    scenarios: tuple[str, ...] = ()
    rounds: int = 3
    frames: int = 32
    requests: int = 60
    threads: int | None = None
    cache_dir: Path | None = None
    full: bool = False
    quick: bool = False
    proof: Literal["strict", "warn"] = "strict"
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.scenarios if name not in SCENARIOS]:
            raise InvalidOption(f"unknown scenario {unknown[0]!r}: choose from {', '.join(SCENARIOS)}")
        if len(set(self.scenarios)) != len(self.scenarios):
            raise InvalidOption("a scenario is given twice")
        if self.precision not in ("auto", *PRECISIONS):
            raise InvalidOption(f"unknown precision {self.precision!r}: choose from auto, {', '.join(PRECISIONS)}")
        if self.rounds < 1 or self.frames < 4:
            raise InvalidOption("a benchmark needs 1 round and 4 frames at least")
        if self.requests < 1:
            raise InvalidOption(f"requests must be 1 or more, not {self.requests}")
        if self.threads is not None and self.threads < 1:
            raise InvalidOption(f"threads must be 1 or more, not {self.threads}")
        if self.proof not in ("strict", "warn"):
            raise InvalidOption(f"proof must be 'strict' or 'warn', not {self.proof!r}")
        if self.engine != "reference" and self.checkpoint is None:
            raise InvalidOption(f"{self.engine} needs its checkpoint: give the directory with --checkpoint")
        if self.quick and self.full:
            raise InvalidOption("quick and full are opposites: give one of them")


@dataclass(frozen=True)
class ServingPlan:
    """The options as they are carried out. widths: requests at once. requests: in a row, mixed, for the memory.
    processes: neighbours on the machine; each: their requests, over all rounds.

    batch: requests of each number of callers a round, at least; and 4 for each caller. reference_s: length of a voice.
    """

    options: ServingOptions
    size: str
    rounds: int
    frames: int
    scenarios: tuple[str, ...]
    widths: tuple[int, ...] = (1, 2, 4, 8, 16)
    segments: int = 8
    words: tuple[int, ...] = (100, 300, 1000, 3000)
    callers: tuple[int, ...] = (1, 2, 4, 8)
    batch: int = 16
    requests: int = 200
    steps: int = 5
    reference_s: float = 10.0
    slow_words: int = 1000  # longer texts are spoken in the last round only
    processes: int = 3
    each: int = 60

    @classmethod
    def of(cls, options: ServingOptions) -> ServingPlan:
        scenarios = options.scenarios or tuple(SCENARIOS)
        if options.quick:
            rounds, frames = min(options.rounds, 2), min(options.frames, 6)
            small: dict[str, Any] = {"widths": (1, 2), "segments": 2, "words": (40, 80), "callers": (1, 2)}
            small |= {"batch": 2, "requests": 16, "steps": 2, "reference_s": 1.0, "slow_words": 40}
            small |= {"processes": 2, "each": min(options.requests, 3)}
            return cls(options, "tiny", rounds, frames, scenarios, **small)
        more: dict[str, Any] = {"words": (*cls.words, 10_000), "requests": 1000} if options.full else {}
        more["each"] = options.requests
        return cls(options, options.size, options.rounds, options.frames, scenarios, **more)

    @property
    def processes_per_core(self) -> float:
        """Of the neighbours; 1 where there are cores enough."""
        return max(1.0, self.processes / detect().usable_cores)

    @property
    def speaks_in_the_bundled_voice(self) -> bool:
        """Whether whole sentences of the trained voice are spoken, where this package has it."""
        of = self.options
        is_default = (of.engine, of.size, of.checkpoint) == ("reference", ServingOptions.size, None)
        return is_default and not of.quick and self.scenarios == ("neighbours",)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return to_json(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServingPlan:
        """The inverse of `to_dict`."""
        fields, options = from_json(values)
        return cls(**fields, options=ServingOptions(**options))


def _at_once(plan: ServingPlan) -> list[str]:
    return [PYTORCH, *(f"{width} at once" for width in plan.widths), f"1 text of {plan.segments} segments"]


def _callers(plan: ServingPlan) -> list[str]:
    return [f"{n} caller{'s' * (n > 1)}{seeded}" for n in plan.callers for seeded in ("", ", seeds")]


def _requests(plan: ServingPlan) -> list[str]:
    return [f"after {plan.requests * step // plan.steps} requests" for step in range(plan.steps + 1)]


def _count(item: str) -> int:
    """The number that an item begins with."""
    return int(item.split()[0])


def _server() -> list[str]:
    return [ON_A_SERVER] if is_server(os.environ.get(VARIABLE, "")) else []


def _words(plan: ServingPlan) -> list[str]:
    return [f"{count} words" for count in plan.words]


def _fixed(plan: ServingPlan) -> list[str]:
    counts = sorted({1, detect().usable_cores})
    return ["own choice", *(f"{count} thread{'s' * (count > 1)}" for count in counts)]


_SENTENCES = "sentences of 20 words, cut off after {0.frames} frames each"

SCENARIOS: Mapping[str, Scenario] = {
    "throughput": Scenario(
        "Throughput",
        lambda plan: (
            f"Requests spoken at once, without a voice or a seed: {_SENTENCES.format(plan)}. The language model alone, "
            "prefill included; and end to end, by `synthesize_batch`. `pytorch` is PyTorch with a right-sized cache, "
            "one by one. The text's segments are spoken in a known voice."
        ),
        _at_once,
        (
            Figure("frames_per_s", "language model, frames/s", "per s", "times", "higher"),
            Figure("audio_per_s", "end to end, seconds of audio/s", "per s", "times", "higher"),
        ),
        base=1,
    ),
    "first-audio": Scenario(
        "Time to first audio",
        lambda plan: (
            "From the call of `stream` to the first audible sample (`ttfa_s`), and to the first chunk: sentences of "
            f"20 words. Voices are references of {plan.reference_s:g} s; a known one was spoken in before, a new one "
            "was never seen."
        ),
        lambda plan: ["no voice", "known voice", "known voice, seed", "new voice"],
        (Figure("ttfa_s", "first audible sample", charted="lower"), Figure("first_chunk_s", "first chunk")),
    ),
    "voice": Scenario(
        "A known voice",
        lambda plan: (
            f"A reference of {plan.reference_s:g} s: time to get its codes, then to fill the prompt and draw a frame. "
            "A server is measured where `ACCELERATOR_VOICES` names one."
        ),
        lambda plan: ["nothing known", "codes on disk", *_server(), "key-value prefix in memory"],
        (
            Figure("codes_s", "codes of the reference"),
            Figure("first_frame_s", "prefill and first frame"),
            Figure("both_s", "together", charted="lower"),
        ),
    ),
    "long-text": Scenario(
        "Long text",
        lambda plan: (
            f"One call of `synthesize` without a voice. Each segment is cut off after {plan.frames} frames, as random "
            "weights would not know where to end: so frames per word are the same at every length, and fewer than in "
            "real speech. Texts of more than "
            f"{plan.slow_words:,} words are spoken once."
        ),
        _words,
        (
            Figure("s_per_word", "time per word", times="cost", charted="lower"),
            Figure("rtf", "real-time factor", ""),
            Figure("segments", "segments", ""),
            Figure("frames_per_word", "frames per word", ""),
            Figure("rss_before", "memory before", "bytes"),
            Figure("rss_after", "after", "bytes"),
            Figure("rss_peak", "peak", "bytes"),
            Figure("audio_bytes", "of which audio", "bytes"),
        ),
        once=lambda plan, item: _count(item) > plan.slow_words,
    ),
    "callers": Scenario(
        "Concurrent callers",
        lambda plan: (
            f"Each caller is a thread that calls `synthesize` again and again: {_SENTENCES.format(plan)}, no voice. "
            f"{plan.batch} requests a round, and 4 for each caller at least. Percentiles are of one round's latencies, "
            "and so few that p99 is near the slowest one."
        ),
        _callers,
        (
            Figure("p50", "p50", charted="lower"),
            Figure("p95", "p95"),
            Figure("p99", "p99"),
            Figure("p99_over_p50", "p99 / p50", ""),
            Figure("audio_per_s", "seconds of audio/s", "per s", charted="higher"),
        ),
    ),
    "memory": Scenario(
        "Memory",
        lambda plan: (
            f"{plan.requests} mixed requests in one process: short ones, seeds, a known voice, new voices, texts in "
            "segments, streams that are closed early, and four callers at once."
        ),
        _requests,
        (
            Figure("rss", "resident", "bytes", charted="lower"),
            Figure("private", "of which private", "bytes"),
            Figure("rss_peak", "peak since the start", "bytes"),
        ),
        one_round=True,
    ),
    "neighbours": Scenario(
        "Neighbours",
        lambda plan: (
            f"{plan.processes} processes on {detect().usable_cores} cores, each of which makes {plan.each} requests, "
            "one after the other: as this package chose, then on fixed numbers of threads, by turns. Sentences, "
            + ("whole" if plan.speaks_in_the_bundled_voice else f"cut off after {plan.frames} frames")
            + ", with seeds. The fair share is a request's time alone, times processes for each core "
            f"({plan.processes_per_core:g}); the median and the slowest request of all are multiples of that of their "
            "own sentence."
        ),
        _fixed,
        (
            Figure("alone_s", "a request alone"),
            Figure("fair_s", "fair share"),
            Figure("median_shares", "median, in fair shares", ""),
            Figure("slowest_shares", "slowest, in fair shares", "", charted="lower"),
            Figure("alone_audio_per_s", "alone, seconds of audio/s", "per s", "throughput alone"),
            Figure("audio_per_s", "all, seconds of audio/s", "per s", "throughput", "higher"),
        ),
        one_round=True,
    ),
}
