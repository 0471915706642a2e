"""Progress on a terminal: a line for each component with what is being done to it, and one for speech as it grows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from ..export.component import ProgressEvent

__all__ = ["Bars", "bars", "columns"]

_DOING = {
    "hash": "looking it up",
    "build": "exporting",
    "prove": "comparing with PyTorch",
    "compile": "compiling for this processor",
    "load": "loading",
    "probe": "measuring what is faster",
    "ready": "ready",
}
_NARROW = 80  # columns of a terminal, below which bars are short


class _Clock(ProgressColumn):
    """How long a stage has taken. Rich's own stops when the last step is counted, though the stage may go on."""

    def render(self, task: Task) -> Text:
        return Text(str(timedelta(seconds=int(task.elapsed or 0))))


class _Doing(ProgressColumn):
    """What is being done; asked anew at each refresh where it changes by itself."""

    def render(self, task: Task) -> Text:
        doing = task.fields["doing"]
        return Text(doing() if callable(doing) else doing)


class Bars:
    """A receiver of `ProgressEvent`s. The bar pulses where a stage has no known end; each stage has its own clock."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._lines: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}

    def __call__(self, event: ProgressEvent) -> None:
        with self._lock:
            name = event.component
            if self._stages.get(name) != event.stage:
                self._begin(name, event.stage)
            # A pulse, not a full bar, from the last step to the stage's end.
            total = event.total if event.done < event.total else None
            self._set_total(self._lines[name], total)
            self._progress.update(
                self._lines[name], description=f"{name} {event.precision}".strip(), completed=event.done
            )

    def speaking(self, doing: Callable[[], str]) -> None:
        """Show what `doing` says, at each refresh, until the end."""
        with self._lock:
            self._begin("speech", "speak", doing)

    def _begin(self, name: str, stage: str, doing: Callable[[], str] | None = None) -> None:
        for other, line in self._lines.items():  # components are prepared one after the other
            if other != name and self._stages[other]:
                self._stages[other] = ""
                self._set_total(line, 1)
                self._progress.update(line, completed=1, doing="done")
                self._progress.stop_task(line)
        if name in self._lines:
            self._progress.remove_task(self._lines[name])
        self._lines[name] = self._progress.add_task(name, total=None, doing=doing or _DOING.get(stage, stage))
        self._stages[name] = stage

    def _set_total(self, line: TaskID, total: int | None) -> None:
        """`Progress.update` takes None for "as before"."""
        task = next(task for task in self._progress.tasks if task.id == line)
        task.total, task.finished_time = total, None


@contextlib.contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Bars on `console` until the block ends; the lines are then removed."""
    with Progress(*columns(console.width), console=console, transient=True) as progress:
        yield Bars(progress)


def columns(width: int) -> Sequence[ProgressColumn]:
    """What a line shows on a terminal of this many columns."""
    bar = BarColumn(bar_width=24 if width >= _NARROW else 8)
    return SpinnerColumn(), TextColumn("{task.description}"), bar, _Doing(), _Clock()
