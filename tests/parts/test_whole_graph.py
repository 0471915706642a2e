"""A session for an engine that is one graph: what is routed, and what the engine's own session answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from accelerator.errors import BadOutput, SessionError
from accelerator.parts.whole_graph import GRAPH, RoutedSession, whole_graph
from tests.engines import graph_double as graph

FEED = {
    "input_ids": np.array([[0, 5, 9, 0]]),
    "style": np.full((1, graph.STYLE), 0.5, np.float32),
    "speed": np.ones(1, np.float32),
}


@pytest.fixture
def own() -> Any:
    return graph.session(graph.model())


@pytest.mark.parametrize(("outputs", "routed"), [(None, True), (["duration"], True), (["nothing"], False)])
def test_what_the_graph_has_is_routed(own: Any, outputs: Any, routed: bool) -> None:
    asked = list[Any]()

    def call(feed: Any, **beside: Any) -> list[np.ndarray]:
        asked.append(beside)
        return [np.array([1.0]), np.array([3, 3])]

    session = RoutedSession(own, call, exclusive=False)
    if routed:
        answers = session.run(outputs, FEED)
        assert [each.tolist() for each in answers] == ([[1.0], [3, 3]] if outputs is None else [[3, 3]])
        assert asked == [{"exclusive": False}]
    else:
        with pytest.raises(InvalidArgument, match="nothing"):
            session.run(outputs, FEED)
        assert asked == []


def test_run_options_are_for_the_engines_own_session(own: Any) -> None:
    session = RoutedSession(own, lambda feed, **beside: pytest.fail("not to be asked"))
    audio, duration = session.run(None, FEED, onnxruntime.RunOptions())
    assert audio.shape == (4 * 3 * graph.HOP,)
    assert duration.tolist() == [3, 3, 3, 3]
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_the_part_is_timed_and_proven_on_what_the_engine_asks(own: Any) -> None:
    longer = {**FEED, "input_ids": np.arange(30)[None]}
    speeches = [lambda session: session.run(None, FEED), lambda session: session.run(["waveform"], longer)]
    part = whole_graph(own, speeches, 24_000)
    component = part.components[0]
    assert part.runs_on == "onnxruntime"
    assert component.name == GRAPH
    assert len(component.identity()) == 64

    asked = list[int]()

    def call(feed: Any) -> Any:
        asked.append(feed["input_ids"].shape[1])
        return own.run(None, feed)

    assert part.probe(call) > 0
    assert asked == [4, 4]  # the first speech, twice
    with pytest.raises(BadOutput, match="NaN"):
        part.check([np.full(9, np.nan, np.float32)])


def test_a_session_without_a_model_has_no_identity(own: Any) -> None:
    part = whole_graph(graph.Session(own), [lambda session: session.run(None, FEED)], 24_000)
    with pytest.raises(SessionError, match="which model Session runs"):
        part.components[0].identity()
