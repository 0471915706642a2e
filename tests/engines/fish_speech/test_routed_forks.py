"""fish-speech's queue in a child."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from accelerator.engines.fish_speech import adapter as fish_speech
from accelerator.engines.fish_speech.adapter import FishSpeechAdapter
from accelerator.engines.fish_speech.routed import _Requests
from tests.children import in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_fish_speechs_queue_is_served_by_a_thread_of_the_childs() -> None:
    started = list[str]()

    class Server:
        def start(self) -> None:
            started.append("started")
            threading.Thread(target=self.serve, daemon=True).start()

        def serve(self) -> None:
            while (item := requests.get()[1]) is not None:
                item.put(os.getpid())

    def ask() -> int:
        answers: queue.Queue[int] = queue.Queue()
        requests.put(answers)
        return answers.get(timeout=10)

    server = Server()
    requests = _Requests(weakref.WeakMethod(server.start))
    assert started == []
    assert [ask(), ask()] == [os.getpid()] * 2
    assert in_child(lambda: (ask() == os.getpid(), ask() == os.getpid(), started), 30) == (True, True, ["started"] * 2)
    requests.put(None)


def test_a_live_fish_speech_is_not_asked_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is not there: its parts in PyTorch speak."""

    class Parts:
        def __init__(self, *_: Any) -> None:
            pass

        def stream(self, request: Any) -> Iterator[str]:
            yield "its parts"

        def close(self) -> None:
            pass

    result = SimpleNamespace(code="segment", audio=(8000, np.zeros(3)))
    live = FishSpeechAdapter.__new__(FishSpeechAdapter)
    live._live, live._process, live.engine = True, os.getpid(), SimpleNamespace(inference=lambda request: [result])
    monkeypatch.setattr(fish_speech, "tts_request", lambda request, wav: request)
    monkeypatch.setattr(fish_speech, "Routed", Parts)
    monkeypatch.setattr(FishSpeechAdapter, "parts", lambda self: ())
    request: Any = SimpleNamespace(reference=None)
    assert [chunk.sample_rate for chunk in live.original(request)] == [8000]
    assert in_child(lambda: list(live.original(request)), 10) == ["its parts"]
