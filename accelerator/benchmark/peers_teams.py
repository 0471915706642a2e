"""The processes of the arms of `peers`, and in which order they work; one of them works at a time.

Resident   all stay in memory: a measure, all arms, then the next measure
OneByOne   one at a time is in memory: an arm in a new process, all measures, then the next arm
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import EngineError
from .peers_arms import OURS
from .process import ArmFailed, Process

__all__ = ["OneByOne", "Resident"]

_SETTLE_S = 0.25  # ONNX Runtime's threads go on spinning for a while after their work

Taken = tuple[str, str, float | None]  # measure, arm, figure


class _Team:
    """options: of `peers`, as JSON has them. how: by measure, of `peers.Measure`.

    errors: of arms, as they come. facts: by arm, what is said of it.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        arms: Sequence[str],
        how: Mapping[str, str],
        scratch: Path,
        report: Callable[[str], None],
        start: Callable[[Callable[[str], None]], Process],
    ) -> None:
        self._options, self._arms, self._how, self._scratch = options, arms, how, scratch
        self._report, self._start = report, start
        self.errors, self.facts = dict[str, str](), dict[str, Any]()

    def _opened(self, arm: str, process: Process, *, ready: bool) -> Any:
        asked = {"options": dict(self._options), "arm": arm, "scratch": str(self._scratch)}
        return process.ask("open", **asked, ready=ready)

    def _prepare(self, arm: str) -> None:
        """What is exported, proven and probed once is not in a later process's memory. Raises ArmFailed."""
        if arm.startswith(OURS):
            with contextlib.closing(self._start(self._report)) as before:
                self._opened(arm, before, ready=True)

    def _taken(self, process: Process, measure: str) -> float:
        time.sleep(_SETTLE_S)
        return float(process.ask("take", measure=measure))

    def _failed(self, arm: str, error: ArmFailed) -> None:
        """Raises EngineError where none of ours is left."""
        self.errors[arm] = str(error)
        self._report(f"{arm} failed: {error}")
        ours = [arm for arm in self._arms if arm.startswith(OURS)]
        if all(arm in self.errors for arm in ours):
            raise EngineError(f"{ours[0]} cannot be measured: {self.errors[ours[0]]}")

    def close(self) -> None:
        """End all processes."""


class Resident(_Team):
    """Each arm does everything once before it is timed."""

    def open(self) -> None:
        """Raises EngineError where none of ours can be opened."""
        self._processes = dict[str, Process]()
        for arm in self._arms:
            self._report(f"opening {arm}")
            try:
                self._prepare(arm)
                process = self._processes[arm] = self._start(self._report)
                self.facts[arm] = self._opened(arm, process, ready=True)
                for measure in self._how:
                    process.ask("take", measure=measure)
            except ArmFailed as error:
                self._failed(arm, error)

    def round(self) -> Iterator[Taken]:
        for measure in self._how:
            for arm in self._arms:
                yield measure, arm, self._take(arm, measure)

    def _take(self, arm: str, measure: str) -> float | None:
        if arm in self.errors:
            return None
        try:
            return self._taken(self._processes[arm], measure)
        except ArmFailed as error:
            self._failed(arm, error)
            return None

    def memory(self) -> dict[str, dict[str, list[float]]]:
        """Peak bytes of each process."""
        asked = {arm: process for arm, process in self._processes.items() if arm not in self.errors}
        return {"memory": {arm: [float(each.ask("memory")["peak_memory"])] for arm, each in asked.items()}}

    def close(self) -> None:
        while self._processes:
            self._processes.popitem()[1].close()


class OneByOne(_Team):
    """The first measure is of a process's start and first text, after which all is warm but the second "encode"."""

    def open(self) -> None:
        """Raises EngineError where none of ours can be opened."""
        self._peaks: dict[str, dict[str, list[float]]] = {
            "memory_known": defaultdict(list),
            "memory": defaultdict(list),
        }
        for arm in self._arms:
            if arm.startswith(OURS):
                self._report(f"opening {arm}")
                try:
                    self._prepare(arm)
                except ArmFailed as error:
                    self._failed(arm, error)

    def round(self) -> Iterator[Taken]:
        for arm in self._arms:
            took = dict[str, float]()
            if arm not in self.errors:
                try:
                    self._work(arm, took)
                except ArmFailed as error:
                    self._failed(arm, error)
            yield from ((measure, arm, took.get(measure)) for measure in self._how)

    def _work(self, arm: str, took: dict[str, float]) -> None:
        """Everything once, in a process of its own. Raises ArmFailed."""
        with contextlib.closing(self._start(self._report)) as process:
            self._opened(arm, process, ready=False)
            opened_s = time.perf_counter() - process.started
            for measure, how in self._how.items():
                if how == "start":
                    took[measure] = opened_s + float(process.ask("take", measure=measure))
                    self._peaks["memory_known"][arm].append(self._peak(process))
                    continue
                if how == "encode":
                    process.ask("take", measure=measure)
                elif how == "stream" and not process.ask("streams"):
                    continue
                took[measure] = self._taken(process, measure)
            self._peaks["memory"][arm].append(self._peak(process))
            self.facts[arm] = {"about": process.ask("about")}

    def _peak(self, process: Process) -> float:
        return float(process.ask("memory")["peak_memory"])

    def memory(self) -> dict[str, dict[str, list[float]]]:
        """Peak bytes of each process, by round: after its first text, and in all."""
        return {name: dict(by_arm) for name, by_arm in self._peaks.items()}
