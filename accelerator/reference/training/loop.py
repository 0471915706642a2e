"""The training loop both models share: it can be killed at any step and goes on as if nothing had happened.

A step's randomness is a function of (seed, step) alone, so the step number is all the random state there is to keep.

    FOLDER/checkpoint.pt   modules, optimizers, averages, step, seconds and settings; replaced atomically
    FOLDER/losses.csv      means over `log_every` steps, and validation now and then
"""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ReferenceEngineError
from .pause import Pause

__all__ = ["Average", "Checkpoint", "Schedule", "Task", "cosine", "run"]

_log = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained. `modules` and `optimizers` (and `average`, if any) are all the state it has."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    average: Average | None

    def step(self, step: int, random: np.random.Generator) -> dict[str, float]: ...
    def validate(self) -> dict[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Fixed by the first run; a run that goes on must ask for the same."""

    steps: int
    batch: int
    seed: int
    further: bool = False  # begun with the weights of a voice that is trained already


class Average:
    """Exponential moving average of a module's parameters, slow to believe the first steps."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.seen = decay, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.seen += 1
        decay = min(self.decay, (1 + self.seen) / (10 + self.seen))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with the averaged weights, for a while."""
        own = {name: p.detach().clone() for name, p in module.named_parameters()}
        _assign(module, self.values)
        try:
            yield
        finally:
            _assign(module, own)


@torch.no_grad()
def _assign(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(values[name])


def cosine(step: int, steps: int, *, peak: float, warmup: int = 200, floor: float = 0.05) -> float:
    """Learning rate: linear warm-up, then half a cosine down to `floor` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Checkpoint:
    path: Path

    def save(self, task: Task, step: int, seconds: float, schedule: Schedule) -> None:
        state = {
            "step": step,
            "seconds": seconds,
            "schedule": asdict(schedule),
            "modules": {name: module.state_dict() for name, module in task.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in task.optimizers.items()},
            "average": task.average.state_dict() if task.average else None,
        }
        self._write(state)

    def _write(self, state: dict[str, Any]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def adopt(self, module: nn.Module) -> Path:
        """Save weights that were trained elsewhere, as if here and to the end; the path."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        schedule = asdict(Schedule(steps=1, batch=1, seed=0))
        self._write({"step": 1, "seconds": 0.0, "schedule": schedule, "average": {"seen": 1, "values": values}})
        return self.path

    def read(self) -> dict[str, Any]:
        """Raises ReferenceEngineError if there is none."""
        if not self.path.is_file():
            raise ReferenceEngineError(f"there is no {self.path}: train first")
        return torch.load(self.path, map_location="cpu", weights_only=True)

    def averaged(self, *, unfinished: bool = False) -> dict[str, Tensor]:
        """The averaged weights. Raises ReferenceEngineError before the schedule's end, unless `unfinished`."""
        state = self.read()
        step, steps = state["step"], state["schedule"]["steps"]
        if step < steps and not unfinished:
            raise ReferenceEngineError(f"{self.path} is at step {step} of {steps}: train on, or ask for --unfinished")
        return state["average"]["values"]

    def restore(self, task: Task, schedule: Schedule, *, reschedule: bool = False) -> tuple[int, float]:
        """(step, seconds) to go on from; (0, 0) without a checkpoint. reschedule: the length may be another one."""
        if not self.path.is_file():
            return 0, 0.0
        state = self.read()
        made, wanted = Schedule(**state["schedule"]), schedule
        if reschedule:
            made = replace(made, steps=wanted.steps)
        if made != wanted:
            hint = " (--reschedule changes the steps of a run that has begun)" * (made.steps != wanted.steps)
            raise ReferenceEngineError(f"{self.path} was made with {asdict(made)}, not {asdict(wanted)}{hint}")
        for name, module in task.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in task.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if task.average:
            task.average.load_state_dict(state["average"])
        return state["step"], state["seconds"]

    def schedule(self) -> Schedule | None:
        return Schedule(**self.read()["schedule"]) if self.path.is_file() else None

    def continued(self, steps: int | None, batch: int | None, default: Schedule) -> Schedule:
        """What is asked for, else what the run before had, else the default; the seed is the default's."""
        before = self.schedule() or default
        return replace(before, steps=steps or before.steps, batch=batch or before.batch, seed=default.seed)


def run(
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    pause: Pause,
    minutes: float | None = None,
    checkpoint_minutes: float = 5.0,
    log_every: int = 20,
    validate_every: int = 500,
    reschedule: bool = False,
) -> int:
    """Train to the schedule's end, or until `minutes` are over or SIGTERM comes; the step reached.

    A checkpoint is written in either case. Time asleep counts neither as training nor towards `minutes`. reschedule: a
    run that has begun gets another length; what it ends with is not what a run of that length would have had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(folder / "checkpoint.pt")
    step, seconds = checkpoint.restore(task, schedule, reschedule=reschedule)
    _cut(folder / "losses.csv", step)
    sums: dict[str, float] = {}
    count = 0
    started = saved = seconds
    with _termination() as stop:
        while step < schedule.steps and not stop.is_set():
            pause.wait(stop)
            if stop.is_set():
                break
            begin = time.perf_counter()
            torch.manual_seed(schedule.seed * 1_000_003 + step)
            for name, value in task.step(step, np.random.default_rng((schedule.seed, step))).items():
                sums[name] = sums.get(name, 0.0) + value
            step, count = step + 1, count + 1
            seconds += time.perf_counter() - begin
            if step % log_every == 0:
                means = {name: value / count for name, value in sums.items()}
                if not all(map(math.isfinite, means.values())):
                    raise ReferenceEngineError(f"training diverged at step {step}: {means}; the checkpoint is older")
                if step % validate_every == 0:
                    means |= {f"valid_{name}": value for name, value in task.validate().items()}
                _append(folder / "losses.csv", step, seconds, means)
                _log.info("step %d of %d, %.2f s a step: %s", step, schedule.steps, seconds / step, _show(means))
                sums, count = {}, 0
            if seconds - saved > 60 * checkpoint_minutes:
                checkpoint.save(task, step, seconds, schedule)
                saved = seconds
            if minutes is not None and seconds - started > 60 * minutes:
                break
    checkpoint.save(task, step, seconds, schedule)
    return step


@contextmanager
def _termination() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that a step is finished and saved before the process ends."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {name: signal.signal(name, lambda *_: stop.set()) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _show(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _append(path: Path, step: int, seconds: float, values: Mapping[str, float]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows((step, f"{seconds:.1f}", name, f"{value:.6g}") for name, value in values.items())


def _cut(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint: those steps come again."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        kept = [row for row in csv.reader(file) if int(row[0]) <= step]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(kept)
