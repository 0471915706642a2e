"""Surviving a fork: a child has one thread, and what other threads held stays held.

Locks stay locked, places stay taken, and requests wait for threads that do not exist. So objects with such state reset
it in every child before anything else runs there: in `_forked`, or by using this module's `Lock`.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["Forked", "Lock", "renewed_in_children"]


class Forked(Protocol):
    def _forked(self) -> None:
        """Called in a forked child, in its only thread."""
        ...


def renewed_in_children(owner: Forked) -> None:
    """Call `owner._forked()` in every forked child, as long as `owner` lives."""
    _ALL.add(owner)


class Lock:
    """A `threading.Lock` for `with`; free in a forked child, unless the forking thread held it."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), 0
        renewed_in_children(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = 0
        self._lock.release()

    def _forked(self) -> None:
        if self._owner != threading.get_ident():
            self._lock, self._owner = threading.Lock(), 0


_ALL: weakref.WeakSet[Forked] = weakref.WeakSet()


def _forked() -> None:
    for owner in list(_ALL):
        owner._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
