"""Many requests: threads, batches, event loops, the queue, and voices that they share."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelerator import Speech, UniversalOptimizer
from accelerator.errors import (
    GenerationError,
    InvalidOption,
    InvalidText,
    Overloaded,
)
from accelerator.parts.part import Part
from tests.doubles import replica, voice

TEXT = "Hello there."
SHORT: dict[str, Any] = {"max_new_tokens": 10}


# Threads


def test_concurrent_requests_equal_their_serial_twins(fast: UniversalOptimizer, tiny: Any) -> None:
    voices = [None, voice(tiny), (voice(tiny)[0][::-1].copy(), tiny.sample_rate)]
    requests = [
        {"text": f"Number {n}.", "reference_audio": voices[n % 3], "seed": n % 8, "max_new_tokens": 3 + n % 5}
        for n in range(32)
    ]
    serial = [fast.synthesize(**request).audio for request in requests]
    answers: dict[int, np.ndarray] = {}
    gate = threading.Barrier(32)

    def work(n: int) -> None:
        gate.wait()
        answers[n] = fast.synthesize(**requests[n]).audio

    threads = [threading.Thread(target=work, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, expected in enumerate(serial):
        np.testing.assert_array_equal(answers[n], expected, err_msg=str(n))


def test_streams_may_interleave(fast: UniversalOptimizer) -> None:
    expected = [fast.synthesize(f"Stream {n}.", seed=n, max_new_tokens=24).audio for n in range(3)]
    streams = [fast.stream(f"Stream {n}.", seed=n, max_new_tokens=24) for n in range(3)]
    turns = [[next(stream).audio for stream in streams] for _ in range(3)]
    for n, stream in enumerate(streams):
        assert list(stream) == []
        np.testing.assert_allclose(np.concatenate([turn[n] for turn in turns]), expected[n], rtol=0, atol=2e-6)
        assert stream.metrics["frames"] == 24


def test_a_long_run_keeps_memory_flat(fast: UniversalOptimizer) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    lengths = [3, 16, 7, 12, 2]

    def run(count: int) -> int:
        for n in range(count):
            fast.synthesize("word " * (1 + n % 40), seed=n, max_new_tokens=lengths[n % 5])
        gc.collect()
        return int(process.memory_info().rss)

    before = run(40)
    assert run(100) - before < 16 << 20


# Many at once

WORDS = ["One.", "Two and three.", "Four.", "Five, six, seven.", "Eight."]


def test_a_batch_is_what_one_by_one_would_be(fast: UniversalOptimizer) -> None:
    options: dict[str, Any] = {"seed": 4, "max_new_tokens": 20}
    answers = fast.synthesize_batch(WORDS, **options)
    for text, answer in zip(WORDS, answers, strict=True):
        assert isinstance(answer, Speech)
        np.testing.assert_array_equal(answer.audio, fast.synthesize(text, **options).audio)
        assert answer.metrics["frames"] == 20
    assert fast.synthesize_batch([]) == []
    with pytest.raises(InvalidOption, match="list of texts"):
        fast.synthesize_batch("one text")
    with pytest.raises(InvalidOption, match="speed"):
        fast.synthesize_batch(WORDS, speed=2)


def test_a_batch_with_a_bad_text_speaks_the_others(fast: UniversalOptimizer) -> None:
    texts = [WORDS[0], "?!", WORDS[1]]
    first, bad, last = fast.synthesize_batch(texts, seed=4, max_new_tokens=5, return_exceptions=True)
    assert isinstance(bad, InvalidText)
    for text, answer in ((WORDS[0], first), (WORDS[1], last)):
        assert isinstance(answer, Speech)
        np.testing.assert_array_equal(answer.audio, fast.synthesize(text, seed=4, max_new_tokens=5).audio)
    with pytest.raises(InvalidText):
        fast.synthesize_batch(texts, max_new_tokens=5)


def test_asyncio(fast: UniversalOptimizer) -> None:
    async def several() -> list[Speech]:
        ticks = 0

        async def ticking() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        clock = asyncio.create_task(ticking())
        answers = await asyncio.gather(*(fast.asynthesize(t, seed=4, max_new_tokens=20) for t in WORDS))
        clock.cancel()
        assert ticks > 1, "the event loop goes on meanwhile"
        with pytest.raises(InvalidText):
            await fast.asynthesize("")
        return answers

    for text, answer in zip(WORDS, asyncio.run(several()), strict=True):
        np.testing.assert_array_equal(answer.audio, fast.synthesize(text, seed=4, max_new_tokens=20).audio)


def test_a_cancelled_task_ends_its_generation(tiny: Any) -> None:
    drawn, begun, left = [], threading.Event(), threading.Event()

    def endless(part: Part) -> Any:
        def call(prompt: np.ndarray, params: Any, **_: Any) -> Iterator[np.ndarray]:
            frame = next(part.original(prompt, params))
            try:
                while len(drawn) < 10**6:
                    drawn.append(1)
                    begun.set()
                    yield frame
            finally:
                left.set()

        return call

    async def main(optimizer: UniversalOptimizer) -> None:
        task = asyncio.create_task(optimizer.asynthesize("Never mind."))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(left.wait, 30)

    asyncio.run(main(replica(tiny, text2semantic=endless)))
    assert len(drawn) < 10**6


def test_a_stream_may_be_closed_by_another_thread(tiny: Any) -> None:
    going = threading.Event()

    def endless(part: Part) -> Any:
        def call(prompt: np.ndarray, params: Any, **_: Any) -> Iterator[np.ndarray]:
            frame = next(part.original(prompt, params))
            while True:
                going.set()
                yield frame

        return call

    optimizer = replica(tiny, {"split_text": False}, text2semantic=endless)
    stream = optimizer.stream("Never mind.")
    errors: list[BaseException] = []

    def listen() -> None:
        try:
            for _ in stream:
                pass
        except GenerationError as error:
            errors.append(error)

    listener = threading.Thread(target=listen)
    listener.start()
    assert going.wait(30)
    stream.close()
    listener.join(30)
    assert not listener.is_alive()
    assert not errors or "nobody listens" in str(errors[0])


def test_the_queue_is_bounded(tiny: Any) -> None:
    optimizer = replica(tiny, {"queue_size": 2})
    streams = [optimizer.stream(TEXT, **SHORT) for _ in range(3)]
    for stream in streams[:2]:
        next(stream)
    with pytest.raises(Overloaded, match="2 requests"):
        next(streams[2])
    with pytest.raises(Overloaded):
        optimizer.synthesize(TEXT, **SHORT)
    streams[0].close()
    assert len(optimizer.synthesize(TEXT, **SHORT).audio) > 0
    streams[1].close()
    for wrong in (0, True, "8"):
        with pytest.raises(InvalidOption, match="queue_size"):
            UniversalOptimizer(tiny, queue_size=wrong)  # type: ignore[arg-type]


def test_a_voice_by_name(tiny: Any, fast: UniversalOptimizer) -> None:
    with pytest.raises(InvalidOption, match="no voice 'anna'"):
        fast.synthesize(TEXT, voice="anna", **SHORT)
    with pytest.raises(InvalidOption, match="give one of them"):
        fast.synthesize(TEXT, voice(tiny), voice="anna", **SHORT)

    class Anyone:
        sample_rate = 8000

        def synthesize(self, text: str) -> np.ndarray:
            return np.full(800, 0.1, np.float32)

    with pytest.raises(InvalidOption, match="knows no voices"):
        UniversalOptimizer(Anyone()).synthesize(TEXT, voice="anna")


def test_a_voice_is_encoded_once_also_by_the_next_process(tiny: Any, tmp_path: Path) -> None:
    counts = []
    for _ in range(2):
        calls: list[int] = []

        def counted(part: Part, calls: list[int] = calls) -> Any:
            return lambda audio: calls.append(1) or part.original(audio)  # type: ignore[func-returns-value]

        optimizer = replica(tiny, {"cache_dir": tmp_path}, encoder=counted)
        answers = [optimizer.synthesize(TEXT, voice(tiny), "la", seed=1, **SHORT).audio for _ in range(2)]
        np.testing.assert_array_equal(answers[0], answers[1])
        counts.append(len(calls))
    assert counts == [1, 0]
