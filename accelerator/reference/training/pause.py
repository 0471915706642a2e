"""Give the machine back for a while: whoever needs it quiet creates a file, and work waits until it is gone."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Pause"]


@dataclass(frozen=True)
class Pause:
    file: Path | None
    poll_s: float = 2.0

    def wait(self, stop: threading.Event | None = None) -> None:
        """Sleep while the file exists, unless `stop` is set."""
        while self.file is not None and self.file.exists() and not (stop and stop.is_set()):
            time.sleep(self.poll_s)
