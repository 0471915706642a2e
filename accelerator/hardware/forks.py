"""What a fork leaves behind: a child has one thread, and all that the others held or were about to do is as they left
it. Locks stay locked, places stay taken, and requests wait for threads that are not there.

So whoever keeps such things makes them anew in every child, before anything else runs there: by `_forked`, or by having
a `Lock` of this kind.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["Forked", "Lock", "renewed_in_children"]


class Forked(Protocol):
    def _forked(self) -> None:
        """Called in a child, whose only thread it runs in."""
        ...


def renewed_in_children(owner: Forked) -> None:
    """Have `owner._forked()` called in every child of this process, as long as there is an `owner`."""
    _ALL.add(owner)


class Lock:
    """A `threading.Lock` for `with`; in a child it is free, unless the thread that forked had it."""

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
