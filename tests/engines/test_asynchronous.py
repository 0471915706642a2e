"""Engines of coroutines and generators: pieces are heard as they come, and what makes them is closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from accelerator import UniversalOptimizer
from accelerator.errors import EngineError, GenerationError
from tests.engines.plain import TONE, Plain


def test_coroutines_are_run() -> None:
    class Later:
        async def tts(self, text: str) -> Any:
            return TONE, 8000

    class Pieces:
        async def tts(self, text: str) -> Any:
            yield TONE, 8000
            yield TONE, 8000

    assert len(UniversalOptimizer(Later()).synthesize("Hello.").audio) == 800
    assert len(UniversalOptimizer(Pieces()).synthesize("Hello.").audio) == 1600

    async def within() -> Any:
        optimizer = UniversalOptimizer(Later())
        with pytest.raises(EngineError, match="await asynthesize"):
            optimizer.synthesize("Hello.")
        return await optimizer.asynthesize("Hello.")

    assert len(asyncio.run(within()).audio) == 800


async def pieces(said: list[Any], count: int = 3) -> AsyncIterator[Any]:
    """Notes what it does, and that it does it all in one task, as time limits and task groups need it."""
    task = asyncio.current_task()
    try:
        for number in range(count):
            said.append(number)
            yield TONE, 8000
    finally:
        await asyncio.sleep(0)
        said.append("closed" if asyncio.current_task() is task else "closed elsewhere")


class Asynchronous:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def tts(self, text: str) -> Any:
        return pieces(self.said)


class AsynchronousLater(Asynchronous):
    async def tts(self, text: str) -> Any:
        return pieces(self.said)


class Iterating(Asynchronous):
    """Not a generator, but an object with the methods of one."""

    def tts(self, text: str) -> Any:
        return Pieces(pieces(self.said))


class Pieces:
    def __init__(self, own: Any) -> None:
        self.own = own

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        return await self.own.__anext__()

    async def aclose(self) -> None:
        await self.own.aclose()


class Synchronous(Asynchronous):
    def tts(self, text: str) -> Any:
        try:
            for number in range(3):
                self.said.append(number)
                yield TONE, 8000
        finally:
            self.said.append("closed")


@pytest.mark.parametrize("kind", [Synchronous, Asynchronous, AsynchronousLater, Iterating])
def test_pieces_are_heard_as_they_come_and_what_makes_them_is_closed(kind: Any) -> None:
    engine = kind()
    stream = UniversalOptimizer(engine).stream("Hello.")
    next(stream)
    assert engine.said == [0]
    next(stream)
    assert engine.said == [0, 1]
    stream.close()
    assert engine.said == [0, 1, "closed"]
    engine.said.clear()
    assert len(UniversalOptimizer(engine).synthesize("Hello.").audio) == 2400
    assert engine.said == [0, 1, 2, "closed"]


@pytest.mark.parametrize("kind", [Synchronous, Asynchronous])
def test_a_stream_may_be_closed_in_an_event_loop(kind: Any) -> None:
    engine = kind()
    stream = UniversalOptimizer(engine).stream("Hello.")
    next(stream)

    async def close() -> None:
        stream.close()

    asyncio.run(close())
    assert engine.said == [0, "closed"]


def test_a_stream_that_another_thread_closes_ends_with_the_piece_that_is_being_made() -> None:
    going, closed = threading.Event(), threading.Event()

    class Busy(Synchronous):
        def tts(self, text: str) -> Any:
            for number, piece in enumerate(super().tts(text)):
                if number == 1:
                    going.set()
                    assert closed.wait(30)
                yield piece

    engine = Busy()
    stream = UniversalOptimizer(engine).stream("Hello.")
    heard: list[Any] = []
    listener = threading.Thread(target=lambda: heard.extend(until_an_error(stream)))
    listener.start()
    assert going.wait(30)
    stream.close()
    closed.set()
    listener.join(30)
    assert len(heard) == 3
    assert "nobody listens" in str(heard[-1])
    assert engine.said == [0, 1, "closed"]


def until_an_error(stream: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from stream
    except GenerationError as error:
        yield error


def test_what_makes_pieces_is_closed_when_one_is_no_audio() -> None:
    answer = Closing()
    with pytest.raises(EngineError, match="not audio"):
        UniversalOptimizer(Plain(answer)).synthesize("Hello.")
    assert answer.closed


class Closing:
    closed = False

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return object()

    def close(self) -> None:
        self.closed = True


def test_errors_of_asynchronous_engines_are_told() -> None:
    class Broken:
        async def tts(self, text: str) -> Any:
            yield TONE, 8000
            raise RuntimeError("out of order")

    stream = UniversalOptimizer(Broken()).stream("Hello.")
    next(stream)
    with pytest.raises(GenerationError, match="RuntimeError: out of order"):
        next(stream)


def test_what_an_asynchronous_engine_began_ends_with_it() -> None:
    ended: list[str] = []

    class Producing:
        async def tts(self, text: str) -> Any:
            async def produce() -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    ended.append("ended")

            self.task = asyncio.get_running_loop().create_task(produce())
            await asyncio.sleep(0)
            yield TONE, 8000

    assert len(UniversalOptimizer(Producing()).synthesize("Hello.").audio) == 800
    assert ended == ["ended"]
