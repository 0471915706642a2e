"""Turns at the cores: work that would use several threads each is not begun beside other such work.

Threads that wait for each other lose far more than their share when others take a core from one of them, and four that
look for work on two cores are in each other's way. So each step of a model, and each piece of what a codec does, asks
for the cores that it uses, and waits until they are free: eight sentences at once were spoken in nine tenths of the
time, and on average each was there after three quarters of it (docs/decisions/007-core-lease.md).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .forks import renewed_in_children

__all__ = ["TURNS", "Turns"]


class Turns:
    """Cores that are lent out. Kinds of work take turns, so that no kind waits for all that another has queued; within
    a kind, who came first goes first. Safe to call from any thread; not to be taken again by who has one."""

    def __init__(self, cores: int | None = None) -> None:
        """cores: that there are; None: as many as this process may use, looked up on first use."""
        self._cores = cores
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a child nobody else has a turn, whoever had one in the parent."""
        self._lock = threading.Lock()
        self._used = 0
        self._waiting: dict[str, deque[tuple[int, threading.Event]]] = {}  # the kind whose turn is next comes first

    @contextmanager
    def of(self, kind: str, threads: int) -> Iterator[None]:
        """Have `threads` cores, or all of them if they are fewer, once they are free."""
        wanted = self._begin(kind, threads)
        try:
            yield
        finally:
            with self._lock:
                self._used -= wanted
                self._admit()

    def _begin(self, kind: str, threads: int) -> int:
        if self._cores is None:
            from .profile import detect

            self._cores = detect().usable_cores
        with self._lock:
            wanted = max(1, min(threads, self._cores))
            if not self._waiting and self._used + wanted <= self._cores:
                self._used += wanted
                return wanted
            turn = threading.Event()
            self._waiting.setdefault(kind, deque()).append((wanted, turn))
        try:
            turn.wait()
        except BaseException:  # an interrupt
            with self._lock:
                if turn.is_set():
                    self._used -= wanted
                else:
                    self._waiting[kind].remove((wanted, turn))
                    if not self._waiting[kind]:
                        del self._waiting[kind]
                self._admit()
            raise
        return wanted

    def _admit(self) -> None:
        """Let in who is next, as long as there are cores for them."""
        assert self._cores is not None
        while self._waiting:
            kind = next(iter(self._waiting))
            queue = self._waiting[kind]
            wanted, turn = queue[0]
            if self._used + wanted > self._cores:
                return
            queue.popleft()
            del self._waiting[kind]
            if queue:
                self._waiting[kind] = queue  # behind the other kinds
            self._used += wanted
            turn.set()


TURNS = Turns()
