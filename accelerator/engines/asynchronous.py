"""Coroutines and asynchronous iterators -> plain iterators, for callers who know nothing of event loops."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import EngineError

__all__ = ["as_it_comes", "is_asynchronous"]


def is_asynchronous(answer: Any) -> bool:
    return inspect.isawaitable(answer) or hasattr(answer, "__aiter__")


def as_it_comes(answer: Any, who: str) -> Iterator[Any]:
    """A coroutine's result, item by item if that is an asynchronous iterator, run on an event loop of its own.

    The loop runs only while an item is waited for; closing this closes the iterator and cancels what it has begun.
    who: the answering engine, for messages. Raises EngineError where another event loop is running.
    """
    _check_no_loop(who, answer)
    loop, items = asyncio.new_event_loop(), list[Any]()

    async def speak() -> None:  # one task for all items: a context entered in a task must be left in that task
        source = await answer if inspect.isawaitable(answer) else answer
        if not hasattr(source, "__aiter__"):
            items.append(source)
            return
        source = aiter(source)
        try:
            async for each in source:
                items.append(each)
                loop.stop()
                await asyncio.sleep(0)  # continues when the next item is asked for
        finally:
            if hasattr(source, "aclose"):
                await source.aclose()

    def stop(_: object) -> None:
        loop.stop()

    task = loop.create_task(speak())
    task.add_done_callback(stop)
    try:
        while not task.done():
            _check_no_loop(who)
            loop.run_forever()
            while items:
                yield items.pop(0)
        task.result()
    finally:
        task.remove_done_callback(stop)
        task.cancel()  # before the loop runs again and would produce one more item
        _outside_of_loops(lambda: _end(loop, task))


def _end(loop: asyncio.AbstractEventLoop, last: asyncio.Task[None]) -> None:
    """As asyncio.run() does it: once `last` is through, what is still going on is cancelled, and may clean up."""

    async def rest() -> None:
        await asyncio.wait([last])
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()

    try:
        loop.run_until_complete(rest())
    finally:
        loop.close()


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _check_no_loop(who: str, answer: Any = None) -> None:
    if _in_a_loop():
        if inspect.iscoroutine(answer):
            answer.close()  # or Python warns that it was never awaited
        raise EngineError(f"{who} is asynchronous, and an event loop is running here: use `await asynthesize(...)`")


def _outside_of_loops(work: Callable[[], None]) -> None:
    """Run `work` outside of event loops: a stream may be dropped, and so closed, within one."""
    if _in_a_loop():
        with ThreadPoolExecutor(1, "accelerator-end") as apart:
            apart.submit(work).result()
    else:
        work()
