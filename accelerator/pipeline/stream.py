"""Speech as it becomes ready: an iterator that measures itself and can be stopped from anywhere."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import GenerationError
from ..metrics import Meter
from ..speech import AudioChunk

__all__ = ["SpeechStream"]


class SpeechStream:
    """An iterator of audio chunks whose `metrics` are those up to now, and complete once it is exhausted."""

    def __init__(
        self,
        chunks: Iterator[AudioChunk],
        meter: Meter,
        finish: Callable[[Meter], dict[str, Any]],
        cancelled: threading.Event | None = None,
    ) -> None:
        self._chunks, self._meter, self._finish = chunks, meter, finish
        self._cancelled = cancelled or threading.Event()
        self._process = os.getpid()

    def __iter__(self) -> SpeechStream:
        return self

    def __next__(self) -> AudioChunk:
        if self._process != os.getpid():  # it may wait for threads that a fork has not taken along
            raise GenerationError("this stream was begun before this process was forked: begin it anew here")
        try:
            return next(self._chunks)
        except BaseException:
            self._meter.finish()
            raise

    def close(self) -> None:
        """Stop early; what was handed out stays valid.

        Another thread may call it while this is being iterated: speech then ends with the frame that is being drawn.
        """
        self._cancelled.set()
        close = getattr(self._chunks, "close", None)
        if close is not None:
            try:
                close()
            except ValueError:  # "generator already executing": its thread will see that it is cancelled
                return
        self._meter.finish()

    def __repr__(self) -> str:
        state = "closed" if self._cancelled.is_set() else "done" if self._meter.finished else "speaking"
        return f"<SpeechStream, {state}, {self._meter.audio_s:.2f} s so far>"

    @property
    def metrics(self) -> dict[str, Any]:
        return self._finish(self._meter)
