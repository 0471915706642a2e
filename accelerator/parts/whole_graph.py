"""Engines that are one ONNX graph: the part, and what the engine calls its session then.

The part's original is the engine's own session, whose settings are the engine's; other backends run the same graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..audio.checks import check_audio
from ..runtime.borrowed import model_of
from .backends import ONNX_RUNTIME, onnx_runtime, openvino
from .onnx_file import Feed, model_digest, onnx_file, run_session
from .part import Backend, Call, Part, seconds

__all__ = ["GRAPH", "RoutedSession", "Speak", "heard", "whole_graph"]

GRAPH = "graph"

Speak = Callable[[Any], object]
"""Has the engine say something by the session that it is given."""


def whole_graph(session: Any, speeches: Sequence[Speak], sample_rate: int, *, beside: Sequence[Backend] = ()) -> Part:
    """The part of an engine that is one graph; the graph's first output is audio.

    session: the engine's own. speeches: of several lengths; the first one is what is timed. beside: backends of other
    graphs with the same inputs and outputs, see `dequantized`.
    """
    identity = functools.cache(lambda: model_digest(session))
    timed = functools.cache(lambda: heard(session, speeches[0])[0][0])

    def examples() -> Iterator[tuple[Feed, Sequence[np.ndarray]]]:
        for speak in speeches:
            yield from heard(session, speak)

    model = functools.partial(model_of, session)
    component = onnx_file(GRAPH, model, identity, {"part": GRAPH}, examples=examples)
    load = functools.partial(run_session, GRAPH)
    return Part(
        GRAPH,
        "decode",
        original=lambda feed: session.run(None, feed),
        probe=lambda call: seconds(call, timed()),
        backends=(onnx_runtime((component,), load), openvino(component, load, examples), *beside),
        runs_on=ONNX_RUNTIME,
        check=lambda answers: check_audio(np.ravel(answers[0]), sample_rate),
    )


class RoutedSession:
    """What an engine calls its session, on the routed part; whatever else it is asked, the engine's own session."""

    def __init__(self, own: Any, call: Call, *, exclusive: bool = True) -> None:
        """exclusive: see `engines.base.Job`."""
        self._own, self._call = own, call
        self._beside: Mapping[str, Any] = {} if exclusive else {"exclusive": False}

    def run(self, outputs: Sequence[str] | None, feed: Feed, options: Any = None) -> list[np.ndarray]:
        names = [output.name for output in self._own.get_outputs()]
        if options is not None or not set(outputs or ()) <= set(names):
            return list(self._own.run(outputs, feed, options))
        answers = self._call(feed, **self._beside)
        return [answers[names.index(name)] for name in outputs or names]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class _Listening:
    """The engine's own session; what it is asked and what it answers is kept."""

    def __init__(self, own: Any) -> None:
        self._own, self.heard = own, list[tuple[Feed, Sequence[np.ndarray]]]()

    def run(self, outputs: Sequence[str] | None, feed: Feed, options: Any = None) -> Any:
        answers = self._own.run(None, feed, options)
        self.heard.append((dict(feed), answers))
        names = [output.name for output in self._own.get_outputs()]
        return [answers[names.index(name)] for name in outputs or names]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def heard(session: Any, speak: Speak) -> list[tuple[Feed, Sequence[np.ndarray]]]:
    """What an engine asks the session while it speaks, inputs by name, and what it is answered."""
    listening = _Listening(session)
    speak(listening)
    return listening.heard
