"""The threads that share a step: the caller's own, and helpers that wait for the next one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np

from ..hardware.forks import renewed_in_children
from ..hardware.turns import TURNS
from .compiled import FRAME, LEAD, RUN, SERVE, function
from .plan import ASLEEP, STOP, TICKET

__all__ = ["Team"]


class Team:
    """Runs steps on some threads, one step at a time, when it is their turn at the cores; safe to call from any thread.

    Helpers keep looking for the next step for a while (`plan.SPIN`), so that the steps of a frame find them awake, and
    sleep then: an idle team costs nothing.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._call = function()
        self._stop: weakref.finalize | None = None
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """A child has none of the helpers, and nobody has begun a step there."""
        self._lock = threading.Lock()
        if self._stop is not None:
            self._stop.detach()
        self._stop = None
        self._control: np.ndarray = np.zeros(0, np.int64)
        self._wake: list[threading.Semaphore] = []

    def run(self, plan: np.ndarray) -> None:
        """A step: see `kernels`. What the plan points to has to stay where it is meanwhile."""
        with self._lock, TURNS.of("steps", self.threads):
            control = self._ready()
            self._woken(self._call(LEAD, plan.ctypes.data, control), plan, control)

    def frame(self, frame: np.ndarray, plan: np.ndarray) -> None:
        """What is left of a frame, whose steps are of that plan: see `frames`."""
        with self._lock, TURNS.of("steps", self.threads):
            control = self._ready()
            while self._woken(self._call(FRAME, frame.ctypes.data, control), plan, control):
                pass

    def _ready(self) -> int:
        """The address of the counters."""
        if self._stop is None:
            self._start()
        return int(self._control.ctypes.data)

    def _woken(self, asleep: int, plan: np.ndarray, control: int) -> bool:
        """Run a step for which some had to be woken, if there are any."""
        if asleep:
            for i, wake in enumerate(self._wake, 1):
                if asleep >> i & 1:
                    wake.release()
            self._call(RUN, plan.ctypes.data, control, 0)
        return bool(asleep)

    def _start(self) -> None:
        whole = np.zeros(ASLEEP + 8 * self.threads + 8, np.int64)
        first = -whole.ctypes.data % 64 // 8
        self._control = control = whole[first : first + ASLEEP + 8 * self.threads]
        self._wake = [threading.Semaphore(0) for _ in range(1, self.threads)]
        for i, wake in enumerate(self._wake, 1):
            arguments = self._call, control, i, wake
            threading.Thread(target=_help, args=arguments, name=f"accelerator-native-{i}", daemon=True).start()
        self._stop = weakref.finalize(self, _stop, control, self._wake)


def _help(call: Callable[..., int], control: np.ndarray, me: int, wake: threading.Semaphore) -> None:
    last = 0
    while (last := call(SERVE, control.ctypes.data, me, last)) >= 0:
        wake.acquire()


def _stop(control: np.ndarray, wake: list[threading.Semaphore]) -> None:
    control[STOP] = 1
    control[TICKET] += 1
    for each in wake:
        each.release()
