"""Core leases: work that uses several threads waits for its cores instead of competing for them.

Threads that meet at barriers lose far more than their share when another thread takes a core from one of them, and four
threads that spin on two cores slow each other down. So each step of a model, and each tile of a codec, leases as many
cores as it uses, and waits until they are free. With this eight concurrent sentences took nine tenths of the time
altogether and three quarters of it on average (docs/decisions/007-core-lease.md).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .forks import renewed_in_children

__all__ = ["CORES", "CoreLease"]


class CoreLease:
    """Leases cores. Safe to call from any thread; not re-entrant.

    Kinds of work take turns, so that no kind waits for everything that another has queued; within a kind the order is
    first come, first served.
    """

    def __init__(self, cores: int | None = None) -> None:
        """cores: how many there are; None: as many as this process may use, looked up on first use."""
        self._cores = cores
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a forked child no cores are leased, whatever was leased in the parent."""
        self._lock = threading.Lock()
        self._used = 0
        self._waiting: dict[str, deque[tuple[int, threading.Event]]] = {}  # by kind; the next to be served comes first

    @contextmanager
    def lease(self, kind: str, threads: int) -> Iterator[None]:
        """Hold `threads` cores within the block, or all if there are fewer; waits until they are free."""
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
            granted = threading.Event()
            self._waiting.setdefault(kind, deque()).append((wanted, granted))
        try:
            granted.wait()
        except BaseException:  # an interrupt
            with self._lock:
                if granted.is_set():
                    self._used -= wanted
                else:
                    self._waiting[kind].remove((wanted, granted))
                    if not self._waiting[kind]:
                        del self._waiting[kind]
                self._admit()
            raise
        return wanted

    def _admit(self) -> None:
        """Grant leases in order, as long as there are cores for them."""
        assert self._cores is not None
        while self._waiting:
            kind = next(iter(self._waiting))
            queue = self._waiting[kind]
            wanted, granted = queue[0]
            if self._used + wanted > self._cores:
                return
            queue.popleft()
            del self._waiting[kind]
            if queue:
                self._waiting[kind] = queue  # behind the other kinds
            self._used += wanted
            granted.set()


CORES = CoreLease()
