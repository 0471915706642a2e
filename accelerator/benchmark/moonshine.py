"""Moonshine base, a recogniser of English, by moonshine-cpp, in a process of its own that is renewed now and then.

Version 0.1.4 keeps some 20 MB for each second that it has listened to, also when its model is freed.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.checks import write_wav
from .process import Process
from .worker import main

__all__ = ["Moonshine", "MoonshineWorker"]

_MODULE = "accelerator.benchmark.moonshine"
_CLIPS = 16  # that one process listens to: it is there again within a second


class Moonshine:
    """Samples at `sample_rate` -> what they say. Raises ArmFailed where the recogniser fails."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate, self._heard = sample_rate, 0
        self._process: Process | None = None

    def __call__(self, audio: np.ndarray) -> str:
        if self._process is None or self._heard == _CLIPS:
            self.close()
            self._process, self._heard = Process(lambda _: None, module=_MODULE), 0
            self._end = weakref.finalize(self, self._process.close)
        self._heard += 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "heard.wav"  # its `transcribe` of samples fails in 0.1.4
            write_wav(path, audio, self._sample_rate)
            return str(self._process.ask("hear", path=str(path)))

    def close(self) -> None:
        """End the process, as happens by itself in the end; the next clip starts another one."""
        if self._process is not None:
            self._end()
            self._process = None


class MoonshineWorker:
    """That process: `python -m accelerator.benchmark.moonshine`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._model: Any = None

    def hear(self, path: str) -> str:
        import moonshine_cpp

        self._model = self._model or moonshine_cpp.MoonshineModel()
        return str(self._model.transcribe_wav(path))


if __name__ == "__main__":
    main(MoonshineWorker)
