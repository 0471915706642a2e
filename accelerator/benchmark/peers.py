"""An engine beside others that run the same trained voice, and this package: `accelerator bench peers`.

result = run(PeerOptions(engine="piper", checkpoint=Path("voice.onnx")), report=print)    # JSON-able
print(to_markdown(result))

peer         what an arm is                     peers_arms    the engine as it ships, its peers, and ours
peers_teams  the arms' processes, and turns     peers_worker  the process of one of them
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import InvalidOption
from .peer import SAID
from .peers_arms import OURS, PEERS
from .peers_teams import OneByOne, Resident
from .plan import TEXT
from .process import Process
from .record import Record
from .report import _cell, _list, _table, document
from .statistics import ratio, summarize

__all__ = ["MEASURES", "SCHEMA", "Measure", "PeerOptions", "figures", "run", "title", "to_markdown"]

SCHEMA = 1
_WORKER = "accelerator.benchmark.peers_worker"
RANDOM = "random weights"  # in place of a checkpoint's name
_PARAGRAPH = (
    "Late in the evening, the old farmer carried a heavy basket across the field. The wind was cold, and snow covered "
    "the roof of the stable. Why did the children leave the lantern beside the road? Nobody in the village had seen "
    "them since the bell was ringing. Then a dog began to bark, and a light moved slowly down the hill."
)

_MEMORY = {"memory_known": "peak memory of one text, a known voice", "memory": "peak memory"}

Report = Callable[[str], None]
Start = Callable[[Report], Process]


class Measure(NamedTuple):
    """title: of its row. unit: of its figure, of `report`.

    how: what is timed. A whole text; a stream up to its first audio; that of one that is not brought to full scale,
    where an engine does that to sentences; a stream from the start of its process on; what is done once for a recording
    of somebody. cloning: of engines that speak as a recording.
    """

    title: str
    text: str
    unit: str = "ratio"
    how: Literal["whole", "stream", "raw", "start", "encode"] = "whole"
    cloning: bool = False


MEASURES: Mapping[str, Measure] = {
    "sentence": Measure(
        "real-time factor, 12 words", "The evening sun goes down behind the hills, and nobody minds it."
    ),
    "text": Measure("real-time factor, five sentences", _PARAGRAPH),
    "first": Measure("first audio of these", _PARAGRAPH, "s", "stream"),
    "first-raw": Measure("first audio, not brought to full scale", _PARAGRAPH, "s", "raw"),
    "start": Measure("process start to first audio, a known voice", TEXT, "s", "start", cloning=True),
    "known": Measure("real-time factor, 19 words, a known voice", TEXT, cloning=True),
    "known-first": Measure("first audio of these", TEXT, "s", "stream", cloning=True),
    "voice": Measure("a new voice of 10 s", "", "s", "encode", cloning=True),
    "voice-said": Measure("a new voice of 10 s and its transcript", SAID, "s", "encode", cloning=True),
}


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """checkpoint: None for random weights, where an engine can be measured with such. rounds: of which medians are
    taken. precisions: an arm of ours each; () is one, as an optimizer runs by itself.
    voice: by name; of an engine that needs one, its first. threads: of ours and of the peers that take a number; None:
    ours are probed, and theirs are one a core. The engine as it ships has its own. frames: of an engine that clones
    voices, which a text has at most: with random weights no reply ends. proof: "warn" also measures ours where the
    proof rejects it, as it may random weights. Raises InvalidOption.
    """

    engine: str
    checkpoint: Path | None = None
    voice: str | None = None
    rounds: int = 5
    precisions: tuple[str, ...] = ()
    threads: int | None = None
    cache_dir: Path | None = None
    frames: int | None = None
    proof: Literal["strict", "warn"] = "strict"

    def __post_init__(self) -> None:
        if self.engine not in PEERS:
            raise InvalidOption(f"{self.engine!r} has no peers here; there are {', '.join(PEERS)}")
        if self.checkpoint is None and PEERS[self.engine].random is None:
            raise InvalidOption(f"{self.engine} is measured with a trained voice: give its checkpoint")
        if self.rounds < 1:
            raise InvalidOption(f"rounds must be at least 1, not {self.rounds}")
        if self.frames is not None and not PEERS[self.engine].cloning:
            raise InvalidOption(f"frames are not for {self.engine}, whose texts are spoken to their end")
        if self.voice is not None and PEERS[self.engine].cloning:
            raise InvalidOption(f"{self.engine} knows no voices by name: it is measured with a recording")

    @property
    def arms(self) -> tuple[str, ...]:
        own = [f"{OURS}-{precision}" for precision in self.precisions] or [OURS]
        return (*PEERS[self.engine].arms, *own)

    @property
    def measures(self) -> tuple[str, ...]:
        engine = PEERS[self.engine]
        known = ((name, each) for name, each in MEASURES.items() if each.cloning == engine.cloning)
        return tuple(name for name, each in known if each.how != "raw" or engine.raw)

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
    with tempfile.TemporaryDirectory(prefix="accelerator-peers-") as scratch:
        made = _with_checkpoint(options, Path(scratch), report)
        kind = OneByOne if PEERS[options.engine].cloning else Resident
        how = {measure: MEASURES[measure].how for measure in options.measures}
        team = kind(made.to_dict(), options.arms, how, Path(scratch), report, start)
        try:
            team.open()
            for number in range(options.rounds):
                report(f"round {number + 1}/{options.rounds}")
                for measure, arm, value in team.round():
                    took[measure][arm].append(value)
            memory = team.memory()
        finally:
            team.close()
    shown = {k: v for k, v in options.to_dict().items() if k not in ("checkpoint", "cache_dir")}
    plan = {"options": {**shown, "quick": False}, "rounds": options.rounds, "measures": list(took)}
    return record.result(
        plan,
        engine={"name": options.engine, "checkpoint": options.checkpoint.name if options.checkpoint else RANDOM},
        arms={arm: {**team.facts.get(arm, {}), "error": team.errors.get(arm)} for arm in options.arms},
        figures={m: {arm: summarize(v, MEASURES[m].unit) for arm, v in by_arm.items()} for m, by_arm in took.items()},
        ratios={m: _ratios(by_arm) for m, by_arm in took.items()},
        **{name: {arm: summarize(v, "bytes") for arm, v in by_arm.items()} for name, by_arm in memory.items()},
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
    for name, row in _MEMORY.items():
        if name in result:
            rows.append([row, *(_cell(result[name].get(arm), False) for arm in arms)])
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
