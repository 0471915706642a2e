"""Requests on their way to the thread that serves them."""

from __future__ import annotations

import contextvars

import pytest

from accelerator.engines.fish_speech import routed
from accelerator.errors import Closed
from accelerator.speech import SamplingParams


def test_requests_keep_the_context_they_were_made_in() -> None:
    requests, seen = routed._Requests(), contextvars.ContextVar("seen", default=0)
    for value in (1, 2):
        contextvars.Context().run(lambda v=value: (seen.set(v), requests.put(f"request {v}")))  # type: ignore[misc]
    for value in (1, 2):
        context, item = requests.get()
        assert (context[seen], item) == (value, f"request {value}")
    assert seen.get() == 0
    requests.closed = True
    with pytest.raises(Closed):
        requests.put("late")
    requests.put(None)


def test_batches_of_a_request_draw_different_numbers() -> None:
    request = routed._Request(SamplingParams(seed=7, temperature=0.0))
    first, second = (request.params({"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 0.9}, 5) for _ in range(2))
    assert (first.seed, first.temperature, first.top_p, first.repetition_penalty) == (7, 0.0, 0.7, 0.9)
    assert first.max_new_tokens == 5
    assert second.seed not in (7, None)
    again = routed._Request(SamplingParams(seed=7))
    assert [again.params({}, 5).seed for _ in range(2)] == [7, second.seed]
