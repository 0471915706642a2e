"""The process of one arm of `peers`: `python -m accelerator.benchmark.peers_worker`, driven as `worker` is.

Questions: open, streams, take, about, memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from .machine import memory
from .peer import Arm, Cloning, Given, recording
from .peers import MEASURES, PeerOptions
from .peers_arms import PEERS, open_arm
from .worker import main

__all__ = ["PeersWorker"]


class PeersWorker:
    """Answers questions about one arm."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._arm: Arm | None = None

    def open(self, options: dict[str, Any], arm: str, scratch: str, ready: bool) -> dict[str, str]:
        """What is said of the arm. ready: whether all is made now that a text or a recording needs."""
        given = PeerOptions.from_dict(options)
        assert given.checkpoint is not None, "`run` makes one where none is given"
        asked = Given(
            checkpoint=given.checkpoint,
            scratch=Path(scratch),
            voice=given.voice,
            frames=given.frames,
            threads=given.threads,
            cache_dir=given.cache_dir,
            proof=given.proof,
        )
        self._arm = open_arm(arm, given.engine, asked)
        self._scratch, self._recordings = Path(scratch), 0
        if not ready:
            return {}
        about = self.about()
        if PEERS[given.engine].cloning:  # from now on the voice is known
            self.take("known")
        return {"about": about}

    def about(self) -> str:
        assert self._arm is not None
        return self._arm.about

    def streams(self) -> bool:
        """Whether there is audio before a text's end."""
        return bool(getattr(self._arm, "streams", True))

    def take(self, measure: str) -> float:
        """A real-time factor, or seconds."""
        assert self._arm is not None
        asked, begun = MEASURES[measure], time.perf_counter()
        if asked.how == "encode":
            return self._encoded(asked.text)
        if asked.how == "whole":
            samples = self._arm.whole(asked.text)
            return (time.perf_counter() - begun) * self._arm.sample_rate / len(samples)
        first = None
        for chunk in self._arm.stream(asked.text, raw=asked.how == "raw"):
            if len(chunk) and first is None:
                first = time.perf_counter() - begun  # the rest is spoken, too: the next measure begins undisturbed
        if first is None:
            raise RuntimeError("there was no audio in its stream")
        return first

    def _encoded(self, said: str) -> float:
        self._recordings += 1
        path = recording(self._scratch, self._recordings)
        begun = time.perf_counter()
        cast(Cloning, self._arm).encode(path, said)
        return time.perf_counter() - begun

    def memory(self) -> dict[str, int]:
        return memory()


if __name__ == "__main__":
    main(PeersWorker)
