"""Stand-ins for what takes long: parts that are PyTorch's own code, and exports of one byte."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from accelerator import UniversalOptimizer
from accelerator.audio.joiner import Joiner
from accelerator.engines.base import Job
from accelerator.engines.reference import ReferenceAdapter
from accelerator.export.component import Component
from accelerator.parts.backends import compiled_kernels, onnx_runtime, rewritten
from accelerator.parts.decoding import Joined
from accelerator.parts.part import Part
from accelerator.pipeline.selection import Choice
from accelerator.speech import SpeechRequest
from accelerator.text.check import Unread
from accelerator.text.segments import Segment

__all__ = ["BareStages", "QuickAdapter", "component", "joined", "part", "probe", "pulses", "replica", "voice"]


def replica(engine: Any, options: Mapping[str, Any] | None = None, **calls: Any) -> UniversalOptimizer:
    """`engine` wrapped, every part "in ONNX Runtime" by PyTorch's own code, or by what `calls` makes of the part."""
    optimizer = UniversalOptimizer(engine, **dict(options or {}))
    for name, route in optimizer._routes.items():
        make = calls.get(name, lambda part: part.original)
        route._choice = Choice(make(route.part), "by the test")
    return optimizer


def voice(engine: Any) -> tuple[np.ndarray, int]:
    t = np.arange(engine.sample_rate) / engine.sample_rate
    return (0.3 * np.sin(2 * np.pi * 180 * t)).astype(np.float32), engine.sample_rate


def component(name: str, *, build: Any = None, prove: Any = None) -> Component:
    def write(directory: Any, precision: str, progress: Any) -> None:
        (directory / "weights.bin").write_bytes(b"1")

    return Component(
        name,
        identity=lambda: "0" * 64,
        config={"for": "a test"},
        precisions=("fp32",),
        build=build or write,
        prove=prove or (lambda built: {"passed": True, "bar": {}}),
    )


def part(
    *,
    load: Any,
    components: tuple[Component, ...] | None = None,
    rewrite: Component | None = None,
    compiled: Callable[[Any], bool] | None = None,
    **fields: Any,
) -> Part:
    """A part on ONNX Runtime; rewritten, if there is a `rewrite`; and on kernels, if `compiled` says so of its path."""
    components = components or (component("quick"),)
    backends = [rewritten(rewrite, load)] if rewrite is not None else []
    if compiled is not None:
        name, known = components[-1].name, compiled
        backends.append(
            compiled_kernels(
                components, load, available=lambda: True, proven=lambda _, exports: known({name: exports[name].path})
            )
        )
    given = {"name": "quick", "stage": "decode", "backends": (*backends, onnx_runtime(components, load)), **fields}
    return Part(**given)


def joined(segments: Iterable[tuple[Iterable[np.ndarray], float]], sample_rate: int) -> np.ndarray:
    """The audio of (chunks, pause_s) pairs; the last pair's pause is not used."""
    joiner, audio, pause_s = Joiner(sample_rate), [np.zeros(0, np.float32)], None
    for chunks, next_pause_s in segments:
        if pause_s is not None:
            audio += joiner.end_of_segment(pause_s)
        for chunk in chunks:
            audio += joiner.push(chunk)
        pause_s = next_pause_s
    return np.concatenate([*audio, *joiner.finish()])


class BareStages:
    """Stages that do nothing in particular; `given` are the segments of any text, `voice` is whoever is asked for."""

    schedule: Any = "batched"
    windows: Sequence[int] = (4, 8, 16, 32, 64)
    unit_s: float | None = None
    given: Sequence[Segment] = ()

    def accepts(self, request: SpeechRequest) -> bool:
        return True

    def unread(self, text: str) -> Unread:
        return Unread()

    def segments(self, request: SpeechRequest, *, soon: bool) -> list[Segment]:
        return list(self.given)

    def shortest(self, text: str) -> float:
        return 0.0

    def encode(self, reference: Any) -> Any:
        raise AssertionError("nothing to encode")

    def voice(self, request: SpeechRequest, kept: Any) -> Any:
        return request.voice

    def generate(self, segment: Segment, voice: Any, job: Job, *, resume: Sequence[Any] = ()) -> Iterator[Any]:
        raise NotImplementedError

    def decoder(self, voice: Any, job: Job) -> Any:
        return Joined()

    def waits(self, voice: Any) -> bool:
        return voice is None

    def continued(self, segment: Segment, units: Sequence[Any], voice: Any) -> Any:
        return voice


class QuickAdapter(ReferenceAdapter):
    """The reference adapter with exports of one byte; `changed` replaces fields of parts by name."""

    def __init__(self, engine: Any, **changed: dict[str, Any]) -> None:
        super().__init__(engine)
        self._changed = changed

    def parts(self) -> list[Part]:
        return [self._quick(each) for each in super().parts()]

    def _quick(self, own: Part) -> Part:
        changed = dict(self._changed.get(own.name, {}))
        components = changed.pop("components", (component(own.name),))
        load = changed.pop("load", lambda paths, options: lambda *a, **k: own.original(*a, **k))
        backends = (onnx_runtime(components, load),)
        return replace(own, **{"backends": backends, "probe": probe(slow="torch"), **changed})


def probe(slow: str) -> Callable[[Any], float]:
    """A clock for which PyTorch ("torch", the engine's own methods) or anything else ("onnx") is slow."""
    return lambda call: 2.0 if inspect.ismethod(call) is (slow == "torch") else 1.0


def pulses(seconds: float = 3.0, rate: int = 16_000) -> np.ndarray:
    """What passes for clear speech: a buzz of all frequencies that comes and goes."""
    t = np.arange(round(seconds * rate))
    return ((0.9 * (t % (rate // 120) == 0)) * (np.sin(2 * np.pi * 0.7 * t / rate) > -0.6)).astype(np.float32)
