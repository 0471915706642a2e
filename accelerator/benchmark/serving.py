"""How an engine serves: throughput, time to first audio, known voices, long text, callers, memory, neighbours.

    result = run(ServingOptions(size="small"), report=print)      # JSON-able
    Path("serving.md").write_text(to_markdown(result))

    serving_plan       the options, and the scenarios with their items (rows) and figures (columns)
    serving_scenarios  their work                      serving_worker  the process that does it
    serving_report     Markdown and charts            serving_neighbours   the scenario of several processes

Every other scenario runs in a process of its own: after a rehearsal, round by round through its items.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import serving_neighbours
from .plan import RIGHT_SIZED, BenchOptions, Measure, Plan
from .process import ArmFailed, ArmGone, Process
from .record import Record
from .runner import _scratch
from .serving_plan import PYTORCH, SCENARIOS, Scenario, ServingOptions, ServingPlan
from .serving_report import to_markdown, to_svg
from .serving_text import SENTENCES
from .statistics import ratio, summarize

__all__ = ["SCENARIOS", "SCHEMA", "ServingOptions", "run", "to_markdown", "to_svg"]

SCHEMA = 1
_SETTLE_S = 0.25  # PyTorch's threads go on spinning for up to 0.2 s after their work
_WORKER = "accelerator.benchmark.serving_worker"

Report = Callable[[str], None]
Start = Callable[[Report], Process]


def _serve(report: Report) -> Process:
    return Process(report, module=_WORKER)


def run(
    options: ServingOptions,
    report: Report,
    *,
    start: Start = _serve,
    start_pytorch: Start = Process,
) -> dict[str, Any]:
    """Measure, which takes minutes, and return the JSON-able result. report: told each step in one line.

    An item that fails is in the result with its reason. Raises EngineError if the engine cannot be opened.
    """
    plan, record = ServingPlan.of(options), Record("accelerator-serving-benchmark", SCHEMA, report)
    scenarios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="accelerator-benchmark-", dir=_scratch()) as scratch:
        process = start(report)
        try:
            engine = process.ask("prepare", plan=plan.to_dict(), scratch=scratch)
        finally:
            process.close()
        for name in plan.scenarios:
            if name == serving_neighbours.NAME:
                scenarios[name] = _of_neighbours(plan, engine["weights"], start, Path(scratch) / name, report)
                continue
            at_work = _AtWork(name, plan, engine, report)
            scenarios[name] = at_work.measured(start, start_pytorch, Path(scratch) / name)
    random = options.engine == "reference" and options.checkpoint is None and not engine["trained"]
    return record.result(
        plan.to_dict(),
        engine={k: v for k, v in engine.items() if k != "weights"} | {"size": plan.size if random else None},
        scenarios=scenarios,
    )


def _of_neighbours(plan: ServingPlan, weights: str, start: Start, scratch: Path, report: Report) -> dict[str, Any]:
    """The scenario of several processes; see `_AtWork.measured`."""
    values: Mapping[str, Mapping[str, Sequence[float | None]]] = {}
    notes, errors, began = list[str](), dict[str, str](), time.perf_counter()
    try:
        values, notes = serving_neighbours.measure(plan, weights, start, scratch, report)
    except ArmFailed as error:
        errors["all"] = str(error)
        report(f"{serving_neighbours.NAME} failed: {error}")
    figures = compiled(SCENARIOS[serving_neighbours.NAME], plan, values)
    return {**figures, "errors": errors, "notes": notes, "elapsed_s": time.perf_counter() - began}


class _AtWork:
    """One scenario: its processes, and what they answered."""

    def __init__(self, name: str, plan: ServingPlan, engine: Mapping[str, Any], report: Report) -> None:
        self._name, self._plan, self._engine, self._report = name, plan, engine, report
        self._values: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
        self._errors: dict[str, str] = {}
        self._process: Process | None = None
        self._pytorch: Process | None = None

    def measured(self, start: Start, start_pytorch: Start, scratch: Path) -> dict[str, Any]:
        scenario, notes = SCENARIOS[self._name], []
        order, began = scenario.order(self._plan), time.perf_counter()
        try:
            self._process = start(self._report)
            self._process.ask("open", plan=self._plan.to_dict(), weights=self._engine["weights"], scratch=str(scratch))
            if (0, PYTORCH) in order:
                self._open_pytorch(start_pytorch)
            self._report(f"{self._name}: rehearsal")
            self._process.ask("warm", scenario=self._name)
            for number, item in order:
                self._round(number, item, max(n for n, _ in order) + 1)
            notes = self._process.ask("notes")
        except ArmFailed as error:
            self._failed("all", error)
        finally:
            for process in (self._process, self._pytorch):
                if process is not None:
                    process.close()
        return {
            **compiled(scenario, self._plan, self._values),
            "errors": self._errors,
            "notes": notes,
            "elapsed_s": time.perf_counter() - began,
        }

    def _round(self, number: int, item: str, rounds: int) -> None:
        if item in self._errors:
            return
        self._report(f"{self._name}, round {number + 1}/{rounds}: {item}")
        assert self._process is not None
        try:
            if item == PYTORCH:
                values = self._take_pytorch()
                time.sleep(_SETTLE_S)
            else:
                values = self._process.ask("take", scenario=self._name, item=item, number=number)
        except ArmFailed as error:
            self._failed(item, error)
            if isinstance(error, ArmGone) and item != PYTORCH:
                raise
            return
        for name, value in values.items():
            kept = self._values[item][name]
            kept.extend([None] * (number - len(kept)))  # rounds without an answer, so that rounds stay aligned
            kept.append(value)

    def _open_pytorch(self, start: Start) -> None:
        try:
            self._pytorch = start(self._report)
            plan = self._pytorch_plan().to_dict()
            self._pytorch.ask("open", plan=plan, arm=RIGHT_SIZED, weights=self._engine["weights"])
            self._pytorch.ask("tune", plan=plan, threads=None)
            self._take_pytorch()
        except ArmFailed as error:
            self._failed(PYTORCH, error)

    def _pytorch_plan(self) -> Plan:
        options = self._plan.options
        same = {name: getattr(options, name) for name in ("engine", "checkpoint", "threads", "cache_dir")}
        wanted = BenchOptions(
            **same, size=self._plan.size, contexts=(self._positions,), engine_options=options.engine_options
        )
        return Plan.of(wanted)

    @property
    def _positions(self) -> int:
        """Of the prompt that PyTorch's language model is given: about as many as a sentence has, one a letter."""
        return len(SENTENCES[0])

    def _take_pytorch(self) -> dict[str, float]:
        assert self._pytorch is not None
        frames, positions, text = self._plan.frames, self._positions, SENTENCES[0]
        measures = (Measure("language_model", positions), Measure("speak", frames))
        model, spoken = (
            self._pytorch.ask("measure", measure=asdict(measure), frames=count, text=text)
            for measure, count in zip(measures, (frames - 1, frames), strict=True)
        )
        seconds = model[f"prefill_{positions}"] + (frames - 1) * model[f"frame_{positions}"]
        return {"frames_per_s": frames / seconds, "audio_per_s": 1 / spoken["rtf"]}

    def _failed(self, item: str, error: ArmFailed) -> None:
        self._errors[item] = str(error)
        self._report(f"{self._name} failed{'' if item == 'all' else f' at {item}'}: {error}")


def compiled(
    scenario: Scenario, plan: ServingPlan, values: Mapping[str, Mapping[str, Sequence[float | None]]]
) -> dict[str, Any]:
    """`title`, `about`, `figures` (the columns, quotients beside what they are of) and `rows` of a scenario."""
    items = scenario.items(plan)
    base = values.get(items[scenario.base], {})
    figures: list[dict[str, Any]] = []
    rows: dict[str, dict[str, Any]] = {item: {} for item in items}
    for figure in scenario.figures:
        figures.append({k: v for k, v in asdict(figure).items() if k != "times"})
        for item in items:
            rows[item][figure.name] = summarize(values.get(item, {}).get(figure.name, ()), figure.unit)
        if figure.times:
            name = f"{figure.name}_times"
            label = f"{figure.times}, {items[scenario.base]} = 1"
            figures.append({"name": name, "label": label, "unit": "", "charted": ""})
            for item in items:  # of the same round, so that what disturbs the machine slowly cancels out
                rows[item][name] = ratio(values.get(item, {}).get(figure.name, ()), base.get(figure.name, ()))
    kept = {item: {k: v for k, v in row.items() if v is not None} for item, row in rows.items()}
    return {"title": scenario.title, "about": scenario.about(plan), "figures": figures, "rows": kept}
