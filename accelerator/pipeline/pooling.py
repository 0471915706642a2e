"""How many segments of a text are spoken at once: a pool of one-thread calls, or one after the other on all threads.

It is chosen as a part's backend is: measured, kept as a tuning, and measured again where a busy machine chose. Both
ways make the same calls with the same seeds, so that the audio is the same but for rounding (a session on one thread
may add in another order than one on several).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..cache import make_key
from ..engines.base import Stages
from ..parts.part import Backend, Machine, Part
from ..runtime.options import RunOptions
from .fallback import Route
from .selection import Choice
from .tuning import POOL, SEGMENTS, Way

__all__ = ["pooling"]


def pooling(stages: Stages | None, routes: Mapping[str, Route], load: Callable[[Part], Choice]) -> Route | None:
    """What a pooled engine's segments are spoken by; None for others, and for those without a part to be measured.

    Its choice's call answers how many are spoken at once. Without a call it is one after the other.
    """
    pooled = stages is not None and stages.schedule == "pooled"
    return Route(_part(list(routes.values())), load) if pooled and routes else None


def _part(routes: Sequence[Route]) -> Part:
    def probe(call: Callable[[], int]) -> float:
        at_once, speak = call(), functools.partial(_speak, routes)
        tries = 2 if at_once == 1 else 1  # a selector times a backend twice, and what is there already once
        return min(_seconds(speak, at_once) for _ in range(tries))

    backend = Backend(POOL, (), _offers, lambda _, options: lambda: options.threads)
    identity = functools.partial(_identity, routes)
    return Part(SEGMENTS, "generate", lambda: 1, probe, (backend,), runs_on="one after the other", identity=identity)


def _offers(machine: Machine) -> list[RunOptions]:
    threads = machine.threads or machine.profile.usable_cores
    return [RunOptions(threads=threads, backend=POOL)] if threads > 1 else []


def _speak(routes: Sequence[Route], exclusive: bool) -> None:
    """What stands for a segment: each part's own probe, as `pooled` would call the part."""
    for route in routes:
        beside: dict[str, Any] = {} if exclusive or route.part.streams else {"exclusive": False}
        route.part.probe(functools.partial(route, **beside))


def _seconds(speak: Callable[[bool], None], at_once: int) -> float:
    """For one of several segments."""
    count, begun = max(2, at_once), time.perf_counter()
    with ThreadPoolExecutor(at_once, "accelerator-probe") as pool:
        list(pool.map(speak, [at_once == 1] * count))
    return (time.perf_counter() - begun) / count


def _identity(routes: Sequence[Route]) -> str:
    """Of the parts' weights and of what they run on, as far as it is heard: other ways are measured by themselves."""
    found = {}
    for route in routes:
        part, choice = route.part, route.prepare()
        weights = part.components[0].identity() if part.components else part.name
        way = "" if choice.options is None else Way(choice.backend or "", choice.options).sound
        found[part.name] = weights, choice.precision, way
    return make_key(**found)
