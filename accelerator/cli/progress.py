"""Progress bars for `ProgressEvent`s: one line per component, with what is being done to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from ..export import Progress as Receiver

__all__ = ["bars"]

_DOING = {
    "hash": "looking it up",
    "build": "exporting",
    "prove": "comparing with PyTorch",
    "load": "loading",
    "probe": "measuring",
    "ready": "ready",
}


@contextlib.contextmanager
def bars(console: Console) -> Iterator[Receiver]:
    """A receiver that draws on `console` until the block ends; the lines are then removed."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[doing]}"),
        TimeElapsedColumn(),
    )
    lock = threading.Lock()
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def receive(event: Any) -> None:
            with lock:
                name = event.component
                if name not in tasks:
                    for task in tasks.values():  # components are prepared one after the other
                        progress.update(task, total=1, completed=1, doing="done")
                        progress.stop_task(task)
                    tasks[name] = progress.add_task(name, total=None, doing="")
            description = f"{name} {event.precision}".strip()
            doing = _DOING.get(event.stage, event.stage)
            progress.update(
                tasks[name], description=description, doing=doing, total=event.total or None, completed=event.done
            )

        yield receive
