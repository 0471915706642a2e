"""How busy the machine is with other things, while something is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["SHORTEST_S", "BusyClock"]

SHORTEST_S = 0.2


class BusyClock:
    """How busy the machine is with other things than this process and its ended children, since it was made."""

    def __init__(self) -> None:
        self._start = self._now()

    def others_cpus(self) -> float | None:
        """CPUs' worth of time; None where the system does not report it (outside Linux), or too soon.

        The kernel counts in hundredths of a second, too coarse for a short interval.
        """
        if self._start is None or (now := self._now()) is None:
            return None
        wall, busy, ours = (b - a for a, b in zip(self._start, now, strict=True))
        return round(max(0.0, busy - ours) / wall, 3) if wall >= SHORTEST_S else None

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds on the clock, of all CPUs at work, and of ours."""
        try:
            fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()
            # user, nice, system, irq, softirq, and steal: what a hypervisor gave to other guests
            busy = sum(int(fields[i]) for i in (1, 2, 3, 6, 7, 8)) / os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError, ValueError, IndexError):
            return None
        return time.monotonic(), busy, sum(os.times()[:4])
