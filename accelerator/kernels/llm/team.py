"""The threads that share a step: the caller's own, and helpers that wait for the next one."""

from __future__ import annotations

import threading
import weakref

import numpy as np

from ...hardware.forks import renewed_in_children
from ...hardware.lease import CORES
from ..compiler import Function, function
from ..descriptors import ASLEEP, NOW
from ..opcodes import END, FRAME, LEAD, SERVE
from ..units.step import STEP

__all__ = ["Team"]


class Team:
    """Runs steps on some threads, one step at a time, when it is their turn at the cores; safe to call from any thread.

    Helpers keep looking for the next step for a while, so that the steps of a frame find them awake, and sleep then: an
    idle team costs nothing. Where other processes take their cores, fewer share a step: see `barrier`.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._call = function(STEP)
        self._stop: weakref.finalize | None = None
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """A child has none of the helpers, and nobody has begun a step there."""
        self._lock = threading.Lock()
        if self._stop is not None:
            self._stop.detach()
        self._stop = None
        self._control: np.ndarray | None = None

    def run(self, plan: np.ndarray) -> None:
        """A step: see `descriptors.PLAN`. What the plan points to has to stay where it is meanwhile."""
        self._do(LEAD, plan)

    def frame(self, frame: np.ndarray) -> None:
        """What is left of a frame: see `descriptors.FRAME`."""
        self._do(FRAME, frame)

    @property
    def sharing(self) -> int:
        """How many threads share a step at present: fewer while others take their cores."""
        return self.threads if self._control is None else int(self._control[NOW])

    def _do(self, what: int, numbers: np.ndarray) -> None:
        with self._lock, CORES.lease("steps", self.threads):
            if self._control is None:
                self._control = self._started()
            self._call(what, numbers.ctypes.data, self._control.ctypes.data)

    def _started(self) -> np.ndarray:
        """The counters of a team whose helpers wait for its first step."""
        whole = np.zeros(ASLEEP + 8 * self.threads + 8, np.int64)
        first = -whole.ctypes.data % 64 // 8
        control = whole[first : first + ASLEEP + 8 * self.threads]
        control[NOW] = self.threads
        for i in range(1, self.threads):
            arguments = self._call, control, i
            threading.Thread(target=_help, args=arguments, name=f"accelerator-native-{i}", daemon=True).start()
        self._stop = weakref.finalize(self, _end, self._call, control, self.threads)
        return control


def _help(call: Function, control: np.ndarray, me: int) -> None:
    call(SERVE, control.ctypes.data, me)


def _end(call: Function, control: np.ndarray, threads: int) -> None:
    call(END, control.ctypes.data, threads)
