"""A replaceable part of an engine, and the backends that it may run on instead of the engine's own code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..export.component import Component, Export
from ..hardware import HardwareProfile, Tier
from ..runtime.options import RunOptions

__all__ = ["Backend", "Call", "Machine", "Part", "Stage", "seconds"]

Call = Callable[..., Any]
Stage = Literal["text", "reference", "generate", "decode"]


@dataclass(frozen=True)
class Machine:
    """What a backend would run on: the hardware, and what its owner asks for.

    tier: the first guess for a typical model. threads: per session; None lets a probe choose.
    precision: "auto", or the first one to try.
    """

    profile: HardwareProfile
    tier: Tier
    threads: int | None = None
    precision: str = "auto"


def _always(options: RunOptions, exports: Mapping[str, Export]) -> bool:
    return True


@dataclass(frozen=True)
class Backend:
    """One way to run a part.

    components: what is exported for it; two backends may share one. offers(machine): the settings worth trying; () if
    it cannot run here. proven(options, exports by component name): whether these exports may run so.
    load(directories by component name, options): the part's call, with the signature of `Part.original`; raises
    SessionError. The directory of a component that is `beside` another one may be missing. probed: used only where a
    probe found it faster. concurrent: whether several threads may call it at once; if not, calls wait for each other.
    """

    name: str
    components: tuple[Component, ...]
    offers: Callable[[Machine], Sequence[RunOptions]]
    load: Callable[[Mapping[str, Path], RunOptions], Call]
    proven: Callable[[RunOptions, Mapping[str, Export]], bool] = _always
    probed: bool = False
    concurrent: bool = True


@dataclass(frozen=True)
class Part:
    """One replaceable stage of an engine.

    original: the engine's own implementation, which must not depend on anything that the routed copy changes; backends
    answer with the same types. probe(call): times a small typical workload on any implementation, in seconds per frame
    or per second of audio. backends: the likely winner first. runs_on: the original's name in metrics. check(answer):
    raises BadOutput if an answer cannot be right (of a part that streams, it sees every item). streams: the part yields
    items and takes `resume`, a list of the items already yielded, to continue after them. identity: whose tuning it
    has; by default, that of the weights of its backends.
    """

    name: str
    stage: Stage
    original: Call
    probe: Callable[[Call], float]
    backends: tuple[Backend, ...] = ()
    runs_on: str = "pytorch"
    check: Callable[[Any], Any] = lambda _: None
    streams: bool = False
    identity: Callable[[], str] | None = None

    @property
    def components(self) -> tuple[Component, ...]:
        """What its backends need, each once."""
        found = {component.name: component for backend in self.backends for component in backend.components}
        return tuple(found.values())


def seconds(call: Call, *arguments: Any) -> float:
    """How long a call takes, the second time: for a part's `probe`."""
    call(*arguments)
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start
