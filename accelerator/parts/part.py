"""A replaceable part of an engine, and the backends that it may run on instead of the engine's own code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..export.component import Component, Export
from ..hardware import HardwareProfile, Tier
from ..runtime.options import Dtype, RunOptions

__all__ = ["Backend", "Call", "Machine", "Part", "Pruned", "Stage", "seconds"]

Call = Callable[..., Any]
Stage = Literal["text", "reference", "generate", "decode"]


@dataclass(frozen=True)
class Machine:
    """What a backend would run on: the hardware, and what its owner asks for.

    tier: the first guess for a typical model. threads: per session; None lets a probe choose.
    precision: "auto", or the first one to try. providers: chains of ONNX Runtime's execution providers to try beside
    the CPU alone. engines: where those keep what they make; see `RunOptions`.
    """

    profile: HardwareProfile
    tier: Tier
    threads: int | None = None
    precision: str = "auto"
    providers: tuple[tuple[str, ...], ...] = ()
    engines: str = ""


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
    shared: they make the same call as one does alone, on however many threads; else one of their own, on one thread.
    kinds: `dtypes`, where `offers` would load what need not be loaded if the part runs on another backend.
    """

    name: str
    components: tuple[Component, ...]
    offers: Callable[[Machine], Sequence[RunOptions]]
    load: Callable[[Mapping[str, Path], RunOptions], Call]
    proven: Callable[[RunOptions, Mapping[str, Export]], bool] = _always
    probed: bool = False
    concurrent: bool = True
    shared: bool = False
    kinds: Callable[[Machine], Sequence[Dtype]] | None = None

    def dtypes(self, machine: Machine) -> Sequence[Dtype]:
        """What its settings multiply in, in their order; () if it cannot run here."""
        return [each.dtype for each in self.offers(machine)] if self.kinds is None else self.kinds(machine)


@dataclass(frozen=True)
class Pruned:
    """A way to have less of a part, for those who ask: a backend of one component, which is proven as any other.

    less: what there is less of. instead: None for what is to be faster, and used only where it is; for what is only
    smaller, the name of the whole component, in whose place it is used.
    """

    backend: Backend
    less: str
    instead: str | None = None

    @property
    def component(self) -> Component:
        return self.backend.components[0]


def _nothing(share: float) -> Sequence[Pruned]:
    return ()


@dataclass(frozen=True)
class Part:
    """One replaceable stage of an engine.

    original: the engine's own implementation, which must not depend on anything that the routed copy changes; backends
    answer with the same types. probe(call): times a small typical workload on any implementation, in seconds per frame
    or per second of audio. backends: the likely winner first. runs_on: the original's name in metrics. check(answer):
    raises BadOutput if an answer cannot be right (of a part that streams, it sees every item). streams: the part yields
    items and takes `resume`, a list of the items already yielded, to continue after them. pruned(share): the ways to
    have this share less of it, in the order in which they are tried. identity: whose tuning it has; by default, that of
    the weights of its backends.
    """

    name: str
    stage: Stage
    original: Call
    probe: Callable[[Call], float]
    backends: tuple[Backend, ...] = ()
    runs_on: str = "pytorch"
    check: Callable[[Any], Any] = lambda _: None
    streams: bool = False
    pruned: Callable[[float], Sequence[Pruned]] = _nothing
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
