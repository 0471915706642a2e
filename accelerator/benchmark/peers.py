"""An engine beside others that run the same trained voice, and this package: `accelerator bench peers`.

    result = run(PeerOptions(engine="piper", checkpoint=Path("voice.onnx")), report=print)    # JSON-able
    print(to_markdown(result))

    peers_arms  the engine as it ships, its peers, and ours     peers_worker  the process of one of them

Every arm has a process of its own, and one works at a time: a measure, all arms, then the next measure, round by round.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import EngineError, InvalidOption
from .peers_arms import OURS, PEERS
from .process import ArmFailed, Process
from .record import Record
from .report import _cell, _list, _table, document
from .statistics import ratio, summarize

__all__ = ["MEASURES", "SCHEMA", "Measure", "PeerOptions", "figures", "run", "title", "to_markdown"]

SCHEMA = 1
_WORKER = "accelerator.benchmark.peers_worker"
RANDOM = "random weights"  # in place of a checkpoint's name
_SETTLE_S = 0.25  # ONNX Runtime's threads go on spinning for a while after their work
_PARAGRAPH = (
    "Late in the evening, the old farmer carried a heavy basket across the field. The wind was cold, and snow covered "
    "the roof of the stable. Why did the children leave the lantern beside the road? Nobody in the village had seen "
    "them since the bell was ringing. Then a dog began to bark, and a light moved slowly down the hill."
)

Report = Callable[[str], None]
Start = Callable[[Report], Process]


class Measure(NamedTuple):
    """title: of its row. unit: of its figure, of `report`. stream: whether it ends with the first audio of a stream.
    raw: of a stream that is not brought to full scale, where an engine does that to sentences."""

    title: str
    text: str
    unit: str = "ratio"
    stream: bool = False
    raw: bool = False


MEASURES: Mapping[str, Measure] = {
    "sentence": Measure(
        "real-time factor, 12 words", "The evening sun goes down behind the hills, and nobody minds it."
    ),
    "text": Measure("real-time factor, five sentences", _PARAGRAPH),
    "first": Measure("first audio of these", _PARAGRAPH, "s", stream=True),
    "first-raw": Measure("first audio, not brought to full scale", _PARAGRAPH, "s", stream=True, raw=True),
}


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """checkpoint: None for random weights, where an engine can be measured with such. rounds: of which medians are
    taken. precisions: an arm of ours each; () is one, as an optimizer runs by itself.
    voice: by name; of an engine that needs one, its first. threads: of ours and of the peers that take a number; None:
    ours are probed, and theirs are one a core. The engine as it ships has its own. Raises InvalidOption.
    """

    engine: str
    checkpoint: Path | None = None
    voice: str | None = None
    rounds: int = 5
    precisions: tuple[str, ...] = ()
    threads: int | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.engine not in PEERS:
            raise InvalidOption(f"{self.engine!r} has no peers here; there are {', '.join(PEERS)}")
        if self.checkpoint is None and PEERS[self.engine].random is None:
            raise InvalidOption(f"{self.engine} is measured with a trained voice: give its checkpoint")
        if self.rounds < 1:
            raise InvalidOption(f"rounds must be at least 1, not {self.rounds}")

    @property
    def arms(self) -> tuple[str, ...]:
        own = [f"{OURS}-{precision}" for precision in self.precisions] or [OURS]
        return (*PEERS[self.engine].arms, *own)

    @property
    def measures(self) -> tuple[str, ...]:
        raw = PEERS[self.engine].raw
        return tuple(name for name, measure in MEASURES.items() if raw or not measure.raw)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        given = {"checkpoint": self.checkpoint, "cache_dir": self.cache_dir}
        places = {name: str(place) if place else None for name, place in given.items()}
        return {**asdict(self), "precisions": list(self.precisions), **places}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PeerOptions:
        """The inverse of `to_dict`."""
        places = {name: Path(data[name]) if data[name] else None for name in ("checkpoint", "cache_dir")}
        return cls(**{**data, "precisions": tuple(data["precisions"]), **places})


def _start(report: Report) -> Process:
    return Process(report, module=_WORKER)


def run(options: PeerOptions, report: Report, *, start: Start = _start) -> dict[str, Any]:
    """Measure, which takes minutes. An arm that fails, or whose package is not there, is in the result with its reason.

    Raises EngineError if ours cannot be opened.
    """
    record = Record("accelerator-peers-benchmark", SCHEMA, report)
    took: dict[str, dict[str, list[float | None]]] = {m: {a: [] for a in options.arms} for m in options.measures}
    errors, facts, memory = dict[str, str](), dict[str, Any](), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="accelerator-peers-") as scratch:
        team = _Team(_with_checkpoint(options, Path(scratch), report), Path(scratch), report, start, errors)
        try:
            facts = team.open()
            for number in range(options.rounds):
                report(f"round {number + 1}/{options.rounds}")
                for measure, by_arm in took.items():
                    for arm, values in by_arm.items():
                        values.append(team.take(arm, measure))
            memory = team.memory()
        finally:
            team.close()
    shown = {k: v for k, v in options.to_dict().items() if k not in ("checkpoint", "cache_dir")}
    plan = {"options": {**shown, "quick": False}, "rounds": options.rounds, "measures": list(took)}
    return record.result(
        plan,
        engine={"name": options.engine, "checkpoint": options.checkpoint.name if options.checkpoint else RANDOM},
        arms={arm: {**facts.get(arm, {}), "error": errors.get(arm)} for arm in options.arms},
        figures={m: {arm: summarize(v, MEASURES[m].unit) for arm, v in by_arm.items()} for m, by_arm in took.items()},
        ratios={m: _ratios(by_arm) for m, by_arm in took.items()},
        memory={arm: summarize([bytes_], "bytes") for arm, bytes_ in memory.items()},
    )


def _with_checkpoint(options: PeerOptions, scratch: Path, report: Report) -> PeerOptions:
    """With one of random weights where none was given."""
    write = PEERS[options.engine].random
    if options.checkpoint is not None or write is None:
        return options
    report("no checkpoint was given: making one with random weights, which says nothing")
    folder = scratch / "checkpoint"
    folder.mkdir()
    write(folder)
    return replace(options, checkpoint=folder)


def to_markdown(result: Mapping[str, Any]) -> str:
    """Medians with quartiles, and quotients round by round."""
    return document(title(result), figures(result), result)


def title(result: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    return f"{result['engine']['name']} and its peers, {result['engine']['checkpoint']}"


def figures(result: Mapping[str, Any]) -> str:
    """The table alone, and what was noticed of its columns."""
    arms = list(result["arms"])
    rows = [
        [MEASURES[measure].title, *(_cell(by_arm.get(arm), True) for arm in arms)]
        for measure, by_arm in result["figures"].items()
    ]
    rows.append(["peak memory", *(_cell(result["memory"].get(arm), False) for arm in arms)])
    for measure, by_base in result["ratios"].items():
        for base, by_arm in by_base.items():
            name = f"{MEASURES[measure].title}: times less than `{base}`"
            rows.append([name, *(_cell(by_arm.get(arm), True) for arm in arms)])
    notes = [f"`{arm}`: {arm_['error'] or arm_['about']}" for arm, arm_ in result["arms"].items()]
    return _table(["", *(f"`{arm}`" for arm in arms)], rows) + "\n\n" + _list(notes)


def _ratios(by_arm: Mapping[str, list[float | None]]) -> dict[str, Any]:
    """Peer -> arm of ours -> how many times less it takes, round by round."""
    ours = {arm: values for arm, values in by_arm.items() if arm.startswith(OURS)}
    return {
        base: found
        for base, values in by_arm.items()
        if base not in ours and (found := {arm: r for arm, own in ours.items() if (r := ratio(values, own))})
    }


class _Team:
    """The arms' processes; one of them works at a time. errors: of arms, as they come."""

    def __init__(
        self, options: PeerOptions, scratch: Path, report: Report, start: Start, errors: dict[str, str]
    ) -> None:
        self._options, self._scratch, self._report, self._start = options, scratch, report, start
        self._errors, self._processes = errors, dict[str, Process]()

    def open(self) -> dict[str, Any]:
        """Open each arm, and let it do everything once. Raises EngineError where none of ours can."""
        facts: dict[str, Any] = defaultdict(dict)
        for arm in self._options.arms:
            self._report(f"opening {arm}")
            asked = {"options": self._options.to_dict(), "arm": arm, "scratch": str(self._scratch)}
            try:
                if arm.startswith(OURS):  # what is exported, proven and probed once is not in a later process's memory
                    with contextlib.closing(self._start(self._report)) as before:
                        before.ask("open", **asked)
                process = self._processes[arm] = self._start(self._report)
                facts[arm] = process.ask("open", **asked)
                for measure in self._options.measures:
                    process.ask("take", measure=measure)
            except ArmFailed as error:
                self._failed(arm, error)
        ours = [arm for arm in self._options.arms if arm.startswith(OURS)]
        if all(arm in self._errors for arm in ours):
            raise EngineError(f"{ours[0]} cannot be measured: {self._errors[ours[0]]}")
        return dict(facts)

    def take(self, arm: str, measure: str) -> float | None:
        if arm in self._errors:
            return None
        time.sleep(_SETTLE_S)
        try:
            return float(self._processes[arm].ask("take", measure=measure))
        except ArmFailed as error:
            self._failed(arm, error)
            return None

    def memory(self) -> dict[str, float]:
        """Peak bytes of each process."""
        found = {}
        for arm, process in self._processes.items():
            if arm not in self._errors:
                found[arm] = float(process.ask("memory")["peak_memory"])
        return found

    def close(self) -> None:
        while self._processes:
            self._processes.popitem()[1].close()

    def _failed(self, arm: str, error: ArmFailed) -> None:
        self._errors[arm] = str(error)
        self._report(f"{arm} failed: {error}")
