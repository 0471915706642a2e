"""Who holds the cores, and when."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable

import pytest

from accelerator.hardware.lease import CoreLease

WAIT = 20.0


class Worker:
    """A thread that leases cores, reports it, and holds them until `end`."""

    def __init__(self, cores: CoreLease, kind: str, threads: int, order: list[str], name: str) -> None:
        self.has_begun, self._may_end = threading.Event(), threading.Event()
        self._arguments = cores, kind, threads, order, name
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        cores, kind, threads, order, name = self._arguments
        with cores.lease(kind, threads):
            order.append(name)
            self.has_begun.set()
            assert self._may_end.wait(WAIT)

    def begun(self) -> bool:
        return self.has_begun.wait(WAIT)

    def end(self) -> None:
        self._may_end.set()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def queued(cores: CoreLease) -> int:
    return sum(len(queue) for queue in cores._waiting.values())


def waiting(cores: CoreLease, kind: str, threads: int, order: list[str], name: str) -> Worker:
    """A worker that has to wait, once it does."""
    before = queued(cores)
    worker = Worker(cores, kind, threads, order, name)
    until(lambda: queued(cores) == before + 1)
    return worker


def test_work_is_done_beside_other_work_while_there_are_cores() -> None:
    cores, order = CoreLease(4), list[str]()
    first, second = Worker(cores, "a", 2, order, "first"), Worker(cores, "b", 2, order, "second")
    assert first.begun()
    assert second.begun()
    third = waiting(cores, "a", 1, order, "third")
    assert not third.has_begun.is_set()
    first.end()
    assert third.begun()
    second.end()
    third.end()
    assert cores._used == 0


def test_more_threads_than_cores_have_all_of_them() -> None:
    cores, order = CoreLease(2), list[str]()
    with cores.lease("a", 8):
        assert cores._used == 2
        other = waiting(cores, "a", 1, order, "other")
    assert other.begun()
    other.end()


def test_kinds_take_turns_and_within_one_the_first_to_come_is_first() -> None:
    cores, order, workers = CoreLease(2), list[str](), dict[str, Worker]()
    with cores.lease("codec", 2):
        for name in ("codec 1", "codec 2", "codec 3", "steps 1", "steps 2"):
            workers[name] = waiting(cores, name.split()[0], 2, order, name)
    for name in (expected := ["codec 1", "steps 1", "codec 2", "steps 2", "codec 3"]):
        assert workers[name].begun()
        workers[name].end()
    assert order == expected
    assert cores._used == 0
    assert not cores._waiting


def test_many_small_ones_do_not_keep_a_large_one_waiting() -> None:
    cores, order = CoreLease(2), list[str]()
    small = Worker(cores, "a", 1, order, "small")
    assert small.begun()
    large = waiting(cores, "b", 2, order, "large")
    later = waiting(cores, "a", 1, order, "later")  # there would be a core for it
    small.end()
    assert large.begun()
    assert not later.has_begun.is_set()
    large.end()
    assert later.begun()
    later.end()


def test_a_failure_gives_the_cores_back() -> None:
    cores = CoreLease(2)
    with pytest.raises(ValueError, match="mine"), cores.lease("a", 2):
        raise ValueError("mine")
    with cores.lease("b", 2):
        assert cores._used == 2
    assert cores._used == 0


@pytest.mark.parametrize("admitted", [False, True])
def test_an_interrupt_while_waiting_loses_no_core(monkeypatch: pytest.MonkeyPatch, admitted: bool) -> None:
    """Also if the turn came in the same moment."""
    cores = CoreLease(2)
    with cores.lease("a", 2):

        def interrupted(_: threading.Event, timeout: float | None = None) -> bool:
            if admitted:
                with cores._lock:
                    cores._used -= 2
                    cores._admit()
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(threading.Event, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt), cores.lease("b", 2):
                pass
        if admitted:
            cores._used += 2
    assert cores._used == 0
    assert not cores._waiting
    with cores.lease("b", 2):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_leases_of_its_own() -> None:
    cores = CoreLease(2)
    context = multiprocessing.get_context("fork")
    with cores.lease("a", 2):
        child = context.Process(target=_take, args=(cores,))
        child.start()
        child.join(WAIT)
    assert child.exitcode == 0


def _take(cores: CoreLease) -> None:
    with cores.lease("a", 2):
        os._exit(0)


def test_nobody_is_alone_who_should_not_be() -> None:
    """Many threads of several kinds: never more cores than there are, and everyone gets there."""
    cores, used, lock, worst = CoreLease(3), [0], threading.Lock(), [0]

    def work(kind: str, threads: int) -> None:
        for _ in range(50):
            with cores.lease(kind, threads):
                with lock:
                    used[0] += threads
                    worst[0] = max(worst[0], used[0])
                with lock:
                    used[0] -= threads

    threads = [threading.Thread(target=work, args=(f"kind {i % 3}", 1 + i % 3)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert 0 < worst[0] <= 3
    assert cores._used == 0
