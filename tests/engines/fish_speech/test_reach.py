"""The model is found in the thread that serves it."""

from __future__ import annotations

import queue
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest

from accelerator.engines.fish_speech import layouts
from accelerator.engines.fish_speech.reach import reach
from accelerator.errors import UnsupportedEngine


def serving(input_queue: queue.Queue[Any], loaded: Any, checkpoint_path: str) -> threading.Thread:
    """A thread as fish-speech's launch_thread_safe_queue starts it."""

    def worker() -> None:
        model, _ = loaded, checkpoint_path
        while input_queue.get() is not None:
            del model

    thread = threading.Thread(target=worker, daemon=True)
    thread.start()
    return thread


def test_the_model_is_found_in_its_thread_among_others() -> None:
    queues, models = [queue.Queue[Any]() for _ in range(3)], [object() for _ in range(3)]
    threads = [serving(*pair, f"folder {i}") for i, pair in enumerate(zip(queues, models, strict=True))]
    try:
        for i, (requests, model) in enumerate(zip(queues, models, strict=True)):
            found = reach(types.SimpleNamespace(llama_queue=requests), timeout=0.01)
            assert found.model is model
            assert found.checkpoint_path == f"folder {i}"
    finally:
        for requests in queues:
            requests.put(None)
        for thread in threads:
            thread.join()
    with pytest.raises(UnsupportedEngine, match="launch_thread_safe_queue"):
        reach(types.SimpleNamespace(llama_queue=queue.Queue()), timeout=0.01)


def test_the_model_is_asked_for_where_it_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module, requests, model = types.ModuleType(layouts.INFERENCE), queue.Queue[Any](), object()

    def generate_long(**options: Any) -> Iterator[Any]:
        yield options

    module.generate_long = generate_long  # type: ignore[attr-defined]
    module.GenerateResponse = types.SimpleNamespace  # type: ignore[attr-defined]
    module.GenerateRequest = types.SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, layouts.INFERENCE, module)

    def hidden() -> None:
        while (item := requests.get()) is not None:
            for chunk in vars(module)["generate_long"](model=model, **item.request):
                item.response_queue.put(chunk)

    thread = threading.Thread(target=hidden, daemon=True)
    thread.start()
    assert reach(types.SimpleNamespace(llama_queue=requests), timeout=10).model is model
    requests.put(None)
    thread.join()
    assert module.generate_long is generate_long
