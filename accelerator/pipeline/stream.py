"""Speech as it becomes ready: an iterator that measures itself and can be stopped from anywhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from ..errors import GenerationError
from ..speech import AudioChunk
from .dispatch import Running

__all__ = ["SpeechStream"]


class SpeechStream:
    """An iterator of audio chunks whose `metrics` are those up to now, and complete once it is exhausted."""

    def __init__(self, running: Running, metrics: Callable[[Running], dict[str, Any]]) -> None:
        self._running, self._of, self._process = running, metrics, os.getpid()

    def __iter__(self) -> SpeechStream:
        return self

    def __next__(self) -> AudioChunk:
        if self._process != os.getpid():  # it may wait for threads that do not exist in a forked child
            raise GenerationError("this stream was begun before this process was forked: begin it anew here")
        try:
            return next(self._running)
        except BaseException:
            self._running.meter.finish()
            raise

    def close(self) -> None:
        """Stop early; what was handed out stays valid.

        Another thread may call it while this is being iterated: speech then ends with the frame that is being drawn.
        """
        self._running.cancelled.set()
        try:
            self._running.close()
        except ValueError:  # "generator already executing": its thread will see that it is cancelled
            return
        self._running.meter.finish()

    def __del__(self) -> None:
        """Dropping a stream frees its place, as closing it does."""
        running = self.__dict__.get("_running")
        if running is not None and self._process == os.getpid():
            with contextlib.suppress(Exception):  # of an engine's own cleanup: nobody could handle it here
                running.cancelled.set()
                running.close()

    def __repr__(self) -> str:
        meter = self._running.meter
        state = "closed" if self._running.cancelled.is_set() else "done" if meter.finished else "speaking"
        return f"<SpeechStream, {state}, {meter.audio_s:.2f} s so far>"

    @property
    def knows_voice(self) -> bool:
        """Whether it speaks without encoding a recording: as none, or as one that was encoded before."""
        return self._running.knows_voice()

    @property
    def metrics(self) -> dict[str, Any]:
        return self._of(self._running)
