"""Tokens by the engine's own `generate`, as they come: it answers at the end only, and knows no listener who goes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

__all__ = ["tokens"]


def tokens(generate: Callable[[Any], Any], seeded: Callable[[], AbstractContextManager[None]]) -> Iterator[int]:
    """The tokens of a reply, each as soon as it was drawn. Closed, it ends what generates them after the next one.

    generate(stopping criteria): called on a thread of its own. seeded: around that; may wait for other replies. Raises
    what `generate` raises.
    """
    from transformers import StoppingCriteriaList

    drawn: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    begun, gone = threading.Event(), threading.Event()

    def said(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Asked after each token whether the reply ends there."""
        drawn.put(int(ids[0, -1]))
        return torch.full((len(ids),), gone.is_set(), dtype=torch.bool, device=ids.device)

    def run() -> None:
        try:
            with seeded():
                begun.set()
                if not gone.is_set():
                    generate(StoppingCriteriaList([said]))
            drawn.put(None)
        except BaseException as error:  # whoever waits raises it
            drawn.put(error)

    thread = threading.Thread(target=run, name="spark-tts", daemon=True)
    thread.start()
    try:
        while (item := drawn.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()
        if begun.is_set():  # PyTorch's random state is its caller's again; one that still waits changes none
            thread.join()
