"""Calls that are waited for only so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

from ..hardware.forks import renewed_in_children

__all__ = ["Bounded"]

Answer = TypeVar("Answer")


class Bounded:
    """Makes calls in threads of their own, since no time-out of a socket covers names, handshakes and drips together.

    A call that takes too long goes on, unheard; its thread ends with it, or with the process. At most `at_once` run.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a forked child none runs."""
        self._places = threading.BoundedSemaphore(self._at_once)

    def call(self, function: Callable[[], Answer], seconds: float) -> Answer:
        """What it answers. Raises what it raises; TimeoutError if it takes longer, or nothing more can be begun."""
        places, outcome = self._places, list[Callable[[], Answer]]()
        if not places.acquire(blocking=False):
            raise TimeoutError("too many calls before this one are still waiting")

        def run() -> None:
            try:
                answer = function()
                outcome.append(lambda: answer)
            except BaseException as error:  # raised again where it is waited for
                outcome.append(_raising(error))
            finally:
                places.release()

        thread = threading.Thread(target=run, name="accelerator-voices", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the process may have no more threads, or is ending
            places.release()
            raise TimeoutError("no thread can be begun") from error
        thread.join(seconds)
        if not outcome:
            raise TimeoutError("it takes too long")
        return outcome[0]()


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def raises() -> NoReturn:
        raise error

    return raises
