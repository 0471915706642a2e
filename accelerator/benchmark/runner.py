"""The run: prepare, rehearse, rounds; and what comes of it as one JSON-able result."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .machine import available_memory
from .plan import AS_SHIPPED, RIGHT_SIZED, BenchOptions, Measure, Plan, arms_of, metrics_of, schedule
from .process import ArmFailed, ArmGone, Process
from .record import Record
from .statistics import ratio, summarize

__all__ = ["SCHEMA", "run"]

SCHEMA = 1
WARM_FRAMES = 2
_ROOM = 0.85  # share of the free memory that the arms may fill together
_SETTLE_S = 0.25  # between two arms: PyTorch's threads go on spinning for up to 0.2 s after their work

Report = Callable[[str], None]


@dataclass
class ArmRecord:
    """What is known of an arm so far. values: metric -> one value a round, or one a process for loads and memory."""

    name: str
    values: dict[str, list[float | None]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[str, str] = field(default_factory=dict)  # measure -> reason; "arm" if all of it failed
    notes: list[str] = field(default_factory=list)
    threads: dict[str, int] | None = None
    spin_us: dict[str, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)  # decode steps a round: context -> steps; "speak" -> frames
    peak: float = 0.0
    frame_s: float | None = None

    def can(self, measure: Measure) -> bool:
        return "arm" not in self.errors and str(measure) not in self.errors

    @property
    def status(self) -> str:
        return "failed" if "arm" in self.errors else "partial" if self.errors else "ok"


def run(options: BenchOptions, report: Report, *, start: Callable[[Report], Process] = Process) -> dict[str, Any]:
    """Measure, which takes minutes, and return the JSON-able result. report: told each step in one line.

    An arm that fails is in the result with its reason. Raises EngineError if the engine itself cannot be opened.
    """
    plan, record = Plan.of(options), Record("accelerator-benchmark", SCHEMA, report)
    with tempfile.TemporaryDirectory(prefix="accelerator-benchmark-", dir=_scratch()) as scratch:
        process = start(report)
        try:
            facts = process.ask("prepare", plan=plan.to_dict(), scratch=scratch)
        finally:
            process.close()
        arms = {name: ArmRecord(name) for name in arms_of(plan, facts["as_shipped"] != "same")}
        for name, reason in facts["rejected"].items():
            arms[name].errors["arm"] = reason
            report(f"{name} failed: {reason}")
        team = Team(plan, arms, facts["weights"], report, start)
        try:
            if not options.quick:
                team.rehearse()
            resident = team.fits()
            team.rounds(resident)
        finally:
            team.close()
    return record.result(
        plan.to_dict(),
        engine={
            "name": facts["engine"],
            "size": plan.size if options.engine == "reference" and options.checkpoint is None else None,
            "sample_rate": facts["sample_rate"],
            "frame_s": next((a.frame_s for a in arms.values() if a.frame_s), None),
            "as_shipped": facts["as_shipped"],
        },
        method={"order": "measure by measure" if resident else "arm by arm", "resident": resident},
        **compile_figures(plan, arms.values()),
    )


def compile_figures(plan: Plan, arms: Collection[ArmRecord]) -> dict[str, Any]:
    """`metrics` (the rows), `arms` (their figures) and `ratios` of a result."""
    rows = metrics_of(plan)
    known = {arm.name: arm.values for arm in arms}
    table: dict[str, Any] = {}
    for arm in arms:
        figures = {row.name: summarize(arm.values.get(row.name, ()), row.unit) for row in rows}
        table[arm.name] = {
            "status": arm.status,
            "errors": dict(arm.errors),
            "notes": list(arm.notes),
            "threads": arm.threads,
            "spin_us": dict(arm.spin_us),
            "frames_a_round": dict(arm.frames),
            "metrics": {name: value for name, value in figures.items() if value is not None},
        }
    ratios: dict[str, Any] = {}
    for title, baseline in (("over_as_shipped", AS_SHIPPED), ("over_right_sized", RIGHT_SIZED)):
        ratios[title] = {
            name: {
                row.name: times
                for row in rows
                if row.compared
                and (times := ratio(known[baseline].get(row.name, ()), values.get(row.name, ()))) is not None
            }
            for name, values in known.items()
            if baseline in known and name != baseline
        }
    return {"metrics": [asdict(row) for row in rows], "arms": table, "ratios": ratios}


class Team:
    """The arms' processes; at most one of them works at a time."""

    def __init__(
        self,
        plan: Plan,
        arms: dict[str, ArmRecord],
        weights: str | None,
        report: Report,
        start: Callable[[Report], Process],
    ) -> None:
        self._plan, self._arms, self._weights, self._report, self._start = plan, arms, weights, report, start
        self._processes: dict[str, Process] = {}

    def rehearse(self) -> None:
        """Start every arm in a fresh process as often as `loads` says; the first time, let it do all of its work."""
        for number in range(self._plan.loads):
            for arm in self._arms.values():
                if "arm" not in arm.errors:
                    self._report(f"load {number + 1}/{self._plan.loads}: {arm.name}")
                    self._open(arm, work=number == 0)
                    self._end(arm, keep_memory=number == 0)

    def fits(self) -> bool:
        """Whether all arms can stay in memory together; without a rehearsal, assume it."""
        peaks, free = [arm.peak for arm in self._arms.values()], available_memory()
        fits = free is None or sum(peaks) <= _ROOM * free
        if not fits:
            self._report("memory holds one arm at a time: every round starts each arm's process anew")
        return fits

    def rounds(self, resident: bool) -> None:
        """Take all measures of all arms in the order of `schedule`."""
        plan, at_work = self._plan, ""
        for number, measure, name in schedule(plan.rounds, plan.measures, list(self._arms), resident=resident):
            arm = self._arms[name]
            if name != at_work:
                if not resident and at_work:
                    self._end(self._arms[at_work], keep_memory=True)
                at_work = name
                if not plan.options.quick:
                    time.sleep(_SETTLE_S)
            if arm.can(measure) and name not in self._processes:
                self._open(arm, work=True)
            if not arm.can(measure):
                continue
            self._report(f"round {number + 1}/{plan.rounds}: {measure}, {name}")
            self._keep(arm, number, self._take(arm, measure, self._frames(arm, measure), plan.text))
        for arm in self._arms.values():
            self._end(arm, keep_memory=True)

    def close(self) -> None:
        """End all processes."""
        while self._processes:
            self._processes.popitem()[1].close()

    def _open(self, arm: ArmRecord, *, work: bool) -> None:
        """Start the arm's process; with `work`, tune its threads and let it do everything once, to warm up."""
        plan = self._plan
        try:
            process = self._processes[arm.name] = self._start(self._report)
            opened = process.ask("open", plan=plan.to_dict(), arm=arm.name, weights=self._weights)
            arm.values["load"].append(time.perf_counter() - process.started)
            arm.notes, arm.spin_us = opened["notes"], opened["spin_us"]
            speak = plan.measures[-1]
            if arm.can(speak) and self._take(arm, speak, WARM_FRAMES, "Hello.") is not None:
                arm.values["first_audio"].append(time.perf_counter() - process.started)
            if not work:
                return
            tuned = process.ask("tune", plan=plan.to_dict(), threads=arm.threads)
            arm.threads, arm.frame_s = tuned["threads"], tuned["frame_s"]
        except ArmFailed as error:
            self._failed(arm, "arm", error)
            return
        for measure in plan.measures:
            if arm.can(measure) and (values := self._take(arm, measure, WARM_FRAMES, plan.text)) is not None:
                self._size(arm, measure, values)

    def _size(self, arm: ArmRecord, measure: Measure, values: dict[str, float]) -> None:
        """Decide once how many decode steps a round has time for."""
        plan, context = self._plan, f"{measure.size:g}"
        if measure.kind == "language_model" and context not in arm.frames:
            affordable = int(plan.slow_s / max(values[f"frame_{context}"], 1e-9))
            arm.frames[context] = max(WARM_FRAMES, min(plan.frames, affordable))
            if arm.frames[context] < plan.frames:
                self._report(f"{arm.name} is slow: {arm.frames[context]} frames a round at context {context}")
        if measure.kind == "speak" and "speak" not in arm.frames and plan.text_s is not None and arm.frame_s:
            affordable = int(plan.slow_speech_s / max(values["rtf"] * arm.frame_s, 1e-9))
            arm.frames["speak"] = max(plan.frames, min(round(plan.text_s / arm.frame_s), affordable))

    def _frames(self, arm: ArmRecord, measure: Measure) -> int:
        key = f"{measure.size:g}" if measure.kind == "language_model" else measure.kind
        return arm.frames.get(key, self._plan.frames)

    def _take(self, arm: ArmRecord, measure: Measure, frames: int, text: str) -> dict[str, float] | None:
        """Metric -> value, or None for a failure, which is recorded."""
        try:
            return dict(self._processes[arm.name].ask("measure", measure=asdict(measure), frames=frames, text=text))
        except ArmFailed as error:
            self._failed(arm, "arm" if isinstance(error, ArmGone) else str(measure), error)
            return None

    @staticmethod
    def _keep(arm: ArmRecord, number: int, values: dict[str, float] | None) -> None:
        for name, value in (values or {}).items():
            kept = arm.values[name]
            kept.extend([None] * (number - len(kept)))  # rounds without an answer, so that rounds stay aligned
            kept.append(value)

    def _end(self, arm: ArmRecord, *, keep_memory: bool) -> None:
        """Stop the arm's process, having asked for its memory."""
        process = self._processes.pop(arm.name, None)
        if process is None:
            return
        try:
            if keep_memory and "arm" not in arm.errors:
                for name, value in process.ask("memory").items():
                    arm.values[name].append(value)
                arm.peak = max(arm.peak, *(v for v in arm.values["peak_memory"] if v is not None))
        except ArmFailed as error:
            self._failed(arm, "arm", error)
        finally:
            process.close()

    def _failed(self, arm: ArmRecord, what: str, error: ArmFailed) -> None:
        arm.errors[what] = str(error)
        self._report(f"{arm.name} failed{'' if what == 'arm' else f' at {what}'}: {error}")
        if what == "arm" and (process := self._processes.pop(arm.name, None)) is not None:
            process.close()


def _scratch() -> str | None:
    """Where gigabytes of weights may lie for a while: on Linux not in /tmp, which is memory on some systems."""
    place = Path("/var/tmp")
    return str(place) if platform.system() == "Linux" and place.is_dir() and os.access(place, os.W_OK) else None
