"""A call is waited for only so long, whatever it does."""

from __future__ import annotations

import threading

import pytest

from accelerator.voices.bounded import Bounded
from tests.children import in_child


def test_answers_and_errors_come_through() -> None:
    calls = Bounded(1)
    assert [calls.call(lambda n=n: n + 1, 20) for n in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(KeyError, match="gone"):
        calls.call(lambda: {}["gone"], 20)
    assert calls.call(lambda: None, 20) is None


def test_what_never_ends_is_left_alone_and_takes_a_place() -> None:
    calls, ends = Bounded(2), threading.Event()
    for _ in range(2):
        with pytest.raises(TimeoutError, match="too long"):
            calls.call(ends.wait, 0.01)
    with pytest.raises(TimeoutError, match="too many"):
        calls.call(lambda: None, 20)
    assert in_child(lambda: calls.call(lambda: "in the child", 20), 20) == "in the child"
    ends.set()
    for thread in threading.enumerate():
        if thread.name == "accelerator-voices":
            thread.join(20)
    assert calls.call(lambda: "again", 20) == "again"


def test_where_no_thread_can_be_begun_it_is_as_if_it_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    calls = Bounded(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(2):
            with pytest.raises(TimeoutError, match="no thread"):
                calls.call(lambda: None, 20)
    assert calls.call(lambda: "again", 20) == "again"
