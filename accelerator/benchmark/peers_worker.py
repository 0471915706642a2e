"""The process of one arm of `peers`: `python -m accelerator.benchmark.peers_worker`, driven as `worker` is.

Questions: open, take, memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .machine import memory
from .peers import MEASURES, PeerOptions
from .peers_arms import Arm, open_arm
from .worker import main

__all__ = ["PeersWorker"]


class PeersWorker:
    """Answers questions about one arm."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._arm: Arm | None = None

    def open(self, options: dict[str, Any], arm: str, scratch: str) -> dict[str, str]:
        given = PeerOptions.from_dict(options)
        assert given.checkpoint is not None, "`run` makes one where none is given"
        self._arm = open_arm(
            arm,
            given.engine,
            given.checkpoint,
            voice=given.voice,
            threads=given.threads,
            cache_dir=given.cache_dir,
            scratch=Path(scratch),
        )
        return {"about": self._arm.about}

    def take(self, measure: str) -> float:
        """A real-time factor, or seconds to a stream's first audio."""
        assert self._arm is not None
        asked, begun = MEASURES[measure], time.perf_counter()
        if not asked.stream:
            samples = self._arm.whole(asked.text)
            return (time.perf_counter() - begun) * self._arm.sample_rate / len(samples)
        first = None
        for chunk in self._arm.stream(asked.text, raw=asked.raw):
            if len(chunk) and first is None:
                first = time.perf_counter() - begun  # the rest is spoken, too: the next measure begins undisturbed
        if first is None:
            raise RuntimeError("there was no audio in its stream")
        return first

    def memory(self) -> dict[str, int]:
        return memory()


if __name__ == "__main__":
    main(PeersWorker)
