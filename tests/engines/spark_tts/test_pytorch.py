"""Tokens of PyTorch's own loop: each when it is drawn, none after the listener has gone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.engines.spark_tts import SparkAdapter
from accelerator.engines.spark_tts.pytorch import tokens
from accelerator.speech import SamplingParams
from tests.engines.spark_tts.double import SparkTTS
from tests.engines.spark_tts.test_adapter_faults import STYLE, Failing


class Counting:
    """A language model that counts its passes; after `most` of them it fails."""

    def __init__(self, model: Any, most: float = float("inf")) -> None:
        self.model, self.most, self.passes = model, most, 0
        self.kept = [model.register_forward_pre_hook(lambda *_: self._counted())]

    def _counted(self) -> None:
        self.passes += 1
        if self.passes > self.most:
            raise RuntimeError("by the test")


@pytest.fixture
def counting(speaking: Any) -> Iterator[Counting]:
    made = Counting(speaking)
    yield made
    for hook in made.kept:
        hook.remove()


def asked(adapter: SparkAdapter, **sampling: Any) -> Any:
    return adapter._generate_in_torch(adapter._proof_prompt(), SamplingParams(max_new_tokens=40, **sampling))


def test_tokens_are_the_engines_and_its_random_state_the_users(engine: Any) -> None:
    adapter = SparkAdapter(engine)
    whole = list(asked(adapter, temperature=0))
    own = engine.model.generate(
        input_ids=torch.from_numpy(adapter._proof_prompt())[None], do_sample=False, max_new_tokens=40
    )
    assert whole == own[0, len(adapter._proof_prompt()) :].tolist()
    reply = asked(adapter, temperature=0)
    assert [next(reply) for _ in range(3)] == whole[:3]
    reply.close()
    state = torch.random.get_rng_state()
    assert len(list(asked(adapter, seed=1))) > 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_token_is_there_when_it_is_drawn_and_none_is_drawn_for_who_has_gone() -> None:
    """Of a reply of thousands: its model stands after the next token."""
    held, drawn = threading.Event(), list[int]()

    def generate(criteria: Any) -> None:
        for token in range(3000):
            drawn.append(token)
            if bool(criteria(torch.tensor([[token]]), None)[0]):
                return
            if token == 5:
                held.wait(10)

    reply = tokens(generate, contextlib.nullcontext)
    assert [next(reply) for _ in range(3)] == [0, 1, 2]
    threading.Timer(0.05, held.set).start()
    reply.close()
    assert drawn == list(range(7))


def test_replies_wait_for_each_other() -> None:
    """They share PyTorch's random state."""
    lock, begun = threading.Lock(), list[str]()

    @contextlib.contextmanager
    def one_by_one() -> Iterator[None]:
        with lock:
            yield

    def generate(criteria: Any) -> None:
        begun.append("begun")

    with lock:
        reply = tokens(generate, one_by_one)
        waiting = threading.Thread(target=lambda: next(reply, None))
        waiting.start()
        waiting.join(0.1)
        assert begun == []
    waiting.join(10)
    assert begun == ["begun"]


@pytest.mark.parametrize("most", [1, 7, 20])
def test_what_fails_there_is_told(engine: Any, counting: Counting, most: int) -> None:
    counting.most = most
    reply = asked(SparkAdapter(engine), temperature=0)
    with pytest.raises(RuntimeError, match="by the test"):
        list(reply)
    assert counting.passes == most + 1


def test_a_stream_that_is_closed_ends_its_fallback(tokens: Any, speaking: Any, counting: Counting) -> None:
    """The parts have failed at the first token, so that PyTorch draws all of them."""
    own = SparkTTS(tokens, speaking)
    adapter = Failing(own)
    adapter.broken, adapter.good = "text2semantic", 0
    with UniversalOptimizer(own, adapter=adapter, precision="fp32", threads=1, probe=False) as optimizer:
        optimizer.prepare()
        expected = optimizer.synthesize("one two three", seed=1, **STYLE)
        counting.passes = 0
        stream = optimizer.stream("one two three. " * 60, seed=1, **STYLE)
        next(stream)
        stream.close()
        assert all(each.name != "spark-tts" for each in threading.enumerate())
        passed = counting.passes
        np.testing.assert_array_equal(optimizer.synthesize("one two three", seed=1, **STYLE).audio, expected.audio)
        assert passed < 3000
