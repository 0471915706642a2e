"""Children of this process, by a fork, and what they answer."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

WAIT = 60.0  # seconds: a child takes one or two


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of a fork beside threads
        return os.fork()


def in_child(work: Callable[[], Any], wait: float = WAIT) -> Any:
    """What `work` answers in a forked child. One that does not answer in time is killed, and the test fails."""
    read, write = os.pipe()
    if not (child := fork()):
        try:
            answer = True, work()
        except BaseException as error:
            answer = False, f"{type(error).__name__}: {error}"
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    answered, end = b"", time.monotonic() + wait
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0] and (more := pipe.read(1 << 16)):
            answered += more
    if time.monotonic() >= end:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert answered, f"the child did not answer within {wait:g} s"
    done, answer = pickle.loads(answered)
    assert done, answer
    return answer


@contextlib.contextmanager
def held(hold: Callable[[Callable[[], Any]], Any], *, ends_after: float | None = None) -> Iterator[None]:
    """Another thread that calls `hold` with a function which returns at the end, or so many seconds later."""
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        end.wait(WAIT if ends_after is None else ends_after)

    thread = threading.Thread(target=hold, args=(work,))
    thread.start()
    try:
        assert begun.wait(WAIT)
        yield
    finally:
        end.set()
        thread.join(WAIT)
    assert not thread.is_alive()
