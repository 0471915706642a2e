"""What is measured: the options, the arms, the measures, and the order in which rounds take them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidOption

__all__ = [
    "AS_SHIPPED",
    "COMPILED",
    "RIGHT_SIZED",
    "BenchOptions",
    "Measure",
    "Metric",
    "Plan",
    "arms_of",
    "from_json",
    "metrics_of",
    "schedule",
    "to_json",
]

AS_SHIPPED, RIGHT_SIZED, COMPILED = "as-shipped", "pytorch-right-sized", "pytorch-compiled"
ONNX = "onnxruntime-"
PRECISIONS = ("fp32", "int8", "int4")
_FRAMES = 24  # decode steps at each context
_WORDS_A_MINUTE = 150.0  # of a person who reads aloud
TEXT = "The quick brown fox jumps over the lazy dog, and the evening sun goes down behind the distant hills."


@dataclass(frozen=True)
class BenchOptions:
    """What to compare.

    engine: "reference", or a name of `accelerator.engines.CHECKPOINTS` with its `checkpoint` directory. size: the
    reference engine's (random weights) unless `checkpoint` is a file that it saved. rounds: of which medians are
    taken. frames: decode steps timed at each context, and frames of the sentence spoken; None: 24, and as many as a
    person would take to read it. contexts: prompt lengths, in positions. threads: for every arm; None lets each arm
    have its own best. cache_dir: of the exports. quick: the tiny engine, two rounds, short audio; shows that
    everything runs, its figures mean nothing. proof: "warn" also times exports that the proof rejects, which random
    weights may cause. compiled: also PyTorch with a right-sized cache under `torch.compile`, where the adapter knows
    how (it needs a C++ compiler, and minutes). providers: execution providers to try, as `UniversalOptimizer` has them;
    or ("auto",). engine_options: more for the adapter's `from_checkpoint`. Raises InvalidOption.
    """

    engine: str = "reference"
    size: str = "s1-mini"
    checkpoint: Path | None = None
    precisions: tuple[str, ...] = PRECISIONS
    rounds: int = 5
    frames: int | None = None
    contexts: tuple[int, ...] = (200, 1500)
    threads: int | None = None
    cache_dir: Path | None = None
    quick: bool = False
    proof: Literal["strict", "warn"] = "strict"
    compiled: bool = False
    providers: tuple[str, ...] = ()
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [p for p in self.precisions if p not in PRECISIONS]:
            raise InvalidOption(f"unknown precision {unknown[0]!r}: choose from {', '.join(PRECISIONS)}")
        if len(set(self.precisions)) != len(self.precisions) or len(set(self.contexts)) != len(self.contexts):
            raise InvalidOption("a precision or context is given twice")
        if (
            self.rounds < 1
            or (self.frames is not None and self.frames < 2)
            or not self.contexts
            or min(self.contexts) < 16
        ):
            raise InvalidOption("a benchmark needs 1 round, 2 frames and contexts of 16 positions at least")
        if self.threads is not None and self.threads < 1:
            raise InvalidOption(f"threads must be 1 or more, not {self.threads}")
        if self.proof not in ("strict", "warn"):
            raise InvalidOption(f"proof must be 'strict' or 'warn', not {self.proof!r}")
        if self.engine != "reference" and self.checkpoint is None:
            raise InvalidOption(f"{self.engine} needs its checkpoint: give the directory with --checkpoint")


@dataclass(frozen=True)
class Measure:
    """One piece of work that an arm is asked for: `size` is positions of context, or seconds of audio, or frames."""

    kind: Literal["language_model", "decode", "encode", "speak"]
    size: float

    def __str__(self) -> str:
        return f"{self.kind} {self.size:g}"


@dataclass(frozen=True)
class Plan:
    """The options as they are carried out."""

    options: BenchOptions
    size: str
    rounds: int
    frames: int
    contexts: tuple[int, ...]
    decode_s: tuple[float, ...] = (2, 10)
    encode_s: float = 10
    slow_s: float = 10.0  # arms that need longer than this for `frames` decode steps are given fewer steps a round
    slow_speech_s: float = 120.0  # those that need longer for the sentence get a part of it, but `frames` at least
    loads: int = 3  # fresh processes per arm whose start is timed
    text: str = TEXT
    text_s: float | None = None  # how long the sentence is spoken; None: for `frames`

    @classmethod
    def of(cls, options: BenchOptions) -> Plan:
        frames = _FRAMES if options.frames is None else options.frames
        if not options.quick:
            text_s = len(TEXT.split()) * 60 / _WORDS_A_MINUTE if options.frames is None else None
            return cls(options, options.size, options.rounds, frames, options.contexts, text_s=text_s)
        contexts = tuple(dict.fromkeys(min(c, 64 * (i + 1)) for i, c in enumerate(sorted(options.contexts)[:2])))
        rounds, frames = min(options.rounds, 2), min(frames, 6)
        return cls(options, "tiny", rounds, frames, contexts, decode_s=(0.5, 1), encode_s=1, loads=1, text="Hello.")

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (
            *(Measure("language_model", context) for context in self.contexts),
            *(Measure("decode", seconds) for seconds in self.decode_s),
            Measure("encode", self.encode_s),
            Measure("speak", self.frames),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return to_json(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        fields, options = from_json(values)
        return cls(**fields, options=BenchOptions(**options))


def to_json(plan: Any) -> dict[str, Any]:
    """A plan, a dataclass, as JSON has it: paths are strings, tuples are lists."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(plan), default=str))
    return values


def from_json(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(a plan's fields without its options, its options), from `to_json`, also behind JSON, which has no tuples."""

    def tuples(data: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}

    fields = tuples(values)
    options = tuples(fields.pop("options"))
    for name in ("checkpoint", "cache_dir"):
        options[name] = None if options[name] is None else Path(options[name])
    return fields, options


@dataclass(frozen=True)
class Metric:
    """A row of the result. `part_of`: the metric that this one is a share of."""

    name: str
    label: str
    unit: Literal["s", "bytes", "ratio", "frames"]
    part_of: str | None = None
    compared: bool = True  # speed-ups are computed


def arms_of(plan: Plan, as_shipped: bool) -> list[str]:
    """The arms in the order in which a round takes them."""
    compiled = [COMPILED] * plan.options.compiled
    return [*[AS_SHIPPED] * as_shipped, RIGHT_SIZED, *compiled, *(ONNX + p for p in plan.options.precisions)]


def precision_of(arm: str) -> str | None:
    return arm.removeprefix(ONNX) if arm.startswith(ONNX) else None


def metrics_of(plan: Plan) -> list[Metric]:
    """All rows, in the order of the report."""
    rows: list[Metric] = []
    for context in plan.contexts:
        frame = f"frame_{context}"
        rows.append(Metric(frame, f"one frame at context {context}", "s"))
        for part, label in (("slow", "slow model"), ("fast", "fast model"), ("sampling", "sampling"), ("rest", "rest")):
            rows.append(Metric(f"{frame}_{part}", label, "s", part_of=frame, compared=False))
    rows += [Metric(f"prefill_{c}", f"prefill of {c} positions, with the first frame", "s") for c in plan.contexts]
    rows += [Metric(f"decode_{s:g}s", f"codec decode of {s:g} s of audio", "s") for s in plan.decode_s]
    return [
        *rows,
        Metric(f"encode_{plan.encode_s:g}s", f"codec encode of {plan.encode_s:g} s of audio", "s"),
        Metric("rtf", "end-to-end real-time factor", "ratio"),
        Metric("spoken_frames", "frames spoken end to end", "frames", compared=False),
        Metric("load", "load, from process start to ready", "s"),
        Metric("first_audio", "from process start to the first short utterance", "s"),
        Metric("peak_memory", "peak memory", "bytes"),
        Metric("memory_private", "private memory after the work", "bytes", part_of="peak_memory", compared=False),
        Metric("memory_file", "file-mapped memory after the work", "bytes", part_of="peak_memory", compared=False),
    ]


def schedule(
    rounds: int, measures: Sequence[Measure], arms: Sequence[str], *, resident: bool
) -> Iterator[tuple[int, Measure, str]]:
    """(round, measure, arm) in the order of work.

    resident: all arms' processes stay, and each measure goes through all arms before the next: A1 B1 C1 A2 B2 C2.
    Otherwise memory holds one arm at a time, and each round goes through all arms with all measures: A1 A2 B1 B2.
    """
    for number in range(rounds):
        if resident:
            yield from ((number, measure, arm) for measure in measures for arm in arms)
        else:
            yield from ((number, measure, arm) for arm in arms for measure in measures)
